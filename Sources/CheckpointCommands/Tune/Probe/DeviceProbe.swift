internal import CheckpointFormat
internal import CheckpointStorage

/// Writes over a file as writer workers do: each thread has one write under way.
final class DeviceProbe {
    private struct Progress {
        /// Where the next write begins: over the file, and again from its start.
        var position = 0
        var writtenByteCount = 0
        var failure: StorageError?
    }

    private let workspace: BenchWorkspace
    private let storage: FileStorage
    private let fileByteCount: Int
    /// State in memory of a pool: more than caches hold, and no zeros, which may be written faster.
    private let source: AlignedBuffer
    private let written = Monitor(Progress())

    init(
        directory: String, fileByteCount: Int, source: AlignedBuffer
    ) throws(CheckpointError) {
        workspace = BenchWorkspace(directory: directory)
        self.fileByteCount = fileByteCount
        self.source = source
        let path = try workspace.writePlainFile("tune", byteCount: UInt64(fileByteCount))
        storage = try FileStorage.opened(path, .write)
    }

    /// A device that rests may take so much at once that it seems faster than it is: one thread
    /// writes for so long before anything counts.
    private static let warmUpSeconds = 0.1
    /// A slow device is watched for longer: a throttle counts in slices of 0.1 s.
    private static let fewestByteCount = 64 << 20
    private static let longestSeconds = 0.5

    /// `depth` threads write for so long, or longer on a slow device, and end what they began
    /// then. Not flushed.
    ///
    /// - Parameter writeByteCount: a part of the sizes of the source and the file.
    func bytesPerSecond(
        writeByteCount: Int, depth: Int, seconds limit: Double
    ) throws(CheckpointError) -> Double {
        _ = try rate(writeByteCount, 1, seconds: Self.warmUpSeconds, fewest: 0)
        return try rate(writeByteCount, depth, seconds: limit, fewest: Self.fewestByteCount)
    }

    private func rate(
        _ writeByteCount: Int, _ depth: Int, seconds limit: Double, fewest: Int
    ) throws(CheckpointError) -> Double {
        let (storage, source, written) = (storage, source, written)
        let fileByteCount = fileByteCount
        // On the grid of this size.
        written.withLock {
            $0.position -= $0.position % writeByteCount
            $0.writtenByteCount = 0
        }
        let began = SystemClock.monotonicTime
        let end = began + UInt64(limit * 1e9)
        let latest = max(end, began + UInt64(Self.longestSeconds * 1e9))
        let elapsed = try seconds { () throws(CheckpointError) in
            try inParallel(depth) { _ in
                var isOver = false
                repeat {
                    let offset = written.withLock { progress in
                        let offset = progress.position
                        progress.position = (offset + writeByteCount) % fileByteCount
                        return offset
                    }
                    let start = offset % source.byteCount
                    do throws(StorageError) {
                        try storage.write(
                            source, start..<start + writeByteCount, at: UInt64(offset))
                    } catch {
                        return written.withLock { $0.failure = error }
                    }
                    let byteCount = written.withLock { progress in
                        progress.writtenByteCount += writeByteCount
                        return progress.writtenByteCount
                    }
                    let now = SystemClock.monotonicTime
                    isOver = now >= (byteCount < fewest ? latest : end)
                } while !isOver
            }
        }
        let progress = written.withLock { $0 }
        if let failure = progress.failure { throw CheckpointError(failure) }
        return Double(progress.writtenByteCount) / elapsed
    }

    func flushSeconds() throws(CheckpointError) -> Double {
        try seconds { () throws(CheckpointError) in
            try withCheckpointErrors { () throws(StorageError) in try storage.flush() }
        }
    }

    /// One block, and its flush.
    func blockSeconds() throws(CheckpointError) -> Double {
        try seconds { () throws(CheckpointError) in
            try withCheckpointErrors { () throws(StorageError) in
                try storage.write(source, 0..<Limits.blockByteCount, at: 0)
                try storage.flush()
            }
        }
    }
}
