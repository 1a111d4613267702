internal import CPlatformLinux
public import CheckpointFormat
internal import Synchronization

#if canImport(Glibc)
    internal import Glibc
#endif

/// A file in persistent memory: written by the processor through a libpmem2 mapping, read with
/// pread(2).
///
/// A write is durable when it returns: a copy past the caches, then a fence. Nothing is left for
/// `flush` to do, but for what is said there. Reads go through the kernel, because a poisoned
/// cache line makes pread(2) fail with EIO, and a load from the mapping would be SIGBUS.
// Unchecked: every stored property is constant after init, `unflushed` has its own lock, and
// libpmem2's copy and fence may run in any number of threads.
@safe public final class PersistentMemoryStorage: ByteAddressableStorage, @unchecked Sendable {
    /// What the platform saves when the power goes, and so what a store has to be flushed by.
    public enum Granularity: String, Sendable {
        /// Processor caches too (eADR).
        case byte
        /// What has left the caches.
        case cacheLine = "cache line"
    }

    public var path: String { file.path }
    public let byteCount: UInt64
    public let granularity: Granularity
    public let unsafeShutdownCount: UInt64
    public let isDeepFlushing: Bool
    public var kind: StorageKind { .persistentMemory }

    private let file: FileStorage
    private let mapping: OpaquePointer
    private let unflushed = Mutex(Unflushed())

    private struct Unflushed {
        /// What other ways than this mapping wrote may still be in caches.
        var hasFlushedFile = false
        /// What was written since the last deep flush, when there are deep flushes.
        var ranges: [Range<UInt64>] = []
    }

    /// Opens and maps the file at `path`, whose holes are filled with blocks first.
    ///
    /// - Parameter isDeepFlushing: `flush` does not rely on the platform's promise to save its own
    ///   buffers when the power goes.
    /// - Throws: EOPNOTSUPP when the file is not in persistent memory, or libpmem2 is not
    ///   installed; what `FileStorage` throws.
    public convenience init(
        path: String, allowsNetwork: Bool = false, isDeepFlushing: Bool = false
    ) throws(StorageError) {
        try self.init(
            path: path, allowsNetwork: allowsNetwork, isDeepFlushing: isDeepFlushing,
            library: Self.library)
    }

    static var library: String { PCC_PMEM_LIBRARY }

    init(
        path: String, allowsNetwork: Bool = false, isDeepFlushing: Bool = false, library: String
    ) throws(StorageError) {
        // The mapping and the page cache agree on every file system. O_DIRECT adds nothing: where
        // there is DAX, there is no page cache to go around.
        let file = try Self.open(path, allowsNetwork: allowsNetwork)
        self.file = file
        var mapping: OpaquePointer?
        var text = [CChar](repeating: 0, count: 256)
        // Safe: the library's name and the text's memory live through the call, which stores a
        // pointer that this object owns from then on.
        let result = unsafe text.withUnsafeMutableBufferPointer { text in
            unsafe pccp_pmem_open(library, file.descriptor, &mapping, text.baseAddress, text.count)
        }
        guard result == 0, let mapping = unsafe mapping else {
            let found = String(
                decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
            throw Self.refusal(path: path, library: library, errorNumber: -result, found: found)
        }
        // Safe, here and below: the mapping lives until deinit.
        unsafe self.mapping = mapping
        byteCount = unsafe pccp_pmem_byte_count(mapping)
        granularity = unsafe pccp_pmem_granularity(mapping) == PCC_PMEM_BYTE ? .byte : .cacheLine
        unsafeShutdownCount = unsafe pccp_pmem_unsafe_shutdown_count(mapping)
        self.isDeepFlushing = isDeepFlushing
    }

    // Safe: unmapped once, here, when no call can be under way.
    deinit { unsafe pccp_pmem_close(mapping) }

    private static func open(
        _ path: String, allowsNetwork: Bool
    ) throws(StorageError) -> FileStorage {
        var advice = "persistent memory is reached through a file on a file system that is mounted "
        advice += "with -o dax; "
        do throws(StorageError) {
            let file = try FileStorage(
                path: path, access: .write, mode: .buffered, allowsNetwork: allowsNetwork)
            guard !file.isBlockDevice else {
                throw StorageError(
                    operation: "pmem2_source_from_fd", path: path, osErrorNumber: EOPNOTSUPP,
                    advice: advice + "this is a block device: take the direct back end for it")
            }
            return file
        } catch {
            guard error.osErrorNumber == EINVAL else { throw error }
            var error = error
            error.osErrorNumber = EOPNOTSUPP
            error.advice = advice + "a device DAX or another special file will not do"
            throw error
        }
    }

    private static func refusal(
        path: String, library: String, errorNumber: Int32, found: String
    ) -> StorageError {
        func error(
            _ operation: String, _ number: Int32, _ advice: String? = nil
        ) -> StorageError {
            StorageError(
                operation: operation, path: path, osErrorNumber: number, advice: advice)
        }
        switch errorNumber {
        case ENOPKG:
            return error(
                "loading \(library)", EOPNOTSUPP,
                "found: \(found); install the Debian package libpmem2, or take the direct back end")
        case EMEDIUMTYPE:
            return error(
                "pmem2_map_new", EOPNOTSUPP,
                "stores reach this medium by whole pages, expected cache lines or bytes "
                    + "(\(found)): the file is not in persistent memory. Put it on a file system "
                    + "on persistent memory that is mounted with -o dax, or take the direct back "
                    + "end")
        case ENODATA:
            return error(
                "pmem2_map_new", EINVAL,
                "the file has 0 bytes, so there is nothing to map; create it with pccheck create")
        case ENOSPC:
            return error(
                "fallocate", ENOSPC,
                "the file has holes, and there is no room to fill them; free some space, or "
                    + "create the file again")
        default:
            return error("pmem2_map_new", errorNumber, found.isEmpty ? nil : "found: \(found)")
        }
    }

    public var detail: String? {
        var text = "\(granularity.rawValue) granularity"
        if isDeepFlushing { text += ", deep flushes" }
        if !file.isDAX { text += ", forced: the file system has no DAX" }
        if unsafeShutdownCount > 0 { text += ", \(unsafeShutdownCount) unsafe shutdowns" }
        return text
    }

    public func makeWriteQueue(
        depth: Int, pool: StagingMemory?
    ) throws(StorageError) -> any WriteQueue {
        BlockingWriteQueue(self)
    }

    public func read(
        into buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64
    ) throws(StorageError) {
        try file.read(into: buffer, range, at: offset)
    }

    /// A non-temporal copy and a fence: durable when it returns.
    ///
    /// - Throws: ENXIO beyond the end of the file; EFAULT where a page cannot be written.
    public func write(
        _ buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64
    ) throws(StorageError) {
        precondition(range.upperBound <= buffer.byteCount, "inside the buffer")
        // Safe: the range lies in the buffer, which nobody changes during the call.
        try unsafe write(
            UnsafeRawBufferPointer(
                start: buffer.baseAddress + range.lowerBound, count: range.count),
            at: offset)
    }

    /// The same from any memory, of any alignment and count, that lives through the call.
    @unsafe public func write(
        _ bytes: UnsafeRawBufferPointer, at offset: UInt64
    ) throws(StorageError) {
        // Safe, here and below: the memory lives through the call, the mapping until deinit.
        guard let start = bytes.baseAddress, unsafe !bytes.isEmpty else { return }
        try check(
            unsafe pccp_pmem_write(mapping, start, bytes.count, offset), at: offset, bytes.count)
        // After the copy: a flush that takes the range before would flush the old bytes.
        if isDeepFlushing { remember(offset..<offset + UInt64(bytes.count)) }
    }

    @unsafe public func withCopyTarget<Result>(
        at offset: UInt64, byteCount: Int, _ body: (CopyTarget) -> Result
    ) throws(StorageError) -> Result {
        var address: UnsafeMutableRawPointer?
        // Safe, here and below: the mapping lives as long as this object, and the address is that
        // of as many bytes in it.
        try check(
            unsafe pccp_pmem_begin(mapping, offset, byteCount, &address), at: offset, byteCount)
        guard let start = unsafe address else { preconditionFailure("success gives an address") }
        let result = unsafe body(
            CopyTarget(
                start: start, byteCount: byteCount,
                store: (pccp_pmem_store, UnsafeMutableRawPointer(mapping))))
        unsafe pccp_pmem_drain(mapping)
        if isDeepFlushing { remember(offset..<offset + UInt64(byteCount)) }
        return result
    }

    private func check(
        _ result: Int32, at offset: UInt64, _ byteCount: Int
    ) throws(StorageError) {
        guard result == 0 else {
            var error = StorageError.write(
                errno: -result, operation: "copy to persistent memory", path: path,
                byteOffset: offset, byteCount: byteCount)
            if result == -ENXIO {
                error.advice =
                    "that is beyond the end of the file, which was truncated while it was open; "
                    + "look with pcfsck"
            }
            throw error
        }
    }

    private func remember(_ range: Range<UInt64>) {
        unflushed.withLock { state in
            if let last = state.ranges.last, last.upperBound == range.lowerBound {
                state.ranges[state.ranges.count - 1] = last.lowerBound..<range.upperBound
            } else {
                state.ranges.append(range)
            }
        }
    }

    /// What was written is durable already, with these exceptions.
    ///
    /// The first flush is an fdatasync(2): earlier writers may have come another way. Where the
    /// file system has no DAX, every flush is: then somebody forced libpmem2's granularity, and
    /// stores reach the medium when the kernel writes its pages back. On DAX, a mapping that
    /// libpmem2 calls better than page granularity has MAP_SYNC: no fault returns before the
    /// block's allocation is durable, so that no metadata waits for an fdatasync.
    ///
    /// With `isDeepFlushing`, pmem2_deep_flush of everything written since the last flush.
    public func flush() throws(StorageError) {
        let (isFirst, ranges) = unflushed.withLock { state in
            defer { state.ranges = [] }
            return (!state.hasFlushedFile, state.ranges)
        }
        if isFirst || !file.isDAX {
            try file.flush()
            unflushed.withLock { $0.hasFlushedFile = true }
        }
        for range in Self.merged(ranges) {
            // Safe: the mapping lives as long as this object.
            let result = unsafe pccp_pmem_deep_flush(
                mapping, range.lowerBound, UInt64(range.count))
            guard result == 0 else {
                var error = StorageError.flush(
                    errno: -result, operation: "pmem2_deep_flush", path: path)
                error.byteOffset = range.lowerBound
                error.byteCount = range.count
                throw error
            }
        }
    }

    /// The same bytes in as few ranges as can be.
    static func merged(_ ranges: [Range<UInt64>]) -> [Range<UInt64>] {
        var merged: [Range<UInt64>] = []
        for range in ranges.sorted(by: { $0.lowerBound < $1.lowerBound }) {
            if let last = merged.last, range.lowerBound <= last.upperBound {
                merged[merged.count - 1] =
                    last.lowerBound..<max(last.upperBound, range.upperBound)
            } else {
                merged.append(range)
            }
        }
        return merged
    }

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
