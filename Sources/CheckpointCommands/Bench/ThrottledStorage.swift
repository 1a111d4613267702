internal import CheckpointFormat
internal import CheckpointStorage

#if canImport(Glibc)
    internal import Glibc
#endif

/// A medium that is written no faster than a given rate: a fast disk that stands for a slow one.
///
/// Writes take their turn on one line, as they do on a link to a network disk: each ends when its
/// bytes could have been carried since the one before it. Reads and flushes are as they are.
final class ThrottledStorage: Storage {
    private let base: any Storage
    private let bytesPerSecond: UInt64
    /// When the line is free again, on the clock of `SystemClock.monotonicTime`.
    private let freeTime = Monitor<UInt64>(0)

    init(_ base: any Storage, bytesPerSecond: UInt64) {
        self.base = base
        self.bytesPerSecond = max(1, bytesPerSecond)
    }

    var byteCount: UInt64 { base.byteCount }
    var kind: StorageKind { base.kind }
    var path: String { base.path }

    func read(
        into buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64
    ) throws(StorageError) {
        try base.read(into: buffer, range, at: offset)
    }

    func write(
        _ buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64
    ) throws(StorageError) {
        let duration = Double(range.count) / Double(bytesPerSecond) * 1e9
        let end = freeTime.withLock { freeTime -> UInt64 in
            freeTime = max(freeTime, SystemClock.monotonicTime) + UInt64(duration)
            return freeTime
        }
        try base.write(buffer, range, at: offset)
        let now = SystemClock.monotonicTime
        if now < end { usleep(UInt32(clamping: (end - now) / 1000)) }
    }

    func flush() throws(StorageError) { try base.flush() }
    func discardCache() { base.discardCache() }

    func tryLock(_ byte: LockByte, exclusive: Bool) throws(StorageError) -> Bool {
        try base.tryLock(byte, exclusive: exclusive)
    }

    func unlock(_ byte: LockByte) throws(StorageError) { try base.unlock(byte) }

    func slotPins(_ slots: [SlotIndex]) -> [SlotPin] { base.slotPins(slots) }
    var writerLockHolders: [PinHolder] { base.writerLockHolders }
}
