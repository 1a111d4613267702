internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

/// Pass 6: what only several blocks together can show.
///
/// Checks that retained checkpoints are in their slots, that no sequence was given twice, that
/// superblock and slot agree, that reserved space is unused, and that something can be loaded
/// where something durable was.
enum Pass6CrossChecks {
    static func run(_ context: inout CheckContext) {
        context.enter(.cross)
        guard let decision = context.decision else { return }
        checkRetained(decision, &context)
        checkSequences(decision, &context)
        checkStep(decision, &context)
        checkReservedBlock(&context)
        checkSomethingLoads(decision, &context)
    }

    private static func checkRetained(
        _ decision: RecoveryDecision, _ context: inout CheckContext
    ) {
        for entry in decision.superblock?.retained ?? [] {
            guard let slot = decision.slots.first(where: { $0.slot == entry.slot }),
                slot.reason != .retained
            else { continue }
            context.report(
                Finding(
                    ProblemCatalogue.retainedLost, slot: entry.slot, at: slot.headerOffset,
                    found: slot.reason.rawValue
                        + (slot.header.map { ", sequence \($0.sequence)" } ?? ""),
                    expected: "sequence \(entry.sequence), complete"))
        }
    }

    private static func checkSequences(
        _ decision: RecoveryDecision, _ context: inout CheckContext
    ) {
        var first: [SequenceNumber: SlotIndex] = [:]
        for report in decision.slots {
            guard let header = report.header, header.state != .empty else { continue }
            if let other = first[header.sequence] {
                context.report(
                    Finding(
                        ProblemCatalogue.sequenceRepeated, slot: report.slot,
                        at: report.headerOffset,
                        found: "sequence \(header.sequence), as in slot \(other)",
                        expected: "a sequence of its own"))
            } else {
                first[header.sequence] = report.slot
            }
        }
    }

    private static func checkStep(
        _ decision: RecoveryDecision, _ context: inout CheckContext
    ) {
        guard let anchor = decision.superblock?.anchor,
            let slot = decision.slots.first(where: { $0.reason == .anchored }),
            let header = slot.header, header.step != anchor.step
        else { return }
        context.report(
            Finding(
                ProblemCatalogue.stepDiffers, slot: slot.slot, at: slot.headerOffset,
                found: "step \(header.step) in the slot",
                expected: "step \(anchor.step), as in the superblock"))
    }

    private static func checkReservedBlock(_ context: inout CheckContext) {
        let offset = 3 * Geometry.block
        guard context.isInside(offset),
            let bytes = try? context.storage.readBlocks(
                at: offset, count: Limits.blockByteCount),
            let index = bytes.firstIndex(where: { $0 != 0 })
        else { return }
        context.usedReservedBlock = bytes
        context.report(
            Finding(
                ProblemCatalogue.reservedBlockUsed, at: offset + UInt64(index),
                found: "byte 0x\(String(bytes[index], radix: 16))", expected: "zero"))
    }

    private static func checkSomethingLoads(
        _ decision: RecoveryDecision, _ context: inout CheckContext
    ) {
        let isLost = !decision.candidates.contains { context.unloadable[$0.slot] == nil }
        guard isLost, decision.mayHoldDurable, !decision.isTruncated else { return }
        let newest = decision.superblock?.anchor?.sequence ?? decision.highestSequence
        context.report(
            Finding(
                ProblemCatalogue.nothingLoads, found: "no checkpoint that can be loaded",
                expected: "sequence \(newest), or an older one"))
    }
}
