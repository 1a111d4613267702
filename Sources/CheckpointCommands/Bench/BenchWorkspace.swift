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
        let path = "\(directory)/.pccheck-bench-\(ThisProcess.id)-\(name)"
        if !paths.contains(path) { paths.append(path) }
        return path
    }

    /// A checkpoint file with every block written, as it is after its first round.
    func createFile(
        _ name: String, capacity: UInt64, inFlight: Int, retain: Int = 1,
        chunkByteCount: Int, preallocation: CheckpointFile.Preallocation = .zero
    ) throws(CheckpointError) -> String {
        var options = CheckpointFile.Options(capacity: capacity)
        options.inFlight = inFlight
        options.retain = retain
        options.chunkByteCount = chunkByteCount
        options.preallocation = preallocation
        options.replacesExisting = true
        let path = path(name)
        try CheckpointFile.create(path: path, options: options) { _, _ throws(CheckpointError) in
            try Interruption.check()
        }
        return path
    }

    /// An ordinary file of `byteCount` bytes, all of them written.
    func writePlainFile(_ name: String, byteCount: UInt64) throws(CheckpointError) -> String {
        let path = path(name)
        var file = try NewFile.begun(path, byteCount: byteCount)
        let storage = try FileStorage.opened(file.temporaryPath, .write)
        let zeros = AlignedBuffer(byteCount: 4 << 20)
        var offset: UInt64 = 0
        while offset < byteCount {
            try Interruption.check()
            let count = Int(min(UInt64(zeros.byteCount), byteCount - offset))
            try withCheckpointErrors { () throws(StorageError) in
                try storage.write(zeros, 0..<count, at: offset)
            }
            offset += UInt64(count)
        }
        try file.finish(replacing: true)
        return path
    }
}

/// Runs `body` on `threadCount` threads at once, with the number of the thread; on this one when
/// it is to be one.
func inParallel(
    _ threadCount: Int, _ body: @escaping @Sendable (Int) -> Void
) throws(CheckpointError) {
    if threadCount == 1 { return body(0) }
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
