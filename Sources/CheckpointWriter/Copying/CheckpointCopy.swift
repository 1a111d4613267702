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
        /// Give way to other threads of the machine; see `forEachChunk`.
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
        let candidate = selected.candidate
        try check(candidate, options.form)
        // A copy that no resume accepts would be of no use.
        if candidate.header.payloadKind == .safetensors { _ = try selected.tensorManifest() }
        let path = try CheckpointFile.destination(path, replacing: options.replacesExisting)
        let existing = try CheckpointFile.existingStorage(
            path, replacing: options.replacesExisting, allowsNetwork: options.allowsNetwork)
        // Its lock, until another file has the name: a writer that opened it meanwhile would write
        // checkpoints that nobody finds.
        defer { withExtendedLifetime(existing) {} }
        if existing?.isBlockDevice == true {
            throw CheckpointError(
                .invalidArgument, "\(path) is a block device; give the name of a new file")
        }
        switch options.form {
        case .checkpointFile: try writeFile(selected, identity, path, options, progress)
        case .payload: try writePayload(selected, path, options, progress)
        }
    }

    private static func check(_ candidate: Candidate, _ form: Form) throws(CheckpointError) {
        if form == .payload, candidate.header.payloadKind != .safetensors {
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
    }

    private static let whenFull = "give the copy a name on another file system"

    private static func writeFile(
        _ selected: SelectedCheckpoint, _ source: IdentityBlock, _ path: String,
        _ options: Options, _ progress: @escaping CheckpointFile.Progress
    ) throws(CheckpointError) {
        let candidate = selected.candidate
        let total = candidate.header.payloadByteCount
        var settings = CheckpointFile.Options(
            capacity: max(1, total, candidate.table.storedByteCount))
        settings.inFlight = 1
        settings.chunkByteCount = source.geometry.chunkByteCount
        settings.rank = source.rank
        settings.worldSize = source.worldSize
        settings.fingerprint = source.fingerprint
        settings.runUUID = source.runUUID
        let identity = try CheckpointFile.makeIdentity(settings, deviceByteCount: nil)
        let geometry = identity.geometry
        // Up to the end of the first slot: the second one takes no room before it is used.
        var file = try NewCheckpointFile(
            at: path, identity,
            reservedByteCount: geometry.slotDataOffset(SlotIndex(0)) + geometry.dataStride,
            allowsNetwork: options.allowsNetwork, whenFull: whenFull)
        try progress(0, total)
        try file.copy(selected, isInBackground: options.isInBackground) {
            done throws(CheckpointError) in try progress(done, total)
        }
        var superblock = CheckpointFile.firstSuperblock(identity)
        superblock.sequenceLimit = candidate.sequence.rawValue + 1
        superblock.attempt = candidate.header.attempt
        try file.seal(superblock)
        try file.publish(replacing: options.replacesExisting)
    }

    private static func writePayload(
        _ selected: SelectedCheckpoint, _ path: String, _ options: Options,
        _ progress: @escaping CheckpointFile.Progress
    ) throws(CheckpointError) {
        let total = selected.candidate.header.payloadByteCount
        var file = try withCheckpointErrors(orElse: whenFull) { () throws(StorageError) in
            try NewFile(beside: path, byteCount: total)
        }
        let storage: FileStorage
        do throws(StorageError) {
            storage = try file.open(allowsNetwork: options.allowsNetwork)
        } catch {
            throw CheckpointError(error)
        }
        let done = Mutex<UInt64>(0)
        try progress(0, total)
        try selected.forEachChunk(isInBackground: options.isInBackground) {
            chunk, _ throws(CheckpointError) in
            try withCheckpointErrors(orElse: whenFull) { () throws(StorageError) in
                try writePayload(chunk, storage)
            }
            let count = done.withLock { count in
                count += UInt64(chunk.entry.rawByteCount)
                return count
            }
            try progress(count, total)
        }
        do throws(StorageError) {
            try storage.resize(to: total)
            try storage.flush()
            try file.publish(replacing: options.replacesExisting)
        } catch {
            throw CheckpointError(error)
        }
    }

    private static func writePayload(
        _ chunk: VerifiedChunk, _ storage: FileStorage
    ) throws(StorageError) {
        let whole = chunk.entry.rawByteCount / Limits.blockByteCount * Limits.blockByteCount
        if whole > 0 { try storage.write(chunk.restored, 0..<whole, at: chunk.payloadOffset) }
        // Only the last chunk ends inside a block; what lies behind it is cut off in the end.
        var rest = chunk.restored.array(whole..<chunk.entry.rawByteCount)
        if rest.isEmpty { return }
        rest += [UInt8](repeating: 0, count: Limits.blockByteCount - rest.count)
        try storage.writeBlocks(rest, at: chunk.payloadOffset + UInt64(whole))
    }
}
