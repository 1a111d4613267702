import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import CheckpointWriter
import StorageFaults
import Testing

/// Early regions are copied before the others, so that their memory may change while the others
/// are still read.
@Suite struct EarlyRegionTests {
    /// Memory with a pattern, which a test frees.
    private func memory(_ seed: UInt64, count: Int) -> UnsafeMutableRawBufferPointer {
        let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: 16)
        // Safe: allocated above with this size.
        unsafe memory.copyBytes(from: pattern(seed, count: count))
        return unsafe memory
    }

    /// A writer with a pool of three chunks, none of which leaves it before the gate opens.
    private func held() throws -> (
        storage: RecordingStorage, writer: CheckpointWriter, gate: Gate
    ) {
        let storage = try memoryFile(capacity: 1 << 20)
        var options = WriterOptions()
        options.poolByteCount = 3 << 16
        let writer = try CheckpointWriter(storage: storage, options: options)
        let geometry = try storage.geometry
        let data = geometry.dataOffset..<geometry.tailOffset
        let gate = Gate { call in
            if case .write(let offset, _) = call { return data.contains(offset) }
            return false
        }
        storage.setFaultHook(gate.hook)
        return (storage, writer, gate)
    }

    @Test func earlyMemoryIsFreeWhileTheRestIsStillRead() throws {
        let (storage, writer, gate) = try held()
        let first = unsafe memory(1, count: 500_001)
        // Across a border between two chunks, behind what alone would fill the pool.
        let early = unsafe memory(2, count: 70_000)
        let last = unsafe memory(3, count: 200_000)
        // Safe: freed below, once staged.
        let regions = unsafe [
            CheckpointPayload.Region(UnsafeRawBufferPointer(first)),
            CheckpointPayload.Region(UnsafeRawBufferPointer(early), isEarly: true),
            CheckpointPayload.Region(UnsafeRawBufferPointer(last)),
        ]
        let ticket = try writer.save(step: 1, payload: CheckpointPayload(opaque: regions))
        try ticket.waitEarly(timeoutNanoseconds: deadlineNanoseconds)
        #expect(!ticket.isStaged)
        // Safe: as large as it was allocated; whoever still read it would write 0xEE.
        unsafe early.copyBytes(from: [UInt8](repeating: 0xEE, count: early.count))
        unsafe early.deallocate()
        gate.open()
        #expect(try ticket.wait(timeoutNanoseconds: deadlineNanoseconds) == .durable)
        try writer.close()
        let expected =
            pattern(1, count: 500_001) + pattern(2, count: 70_000) + pattern(3, count: 200_000)
        #expect(try storage.newest().bytes == expected)
        // Safe: nobody reads them any more.
        unsafe first.deallocate()
        unsafe last.deallocate()
    }

    @Test func itGoesBeforeWhatAnOlderCheckpointHasLeft() throws {
        let storage = try memoryFile(inFlight: 2, capacity: 1 << 20)
        var options = WriterOptions()
        options.poolByteCount = 3 << 16
        options.snapshotWorkerCount = 1
        let writer = try CheckpointWriter(storage: storage, options: options)
        let geometry = try storage.geometry
        let data = geometry.dataOffset..<geometry.tailOffset
        // How many chunks may be written.
        let allowed = Monitor(0)
        storage.setFaultHook { call in
            guard case .write(let offset, _) = call, data.contains(offset) else { return nil }
            let deadline = SystemClock.monotonicTime + 2 * deadlineNanoseconds
            _ = allowed.waitFor(deadline: deadline) { count -> Bool? in
                if count == 0 { return nil }
                count -= 1
                return true
            }
            return nil
        }
        // The pool is full of the older one, of which ten chunks are left.
        let older = try writer.save(1, pattern(1, count: 13 << 16))
        let memory = unsafe memory(2, count: 1000)
        // Safe: freed below, once copied.
        let region = unsafe CheckpointPayload.Region(UnsafeRawBufferPointer(memory), isEarly: true)
        let newer = try writer.save(step: 2, payload: CheckpointPayload(opaque: [region]))
        // The first buffer that becomes free may be on its way to the older one already.
        allowed.withLock { $0 = 2 }
        allowed.wakeAll()
        try newer.waitEarly(timeoutNanoseconds: deadlineNanoseconds)
        #expect(!older.isStaged)
        // Safe: copied.
        unsafe memory.deallocate()
        allowed.withLock { $0 = 1000 }
        allowed.wakeAll()
        let outcome = try older.wait(timeoutNanoseconds: deadlineNanoseconds)
        #expect([.durable, .superseded(by: newer.sequence)].contains(outcome))
        #expect(try newer.wait(timeoutNanoseconds: deadlineNanoseconds) == .durable)
        try writer.close()
        #expect(try storage.newest().bytes == pattern(2, count: 1000))
    }

    @Test func theWaitEndsWithItsTimeoutWhereThePoolIsTooSmall() throws {
        let (_, writer, gate) = try held()
        let early = unsafe memory(1, count: 500_000)
        // Safe: freed below, once staged.
        let region = unsafe CheckpointPayload.Region(UnsafeRawBufferPointer(early), isEarly: true)
        let ticket = try writer.save(step: 1, payload: CheckpointPayload(opaque: [region]))
        let error = #expect(throws: CheckpointError.self) {
            try ticket.waitEarly(timeoutNanoseconds: 20_000_000)
        }
        #expect(error?.code == .timeout)
        #expect(error?.message.contains("step 1 (sequence 1) is not copied in its early") == true)
        gate.open()
        try ticket.waitEarly(timeoutNanoseconds: deadlineNanoseconds)
        try ticket.waitStaged(timeoutNanoseconds: deadlineNanoseconds)
        // Safe: staged.
        unsafe early.deallocate()
        try writer.close()
    }

    @Test func nothingIsWaitedForWhereNothingIsEarly() throws {
        let (_, writer, gate) = try held()
        let ticket = try writer.save(1, pattern(1, count: 500_000))
        try ticket.waitEarly(timeoutNanoseconds: 0)
        #expect(!ticket.isStaged)
        gate.open()
        #expect(try ticket.wait(timeoutNanoseconds: deadlineNanoseconds) == .durable)
        try writer.close()
    }

    @Test func aFailedCheckpointEndsTheWait() throws {
        let (storage, writer, _) = try held()
        storage.setFaultHook { call in
            if case .write = call { return 5 }
            return nil
        }
        let early = unsafe memory(1, count: 500_000)
        // Safe: freed below, once the checkpoint has ended.
        let region = unsafe CheckpointPayload.Region(UnsafeRawBufferPointer(early), isEarly: true)
        let ticket = try writer.save(step: 1, payload: CheckpointPayload(opaque: [region]))
        try ticket.waitEarly(timeoutNanoseconds: deadlineNanoseconds)
        #expect(throws: CheckpointError.self) {
            if case .failed(let error) = try ticket.wait(timeoutNanoseconds: deadlineNanoseconds) {
                throw error
            }
        }
        // Safe: ended.
        unsafe early.deallocate()
    }
}
