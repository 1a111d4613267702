internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

/// Pass 5, only with `--verify full`: every chunk of every checkpoint that could be loaded.
///
/// Checks each chunk against its digest, restores it, and checks the digest of the whole payload.
/// The slot is pinned meanwhile, so that a live writer cannot make it look damaged.
enum Pass5Payload {
    /// Damaged chunks reported one by one; the rest of a slot is a number in the last of them.
    private static let findingsPerSlot = 64

    static func run(_ context: inout CheckContext) {
        guard context.options.depth == .full, let decision = context.decision else { return }
        context.enter(.payload)
        let reader = CheckpointReader(
            storage: context.storage, decision: decision,
            workerCount: context.options.workerCount)
        let total = decision.candidates.reduce(UInt64(0)) { $0 + $1.header.payloadByteCount }
        var done: UInt64 = 0
        for candidate in decision.candidates {
            check(candidate, reader, done: done, total: total, &context)
            done += candidate.header.payloadByteCount
        }
    }

    private static func check(
        _ candidate: Candidate, _ reader: CheckpointReader, done: UInt64, total: UInt64,
        _ context: inout CheckContext
    ) {
        let progress = context.progress
        let report: PayloadReport
        do throws(CheckpointError) {
            let selected = try reader.select(candidate, proof: .waived)
            defer { selected.close() }
            report = try selected.check { count in
                progress?(
                    CheckProgress(
                        stage: .payload, doneByteCount: done + count, totalByteCount: total))
            }
        } catch {
            return fail(error, candidate, &context)
        }
        guard report.damage.isEmpty else { return damaged(report.damage, candidate, &context) }
        guard let found = report.logicalDigest, found == candidate.header.logicalDigest else {
            context.unloadable[candidate.slot] = "its payload digest is wrong"
            context.report(
                Finding(
                    ProblemCatalogue.logicalDigestMismatch, slot: candidate.slot,
                    at: candidate.headerOffset,
                    found: report.logicalDigest.map { "digest \($0)" } ?? "no digest",
                    expected: "digest \(candidate.header.logicalDigest)"))
            return
        }
        context.verified.insert(candidate.slot)
    }

    private static func fail(
        _ error: CheckpointError, _ candidate: Candidate, _ context: inout CheckContext
    ) {
        if error.code == .outOfMemory { return context.reportNoMemory(candidate, error) }
        guard error.code == .busy else {
            context.hasMediumFailure = true
            context.unloadable[candidate.slot] = error.message
            context.report(
                Finding(
                    ProblemCatalogue.chunkUnreadable, slot: candidate.slot,
                    at: error.byteOffset, found: error.message, expected: "a readable slot"))
            return
        }
        // Pass 4 may have met the same writer in this slot.
        let isKnown = context.findings.contains {
            $0.id == ProblemCatalogue.slotInUse.id && $0.slot == candidate.slot
        }
        if isKnown { return }
        context.report(
            Finding(
                ProblemCatalogue.slotInUse, slot: candidate.slot, at: candidate.headerOffset,
                found: "a writer at work", expected: "sequence \(candidate.sequence)"))
    }

    private static func damaged(
        _ damage: [ChunkDamage], _ candidate: Candidate, _ context: inout CheckContext
    ) {
        context.damagedChunkCounts[candidate.slot] = damage.count
        context.unloadable[candidate.slot] = damage.first.map { "\($0)" }
        for (position, item) in damage.prefix(findingsPerSlot).enumerated() {
            let more = damage.count - findingsPerSlot
            let suffix =
                position == findingsPerSlot - 1 && more > 0
                ? ", and \(more) more damaged chunks in this slot" : ""
            context.report(finding(item, suffix, candidate, &context))
        }
    }

    private static func finding(
        _ item: ChunkDamage, _ suffix: String, _ candidate: Candidate,
        _ context: inout CheckContext
    ) -> Finding {
        let severity = context.severity(of: candidate.slot)
        switch item.cause {
        case .digest(let found, let expected):
            return Finding(
                ProblemCatalogue.chunkDamaged, severity, slot: candidate.slot, chunk: item.index,
                at: item.byteOffset, found: "digest \(found)\(suffix)",
                expected: "digest \(expected)")
        case .codec(let error):
            return Finding(
                ProblemCatalogue.chunkUndecodable, slot: candidate.slot, chunk: item.index,
                at: item.byteOffset, found: "\(error)\(suffix)",
                expected: "\(candidate.table.entries[item.index].rawByteCount) bytes")
        case .unreadable(let error):
            // Beyond the end of a truncated file, the medium is not to blame.
            if context.decision?.isTruncated != true { context.hasMediumFailure = true }
            return Finding(
                ProblemCatalogue.chunkUnreadable, slot: candidate.slot, chunk: item.index,
                at: item.byteOffset, found: "\(error)\(suffix)", expected: "readable bytes")
        }
    }
}
