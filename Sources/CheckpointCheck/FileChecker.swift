internal import CheckpointFormat
internal import CheckpointRecovery
public import CheckpointStorage

/// pcfsck's engine: runs the passes over one file and says what a resume would load.
///
/// It never writes and takes no lock but the shared pin of the slot that it is reading, so that it
/// may run while a writer is running.
public struct FileChecker: Sendable {
    private let storage: any Storage

    public init(storage: any Storage) { self.storage = storage }

    /// Runs all passes.
    ///
    /// - Parameter progress: called when a pass begins, and while payload is verified, from any of
    ///   the threads that do it.
    /// - Returns: a report in any case: a medium that fails is a finding.
    public func run(
        options: CheckOptions = CheckOptions(),
        progress: (@Sendable (CheckProgress) -> Void)? = nil
    ) -> CheckReport {
        let image = readImage()
        let decision = try? SlotSelection.decide(image, allowsTruncation: true)
        var context = CheckContext(
            storage: storage, options: options, image: image, decision: decision,
            plan: RepairPlan(image: image, decision: decision), progress: progress)
        Pass1Identity.run(&context)
        if decision != nil {
            Pass2Superblocks.run(&context)
            Pass3SlotHeaders.run(&context)
            Pass4Tables.run(&context)
            Pass5Payload.run(&context)
            Pass6CrossChecks.run(&context)
        }
        return CheckReport(
            path: storage.path, fileByteCount: image.fileByteCount, depth: options.depth,
            decision: decision, findings: context.findings,
            slots: decision?.slots.map { Self.slotCheck($0, context) } ?? [],
            resume: ResumeVerdict(context), hasMediumFailure: context.hasMediumFailure,
            isIncomplete: context.isIncomplete,
            plan: context.plan, facts: RepairFacts(context))
    }

    /// The metadata; when neither end of the file can be read, an image of two missing blocks.
    private func readImage() -> MetadataImage {
        do throws(CheckpointError) {
            return try MetadataImage.readSettled(from: storage)
        } catch {
            let block = Geometry.block
            let last = storage.byteCount / block
            return MetadataImage(
                fileByteCount: storage.byteCount,
                identityBlocks: [
                    .init(position: .head, offset: 0, bytes: nil),
                    .init(position: .tail, offset: last > 0 ? (last - 1) * block : 0, bytes: nil),
                ],
                readFailures: [
                    .read(
                        errno: error.osErrorNumber, path: storage.path,
                        byteOffset: error.byteOffset, byteCount: nil)
                ])
        }
    }

    private static func slotCheck(_ report: SlotReport, _ context: CheckContext) -> SlotCheck {
        let damagedChunkCount = context.damagedChunkCounts[report.slot] ?? 0
        let header = report.header.flatMap { $0.state == .empty ? nil : $0 }
        return SlotCheck(
            slot: report.slot,
            reason: report.reason.isUsable && context.unloadable[report.slot] != nil
                ? .payloadDamaged : report.reason,
            sequence: header?.sequence, step: header?.step,
            payloadByteCount: header?.payloadByteCount,
            isVerified: context.verified.contains(report.slot),
            damagedChunkCount: damagedChunkCount)
    }
}

extension ResumeVerdict {
    /// The first candidate that nothing speaks against.
    init(_ context: CheckContext) {
        guard let decision = context.decision, !decision.isTruncated else {
            self.init(choice: nil, isProven: false, rejected: [])
            return
        }
        let chosen = decision.candidates.first { context.unloadable[$0.slot] == nil }
        let rejected = decision.slots.compactMap { report -> Rejection? in
            Self.rejection(report, chosen: chosen, context)
        }
        self.init(
            choice: chosen.map {
                Choice(slot: $0.slot, sequence: $0.sequence, step: $0.step, kind: $0.kind)
            },
            isProven: chosen.map { context.verified.contains($0.slot) } ?? false,
            rejected: rejected.sorted {
                ($1.sequence ?? .none, $0.slot) < ($0.sequence ?? .none, $1.slot)
            })
    }

    /// Why a slot that may have held something newer than `chosen` is not used.
    private static func rejection(
        _ report: SlotReport, chosen: Candidate?, _ context: CheckContext
    ) -> Rejection? {
        guard report.slot != chosen?.slot, report.reason != .empty else { return nil }
        let header = report.header.flatMap { $0.state == .empty ? nil : $0 }
        let sequence = header?.sequence ?? context.keptSequence(report.slot)
        if let sequence, let chosen, sequence < chosen.sequence { return nil }
        // A header that nobody kept and nobody can read says nothing about newer checkpoints.
        if sequence == nil { return nil }
        let why = context.unloadable[report.slot]
        let explanation: String
        switch report.reason {
        case .writing where header?.state == .complete:
            explanation = "its writer still has it, and no superblock names it yet"
        case .writing: explanation = "it was never completed: its header is in state writing"
        case .headerDamaged, .blank, .foreign, .misdirected, .unreadable:
            explanation =
                "its header cannot be used: "
                + (report.isMissing ? "the medium did not return it" : text(report.detail))
        case .tableDamaged:
            explanation = "its chunk table cannot be used: \(text(report.detail))"
        case .anchored, .retained, .unanchored, .older, .stale, .empty, .payloadDamaged:
            explanation = why ?? "another slot holds the same sequence"
        }
        return Rejection(
            slot: report.slot, sequence: sequence, step: header?.step,
            reason: why != nil && report.reason.isUsable ? .payloadDamaged : report.reason,
            explanation: explanation)
    }

    private static func text(_ detail: FormatError?) -> String {
        detail.map { "\($0)" } ?? "nothing there"
    }
}

extension SlotReport {
    fileprivate var isMissing: Bool { reason == .unreadable }
}
