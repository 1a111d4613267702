internal import CheckpointFormat
internal import CheckpointStorage

/// What one writer worker does to a staged chunk: compress when asked to, write.
///
/// A chunk that is stored as it is has the digest that was taken as it came into the buffer, which
/// nobody changes in between; a compressed one is digested in the buffer that it is written from.
final class ChunkWriter {
    struct Result {
        var entry: ChunkEntry
        let leaves: [Digest]
        var compressNanoseconds: UInt64
        var writeNanoseconds: UInt64
    }

    struct Completion {
        let item: WriteItem
        let result: Result
        /// nil when the chunk is written.
        let error: StorageError?
        /// Whether the medium may still write it, and from the item's buffer.
        let isUnresolved: Bool
    }

    private struct Pending {
        let item: WriteItem
        var result: Result
        let beganTime: UInt64
    }

    private let queue: any WriteQueue
    private let codec: Codec
    private let compressor: ChunkCompressor?
    /// What is under way, by the tag of its write.
    private var pending: [Pending?]
    /// By tag, what a compressed chunk is written from; empty without a codec.
    private let outputs: [AlignedBuffer]

    init(queue: any WriteQueue, options: WriterOptions, chunkByteCount: Int) {
        self.queue = queue
        codec = options.codec
        pending = Array(repeating: nil, count: queue.depth)
        let isCompressing = options.codec != .none
        compressor =
            isCompressing
            ? ChunkCompressor(level: options.zstdLevel, chunkByteCount: chunkByteCount) : nil
        outputs =
            isCompressing
            ? (0..<queue.depth).map { _ in AlignedBuffer(byteCount: chunkByteCount) } : []
    }

    var isIdle: Bool { queue.pendingCount == 0 }
    var hasRoom: Bool { queue.pendingCount < queue.depth }

    /// Compresses the item's chunk when asked to, and begins to write it.
    func begin(_ item: WriteItem, dataOffset: UInt64) {
        guard let chunk = item.chunk,
            let tag = pending.firstIndex(where: { $0 == nil })
        else { preconditionFailure("there is a chunk, and room for it") }
        let checkpoint = item.checkpoint
        let count = checkpoint.chunkRange(chunk.index).count
        let storedOffset = UInt64(chunk.index) * UInt64(checkpoint.chunkByteCount)
        var entry = ChunkEntry(
            storedOffset: storedOffset, storedByteCount: count, rawByteCount: count, codec: .none,
            planeWidth: 1, digest: .zero)
        var compressNanoseconds: UInt64 = 0
        var source = chunk.buffer
        if let compressed = compress(item, chunk.buffer, count: count, tag: tag) {
            source = outputs[tag]
            entry.storedByteCount = compressed.byteCount
            entry.codec = compressed.codec
            entry.planeWidth = compressed.planeWidth
            entry.digest = source.withBytes(0..<compressed.byteCount) { TreeDigest.of($0) }
            compressNanoseconds = compressed.nanoseconds
        } else {
            entry.digest = TreeDigest.combine(chunk.leaves, byteCount: UInt64(count))
        }
        pending[tag] = Pending(
            item: item,
            result: Result(
                entry: entry, leaves: chunk.leaves, compressNanoseconds: compressNanoseconds,
                writeNanoseconds: 0),
            beganTime: SystemClock.monotonicTime)
        queue.submit(
            source, 0..<Engine.paddedByteCount(entry.storedByteCount),
            at: dataOffset + storedOffset, tag: tag)
    }

    /// Waits until one of the writes under way has ended.
    func waitForOne() -> Completion {
        let completion = queue.waitForOne()
        guard var done = pending[completion.tag] else {
            preconditionFailure("a completion is of a write that was submitted")
        }
        pending[completion.tag] = nil
        done.result.writeNanoseconds = SystemClock.monotonicTime - done.beganTime
        return Completion(
            item: done.item, result: done.result, error: completion.error,
            isUnresolved: completion.isUnresolved)
    }

    private struct Compressed {
        let byteCount: Int
        let codec: Codec
        let planeWidth: Int
        let nanoseconds: UInt64
    }

    /// nil when no codec was asked for, or the chunk would not shrink.
    private func compress(
        _ item: WriteItem, _ buffer: AlignedBuffer, count: Int, tag: Int
    ) -> Compressed? {
        guard let compressor, let index = item.chunk?.index else { return nil }
        let output = outputs[tag]
        let began = SystemClock.monotonicTime
        let width = item.checkpoint.planeWidths[index]
        let codec = codec == .planesZstd && width > 1 ? Codec.planesZstd : .zstd
        // Safe: both buffers live through the call and hold at least `count` bytes.
        let size = unsafe compressor.encode(
            UnsafeRawBufferPointer(start: buffer.baseAddress, count: count), codec: codec,
            planeWidth: width,
            into: UnsafeMutableRawBufferPointer(start: output.baseAddress, count: output.byteCount))
        guard let size else { return nil }
        output.fillWithZeros(size..<Engine.paddedByteCount(size))
        return Compressed(
            byteCount: size, codec: codec, planeWidth: codec == .planesZstd ? width : 1,
            nanoseconds: SystemClock.monotonicTime - began)
    }
}
