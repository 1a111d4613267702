internal import CheckpointFormat
internal import CheckpointStorage

#if canImport(Glibc)
    internal import Glibc
#endif

/// The limits that the benchmark compares with: what a program can do that keeps no promise.
enum PlainWrites {
    /// Seconds of O_DIRECT pwrite(2) of the state over a written file by `threadCount` threads,
    /// with one fdatasync(2) at the end.
    static func writeSeconds(
        _ state: BenchState, to storage: FileStorage, threadCount: Int, chunkByteCount: Int
    ) throws(CheckpointError) -> Double {
        let failure = Monitor<StorageError?>(nil)
        let count = usefulCount(threadCount, state, chunkByteCount)
        let elapsed = try seconds { () throws(CheckpointError) in
            try inParallel(count) { number in
                var offset = number * chunkByteCount
                while offset < state.byteCount {
                    let end = min(offset + chunkByteCount, state.byteCount)
                    do throws(StorageError) {
                        try storage.write(state.buffer, offset..<end, at: UInt64(offset))
                    } catch {
                        failure.withLock { $0 = error }
                        return
                    }
                    offset += count * chunkByteCount
                }
            }
            try withCheckpointErrors { () throws(StorageError) in try storage.flush() }
        }
        if let error = failure.withLock({ $0 }) { throw CheckpointError(error) }
        return elapsed
    }

    /// MB/s of `count` such writes, one after another.
    static func rate(
        _ state: BenchState, to storage: FileStorage, count: Int, _ settings: BenchSettings
    ) throws(CheckpointError) -> Double {
        var elapsed = 0.0
        for _ in 0..<count {
            try Interruption.check()
            elapsed += try writeSeconds(
                state, to: storage, threadCount: settings.writerWorkerCount,
                chunkByteCount: settings.chunkByteCount)
        }
        return Double(count * state.byteCount) / elapsed / 1e6
    }

    /// A thread for each chunk at most.
    private static func usefulCount(
        _ threadCount: Int, _ state: BenchState, _ chunkByteCount: Int
    ) -> Int {
        max(1, min(threadCount, (state.byteCount + chunkByteCount - 1) / chunkByteCount))
    }

    /// Seconds of a memcpy(3) of the state by `threadCount` threads, chunk by chunk, into memory
    /// of the kind that a staging pool is made of.
    static func copySeconds(
        _ state: BenchState, to target: AlignedBuffer, threadCount: Int, chunkByteCount: Int
    ) throws(CheckpointError) -> Double {
        let count = usefulCount(threadCount, state, chunkByteCount)
        return try seconds { () throws(CheckpointError) in
            try inParallel(count) { number in
                var offset = number * chunkByteCount
                while offset < state.byteCount {
                    // Safe: both buffers have as many bytes as the state.
                    unsafe _ = memcpy(
                        target.baseAddress + offset, state.buffer.baseAddress + offset,
                        min(chunkByteCount, state.byteCount - offset))
                    offset += count * chunkByteCount
                }
            }
        }
    }
}
