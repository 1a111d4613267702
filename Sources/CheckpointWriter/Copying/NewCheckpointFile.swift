internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage
internal import Synchronization

/// A checkpoint file that grows beside its name: slot by slot, then the metadata, then its name.
///
/// Nothing has the name before `publish`. One that is dropped before that is removed. COMMIT.md,
/// "Create", "Copy" and "Resize", has the steps.
struct NewCheckpointFile: ~Copyable {
    private var file: NewFile
    private let storage: FileStorage
    private let identity: IdentityBlock
    /// What else helps where there is no room for the file.
    private let whenFull: String
    /// The checkpoints in its slots, the first one in slot 0.
    private var copies: [Candidate] = []

    /// - Parameters:
    ///   - reservedByteCount: what gets its blocks now; nil for all of the file.
    ///   - isZeroed: write zeros to it even where its blocks are reserved.
    init(
        at path: String, _ identity: IdentityBlock, reservedByteCount: UInt64? = nil,
        isZeroed: Bool = false, allowsNetwork: Bool, whenFull: String,
        progress: CheckpointFile.Progress? = nil
    ) throws(CheckpointError) {
        let byteCount = identity.geometry.fileByteCount
        let reserved = reservedByteCount ?? byteCount
        let file = try withCheckpointErrors(orElse: whenFull) { () throws(StorageError) in
            try NewFile(beside: path, byteCount: reserved, finalByteCount: byteCount)
        }
        let storage: FileStorage
        do throws(StorageError) {
            storage = try file.open(allowsNetwork: allowsNetwork)
        } catch {
            throw CheckpointError(error)
        }
        // What is not reserved is written, so that a full disk shows now. A store into a block of
        // persistent memory that was never written would be a fault that waits for a journal.
        if isZeroed || !file.isReserved || storage.isDAX {
            try Self.writeZeros(reserved, to: storage, whenFull, progress)
        }
        self.file = file
        self.storage = storage
        self.identity = identity
        self.whenFull = whenFull
    }

    private static func writeZeros(
        _ byteCount: UInt64, to storage: FileStorage, _ whenFull: String,
        _ progress: CheckpointFile.Progress?
    ) throws(CheckpointError) {
        let buffer = AlignedBuffer(byteCount: 8 << 20)
        var offset: UInt64 = 0
        while offset < byteCount {
            let count = Int(min(UInt64(buffer.byteCount), byteCount - offset))
            try withCheckpointErrors(orElse: whenFull) { () throws(StorageError) in
                try storage.write(buffer, 0..<count, at: offset)
            }
            offset += UInt64(count)
            try progress?(offset, byteCount)
        }
    }

    /// Copies `selected` into the next slot as it is stored, each chunk verified on its way.
    ///
    /// - Parameter progress: called with the payload bytes copied so far.
    mutating func copy(
        _ selected: SelectedCheckpoint, isInBackground: Bool = false,
        progress: @escaping SlotVerifier.Progress
    ) throws(CheckpointError) {
        let slot = SlotIndex(copies.count)
        let dataOffset = identity.geometry.slotDataOffset(slot)
        let table = selected.candidate.table.withoutGaps
        let (storage, whenFull) = (storage, whenFull)
        let done = Mutex<UInt64>(0)
        try selected.forEachChunk(isInBackground: isInBackground) {
            chunk, _ throws(CheckpointError) in
            let offset = dataOffset + table.entries[chunk.index].storedOffset
            try withCheckpointErrors(orElse: whenFull) { () throws(StorageError) in
                try storage.write(chunk.stored, 0..<chunk.paddedByteCount, at: offset)
            }
            let count = done.withLock { count in
                count += UInt64(chunk.entry.rawByteCount)
                return count
            }
            try progress(count)
        }
        try writeCommitRecord(selected.candidate.header, table, slot)
    }

    private mutating func writeCommitRecord(
        _ original: SlotHeader, _ table: ChunkTable, _ slot: SlotIndex
    ) throws(CheckpointError) {
        let encodedTable = table.encoded()
        var header = original
        header.fileUUID = identity.fileUUID
        header.slot = slot
        header.ownOffset = identity.geometry.headerOffset(slot)
        header.chunkTableDigest = encodedTable.digest
        let encoded = header.encoded()
        do throws(StorageError) {
            try storage.writeBlocks(encoded.bytes + encodedTable.bytes, at: header.ownOffset)
        } catch {
            throw CheckpointError(error.orElse(whenFull))
        }
        copies.append(
            Candidate(
                slot: slot, header: header, headerDigest: encoded.digest, table: table,
                kind: copies.isEmpty ? .anchored : .retained, geometry: identity.geometry))
    }

    /// Writes what names the copies, and flushes everything.
    ///
    /// - Parameter superblock: what the new ones are to say otherwise.
    func seal(_ superblock: Superblock) throws(CheckpointError) {
        do throws(StorageError) {
            try storage.resize(to: identity.geometry.fileByteCount)
            try CheckpointFile.writeMetadata(identity, superblock, holding: copies, to: storage)
            try storage.flush()
        } catch {
            throw CheckpointError(error.orElse(whenFull))
        }
    }

    /// Reads every chunk of the copies from the medium.
    ///
    /// - Parameter progress: makes what follows one of them.
    func verify(
        progress: (Candidate) -> SlotVerifier.Progress
    ) throws(CheckpointError) {
        storage.discardCache()
        for copy in copies { try SlotVerifier.verify(copy, in: storage, progress: progress(copy)) }
    }

    /// Gives it its name, durably.
    ///
    /// - Parameter old: the file that it replaces, whose owner and permissions it gets.
    mutating func publish(
        replacing: Bool, accessOf old: FileStorage? = nil
    ) throws(CheckpointError) {
        do throws(StorageError) {
            if let old { try file.copyAccess(of: old) }
            try file.publish(replacing: replacing)
        } catch {
            throw CheckpointError(error.orElse(whenFull))
        }
    }
}

extension ChunkTable {
    /// The same chunks, one behind the other.
    var withoutGaps: ChunkTable {
        var table = self
        var offset: UInt64 = 0
        for index in table.entries.indices {
            table.entries[index].storedOffset = offset
            offset += UInt64(entries[index].storedByteCount).roundedUp(to: Geometry.block)
        }
        return table
    }

    /// How much of a slot they take then, to the byte.
    var storedByteCount: UInt64 {
        withoutGaps.entries.last.map { $0.storedOffset + UInt64($0.storedByteCount) } ?? 0
    }
}
