public import CheckpointFormat
internal import SystemPackage

/// The medium that holds a checkpoint file.
///
/// Calls block, and may be made from several threads at once. Offsets, counts and buffers are
/// multiples of 4096, so that every back end can use O_DIRECT. A buffer must not change while a
/// write of it is under way.
public protocol Storage: AnyObject, Sendable {
    /// Size of the file or device in bytes.
    var byteCount: UInt64 { get }
    var kind: StorageKind { get }
    /// What error messages call the medium: a path.
    var path: String { get }
    /// What statistics say of the medium beyond its kind; nil when there is nothing to say.
    var detail: String? { get }
    /// How often the device lost power without saving what it had acknowledged; 0 where nobody
    /// counts.
    var unsafeShutdownCount: UInt64 { get }

    /// pread(2): fills `range` of `buffer` from `offset`, or throws.
    ///
    /// A read that reaches beyond the end throws with errno 0, after it has read up to the end.
    func read(
        into buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64
    ) throws(StorageError)

    /// pwrite(2): writes all of `range`, or throws. It is not durable before `flush`.
    func write(
        _ buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64
    ) throws(StorageError)

    /// A queue for one thread's writes, of at most `depth` at once; `pool` is the memory that most
    /// of the buffers will come from.
    func makeWriteQueue(depth: Int, pool: StagingMemory?) throws(StorageError) -> any WriteQueue

    /// fdatasync(2): every write that returned before this call is durable when it returns.
    ///
    /// After it threw, nothing is known of those writes, and a second flush that succeeds proves
    /// nothing: the kernel forgets a failed write-back once it has reported it. Never retry it.
    func flush() throws(StorageError)

    /// Whether `path` still names what was opened: a resize or a replacement puts another file
    /// there.
    var isAtItsPath: Bool { get }

    /// posix_fadvise(2) with POSIX_FADV_DONTNEED: reads after this call see the medium, not what a
    /// failed flush left in the page cache, which the kernel then calls clean. Best effort.
    func discardCache()

    /// ftruncate(2): the medium ends at `byteCount` from here on; what comes with it is zero. For
    /// repairs, which restore an end that was lost, and for their undo. Throws EINVAL where the
    /// size is fixed, as that of a device is.
    func resize(to byteCount: UInt64) throws(StorageError)

    /// Tries to lock a byte without waiting; false when another opener holds it.
    func tryLock(_ byte: LockByte, exclusive: Bool) throws(StorageError) -> Bool
    func unlock(_ byte: LockByte) throws(StorageError)

    /// Which of `slots` other openers have pinned, and who they are. Takes no lock. Empty where
    /// there are no locks, and for a medium that only this process has.
    func slotPins(_ slots: [SlotIndex]) -> [SlotPin]

    /// Whether a writer has the slot: it writes there, or waits for the flush of what it wrote.
    /// Takes no lock. False where there are no locks.
    func isInHand(_ slot: SlotIndex) -> Bool

    /// The processes that have the writer's lock, as far as this user may see them.
    var writerLockHolders: [PinHolder] { get }
}

/// A medium whose bytes the processor writes itself, durable as soon as a write returns: nothing is
/// won by staging for it, so state is copied to it straight from the caller's memory.
public protocol ByteAddressableStorage: Storage {
    /// Lets `body` copy to the `byteCount` bytes from `offset`, which may be any, on this thread;
    /// what it copied is as durable as after `write` when this returns.
    @unsafe func withCopyTarget<Result>(
        at offset: UInt64, byteCount: Int, _ body: (CopyTarget) -> Result
    ) throws(StorageError) -> Result
}

/// The bytes of the identity block that openers lock; the bytes' values do not matter.
///
/// Locks belong to the open file description, not to the process, so that two openers in one
/// process exclude each other as well.
public enum LockByte: Hashable, Sendable {
    /// Exclusive: there is one writer.
    case writer
    /// Exclusive: the file is being created, and has a temporary name.
    case creation
    /// Shared: a reader uses this slot, so the writer must not reuse it.
    case slot(SlotIndex)

    public var byteOffset: UInt64 {
        switch self {
        case .writer: 0
        case .creation: 1
        case .slot(let index): 1024 + UInt64(index.rawValue)
        }
    }
}

extension Storage {
    public var detail: String? { nil }
    public var unsafeShutdownCount: UInt64 { 0 }
    public func slotPins(_ slots: [SlotIndex]) -> [SlotPin] { [] }
    public func isInHand(_ slot: SlotIndex) -> Bool { false }
    public var writerLockHolders: [PinHolder] { [] }

    /// For a medium whose writes block.
    public func makeWriteQueue(
        depth: Int, pool: StagingMemory?
    ) throws(StorageError) -> any WriteQueue {
        BlockingWriteQueue(self)
    }

    /// For a medium without a cache.
    public func discardCache() {}
    public var isAtItsPath: Bool { true }

    /// For a medium of fixed size.
    public func resize(to byteCount: UInt64) throws(StorageError) {
        throw StorageError(
            operation: "ftruncate", path: path, osErrorNumber: Errno.invalidArgument.rawValue,
            advice: "it cannot change its size; copy it to a file of \(byteCount) bytes first")
    }

    /// The block at `offset`, of which the medium may hold a part, or nothing: what lies beyond its
    /// end is zero.
    public func readPaddedBlock(at offset: UInt64) throws(StorageError) -> [UInt8] {
        let buffer = AlignedBuffer(byteCount: Limits.blockByteCount)
        buffer.fillWithZeros(0..<Limits.blockByteCount)
        if offset < byteCount {
            do throws(StorageError) {
                try read(into: buffer, 0..<Limits.blockByteCount, at: offset)
            } catch {
                guard error.osErrorNumber == 0 else { throw error }
            }
        }
        return buffer.array(0..<Limits.blockByteCount)
    }

    /// Reads `count` bytes (a multiple of 4096) at `offset` into a new array: for metadata.
    public func readBlocks(at offset: UInt64, count: Int) throws(StorageError) -> [UInt8] {
        guard let buffer = AlignedBuffer.forTransfers(byteCount: count) else {
            throw StorageError(
                operation: "allocating memory for a read", path: path, byteOffset: offset,
                byteCount: count, osErrorNumber: Errno.noMemory.rawValue)
        }
        try read(into: buffer, 0..<count, at: offset)
        return buffer.array(0..<count)
    }

    /// Writes `bytes` (a multiple of 4096 long) at `offset`: for metadata.
    public func writeBlocks(_ bytes: [UInt8], at offset: UInt64) throws(StorageError) {
        let buffer = AlignedBuffer(byteCount: bytes.count)
        buffer.copy(bytes, to: 0)
        try write(buffer, 0..<bytes.count, at: offset)
    }
}
