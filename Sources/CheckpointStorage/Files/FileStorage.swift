internal import CPlatformLinux
public import CheckpointFormat

#if canImport(Glibc)
    internal import Glibc
#endif
internal import Synchronization

/// A regular file or a block device, read and written with pread(2) and pwrite(2).
// Unchecked: every stored property is constant after init or an atomic; the kernel serialises the
// descriptor.
public final class FileStorage: Storage, @unchecked Sendable {
    /// Whether the page cache is bypassed.
    public enum Mode: Sendable {
        /// O_DIRECT where the file system has it, else buffered; `kind` tells which.
        case automatic
        /// O_DIRECT or an error.
        case direct
        case buffered
    }

    public enum Access: Sendable { case read, write }

    public let path: String
    /// `resize` changes it, on the thread of the repair that also reads it: no other value depends
    /// on it, so that relaxed accesses do.
    private let size: Atomic<UInt64>
    public let kind: StorageKind
    public let isBlockDevice: Bool
    /// The file lies in memory that the processor addresses: statx(2) with STATX_ATTR_DAX.
    public let isDAX: Bool
    /// Open as long as the object lives.
    let descriptor: Int32

    /// open(2) with O_CLOEXEC and, by `mode`, O_DIRECT; a block device to be written with O_EXCL,
    /// so that nothing that is mounted is overwritten.
    ///
    /// - Throws: `StorageError` with errno; EISDIR, EINVAL for anything but a regular file or
    ///   a block device; EBUSY for a device in use; EOPNOTSUPP on a network file system opened for
    ///   writing, unless
    ///   `allowsNetwork`: their locks and flushes do not keep PCcheck's promises; EFBIG for a file
    ///   to be written that is larger than this process may write.
    public init(
        path: String, access: Access, mode: Mode = .automatic, allowsNetwork: Bool = false
    ) throws(StorageError) {
        let opened = try Self.open(path: path, access: access, mode: mode)
        do throws(StorageError) {
            let facts = try Self.facts(opened.descriptor, path: path)
            try Self.check(facts, path: path, access: access, allowsNetwork: allowsNetwork)
            self.size = Atomic(facts.byte_count)
            self.isBlockDevice = facts.is_block_device
            self.isDAX = facts.is_dax
        } catch {
            pccp_close(opened.descriptor)
            throw error
        }
        self.path = path
        self.kind = opened.kind
        self.descriptor = opened.descriptor
    }

    deinit { pccp_close(descriptor) }

    public var byteCount: UInt64 { size.load(ordering: .relaxed) }

    private static func open(
        path: String, access: Access, mode: Mode
    ) throws(StorageError) -> (descriptor: Int32, kind: StorageKind) {
        let flags = Int32(access == .write ? PCC_OPEN_WRITE : PCC_OPEN_READ)
        if mode != .buffered {
            // Safe: the path is passed as a C string for the call.
            let direct = unsafe pccp_open(path, flags | Int32(PCC_OPEN_DIRECT))
            if direct >= 0 {
                if supportsDirect(direct) { return (direct, .direct) }
                pccp_close(direct)
            }
            // EINVAL: the file system has no O_DIRECT (some FUSE and older tmpfs).
            let error = direct >= 0 ? EINVAL : -direct
            if mode == .direct || error != EINVAL {
                var failure = StorageError.open(errno: error, path: path)
                if error == EINVAL {
                    failure.advice =
                        "the file system has no O_DIRECT for 4096-byte blocks; use the buffered "
                        + "back end"
                }
                throw failure
            }
        }
        // Safe: the path is passed as a C string for the call.
        let buffered = unsafe pccp_open(path, flags)
        guard buffered >= 0 else {
            throw StorageError.open(errno: -buffered, path: path)
        }
        return (buffered, .buffered)
    }

    /// False only when the kernel says that it needs another grid than our 4 KiB.
    private static func supportsDirect(_ descriptor: Int32) -> Bool {
        var facts = pccp_file_facts()
        // Safe: fills the struct that it is given.
        guard unsafe pccp_read_file_facts(descriptor, &facts) == 0 else { return false }
        return !facts.tells_alignment
            || allowsDirect(
                offsetAlignment: facts.direct_alignment,
                memoryAlignment: facts.direct_memory_alignment)
    }

    /// Whether blocks of 4096 bytes on such boundaries can be transferred with O_DIRECT. 0 is what
    /// statx(2) says of a file whose O_DIRECT is none: it may be accepted and then ignored.
    static func allowsDirect(offsetAlignment: UInt32, memoryAlignment: UInt32) -> Bool {
        [offsetAlignment, memoryAlignment].allSatisfy {
            $0 != 0 && UInt32(Limits.blockByteCount) % $0 == 0
        }
    }

    private static func facts(
        _ descriptor: Int32, path: String
    ) throws(StorageError) -> pccp_file_facts {
        var facts = pccp_file_facts()
        // Safe: fills the struct that it is given.
        let result = unsafe pccp_read_file_facts(descriptor, &facts)
        guard result == 0 else {
            throw StorageError.stat(errno: -result, path: path)
        }
        return facts
    }

    private static func check(
        _ facts: pccp_file_facts, path: String, access: Access, allowsNetwork: Bool
    ) throws(StorageError) {
        guard facts.is_regular || facts.is_block_device else {
            throw StorageError(
                operation: "open", path: path, osErrorNumber: EINVAL,
                advice: "it is neither a regular file nor a block device")
        }
        if access == .write, facts.is_regular {
            try ProcessLimit.checkFileSize(facts.byte_count) { .open(errno: $0, path: path) }
        }
        // f_type of statfs(2): NFS, SMB1, SMB2, CIFS, Lustre, Ceph, 9p, AFS.
        let networkTypes: Set<UInt64> = [
            0x6969, 0x517B, 0xFE53_4D42, 0xFF53_4D42, 0x0BD0_0BD0, 0x00C3_6400, 0x0102_1997,
            0x5346_414F,
        ]
        if access == .write, !allowsNetwork,
            networkTypes.contains(facts.file_system_type & 0xFFFF_FFFF)
        {
            throw StorageError(
                operation: "open", path: path, osErrorNumber: EOPNOTSUPP,
                advice: "a network file system does not keep the durability promises; use a local "
                    + "disk and copy the file later, or allow it explicitly")
        }
    }

    public func read(
        into buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64
    ) throws(StorageError) {
        precondition(range.upperBound <= buffer.byteCount, "inside the buffer")
        // Safe: the range lies in the buffer, which the caller owns during the call.
        let result = unsafe pccp_pread_all(
            descriptor, buffer.baseAddress + range.lowerBound, range.count, offset)
        guard result == range.count else {
            var error = StorageError.read(
                errno: result < 0 ? Int32(-result) : 0, path: path, byteOffset: offset,
                byteCount: range.count)
            if result >= 0 {
                error.advice = "only \(result) bytes are there; the file is truncated"
            }
            throw error
        }
    }

    public func write(
        _ buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64
    ) throws(StorageError) {
        precondition(range.upperBound <= buffer.byteCount, "inside the buffer")
        // Safe: the range lies in the buffer, which nobody changes during the call.
        let result = unsafe pccp_pwrite_all(
            descriptor, buffer.baseAddress + range.lowerBound, range.count, offset)
        guard result == range.count else {
            throw StorageError.write(
                errno: Int32(-result), path: path, byteOffset: offset, byteCount: range.count)
        }
    }

    public func flush() throws(StorageError) {
        let result = pccp_fdatasync(descriptor)
        guard result == 0 else {
            throw StorageError.flush(errno: -result, path: path)
        }
    }

    public var isAtItsPath: Bool {
        // Safe: the path is passed as a C string for the call.
        unsafe pccp_is_at(descriptor, path)
    }

    public func discardCache() {
        if kind == .buffered { pccp_discard_cache(descriptor) }
    }

    public func resize(to byteCount: UInt64) throws(StorageError) {
        try ProcessLimit.checkFileSize(byteCount) { .truncate(errno: $0, path: path) }
        while ftruncate(descriptor, off_t(byteCount)) != 0 {
            if errno == EINTR { continue }
            var error = StorageError.truncate(errno: errno, path: path)
            if isBlockDevice {
                error.advice =
                    "a device cannot change its size; copy it to a file of \(byteCount) bytes first"
            }
            throw error
        }
        size.store(byteCount, ordering: .relaxed)
    }

    public func tryLock(_ byte: LockByte, exclusive: Bool) throws(StorageError) -> Bool {
        let result = pccp_lock(descriptor, byte.byteOffset, 1, exclusive)
        if result == -EAGAIN { return false }
        guard result == 0 else {
            throw StorageError.lock(
                errno: -result, path: path, byteOffset: byte.byteOffset)
        }
        return true
    }

    /// fcntl(2) with F_OFD_GETLK: whether another opener holds `byte`. Takes no lock itself, so
    /// that looking never keeps a writer out.
    ///
    /// - Returns: nil where there are no locks, and nobody can tell.
    public func isLockedByAnother(_ byte: LockByte) throws(StorageError) -> Bool? {
        let result = pccp_lock_is_held(descriptor, byte.byteOffset, 1)
        if result >= 0 { return result > 0 }
        let error = StorageError.lock(
            errno: -result, operation: "lock query", path: path, byteOffset: byte.byteOffset)
        if error.saysNoLocks { return nil }
        throw error
    }

    public func isInHand(_ slot: SlotIndex) -> Bool {
        pccp_lock_is_held(descriptor, LockByte.slot(slot).byteOffset, 1) == 2
    }

    public func slotPins(_ slots: [SlotIndex]) -> [SlotPin] {
        let pinned = slots.filter {
            pccp_lock_is_held(descriptor, LockByte.slot($0).byteOffset, 1) == 1
        }
        guard !pinned.isEmpty else { return [] }
        let holders = LockHolders.locking(
            pinned.map { LockByte.slot($0).byteOffset }, exclusively: false, of: descriptor)
        return pinned.map {
            SlotPin(slot: $0, holders: holders[LockByte.slot($0).byteOffset] ?? [])
        }
    }

    public var writerLockHolders: [PinHolder] {
        let byte = LockByte.writer.byteOffset
        return LockHolders.locking([byte], exclusively: true, of: descriptor)[byte] ?? []
    }

    public func unlock(_ byte: LockByte) throws(StorageError) {
        let result = pccp_unlock(descriptor, byte.byteOffset, 1)
        guard result == 0 else {
            throw StorageError.lock(
                errno: -result, operation: "unlock", path: path, byteOffset: byte.byteOffset)
        }
    }
}
