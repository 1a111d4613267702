internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointRecovery

/// The parts of pcfsck's JSON.
enum FsckJSON {
    static func file(_ run: FsckRun) -> JSONValue {
        let report = run.report
        return .dictionary([
            "path": .string(report.path),
            "error": .null,
            "exit_status": .count(Int(run.status.rawValue)),
            "file_byte_count": .integer(report.fileByteCount),
            "depth": .string(report.depth.rawValue),
            "is_clean": .bool(report.isClean),
            "is_writer_at_work": .flag(run.isWriterAtWork),
            "file_uuid": .text(report.identity?.fileUUID),
            "verified_byte_count": .integer(report.verifiedByteCount),
            "findings": .array(report.findings.map(finding)),
            "slots": .array(report.slots.map(slot)),
            "resume": resume(report.resume),
            "repairs_made": .array(run.repairs.map(repair)),
            "repairs_possible": .array(report.plan.repairs.map(repair)),
            "repairs_planned": .array(run.fullPlan.repairs.map(repair)),
            "repair_refusal": .text(run.refusal ?? report.plan.refusal),
            "repair_questions": .array(run.questions.map(question)),
            "repair_notes": .array(run.notes.map { .string($0) }),
            "undo_file": .text(run.undoPath),
        ])
    }

    /// A file that could not be checked.
    static func failure(_ path: String, _ error: CheckpointError) -> JSONValue {
        .dictionary([
            "path": .string(path),
            "error": .string(error.message),
            "exit_status": .count(Int(ExitStatus(error.code).rawValue)),
        ])
    }

    private static func finding(_ finding: Finding) -> JSONValue {
        .dictionary([
            "id": .string(finding.id),
            "severity": .string(finding.severity.rawValue),
            "title": .string(finding.problem.title),
            "slot": number(finding.slot),
            "chunk": .number(finding.chunk.map(UInt64.init)),
            "byte_offset": .number(finding.byteOffset),
            "found": .string(finding.found),
            "expected": .string(finding.expected),
            "is_fixable": .bool(finding.isFixable),
            "explanation": .string(finding.problem.explanation),
            "advice": .string(finding.problem.advice),
        ])
    }

    private static func slot(_ slot: SlotCheck) -> JSONValue {
        .dictionary([
            "slot": number(slot.slot),
            "reason": .string(slot.reason.rawValue),
            "sequence": .number(slot.sequence?.rawValue),
            "step": .number(slot.step),
            "payload_byte_count": .number(slot.payloadByteCount),
            "is_verified": .bool(slot.isVerified),
            "damaged_chunk_count": .count(slot.damagedChunkCount),
        ])
    }

    private static func resume(_ verdict: ResumeVerdict) -> JSONValue {
        let choice = verdict.choice.map { choice in
            JSONValue.dictionary([
                "slot": number(choice.slot),
                "sequence": .integer(choice.sequence.rawValue),
                "step": .integer(choice.step),
                "kind": .string(choice.kind.rawValue),
            ])
        }
        return .dictionary([
            "choice": choice ?? .null,
            "is_proven": .bool(verdict.isProven),
            "rejected": .array(
                verdict.rejected.map { rejection in
                    .dictionary([
                        "slot": number(rejection.slot),
                        "sequence": .number(rejection.sequence?.rawValue),
                        "step": .number(rejection.step),
                        "reason": .string(rejection.reason.rawValue),
                        "explanation": .string(rejection.explanation),
                    ])
                }),
        ])
    }

    private static func repair(_ repair: Repair) -> JSONValue {
        .dictionary([
            "problem": .string(repair.problem.id),
            "class": .string(repair.fixClass.rawValue),
            "action": .string(repair.action),
            "byte_offset": .integer(repair.byteOffset),
            "source_byte_offset": .number(repair.sourceByteOffset),
        ])
    }

    private static func question(_ question: RepairQuestion) -> JSONValue {
        .dictionary([
            "problem": .string(question.problem.id), "text": .string(question.text),
        ])
    }

    private static func number(_ slot: SlotIndex?) -> JSONValue {
        .number(slot.map { UInt64($0.rawValue) })
    }
}
