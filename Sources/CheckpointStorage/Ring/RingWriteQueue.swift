internal import CPlatformLinux
internal import SystemPackage

/// One thread's writes through a ring of its own.
@safe final class RingWriteQueue: WriteQueue {
    private struct Write {
        let buffer: AlignedBuffer
        let tag: Int
        let offset: UInt64
        let byteCount: Int
        /// False for what came when the kernel served the ring no more.
        let isInRing: Bool
    }

    let depth: Int
    private(set) var pendingCount = 0
    /// Keeps the descriptor open.
    private let storage: RingStorage
    private let pool: StagingMemory?
    private let ring: OpaquePointer
    /// By the ring's tag; each keeps its buffer until its completion was seen.
    private var writes: [Write?]
    /// errno of the call that told that the kernel does not serve the ring any more.
    private var brokenErrorNumber: Int32?
    /// The kernel may still read them, but that it has ended will never be known.
    private var lost: [AlignedBuffer] = []

    init(
        _ storage: RingStorage, descriptor: Int32, depth: Int, pool: StagingMemory?
    ) throws(StorageError) {
        precondition(depth > 0, "a queue takes at least one write")
        var ring: OpaquePointer?
        // Safe: the ring's pointer is stored when it was made; self keeps the pool mapped until
        // the ring is gone.
        let result = unsafe pccp_ring_create(
            descriptor, UInt32(depth), pool?.baseAddress, pool?.byteCount ?? 0, &ring)
        // Safe: as above.
        guard result == 0, let ring = unsafe ring else {
            throw StorageError(
                operation: "io_uring_setup", path: storage.path, osErrorNumber: -result,
                advice: RingStorage.reason(
                    probed: result, disabledSetting: pccp_ring_disabled_setting()))
        }
        self.depth = depth
        self.storage = storage
        self.pool = pool
        // Safe: made above, and freed only in deinit.
        unsafe self.ring = ring
        writes = Array(repeating: nil, count: depth)
    }

    deinit {
        // Safe: nothing uses the ring after this.
        if unsafe pccp_ring_destroy(ring) { return }
        // The kernel may still read this memory, so nobody else may ever get it.
        for buffer in lost + writes.compactMap({ $0?.buffer }) {
            // Safe: never balanced, on purpose.
            unsafe _ = Unmanaged.passRetained(buffer)
        }
        // Safe: never balanced, on purpose; as above.
        if let pool { unsafe _ = Unmanaged.passRetained(pool) }
    }

    var detail: String? {
        let way = storage.isBuffered ? "page cache" : "O_DIRECT"
        // Safe: the ring lives as long as self.
        let poolState = unsafe pccp_ring_pool_state(ring)
        let memory =
            switch poolState {
            case 0: "pool registered"
            case 1: "no pool"
            default: "pool not registered (\(Self.registrationFailure(-poolState)))"
            }
        return "\(depth) writes per worker, \(way), \(memory)"
    }

    private static func registrationFailure(_ number: Int32) -> String {
        switch Errno(rawValue: number) {
        case .noMemory, .notPermitted: "the limit on locked memory is too low: raise ulimit -l"
        case let other: "\(other)"
        }
    }

    func submit(_ buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64, tag: Int) {
        precondition(pendingCount < depth, "the queue has room")
        precondition(
            range.lowerBound >= 0 && range.upperBound <= buffer.byteCount && !range.isEmpty,
            "inside the buffer")
        guard let slot = writes.firstIndex(where: { $0 == nil }) else {
            preconditionFailure("there are as many places as the queue is deep")
        }
        pendingCount += 1
        let isInRing = brokenErrorNumber == nil
        writes[slot] = Write(
            buffer: buffer, tag: tag, offset: offset, byteCount: range.count, isInRing: isInRing)
        guard isInRing else { return }
        // Safe: `writes` keeps the buffer until the completion was seen, and nobody changes it.
        unsafe pccp_ring_submit(
            ring, UInt32(slot), buffer.baseAddress + range.lowerBound, range.count, offset)
    }

    func waitForOne() -> WriteCompletion {
        precondition(pendingCount > 0, "a write is pending")
        if brokenErrorNumber == nil {
            var slot: UInt32 = 0
            var result: Int32 = 0
            // Safe: both are filled when 0 is returned.
            let failure = unsafe pccp_ring_wait(ring, &slot, &result)
            if failure == 0 { return complete(Int(slot), result) }
            brokenErrorNumber = -failure
        }
        return loseOne()
    }

    private func complete(_ slot: Int, _ result: Int32) -> WriteCompletion {
        let write = take(slot)
        return WriteCompletion(
            tag: write.tag,
            error: result == 0
                ? nil
                : .write(
                    errno: -result, operation: "io_uring write", path: storage.path,
                    byteOffset: write.offset, byteCount: write.byteCount))
    }

    /// The kernel has taken the ring back, for example by a seccomp filter that came late.
    private func loseOne() -> WriteCompletion {
        guard let slot = writes.firstIndex(where: { $0 != nil }) else {
            preconditionFailure("a write is pending")
        }
        let write = take(slot)
        if write.isInRing { lost.append(write.buffer) }
        let error = StorageError(
            operation: "io_uring_enter", path: storage.path, byteOffset: write.offset,
            byteCount: write.byteCount, osErrorNumber: brokenErrorNumber ?? 0,
            advice: "the kernel does not serve this ring any more, and what becomes of its "
                + "writes is unknown; restart the process, and use another back end")
        return WriteCompletion(tag: write.tag, error: error, isUnresolved: write.isInRing)
    }

    private func take(_ slot: Int) -> Write {
        guard let write = writes[slot] else {
            preconditionFailure("a completion is of a write that was submitted")
        }
        writes[slot] = nil
        pendingCount -= 1
        return write
    }
}
