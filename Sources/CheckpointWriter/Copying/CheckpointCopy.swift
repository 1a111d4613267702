public import CheckpointFormat
public import CheckpointRecovery
internal import CheckpointStorage
internal import Synchronization

/// Copies one checkpoint out of a file, also while a writer is at work on that file.
///
/// The slot is pinned meanwhile, and every byte is verified on its way. The new file appears under
/// its name when it is complete and durable; a crash before that leaves `NAME.creating-NUMBER`,
/// which the next copy to that name removes. An urgent save may take the slot from its readers
/// (COMMIT.md, rule 8): the copy then ends with `busy`, and nothing is left of it.
public enum CheckpointCopy {
    public enum Form: Sendable {
        /// A checkpoint file that holds this checkpoint, with its step, sequence and times. Its
        /// second slot has no blocks yet; it is there so that a writer can open the file.
        case checkpointFile
        /// The payload alone: for tensors, a `.safetensors` file.
        case payload
    }

    public struct Options: Sendable {
        public var form = Form.checkpointFile
        /// Replace what has that name, once the copy is durable.
        public var replacesExisting = false
        /// Accept a network file system.
        public var allowsNetwork = false
        /// Give way to other threads of the machine; see `forEachStoredChunk`.
        public var isInBackground = false

        public init() {}
    }

    /// - Parameters:
    ///   - selected: a checkpoint of the file that has this `identity`.
    ///   - progress: called with payload bytes copied, from any of the threads; what it throws ends
    ///     the copy, and nothing is left of it.
    /// - Throws: `exists`, `noSpace`, `invalidArgument`, `locked`; `corrupt`, `inputOutput`, `busy`
    ///   about the source.
    public static func write(
        _ selected: SelectedCheckpoint, of identity: IdentityBlock, to path: String,
        options: Options = Options(),
        progress: @escaping CheckpointFile.Progress = { _, _ throws(CheckpointError) in }
    ) throws(CheckpointError) {
        let plan = try Plan(selected.candidate, identity, options)
        // A copy that no resume accepts would be of no use.
        if selected.candidate.header.payloadKind == .safetensors {
            _ = try selected.tensorManifest()
        }
        let existing = try CheckpointFile.existingStorage(path, plan.settings)
        // Its lock, until another file has the name: a writer that opened it meanwhile would write
        // checkpoints that nobody finds.
        defer { withExtendedLifetime(existing) {} }
        if existing?.isBlockDevice == true {
            throw CheckpointError(
                .invalidArgument, "\(path) is a block device; give the name of a new file")
        }
        var file: NewFile
        do throws(StorageError) {
            file = try NewFile(
                beside: path, byteCount: plan.reservedByteCount,
                finalByteCount: plan.finalByteCount)
        } catch {
            throw CheckpointError(error)
        }
        let temporaryPath = file.temporaryPath
        let storage = try withCheckpointErrors { () throws(StorageError) in
            try FileStorage(
                path: temporaryPath, access: .write, allowsNetwork: options.allowsNetwork)
        }
        try copy(selected, plan, to: storage, progress)
        do throws(StorageError) {
            try plan.finish(storage)
            try storage.flush()
            try file.publish(replacing: options.replacesExisting)
        } catch {
            throw CheckpointError(error)
        }
    }

    private static func copy(
        _ selected: SelectedCheckpoint, _ plan: Plan, to storage: FileStorage,
        _ progress: @escaping CheckpointFile.Progress
    ) throws(CheckpointError) {
        let total = selected.candidate.header.payloadByteCount
        let done = Mutex<UInt64>(0)
        try progress(0, total)
        try selected.forEachStoredChunk(isInBackground: plan.options.isInBackground) {
            chunk throws(CheckpointError) in
            do throws(StorageError) {
                try plan.write(chunk, to: storage)
            } catch {
                throw CheckpointError(error)
            }
            let count = done.withLock { count in
                count += UInt64(chunk.entry.rawByteCount)
                return count
            }
            try progress(count, total)
        }
    }
}

/// Where everything goes in the new file.
private struct Plan: Sendable {
    let options: CheckpointCopy.Options
    let settings: CheckpointFile.Options
    private let identity: IdentityBlock
    private let header: SlotHeader
    private let table: ChunkTable

    init(
        _ candidate: Candidate, _ source: IdentityBlock, _ options: CheckpointCopy.Options
    ) throws(CheckpointError) {
        if options.form == .payload, candidate.header.payloadKind != .safetensors {
            throw CheckpointError(
                .invalidArgument,
                "the payload of slot \(candidate.slot) is opaque, and no safetensors file; copy it "
                    + "to a .pcc file, or extract it with pcextract --format raw",
                slot: candidate.slot)
        }
        // The superblock of the copy holds a number above it.
        guard candidate.sequence.rawValue < .max else {
            throw CheckpointError(
                .corrupt,
                "the sequence of slot \(candidate.slot) is \(candidate.sequence), expected less; "
                    + "extract the checkpoint with pcextract", slot: candidate.slot)
        }
        let storedEnd = candidate.table.entries.map {
            $0.storedOffset + UInt64($0.storedByteCount)
        }.max()
        var settings = CheckpointFile.Options(
            capacity: max(1, candidate.header.payloadByteCount, storedEnd ?? 0))
        settings.inFlight = 1
        settings.chunkByteCount = source.geometry.chunkByteCount
        settings.rank = source.rank
        settings.worldSize = source.worldSize
        settings.fingerprint = source.fingerprint
        settings.replacesExisting = options.replacesExisting
        settings.allowsNetwork = options.allowsNetwork
        let identity = try CheckpointFile.makeIdentity(settings, deviceByteCount: nil)
        var header = candidate.header
        header.fileUUID = identity.fileUUID
        header.slot = SlotIndex(0)
        header.ownOffset = identity.geometry.headerOffset(header.slot)
        self.options = options
        self.settings = settings
        self.identity = identity
        self.header = header
        table = candidate.table
    }

    /// Up to the end of the first slot: the second one takes no room before it is used.
    var reservedByteCount: UInt64 {
        switch options.form {
        case .checkpointFile:
            identity.geometry.slotDataOffset(header.slot) + identity.geometry.dataStride
        case .payload: header.payloadByteCount
        }
    }

    var finalByteCount: UInt64 {
        switch options.form {
        case .checkpointFile: identity.geometry.fileByteCount
        case .payload: header.payloadByteCount
        }
    }

    func write(_ chunk: StoredChunk, to storage: FileStorage) throws(StorageError) {
        switch options.form {
        case .checkpointFile:
            try storage.write(
                chunk.stored, 0..<chunk.paddedByteCount,
                at: identity.geometry.slotDataOffset(header.slot) + chunk.entry.storedOffset)
        case .payload:
            let whole = chunk.entry.rawByteCount / Limits.blockByteCount * Limits.blockByteCount
            if whole > 0 {
                try storage.write(chunk.restored, 0..<whole, at: chunk.payloadOffset)
            }
            // Only the last chunk ends inside a block; what lies behind it is cut off in the end.
            var rest = chunk.restored.array(whole..<chunk.entry.rawByteCount)
            if rest.isEmpty { return }
            rest += [UInt8](repeating: 0, count: Limits.blockByteCount - rest.count)
            try storage.writeBlocks(rest, at: chunk.payloadOffset + UInt64(whole))
        }
    }

    func finish(_ storage: FileStorage) throws(StorageError) {
        try storage.resize(to: finalByteCount)
        if options.form == .checkpointFile {
            try CheckpointFile.write(identity, to: storage, holding: (header, table))
        }
    }
}
