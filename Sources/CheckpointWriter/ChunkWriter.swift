internal import CheckpointFormat
internal import CheckpointStorage

/// What one writer worker does to a chunk: digest, compress when asked to, write.
///
/// The digest is of the very buffer that is written, which nobody changes in between.
final class ChunkWriter {
    struct Result {
        let entry: ChunkEntry
        let leaves: [Digest]
        let digestNanoseconds: UInt64
        let compressNanoseconds: UInt64
        let writeNanoseconds: UInt64
    }

    private let storage: any Storage
    private let codec: Codec
    private let compressor: ChunkCompressor?
    private let output: AlignedBuffer?

    init(storage: any Storage, options: WriterOptions, chunkByteCount: Int) {
        self.storage = storage
        codec = options.codec
        compressor =
            options.codec == .none
            ? nil : ChunkCompressor(level: options.zstdLevel, chunkByteCount: chunkByteCount)
        output = options.codec == .none ? nil : AlignedBuffer(byteCount: chunkByteCount)
    }

    func write(
        _ checkpoint: InFlightCheckpoint, index: Int, buffer: AlignedBuffer, dataOffset: UInt64
    ) throws(CheckpointError) -> Result {
        let count = checkpoint.chunkRange(index).count
        let storedOffset = UInt64(index) * UInt64(checkpoint.chunkByteCount)
        let began = SystemClock.monotonicTime
        var entry = ChunkEntry(
            storedOffset: storedOffset, storedByteCount: count, rawByteCount: count, codec: .none,
            planeWidth: 1, digest: .zero)
        var compressNanoseconds: UInt64 = 0
        var source = buffer
        // One pass serves both digests of a chunk that is stored as it is.
        let leaves = buffer.withBytes(0..<count) { TreeDigest.leaves(of: $0) }
        if let compressed = compress(checkpoint, index: index, buffer: buffer, count: count) {
            source = compressed.output
            entry.storedByteCount = compressed.byteCount
            entry.codec = compressed.codec
            entry.planeWidth = compressed.planeWidth
            entry.digest = source.withBytes(0..<compressed.byteCount) { TreeDigest.of($0) }
            compressNanoseconds = compressed.nanoseconds
        } else {
            entry.digest = TreeDigest.combine(leaves, byteCount: UInt64(count))
        }
        let hashed = SystemClock.monotonicTime
        try withCheckpointErrors(slot: checkpoint.slot) { () throws(StorageError) in
            try storage.write(
                source, 0..<Engine.paddedByteCount(entry.storedByteCount),
                at: dataOffset + storedOffset)
        }
        return Result(
            entry: entry, leaves: leaves,
            digestNanoseconds: hashed - began - compressNanoseconds,
            compressNanoseconds: compressNanoseconds,
            writeNanoseconds: SystemClock.monotonicTime - hashed)
    }

    private struct Compressed {
        let output: AlignedBuffer
        let byteCount: Int
        let codec: Codec
        let planeWidth: Int
        let nanoseconds: UInt64
    }

    /// nil when no codec was asked for, or the chunk would not shrink.
    private func compress(
        _ checkpoint: InFlightCheckpoint, index: Int, buffer: AlignedBuffer, count: Int
    ) -> Compressed? {
        guard let compressor, let output else { return nil }
        let began = SystemClock.monotonicTime
        let width = checkpoint.planeWidths[index]
        let codec = codec == .planesZstd && width > 1 ? Codec.planesZstd : .zstd
        // Safe: both buffers live through the call and hold at least `count` bytes.
        let size = unsafe compressor.encode(
            UnsafeRawBufferPointer(start: buffer.baseAddress, count: count), codec: codec,
            planeWidth: width,
            into: UnsafeMutableRawBufferPointer(start: output.baseAddress, count: output.byteCount))
        guard let size else { return nil }
        output.fillWithZeros(size..<Engine.paddedByteCount(size))
        return Compressed(
            output: output, byteCount: size, codec: codec,
            planeWidth: codec == .planesZstd ? width : 1,
            nanoseconds: SystemClock.monotonicTime - began)
    }
}
