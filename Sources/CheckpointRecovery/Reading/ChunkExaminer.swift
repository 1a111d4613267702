internal import CheckpointFormat
internal import CheckpointStorage

/// Digests chunks of one candidate without handing out their bytes.
///
/// A chunk that is stored as it is passes through a small buffer piece by piece, so that a check
/// needs no more memory for chunks of 256 MiB than for small ones. A compressed chunk must be in
/// memory as a whole. One user at a time.
struct ChunkExaminer {
    /// The buffers of one worker.
    struct Needs: Sendable {
        var pieceByteCount = 0
        /// Of compressed chunks: as stored, and restored. 0 when there are none.
        var storedByteCount = 0
        var rawByteCount = 0

        init(_ entries: [ChunkEntry]) {
            for entry in entries {
                if entry.codec == .none {
                    let piece = min(entry.paddedByteCount, ChunkExaminer.pieceByteCount)
                    pieceByteCount = max(pieceByteCount, piece)
                } else {
                    storedByteCount = max(storedByteCount, entry.paddedByteCount)
                    rawByteCount = max(rawByteCount, entry.rawByteCount)
                }
            }
        }

        /// As many workers as fit the memory of a check; one always works.
        func workerCount(atMost workerCount: Int) -> Int {
            let each = pieceByteCount + storedByteCount + rawByteCount
            return max(1, min(workerCount, ChunkExaminer.memoryByteCount / max(each, 1)))
        }
    }

    /// As large as the default chunk: large enough for the device.
    static let pieceByteCount = 4 << 20

    /// What all workers together may use: one with the largest compressed chunks, a little more.
    static let memoryByteCount = 512 << 20

    private let reader: PayloadReader
    private let piece: AlignedBuffer
    /// nil when no chunk is compressed.
    private let whole: ChunkBuffers?

    /// - Returns: nil when the system has no room for the buffers.
    init?(_ reader: PayloadReader, _ needs: Needs) {
        self.reader = reader
        guard let piece = AlignedBuffer.forTransfers(byteCount: needs.pieceByteCount) else {
            return nil
        }
        self.piece = piece
        guard needs.rawByteCount > 0 else {
            whole = nil
            return
        }
        whole = ChunkBuffers(
            storedByteCount: needs.storedByteCount, rawByteCount: needs.rawByteCount)
        if whole == nil { return nil }
    }

    /// The leaf digests of the restored bytes of chunk `index`, once the stored ones matched.
    func leaves(_ index: Int) throws(ChunkDamage) -> [Digest] {
        let entry = reader.entries[index]
        if entry.codec != .none, let whole {
            return try reader.load(index, into: whole).leaves
        }
        let offset = reader.candidate.dataOffset + entry.storedOffset
        var leaves: [Digest] = []
        leaves.reserveCapacity(entry.storedByteCount / Limits.leafByteCount + 1)
        var done = 0
        while done < entry.storedByteCount {
            let byteCount = min(entry.storedByteCount - done, Self.pieceByteCount)
            // The last piece ends inside its chunk's padding, as the chunk does.
            let padded = min(entry.paddedByteCount - done, Self.pieceByteCount)
            do throws(StorageError) {
                try reader.storage.read(into: piece, 0..<padded, at: offset + UInt64(done))
            } catch {
                throw ChunkDamage(index: index, byteOffset: offset, cause: .unreadable(error))
            }
            leaves += piece.withBytes(0..<byteCount) { TreeDigest.leaves(of: $0) }
            done += byteCount
        }
        let found = TreeDigest.combine(leaves, byteCount: UInt64(entry.storedByteCount))
        guard found == entry.digest else {
            throw ChunkDamage(
                index: index, byteOffset: offset,
                cause: .digest(found: found, expected: entry.digest))
        }
        return leaves
    }
}
