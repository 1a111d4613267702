internal import CDigest
internal import CPlatformLinux
internal import CheckpointFormat

#if canImport(Glibc)
    internal import Glibc
#endif

/// Memory on a 4 KiB boundary, as O_DIRECT needs it.
///
/// A buffer has one user at a time: its holder may fill it; while a write of it is under
/// way nobody may change it.
// Unchecked: the pointer and count never change, and the bytes are handed from thread to thread
// under the engine's lock, which orders one user's accesses before the next one's.
@safe public final class AlignedBuffer: @unchecked Sendable {
    public let byteCount: Int
    /// Valid while the buffer lives.
    @unsafe public let baseAddress: UnsafeMutableRawPointer
    /// Keeps the memory alive when it is a part of a pool; nil when the buffer owns it.
    private let pool: StagingMemory?

    /// Zeroed memory of its own; for sizes that a file decides, see `forTransfers`.
    public convenience init(byteCount: Int) {
        // Safe: the memory has that size, and becomes this buffer's.
        guard let memory = unsafe Self.allocate(byteCount) else {
            preconditionFailure("out of memory for a buffer of \(byteCount) bytes")
        }
        // Safe: as above.
        unsafe self.init(byteCount: byteCount, owning: memory)
    }

    private init(byteCount: Int, owning memory: UnsafeMutableRawPointer) {
        self.byteCount = byteCount
        // Safe: the caller gives it away.
        unsafe baseAddress = memory
        pool = nil
    }

    /// Zeroed memory; nil when there is none left.
    private static func allocate(_ byteCount: Int) -> UnsafeMutableRawPointer? {
        precondition(byteCount >= 0, "a byte count is not negative")
        let size = max(byteCount, 1)
        var memory: UnsafeMutableRawPointer?
        // Safe: posix_memalign stores a pointer to `size` bytes or reports why not.
        guard unsafe posix_memalign(&memory, Limits.blockByteCount, size) == 0,
            let memory = unsafe memory
        else { return nil }
        // Safe: the memory has `size` bytes.
        return unsafe memset(memory, 0, size)
    }

    /// Memory for large transfers: in huge pages, of which the kernel has fewer to hold on to
    /// meanwhile, and given back to the system with the buffer.
    ///
    /// - Returns: nil when the system has no such memory left.
    public static func forTransfers(byteCount: Int) -> AlignedBuffer? {
        if byteCount >= 2 << 20, let memory = StagingMemory(byteCount: byteCount) {
            return AlignedBuffer(pool: memory, offset: 0, byteCount: byteCount)
        }
        // Safe: the memory has that size, and becomes the buffer's.
        return unsafe allocate(byteCount).map {
            // Safe: as above.
            unsafe AlignedBuffer(byteCount: byteCount, owning: $0)
        }
    }

    /// The part of `pool` that begins at `offset`.
    init(pool: StagingMemory, offset: Int, byteCount: Int) {
        precondition(offset >= 0 && offset + byteCount <= pool.byteCount, "inside the pool")
        self.byteCount = byteCount
        // Safe: the range was checked, and `pool` is kept alive.
        unsafe baseAddress = pool.baseAddress + offset
        self.pool = pool
    }

    deinit {
        // Safe: memory of its own is freed once, here.
        if pool == nil { unsafe free(baseAddress) }
    }

    /// Calls `body` with a view of `range`, which is valid during the call.
    public func withBytes<Result, Failure: Error>(
        _ range: Range<Int>, _ body: (RawSpan) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        precondition(range.lowerBound >= 0 && range.upperBound <= byteCount, "inside the buffer")
        // Safe: the range was checked, and self outlives the call.
        let view = unsafe UnsafeRawBufferPointer(
            start: baseAddress + range.lowerBound, count: range.count)
        return try body(unsafe RawSpan(_unsafeBytes: view))
    }

    public func array(_ range: Range<Int>) -> [UInt8] {
        precondition(range.lowerBound >= 0 && range.upperBound <= byteCount, "inside the buffer")
        // Safe: the range was checked, and the bytes are copied.
        return unsafe Array(
            UnsafeRawBufferPointer(start: baseAddress + range.lowerBound, count: range.count))
    }

    public func copy(_ bytes: [UInt8], to offset: Int) {
        // Safe: the array outlives the closure.
        unsafe bytes.withUnsafeBytes { unsafe copy($0, to: offset) }
    }

    /// memcpy(3) from memory that lives through the call and does not overlap the buffer.
    @unsafe public func copy(_ source: UnsafeRawBufferPointer, to offset: Int) {
        precondition(offset >= 0 && offset + source.count <= byteCount, "inside the buffer")
        guard let start = source.baseAddress else { return }
        // Safe: the range was checked.
        unsafe memcpy(baseAddress + offset, start, source.count)
    }

    public func fillWithZeros(_ range: Range<Int>) {
        precondition(range.lowerBound >= 0 && range.upperBound <= byteCount, "inside the buffer")
        // Safe: the range was checked.
        unsafe _ = memset(baseAddress + range.lowerBound, 0, range.count)
    }
}

/// The memory of a staging pool: one region, on a 2 MiB boundary, touched once, in huge pages
/// where the kernel has them. Fresh pages cost more than the copy into them, so it is kept.
// Unchecked: immutable after init; the buffers cut from it carry their own rule.
@safe public final class StagingMemory: @unchecked Sendable {
    public let byteCount: Int
    @unsafe let baseAddress: UnsafeMutableRawPointer

    /// nil when the system has no such amount of memory; see `availableByteCount`.
    public init?(byteCount: Int) {
        // Safe: returns nil or a region of at least `byteCount` bytes.
        guard let memory = unsafe pccp_pool_allocate(byteCount) else { return nil }
        self.byteCount = byteCount
        unsafe baseAddress = memory
    }

    deinit {
        // Safe: allocated in init with this size, freed once.
        unsafe pccp_pool_free(baseAddress, byteCount)
    }

    /// The whole region. It is valid while this object lives, and its bytes belong to the buffers
    /// cut from it: this is for callers that register the memory with a device.
    @unsafe public var region: UnsafeMutableRawBufferPointer {
        // Safe: `baseAddress` has `byteCount` bytes.
        unsafe UnsafeMutableRawBufferPointer(start: baseAddress, count: byteCount)
    }

    /// What a pool may take now: the machine's available memory, or what is left in a cgroup with a
    /// limit.
    public static var availableByteCount: UInt64 { pccp_available_byte_count() }

    /// Cuts the memory into buffers of `bufferByteCount`, a multiple of 4096.
    public func buffers(of bufferByteCount: Int) -> [AlignedBuffer] {
        stride(from: 0, through: byteCount - bufferByteCount, by: bufferByteCount).map {
            AlignedBuffer(pool: self, offset: $0, byteCount: bufferByteCount)
        }
    }
}

extension UnsafeMutableRawBufferPointer {
    /// Copies all of `source` to the start of this memory, past the caches: for bytes that nobody
    /// reads again soon. Both live through the call and do not overlap.
    @unsafe public func stream(from source: UnsafeRawBufferPointer) {
        precondition(source.count <= count, "the source fits")
        guard let to = baseAddress, let from = source.baseAddress else { return }
        // Safe: the counts were compared.
        unsafe pccp_copy_streaming(to, from, source.count)
    }
}
