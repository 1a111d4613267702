internal import CheckpointFormat
internal import CheckpointStorage
internal import CheckpointWriter

/// Copies state to memory of the kind that a pool is made of.
final class MemoryProbe {
    static let writeByteCount = 4 << 20
    static let queueDepth = WriterOptions().writerWorkerCount
    private static let sharedSeconds = 0.3
    private static let copiesPerRound = 3

    let state: BenchState
    let target: AlignedBuffer

    init(byteCount: Int) throws(CheckpointError) {
        state = BenchState(byteCount: UInt64(byteCount))
        guard let memory = StagingMemory(byteCount: byteCount),
            let buffer = memory.buffers(of: byteCount).first
        else {
            throw CheckpointError(
                .outOfMemory, "there is no memory to copy \(byteCount) bytes to")
        }
        target = buffer
        // The first copy has to wait for the pages.
        Self.copyAndDigest(state, target)
    }

    /// - Parameter device: what is written while state is copied, as a writer does.
    func measure(
        _ device: DeviceProbe, into samples: inout ProbeSamples
    ) throws(CheckpointError) {
        let byteCount = Double(state.byteCount)
        for _ in 0..<Self.copiesPerRound {
            samples.digestBytesPerSecond.append(
                byteCount / seconds { Self.copyAndDigest(state, target) })
        }
        let copying = try PlainWrites.copySeconds(
            state, to: target, threadCount: Machine.processorCount, chunkByteCount: 4 << 20)
        let shared = try sharedRates(device)
        // Processors alone may not reach all of what memory moves.
        samples.memoryBytesPerSecond.append(
            max(2 * byteCount / copying, 2 * shared.copy + shared.device))
    }

    /// Copies and writes at once, in bytes per second.
    private func sharedRates(
        _ device: DeviceProbe
    ) throws(CheckpointError) -> (copy: Double, device: Double) {
        let (state, target) = (state, target)
        let copied = Monitor((isOver: false, byteCount: 0, seconds: 0.0))
        let copier: WorkerThread
        do throws(StorageError) {
            copier = try WorkerThread(name: "probe-copy") {
                let began = SystemClock.monotonicTime
                repeat {
                    Self.copyAndDigest(state, target)
                    let elapsed = Double(SystemClock.monotonicTime - began) / 1e9
                    copied.withLock {
                        $0.byteCount += state.byteCount
                        $0.seconds = elapsed
                    }
                } while !copied.withLock { $0.isOver }
            }
        } catch {
            throw CheckpointError(error)
        }
        defer { copier.join() }
        defer { copied.withLock { $0.isOver = true } }
        let written = try device.bytesPerSecond(
            writeByteCount: Self.writeByteCount, depth: Self.queueDepth,
            seconds: Self.sharedSeconds)
        // The copies that ended by now; where none did, that one is waited for.
        copied.withLock { $0.isOver = true }
        copier.join()
        let copies = copied.withLock { $0 }
        return (Double(copies.byteCount) / copies.seconds, written)
    }

    /// In one pass, leaf by leaf, as a snapshot worker does it.
    private static func copyAndDigest(_ state: BenchState, _ buffer: AlignedBuffer) {
        let copier = DigestingCopier()
        // Safe: both buffers have as many bytes as the state.
        let target = unsafe CopyTarget(start: buffer.baseAddress, byteCount: buffer.byteCount)
        var offset = 0
        while offset < state.byteCount {
            let count = min(Limits.leafByteCount, state.byteCount - offset)
            // Safe: the range is in the state.
            unsafe copier.copy(
                UnsafeRawBufferPointer(start: state.buffer.baseAddress + offset, count: count),
                to: target, at: offset)
            _ = copier.takeDigest()
            offset += count
        }
    }
}
