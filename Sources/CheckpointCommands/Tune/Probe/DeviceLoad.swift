internal import CheckpointFormat
internal import CheckpointStorage

/// Reads a file past the page cache, over and over and at a given rate, as a data loader of the job
/// does: what is measured meanwhile is what that leaves.
final class DeviceLoad {
    private struct State {
        var isOver = false
        var readByteCount = 0
        var failure: StorageError?
    }

    private static let readByteCount = 1 << 20
    /// A device that was too slow is not asked for more than this later.
    private static let patienceNanoseconds: UInt64 = 100_000_000
    /// Less of the load than this is no longer what was asked for.
    private static let reachedShare = 0.9

    private let bytesPerSecond: Double
    private let workspace: BenchWorkspace
    private let state = Monitor(State())
    private let beganTime: UInt64
    private var reader: WorkerThread?

    /// Begins to read.
    ///
    /// - Parameter source: what the file consists of: zeros may be read faster.
    init(
        directory: String, bytesPerSecond: Double, fileByteCount: Int, source: AlignedBuffer
    ) throws(CheckpointError) {
        self.bytesPerSecond = bytesPerSecond
        workspace = BenchWorkspace(directory: directory)
        let path = try workspace.writePlainFile("load", byteCount: UInt64(fileByteCount))
        let storage = try FileStorage.opened(path, .write)
        for offset in stride(from: 0, to: fileByteCount, by: Self.readByteCount) {
            try Interruption.check()
            let start = offset % source.byteCount
            try withCheckpointErrors { () throws(StorageError) in
                try storage.write(
                    source, start..<start + Self.readByteCount, at: UInt64(offset))
            }
        }
        beganTime = SystemClock.monotonicTime
        try withCheckpointErrors { () throws(StorageError) in
            try storage.flush()
            reader = try WorkerThread(name: "probe-load") { [state, bytesPerSecond] in
                Self.read(storage, fileByteCount, bytesPerSecond, state)
            }
        }
    }

    private static func read(
        _ storage: FileStorage, _ fileByteCount: Int, _ bytesPerSecond: Double,
        _ state: Monitor<State>
    ) {
        let buffer = AlignedBuffer(byteCount: readByteCount)
        let nanosecondsPerRead = UInt64(Double(readByteCount) / bytesPerSecond * 1e9)
        var offset = 0
        var due = SystemClock.monotonicTime
        while !state.withLock({ $0.isOver }) {
            let now = SystemClock.monotonicTime
            guard due <= now else {
                SystemClock.sleep(nanoseconds: min(due - now, patienceNanoseconds))
                continue
            }
            do throws(StorageError) {
                try storage.read(into: buffer, 0..<readByteCount, at: UInt64(offset))
            } catch {
                return state.withLock { $0.failure = error }
            }
            state.withLock { $0.readByteCount += readByteCount }
            offset = (offset + readByteCount) % fileByteCount
            due = max(due, now - min(now, patienceNanoseconds)) + nanosecondsPerRead
        }
    }

    deinit {
        state.withLock { $0.isOver = true }
        reader?.join()
    }

    /// What a reader of the profile should know; throws what ended the reads.
    func notes() throws(CheckpointError) -> [String] {
        let (byteCount, failure) = state.withLock { ($0.readByteCount, $0.failure) }
        if let failure { throw CheckpointError(failure) }
        let elapsed = Double(SystemClock.monotonicTime - beganTime) / 1e9
        let reached = Double(byteCount) / elapsed
        guard reached < Self.reachedShare * bytesPerSecond else { return [] }
        return [
            "the other load was \(Self.rate(reached)) during the probe, not "
                + "\(Self.rate(bytesPerSecond)): the device reads no more beside the writes"
        ]
    }

    private static func rate(_ bytesPerSecond: Double) -> String {
        "\(Quantity.bytes(UInt64(saturating: bytesPerSecond)))/s"
    }
}
