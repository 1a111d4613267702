public import CheckpointFormat
public import CheckpointStorage

/// A chunk whose stored bytes matched their digest, with what they restore to.
public struct StoredChunk: Sendable {
    public let index: Int
    public let entry: ChunkEntry
    /// Byte offset in the payload.
    public let payloadOffset: UInt64
    /// Its first `entry.storedByteCount` bytes, and zeros up to a multiple of 4096.
    public let stored: AlignedBuffer
    /// Its first `entry.rawByteCount` bytes.
    public let restored: AlignedBuffer

    /// `entry.storedByteCount` rounded up to a multiple of 4096.
    public var paddedByteCount: Int { entry.paddedByteCount }
}

extension SelectedCheckpoint {
    /// Hands every chunk to `body`, in any order and from several threads, and verifies the digest
    /// of the whole payload at the end: what was copied is what was saved once this returns.
    ///
    /// - Parameters:
    ///   - isInBackground: the threads, the calling one among them, give way to others from now on.
    ///   - body: its buffers are valid during the call. What it throws ends the walk.
    /// - Throws: `corrupt`, `inputOutput`; `busy` when a writer took the slot meanwhile.
    public func forEachStoredChunk(
        isInBackground: Bool = false,
        _ body: @escaping @Sendable (StoredChunk) throws(CheckpointError) -> Void
    ) throws(CheckpointError) {
        try checkOpen()
        let entries = reader.entries
        let digest = Monitor(TreeDigest(byteCount: candidate.header.payloadByteCount))
        let reader = reader
        try reader.forEach(Array(entries.indices), workerCount: reader.workerCount) {
            if isInBackground { WorkerThread.yieldToOthers(nice: 10) }
            guard let buffers = ChunkBuffers(for: reader.candidate.table) else { return nil }
            return { index throws(CheckpointError) in
                let chunk = try reader.load(index, buffers)
                let leaves = chunk.leaves
                digest.withLock { $0.setLeaves(leaves, at: chunk.payloadOffset) }
                let entry = entries[index]
                buffers.stored.fillWithZeros(entry.storedByteCount..<entry.paddedByteCount)
                try body(
                    StoredChunk(
                        index: index, entry: entry, payloadOffset: chunk.payloadOffset,
                        stored: buffers.stored, restored: chunk.buffer))
            }
        }
        try reader.checkLogicalDigest(digest.withLock { $0.finish() })
    }
}
