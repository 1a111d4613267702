internal import CheckpointFormat
internal import CheckpointStorage
internal import CheckpointWriter

#if canImport(Glibc)
    internal import Glibc
#endif

/// The files of a benchmark, removed when it ends, whatever way.
final class BenchWorkspace {
    let directory: String
    private var paths: [String] = []

    init(directory: String) { self.directory = directory }

    deinit {
        // Safe: the paths are passed as C strings for the calls.
        for path in paths { unsafe _ = unlink(path) }
    }

    func path(_ name: String) -> String {
        let path = "\(directory)/.pccheck-bench-\(SystemClock.processID)-\(name)"
        if !paths.contains(path) { paths.append(path) }
        return path
    }

    /// A checkpoint file with every block written, as it is after its first round.
    func createFile(
        _ name: String, capacity: UInt64, inFlight: Int, retain: Int = 1,
        chunkByteCount: Int = 4 << 20
    ) throws(CheckpointError) -> String {
        var options = CheckpointFile.Options(capacity: capacity)
        options.inFlight = inFlight
        options.retain = retain
        options.chunkByteCount = chunkByteCount
        options.replacesExisting = true
        let path = path(name)
        try CheckpointFile.create(path: path, options: options)
        return path
    }
}

/// State to be checkpointed: memory that was touched and does not compress.
final class BenchState: Sendable {
    let buffer: AlignedBuffer

    init(byteCount: Int) {
        buffer = AlignedBuffer(byteCount: byteCount)
        var word: UInt64 = 0x9E37_79B9_7F4A_7C15
        // Safe: writes whole words inside the buffer.
        let words = unsafe UnsafeMutableRawBufferPointer(
            start: buffer.baseAddress, count: byteCount / 8 * 8
        ).bindMemory(to: UInt64.self)
        for index in words.indices {
            word = word &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            unsafe words[index] = word
        }
    }

    var payload: CheckpointPayload {
        // Safe: the state outlives every checkpoint of the benchmark and is not changed.
        let memory = unsafe UnsafeRawBufferPointer(
            start: buffer.baseAddress, count: buffer.byteCount)
        return unsafe CheckpointPayload(opaque: [CheckpointPayload.Region(memory)])
    }
}

/// Runs `body` on `threadCount` threads at once, with the number of the thread.
func inParallel(
    _ threadCount: Int, _ body: @escaping @Sendable (Int) -> Void
) throws(CheckpointError) {
    try withCheckpointErrors { () throws(StorageError) in
        var threads: [WorkerThread] = []
        defer { for thread in threads { thread.join() } }
        for number in 0..<threadCount {
            threads.append(try WorkerThread(name: "bench-\(number)") { body(number) })
        }
    }
}

/// Seconds that `body` takes.
func seconds<Failure: Error>(_ body: () throws(Failure) -> Void) throws(Failure) -> Double {
    let began = SystemClock.monotonicTime
    try body()
    return Double(SystemClock.monotonicTime - began) / 1e9
}
