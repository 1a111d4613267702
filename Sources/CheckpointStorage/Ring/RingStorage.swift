internal import CPlatformLinux
public import CheckpointFormat
internal import SystemPackage

/// A regular file or a block device whose chunks are written through io_uring(7).
///
/// Everything else (metadata, reads, locks, flushes) is a `FileStorage`'s, over O_DIRECT where the
/// file system has it.
///
/// Flushing stays fdatasync(2), after the completions of all writes have arrived. The ring could
/// do it as well, linked behind the writes (IOSQE_IO_LINK); but a short write breaks that chain,
/// and what is written for the rest then lands after the flush that should have covered it.
public final class RingStorage: Storage {
    private let file: FileStorage

    public var path: String { file.path }
    public var byteCount: UInt64 { file.byteCount }
    public let kind = StorageKind.ring
    public var isBlockDevice: Bool { file.isBlockDevice }
    /// Whether writes go to the page cache, as the file system has no O_DIRECT.
    public var isBuffered: Bool { file.kind == .buffered }

    /// - Throws: what `FileStorage` throws.
    public init(
        path: String, mode: FileStorage.Mode = .automatic, allowsNetwork: Bool = false
    ) throws(StorageError) {
        file = try FileStorage(
            path: path, access: .write, mode: mode, allowsNetwork: allowsNetwork)
    }

    /// Why this process cannot write through io_uring, and what to do; nil when it can. The kernel
    /// is asked once.
    public static let unavailableReason: String? = reason(
        probed: pccp_ring_probe(), disabledSetting: pccp_ring_disabled_setting())

    /// The same from what the kernel answered.
    static func reason(probed result: Int32, disabledSetting: Int32) -> String? {
        if result == 0 { return nil }
        let found: String
        switch Errno(rawValue: -result) {
        case .noFunction:
            found =
                "this kernel has no io_uring, or a seccomp filter hides it: use Linux 5.6 or "
                + "newer, or allow io_uring_setup, io_uring_enter and io_uring_register in the "
                + "container's seccomp profile"
        case .notPermitted, .permissionDenied:
            found =
                disabledSetting > 0
                ? "kernel.io_uring_disabled is \(disabledSetting): sysctl "
                    + "kernel.io_uring_disabled=0 allows it"
                : "a seccomp filter or security module refuses it: allow io_uring_setup, "
                    + "io_uring_enter and io_uring_register in the container's seccomp profile"
        case .notSupported:
            found = "its io_uring is too old to write: use Linux 5.6 or newer"
        case .noMemory:
            found = "the limit on locked memory is too low for a ring: raise it (ulimit -l)"
        default:
            found = "\(Errno(rawValue: -result))"
        }
        return "io_uring is not available (\(Errno(rawValue: -result))); \(found)"
    }

    /// A ring for the calling thread.
    ///
    /// - Throws: `StorageError` of `io_uring_setup`.
    public func makeWriteQueue(
        depth: Int, pool: StagingMemory?
    ) throws(StorageError) -> any WriteQueue {
        try RingWriteQueue(self, descriptor: file.descriptor, depth: depth, pool: pool)
    }

    public func read(
        into buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64
    ) throws(StorageError) {
        try file.read(into: buffer, range, at: offset)
    }

    public func write(
        _ buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64
    ) throws(StorageError) {
        try file.write(buffer, range, at: offset)
    }

    public func flush() throws(StorageError) { try file.flush() }
    public func discardCache() { file.discardCache() }
    public var isAtItsPath: Bool { file.isAtItsPath }

    public func tryLock(_ byte: LockByte, exclusive: Bool) throws(StorageError) -> Bool {
        try file.tryLock(byte, exclusive: exclusive)
    }

    public func unlock(_ byte: LockByte) throws(StorageError) { try file.unlock(byte) }

    public func isInHand(_ slot: SlotIndex) -> Bool { file.isInHand(slot) }
    public func slotPins(_ slots: [SlotIndex]) -> [SlotPin] { file.slotPins(slots) }
    public var writerLockHolders: [PinHolder] { file.writerLockHolders }
}
