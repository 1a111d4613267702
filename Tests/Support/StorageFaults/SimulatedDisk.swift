package import CheckpointFormat
package import CheckpointStorage

/// A recording medium that takes its time, on the clock of a simulation, and ends queued writes in
/// any order.
package final class SimulatedDisk: Storage {
    package let medium: RecordingStorage
    private let scheduler: SimulatedScheduler

    package init(_ medium: RecordingStorage, scheduler: SimulatedScheduler) {
        self.medium = medium
        self.scheduler = scheduler
    }

    package var path: String { medium.path }
    package var kind: StorageKind { medium.kind }
    package var byteCount: UInt64 { medium.byteCount }

    package func read(
        into buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64
    ) throws(StorageError) {
        scheduler.sleep(nanoseconds: latency())
        try medium.read(into: buffer, range, at: offset)
    }

    package func write(
        _ buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64
    ) throws(StorageError) {
        medium.observe()
        let write = medium.begin(buffer, range, at: offset)
        scheduler.sleep(nanoseconds: latency())
        try medium.end(write)
    }

    package func makeWriteQueue(
        depth: Int, pool: StagingMemory?
    ) throws(StorageError) -> any WriteQueue {
        if depth == 1 { return BlockingWriteQueue(self) }
        return SimulatedWriteQueue(medium, scheduler: scheduler, depth: depth) { [self] in
            latency()
        }
    }

    package func flush() throws(StorageError) {
        scheduler.sleep(nanoseconds: latency())
        try medium.flush()
    }

    package func discardCache() { medium.discardCache() }

    package func tryLock(_ byte: LockByte, exclusive: Bool) throws(StorageError) -> Bool {
        try medium.tryLock(byte, exclusive: exclusive)
    }

    package func unlock(_ byte: LockByte) throws(StorageError) { try medium.unlock(byte) }

    /// Mostly some 100 µs; now and then the device stalls.
    private func latency() -> UInt64 {
        scheduler.draw(below: 64) == 0
            ? scheduler.draw(below: 50_000_000) : scheduler.draw(below: 200_000)
    }
}

/// Writes that are all under way at once; the one with the shortest latency ends first.
private final class SimulatedWriteQueue: WriteQueue {
    private struct Pending {
        let write: RecordingStorage.WriteUnderWay
        let tag: Int
        let endTime: UInt64
    }

    let depth: Int
    private let medium: RecordingStorage
    private let scheduler: SimulatedScheduler
    private let latency: () -> UInt64
    private var pending: [Pending] = []

    init(
        _ medium: RecordingStorage, scheduler: SimulatedScheduler, depth: Int,
        latency: @escaping () -> UInt64
    ) {
        self.medium = medium
        self.scheduler = scheduler
        self.depth = depth
        self.latency = latency
    }

    var pendingCount: Int { pending.count }

    func submit(_ buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64, tag: Int) {
        medium.observe()
        pending.append(
            Pending(
                write: medium.begin(buffer, range, at: offset), tag: tag,
                endTime: scheduler.monotonicTime + latency()))
    }

    func waitForOne() -> WriteCompletion {
        guard let index = pending.indices.min(by: { pending[$0].endTime < pending[$1].endTime })
        else { preconditionFailure("a write is pending") }
        let first = pending.remove(at: index)
        if first.endTime > scheduler.monotonicTime {
            scheduler.sleep(nanoseconds: first.endTime - scheduler.monotonicTime)
        }
        do throws(StorageError) {
            try medium.end(first.write)
            return WriteCompletion(tag: first.tag, error: nil)
        } catch {
            return WriteCompletion(tag: first.tag, error: error)
        }
    }
}
