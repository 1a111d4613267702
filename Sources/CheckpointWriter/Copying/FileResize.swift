public import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

#if canImport(Glibc)
    internal import Glibc
#endif

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
    ///   - progress: called with bytes copied and verified, and bytes in all; what it throws ends
    ///     it, and nothing was changed.
    /// - Throws: `locked` when a writer has the file, `tooLarge` when the newest checkpoint would
    ///   not fit, `noSpace`, `unsupported` for a block device, `invalidArgument`, `corrupt` when
    ///   there are checkpoints and none is whole.
    public static func resize(
        path: String, to shape: Shape, isDryRun: Bool = false, allowsNetwork: Bool = false,
        progress: Progress? = nil
    ) throws(CheckpointError) -> ResizeReport {
        // A new file behind a symbolic link: the link stays.
        let path = resolved(path)
        let storage = try withCheckpointErrors { () throws(StorageError) in
            try FileStorage(path: path, access: .write, allowsNetwork: allowsNetwork)
        }
        guard !storage.isBlockDevice else {
            throw CheckpointError(
                .unsupported,
                "\(path): a block device keeps its size; extract the checkpoint you want with "
                    + "pcextract and create the file anew")
        }
        let resize = try FileResize(storage, shape)
        if !isDryRun, resize.report.isChange { try resize.replaceFile(progress) }
        return resize.report
    }

    private static func resolved(_ path: String) -> String {
        // Safe: realpath returns nil or a C string that the caller frees.
        guard let found = unsafe realpath(path, nil) else { return path }
        defer { unsafe free(found) }
        return unsafe String(cString: found)
    }
}

/// One resize, under the lock of the old file, which its opener holds until it is dropped.
private struct FileResize {
    let old: FileStorage
    let identity: IdentityBlock
    let start: WriterOpening.Result
    /// The checkpoints that go into the slots of the new file, newest first.
    let kept: [Candidate]
    let report: CheckpointFile.ResizeReport

    /// Locks the file, and decides what becomes of it.
    init(_ storage: FileStorage, _ shape: CheckpointFile.Shape) throws(CheckpointError) {
        let found = try SlotSelection.decide(MetadataImage.read(from: storage)).identity
        var options = WriterOptions()
        options.rank = found.rank
        options.worldSize = found.worldSize
        // The same decision as a writer's, which verifies the checkpoint that it goes on from.
        let start = try WriterOpening(storage: storage, options: options).recover()
        if let slot = start.unreadable.first {
            throw CheckpointError(
                .inputOutput,
                "\(storage.path): slot \(slot) may hold a newer checkpoint, and cannot be read; "
                    + "the file stays as it is: check the device, then resize again", slot: slot)
        }
        let old = start.identity.geometry
        var identity = start.identity
        identity.geometry = try Self.geometry(old, shape)
        let choice = try Self.choose(storage, start, identity.geometry)
        self.old = storage
        self.start = start
        self.identity = identity
        kept = choice.kept
        report = CheckpointFile.ResizeReport(
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

    private static func geometry(
        _ old: Geometry, _ shape: CheckpointFile.Shape
    ) throws(CheckpointError) -> Geometry {
        do throws(FormatError) {
            return try Geometry(
                capacity: shape.capacity ?? old.slotByteCount,
                inFlight: shape.inFlight ?? old.inFlightCount,
                retain: shape.retain ?? old.retainCount, chunkByteCount: old.chunkByteCount)
        } catch {
            throw CheckpointError(.invalidArgument, "\(error)")
        }
    }

    private typealias Choice = (
        kept: [Candidate], dropped: [CheckpointFile.ResizeReport.Checkpoint]
    )

    private static func choose(
        _ storage: FileStorage, _ start: WriterOpening.Result, _ geometry: Geometry
    ) throws(CheckpointError) -> Choice {
        guard let newest = start.recovered?.candidate else { return ([], []) }
        guard newest.header.payloadByteCount <= geometry.slotByteCount else {
            throw CheckpointError(
                .tooLarge,
                "\(storage.path): the newest checkpoint, of step \(newest.step), takes "
                    + "\(newest.header.payloadByteCount) bytes, but a slot would hold "
                    + "\(geometry.slotByteCount); choose a capacity of at least "
                    + "\(newest.header.payloadByteCount)")
        }
        // Nothing has changed since `recover` looked: the file is locked.
        let decision = try SlotSelection.decide(MetadataImage.read(from: storage))
        var choice: Choice = ([newest], try passedOver(decision, newest, storage))
        let older = decision.candidates
            .filter { $0.slot != newest.slot && start.kept[$0.slot] == $0.sequence }
            .sorted { $0.sequence > $1.sequence }
        for candidate in older {
            if choice.kept.count >= geometry.retainCount {
                choice.dropped.append(entry(candidate, "the file retains \(geometry.retainCount)"))
            } else if candidate.header.payloadByteCount > geometry.slotByteCount {
                choice.dropped.append(
                    entry(
                        candidate,
                        "it takes \(candidate.header.payloadByteCount) bytes, and a slot holds "
                            + "\(geometry.slotByteCount)"))
            } else if let damage = try damage(of: candidate, storage) {
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
        _ decision: RecoveryDecision, _ newest: Candidate, _ storage: FileStorage
    ) throws(CheckpointError) -> [CheckpointFile.ResizeReport.Checkpoint] {
        var found: [CheckpointFile.ResizeReport.Checkpoint] = []
        for candidate in decision.candidates where candidate.sequence > newest.sequence {
            guard let damage = try damage(of: candidate, storage) else { continue }
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
        of candidate: Candidate, _ storage: FileStorage
    ) throws(CheckpointError) -> String? {
        do throws(CheckpointError) {
            try SlotVerifier.verify(candidate, in: storage)
            return nil
        } catch {
            guard error.code == .corrupt else { throw error }
            return "it is damaged: \(error.message)"
        }
    }

    // MARK: Writing

    func replaceFile(_ progress: CheckpointFile.Progress?) throws(CheckpointError) {
        do throws(CheckpointError) {
            try writeFile(progress)
        } catch {
            guard error.code == .noSpace else { throw error }
            var error = error
            error.message +=
                "; a resize needs \(identity.geometry.fileByteCount) bytes beside the old file, "
                + "which stays as it is"
            throw error
        }
    }

    private func writeFile(_ progress: CheckpointFile.Progress?) throws(CheckpointError) {
        let byteCount = identity.geometry.fileByteCount
        var file: NewFile
        do throws(StorageError) {
            file = try NewFile(beside: old.path, byteCount: byteCount)
        } catch {
            throw CheckpointError(error)
        }
        let temporaryPath = file.temporaryPath
        let new = try withCheckpointErrors { () throws(StorageError) in
            try FileStorage(path: temporaryPath, access: .write, allowsNetwork: true)
        }
        if !file.isReserved || new.isDAX {
            try CheckpointFile.writeZeros(byteCount, to: new, progress: nil)
        }
        let copied = try copy(to: new, progress)
        do throws(StorageError) {
            let empty = identity.geometry.slots.dropFirst(copied.count)
            try CheckpointFile.writeEmptyHeaders(identity, empty, to: new)
            try CheckpointFile.finish(identity, superblock(copied, new), new)
            try new.flush()
        } catch {
            throw CheckpointError(error)
        }
        try verify(copied, new, progress)
        // A crash here leaves the old file, and after the rename the new one, which is durable.
        do throws(StorageError) {
            try file.copyAccess(of: old)
            try file.publish(replacing: true)
        } catch {
            throw CheckpointError(error)
        }
    }

    /// The payload bytes that are copied, and read again.
    private var totalByteCount: UInt64 {
        2 * kept.reduce(0) { $0 + $1.header.payloadByteCount }
    }

    /// Copies every chunk as it is stored, one behind the other.
    ///
    /// - Returns: the checkpoints as they are in the new file.
    private func copy(
        to new: FileStorage, _ progress: CheckpointFile.Progress?
    ) throws(CheckpointError) -> [Candidate] {
        let largest = UInt64(identity.geometry.chunkByteCount).roundedUp(to: Geometry.block)
        let buffer = AlignedBuffer(byteCount: Int(largest))
        var done: UInt64 = 0
        var copied: [Candidate] = []
        for (index, candidate) in kept.enumerated() {
            let slot = SlotIndex(index)
            var table = candidate.table
            var offset: UInt64 = 0
            for number in table.entries.indices {
                let entry = table.entries[number]
                let count = Int(UInt64(entry.storedByteCount).roundedUp(to: Geometry.block))
                try withCheckpointErrors(slot: candidate.slot) { () throws(StorageError) in
                    try old.read(
                        into: buffer, 0..<count, at: candidate.dataOffset + entry.storedOffset)
                    try new.write(
                        buffer, 0..<count, at: identity.geometry.slotDataOffset(slot) + offset)
                }
                table.entries[number].storedOffset = offset
                offset += UInt64(count)
                done += UInt64(entry.rawByteCount)
                try progress?(done, totalByteCount)
            }
            copied.append(try write(candidate, table, to: slot, new))
        }
        return copied
    }

    /// The slot's header and chunk table.
    private func write(
        _ candidate: Candidate, _ table: ChunkTable, to slot: SlotIndex, _ new: FileStorage
    ) throws(CheckpointError) -> Candidate {
        var header = candidate.header
        let encodedTable = table.encoded()
        header.slot = slot
        header.ownOffset = identity.geometry.headerOffset(slot)
        header.chunkTableDigest = encodedTable.digest
        let encoded = header.encoded()
        try withCheckpointErrors { () throws(StorageError) in
            try new.writeBlocks(encoded.bytes + encodedTable.bytes, at: header.ownOffset)
        }
        return Candidate(
            slot: slot, header: header, headerDigest: encoded.digest, table: table,
            kind: slot.rawValue == 0 ? .anchored : .retained, geometry: identity.geometry)
    }

    /// Names the copies, above every number that the old file has seen.
    private func superblock(_ copied: [Candidate], _ new: FileStorage) -> Superblock {
        var superblock = start.superblock
        superblock.anchor = copied.first.map {
            Anchor(
                slot: $0.slot, sequence: $0.sequence, step: $0.step,
                headerDigest: $0.headerDigest)
        }
        superblock.retained = copied.dropFirst().map {
            RetainedSlot(slot: $0.slot, sequence: $0.sequence)
        }
        superblock.isCleanClose = true
        superblock.sequenceLimit = start.nextSequence
        superblock.storageKind = new.kind
        return superblock
    }

    /// Reads every chunk of the new file from the medium.
    private func verify(
        _ copied: [Candidate], _ new: FileStorage, _ progress: CheckpointFile.Progress?
    ) throws(CheckpointError) {
        new.discardCache()
        var done = totalByteCount / 2
        for candidate in copied {
            try SlotVerifier.verify(candidate, in: new)
            done += candidate.header.payloadByteCount
            try progress?(done, totalByteCount)
        }
    }
}
