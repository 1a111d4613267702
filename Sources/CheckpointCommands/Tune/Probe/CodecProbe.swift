internal import CheckpointFormat
internal import CheckpointModel
internal import CheckpointStorage
internal import CheckpointWriter

/// Compresses chunks of state, as writer workers do: as many at once as a writer has, or as there
/// are processors, because two on one core are slower than one.
struct CodecProbe {
    private static let chunkByteCount = 4 << 20
    private static let chunksPerRound = 8
    private static let workerCount = min(
        WriterOptions().writerWorkerCount, Machine.processorCount)
    /// State of the probe has elements of four bytes.
    private static let planeWidth = 4

    static var all: [CodecProbe] {
        [CodecProbe(.zstd, .zstd), CodecProbe(.planesZstd, .planesZstd)]
    }

    private let codec: Codec
    private let name: MachineCodec
    private var bytesPerSecond: [Double] = []
    private var rawByteCount = 0
    private var storedByteCount = 0

    private init(_ codec: Codec, _ name: MachineCodec) {
        self.codec = codec
        self.name = name
    }

    mutating func measure(_ state: BenchState) throws(CheckpointError) {
        try Interruption.check()
        let codec = codec
        let stored = Monitor((byteCount: 0, seconds: 0.0))
        try inParallel(Self.workerCount) { _ in
            let worker = Worker()
            var byteCount = 0
            let elapsed = seconds {
                for index in 0..<Self.chunksPerRound {
                    byteCount += worker.storedByteCount(state, chunk: index, codec)
                }
            }
            stored.withLock {
                $0.byteCount += byteCount
                $0.seconds += elapsed
            }
        }
        let byteCount = Self.workerCount * Self.chunksPerRound * Self.chunkByteCount
        rawByteCount += byteCount
        let (storedCount, elapsed) = stored.withLock { $0 }
        storedByteCount += storedCount
        bytesPerSecond.append(Double(byteCount) / elapsed)
    }

    private final class Worker {
        private let compressor = ChunkCompressor(
            level: WriterOptions().zstdLevel, chunkByteCount: CodecProbe.chunkByteCount)
        private let output = AlignedBuffer(byteCount: CodecProbe.chunkByteCount)

        func storedByteCount(_ state: BenchState, chunk index: Int, _ codec: Codec) -> Int {
            let count = CodecProbe.chunkByteCount
            // Safe: the state has more chunks than a round, and the output is as large as one.
            let size = unsafe compressor.encode(
                UnsafeRawBufferPointer(
                    start: state.buffer.baseAddress + index * count, count: count),
                codec: codec, planeWidth: CodecProbe.planeWidth,
                into: UnsafeMutableRawBufferPointer(
                    start: output.baseAddress, count: output.byteCount))
            return size ?? count
        }
    }

    var point: MachineProfile.CodecPoint {
        MachineProfile.CodecPoint(
            codec: name, bytesPerSecond: MeasuredValues(bytesPerSecond),
            compressionRatio: Double(rawByteCount) / Double(max(1, storedByteCount)))
    }
}
