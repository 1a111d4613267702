public import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

extension CheckpointFile {
    /// What to change of a file; nil keeps what it has.
    public struct Shape: Sendable, Hashable {
        public var capacity: UInt64?
        public var inFlight: Int?
        public var retain: Int?

        public init(capacity: UInt64? = nil, inFlight: Int? = nil, retain: Int? = nil) {
            self.capacity = capacity
            self.inFlight = inFlight
            self.retain = retain
        }
    }

    /// How a file was resized, or would be.
    public struct ResizeReport: Sendable {
        public struct Checkpoint: Sendable, Hashable {
            public let step: UInt64
            public let sequence: SequenceNumber
            public let payloadByteCount: UInt64
            /// Why it is not in the resized file; empty for one that is.
            public let reason: String
            /// It was durable, and is not intact now.
            public let isDamaged: Bool
        }

        public let before: Geometry
        public let after: Geometry
        /// Newest first.
        public let kept: [Checkpoint]
        public let dropped: [Checkpoint]

        public var isChange: Bool { before != after }
        /// A damaged checkpoint is dropped; what is left of it is in the old file only.
        public var isDamaged: Bool { dropped.contains { $0.isDamaged } }
    }

    /// A capacity that takes `payload`, and a little more.
    static func capacity(for payload: CheckpointPayload) -> UInt64 {
        (payload.byteCount + payload.byteCount / 10).roundedUp(to: 1 << 20)
    }

    /// Gives a file another capacity or other slots, and keeps its checkpoints.
    ///
    /// A new file grows beside the old one: every checkpoint that a superblock names is copied into
    /// it and verified there, then it is flushed and takes the name. A crash, or an error, before
    /// that leaves the old file as it was. The newest intact checkpoint is always kept. An older
    /// one is dropped when the new file retains fewer, or when it is too large. A damaged one is
    /// dropped, and the report lists it.
    ///
    /// - Parameters:
    ///   - isDryRun: verify, and say what would be done.
    ///   - progress: called with bytes verified and copied, and bytes in all; what it throws ends
    ///     it, and nothing was changed.
    /// - Throws: `locked` when a writer has the file, `tooLarge` when the newest checkpoint would
    ///   not fit, `noSpace`, `unsupported` for a block device, `invalidArgument`, `corrupt` when
    ///   there are checkpoints and none is intact.
    public static func resize(
        path: String, to shape: Shape, isDryRun: Bool = false, allowsNetwork: Bool = false,
        progress: Progress? = nil
    ) throws(CheckpointError) -> ResizeReport {
        // A new file behind a symbolic link: the link stays.
        let storage = try withCheckpointErrors { () throws(StorageError) in
            try FileStorage(
                path: NewFile.target(of: path), access: .write, allowsNetwork: allowsNetwork)
        }
        guard !storage.isBlockDevice else {
            throw CheckpointError(
                .unsupported,
                "\(path): a block device keeps its size; extract the checkpoint you want with "
                    + "pcextract and create the file again")
        }
        var resize = try FileResize(storage, shape, progress)
        if !isDryRun, resize.report.isChange { try resize.replaceFile() }
        return resize.report
    }
}

/// One progress for all that a resize reads and writes.
private struct ResizeProgress {
    private let report: CheckpointFile.Progress?
    private let total: UInt64
    private var done: UInt64 = 0

    /// - Parameter decision: of the file; what its superblock names is verified, copied, and read
    ///   in the new file.
    init(_ decision: RecoveryDecision, _ report: CheckpointFile.Progress?) {
        self.report = report
        let named = decision.candidates.filter { $0.kind == .anchored || $0.kind == .retained }
        total = 3 * named.reduce(0) { $0 + $1.header.payloadByteCount }
    }

    /// What follows `candidate` through the next step.
    mutating func next(_ candidate: Candidate?) -> SlotVerifier.Progress {
        let (report, total, before) = (report, total, done)
        done += candidate?.header.payloadByteCount ?? 0
        return { count throws(CheckpointError) in
            // It can be more, where recovery looks at others than the superblock names.
            try report?(min(before + count, total), total)
        }
    }
}

/// One resize, under the lock of the old file, which its opener holds until it is dropped.
private struct FileResize {
    let report: CheckpointFile.ResizeReport
    private let old: FileStorage
    private let decision: RecoveryDecision
    private let identity: IdentityBlock
    private let start: WriterOpening.Result
    /// The checkpoints that go into the slots of the new file, newest first.
    private let kept: [Candidate]
    private var progress: ResizeProgress

    /// Locks the file, and decides what becomes of it.
    init(
        _ storage: FileStorage, _ shape: CheckpointFile.Shape, _ report: CheckpointFile.Progress?
    ) throws(CheckpointError) {
        let found = try SlotSelection.decide(MetadataImage.read(from: storage))
        var options = WriterOptions()
        options.rank = found.identity.rank
        options.worldSize = found.identity.worldSize
        options.acceptsGroup = true
        var progress = ResizeProgress(found, report)
        // The same decision as a writer's, which verifies the checkpoint that it continues from.
        let start = try WriterOpening(
            storage: storage, options: options, progress: progress.next(found.candidates.first)
        ).recover()
        if let slot = start.unreadable.first {
            throw CheckpointError(
                .inputOutput,
                "\(storage.path): slot \(slot) may hold a newer checkpoint, and cannot be read; "
                    + "the file stays as it is: check the device, then resize again", slot: slot)
        }
        let old = start.identity.geometry
        let identity = try Self.resized(start.identity, shape)
        // Nothing has changed since `recover` looked: the file is locked.
        let decision = try SlotSelection.decide(MetadataImage.read(from: storage))
        let choice = try Self.choose(storage, start, decision, identity, &progress)
        self.old = storage
        self.decision = decision
        self.progress = progress
        self.start = start
        self.identity = identity
        kept = choice.kept
        self.report = CheckpointFile.ResizeReport(
            before: old, after: identity.geometry, kept: choice.kept.map { Self.entry($0) },
            dropped: choice.dropped)
    }

    private static func entry(
        _ candidate: Candidate, _ reason: String = "", isDamaged: Bool = false
    ) -> CheckpointFile.ResizeReport.Checkpoint {
        .init(
            step: candidate.step, sequence: candidate.sequence,
            payloadByteCount: candidate.header.payloadByteCount, reason: reason,
            isDamaged: isDamaged)
    }

    private static func resized(
        _ identity: IdentityBlock, _ shape: CheckpointFile.Shape
    ) throws(CheckpointError) -> IdentityBlock {
        let old = identity.geometry
        do throws(FormatError) {
            return try identity.resized(
                to: Geometry(
                    capacity: shape.capacity ?? old.slotByteCount,
                    inFlight: shape.inFlight ?? old.inFlightCount,
                    retain: shape.retain ?? old.retainCount, chunkByteCount: old.chunkByteCount))
        } catch {
            throw CheckpointError(.invalidArgument, "\(error)")
        }
    }

    private typealias Choice = (
        kept: [Candidate], dropped: [CheckpointFile.ResizeReport.Checkpoint]
    )

    private static func choose(
        _ storage: FileStorage, _ start: WriterOpening.Result, _ decision: RecoveryDecision,
        _ identity: IdentityBlock, _ progress: inout ResizeProgress
    ) throws(CheckpointError) -> Choice {
        let geometry = identity.geometry
        guard let newest = start.recovered?.candidate else { return ([], []) }
        guard newest.header.payloadByteCount <= geometry.slotByteCount else {
            throw CheckpointError(
                .tooLarge,
                "\(storage.path): the newest checkpoint, of step \(newest.step), takes "
                    + "\(newest.header.payloadByteCount) bytes, but a slot would hold "
                    + "\(geometry.slotByteCount); choose a capacity of at least "
                    + "\(newest.header.payloadByteCount)")
        }
        var choice: Choice = ([newest], try passedOver(decision, newest, storage, &progress))
        let older = decision.candidates
            .filter { $0.slot != newest.slot && start.kept[$0.slot] == $0.sequence }
            .sorted { $0.sequence > $1.sequence }
        // In a group each of them may be the only one that all ranks have: none is dropped, and a
        // save waits until a verdict frees a slot.
        let limit = identity.isOfGroup ? geometry.slotCount : geometry.retainCount
        guard !identity.isOfGroup || older.count < limit else {
            throw CheckpointError(
                .invalidArgument,
                "\(storage.path): its group keeps \(older.count + 1) checkpoints, but the file "
                    + "would have \(limit) slots; keep more slots")
        }
        for candidate in older {
            if choice.kept.count >= limit {
                choice.dropped.append(entry(candidate, "the file retains \(limit)"))
            } else if candidate.header.payloadByteCount > geometry.slotByteCount {
                choice.dropped.append(
                    entry(
                        candidate,
                        "it takes \(candidate.header.payloadByteCount) bytes, and a slot holds "
                            + "\(geometry.slotByteCount)"))
            } else if let damage = try damage(of: candidate, storage, &progress) {
                choice.dropped.append(entry(candidate, damage, isDamaged: true))
            } else {
                choice.kept.append(candidate)
            }
        }
        return choice
    }

    /// What recovery rejected before it came to `newest`. The old file is the only place that has
    /// what is left of it.
    private static func passedOver(
        _ decision: RecoveryDecision, _ newest: Candidate, _ storage: FileStorage,
        _ progress: inout ResizeProgress
    ) throws(CheckpointError) -> [CheckpointFile.ResizeReport.Checkpoint] {
        var found: [CheckpointFile.ResizeReport.Checkpoint] = []
        for candidate in decision.candidates where candidate.sequence > newest.sequence {
            guard let damage = try damage(of: candidate, storage, &progress) else { continue }
            // Nothing says that an unanchored one was ever complete on the medium.
            let isDamaged = candidate.kind != .unanchored
            found.append(entry(candidate, damage, isDamaged: isDamaged))
        }
        if let anchor = decision.superblock?.anchor, anchor.sequence > newest.sequence,
            !decision.candidates.contains(where: { $0.sequence == anchor.sequence })
        {
            found.append(
                .init(
                    step: anchor.step, sequence: anchor.sequence, payloadByteCount: 0,
                    reason: "it is damaged: the header or the chunk table of slot \(anchor.slot)",
                    isDamaged: true))
        }
        return found.sorted { $0.sequence > $1.sequence }
    }

    /// - Returns: nil when every chunk verifies.
    private static func damage(
        of candidate: Candidate, _ storage: FileStorage, _ progress: inout ResizeProgress
    ) throws(CheckpointError) -> String? {
        do throws(CheckpointError) {
            try SlotVerifier.verify(candidate, in: storage, progress: progress.next(candidate))
            return nil
        } catch {
            guard error.code == .corrupt else { throw error }
            return "it is damaged: \(error.message)"
        }
    }

    // MARK: Writing

    mutating func replaceFile() throws(CheckpointError) {
        var file = try NewCheckpointFile(
            at: old.path, identity, allowsNetwork: true,
            whenFull: "move the file to a larger file system; a resize needs "
                + "\(identity.geometry.fileByteCount) bytes beside the old file, which stays as it "
                + "is")
        let reader = CheckpointReader(storage: old, decision: decision)
        for candidate in kept {
            // Each chunk is verified on its way, which proves it.
            let selected = try reader.select(candidate, proof: .waived)
            try file.copy(selected, progress: progress.next(candidate))
            selected.close()
        }
        var superblock = start.superblock
        // Above every number that the old file has seen.
        superblock.sequenceLimit = start.nextSequence
        try file.seal(superblock)
        try file.verify { progress.next($0) }
        // A crash here leaves the old file, and after the rename the new one, which is durable.
        try file.publish(replacing: true, accessOf: old)
    }
}
