internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointGroup
internal import CheckpointRecovery

/// The parts of the tools' JSON about a folder.
enum FolderJSON {
    static func finding(_ finding: GroupFinding) -> JSONValue {
        .dictionary([
            "id": .string(finding.id),
            "severity": .string(finding.severity.rawValue),
            "title": .string(finding.problem.title),
            "path": .text(finding.path),
            "text": .string(finding.text),
            "explanation": .string(finding.problem.explanation),
            "advice": .string(finding.problem.advice),
        ])
    }

    static func file(_ file: FolderInspection.File) -> JSONValue {
        switch file.report {
        case .failure(let path, let message):
            return .dictionary(["path": .string(path), "error": .string(message)])
        case .file(let report):
            return .dictionary([
                "path": .string(report.path),
                "error": .null,
                "is_damaged": .bool(file.isDamaged),
                "is_writer_at_work": .flag(file.isWriterAtWork),
                "file_uuid": .text(report.fileUUID),
                "run_uuid": report.runUUID == .zero ? .null : .text(report.runUUID),
                "rank": .count(report.rank),
                "world_size": .count(report.worldSize),
                "attempt": .integer(report.attempt),
                "watermark": report.watermark.map(InspectionJSON.groupName) ?? .null,
                "slots": .array(report.slots.map(slot)),
            ])
        }
    }

    private static func slot(_ slot: GroupFileReport.Slot) -> JSONValue {
        .dictionary([
            "slot": .count(slot.slot.rawValue),
            "reason": .string(slot.reason.rawValue),
            "sequence": .number(slot.sequence?.rawValue),
            "attempt": .number(slot.name?.attempt),
            "step": .number(slot.name?.step),
        ])
    }
}
