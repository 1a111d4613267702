import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import CheckpointWriter
import StorageFaults
import Synchronization
import Testing

/// What the writer does when it is busy, when the medium fails, and when it is used wrongly.
@Suite struct WriterPolicyTests {
    private func code(_ outcome: CheckpointOutcome) -> CheckpointError.Code? {
        if case .failed(let error) = outcome { error.code } else { nil }
    }

    /// The error that `body` throws; it must have `code`, and every one of `parts` in its message.
    @discardableResult
    private func expect(
        _ code: CheckpointError.Code, _ parts: [String],
        _ location: SourceLocation = #_sourceLocation,
        _ body: () throws(CheckpointError) -> Void
    ) -> CheckpointError? {
        do throws(CheckpointError) {
            try body()
            Issue.record("nothing was thrown", sourceLocation: location)
            return nil
        } catch {
            #expect(error.code == code, "\(error)", sourceLocation: location)
            for part in parts {
                #expect(
                    error.message.contains(part), "\"\(part)\" is not in: \(error)",
                    sourceLocation: location)
            }
            return error
        }
    }

    /// A gate that holds every write into the data areas.
    private func dataGate(_ storage: RecordingStorage) throws -> Gate {
        let start = try storage.geometry.dataOffset
        let end = try storage.geometry.tailOffset
        return Gate {
            if case .write(let offset, _) = $0 { return (start..<end).contains(offset) }
            return false
        }
    }

    // MARK: Urgent

    @Test func anUrgentCheckpointOvertakesWhatIsInFlight() throws {
        for isUrgent in [false, true] {
            let storage = try memoryFile(inFlight: 2)
            var options = WriterOptions()
            options.writerWorkerCount = 1
            options.poolByteCount = 384 << 10
            let writer = try CheckpointWriter(storage: storage, options: options)
            let gate = try dataGate(storage)
            let geometry = try storage.geometry
            let written = Monitor([UInt64]())
            storage.setFaultHook { call in
                if case .write(let offset, _) = call, offset >= geometry.dataOffset,
                    offset < geometry.tailOffset
                {
                    let slot = (offset - geometry.dataOffset) / geometry.dataStride
                    written.withLock { $0.append(slot) }
                }
                return gate.hook(call)
            }
            let first = try writer.save(1, pattern(1, count: 190_000))
            #expect(gate.waitUntilHolding())
            let second = try writer.save(
                step: 2, payload: CheckpointPayload(opaque: pattern(2, count: 190_000)),
                isUrgent: isUrgent)
            try second.waitStaged(timeoutNanoseconds: deadlineNanoseconds)
            gate.open()
            #expect(try second.wait(timeoutNanoseconds: deadlineNanoseconds) == .durable)
            // One group commit may cover both, so that only the order of the writes tells.
            _ = try first.wait(timeoutNanoseconds: deadlineNanoseconds)
            let slots = written.withLock { $0 }
            let lastOfFirst = try #require(slots.lastIndex { $0 == slots[0] })
            let firstOfSecond = try #require(slots.firstIndex { $0 != slots[0] })
            #expect((firstOfSecond < lastOfFirst) == isUrgent, "\(slots)")
            try writer.close()
            #expect(try storage.newest().step == 2)
        }
    }

    // MARK: Busy

    @Test func aBusyWriterSkipsWhenToldTo() throws {
        let storage = try memoryFile(inFlight: 1)
        var options = WriterOptions()
        options.busyPolicy = .skip
        let writer = try CheckpointWriter(storage: storage, options: options)
        let gate = try dataGate(storage)
        storage.setFaultHook(gate.hook)
        let first = try writer.save(1, pattern(1, count: 10))
        let second = try writer.save(2, pattern(2, count: 10))
        #expect(second.outcome == .skipped)
        #expect(second.sequence == .none)
        gate.open()
        #expect(try first.wait(timeoutNanoseconds: deadlineNanoseconds) == .durable)
        #expect(writer.statistics.skippedCount == 1)
        try writer.close()
    }

    @Test func aBusyWriterFailsOrTimesOutWhenToldTo() throws {
        for policy in [BusyPolicy.fail, .wait(timeoutNanoseconds: 50_000_000)] {
            let storage = try memoryFile(inFlight: 1)
            var options = WriterOptions()
            options.busyPolicy = policy
            let writer = try CheckpointWriter(storage: storage, options: options)
            let gate = try dataGate(storage)
            storage.setFaultHook(gate.hook)
            let first = try writer.save(1, pattern(1, count: 10))
            expect(
                policy == .fail ? .busy : .timeout, ["step 2", "1 of 1", "save less often"]
            ) { () throws(CheckpointError) in _ = try writer.save(2, pattern(2, count: 10)) }
            gate.open()
            #expect(try first.wait(timeoutNanoseconds: deadlineNanoseconds) == .durable)
            #expect(try writer.outcome(2, pattern(2, count: 10)) == .durable)
            try writer.close()
        }
    }

    @Test func aWaitingSaveGoesOnOnceASlotIsFreeAndEndsWhenTheWriterStops() throws {
        let storage = try memoryFile(inFlight: 1)
        let writer = try CheckpointWriter(storage: storage)
        let gate = try dataGate(storage)
        storage.setFaultHook(gate.hook)
        _ = try writer.save(1, pattern(1, count: 10))
        let codes = Monitor([CheckpointError.Code?]())
        let waiter = try WorkerThread(name: "saver") {
            for step in UInt64(2)...3 {
                do throws(CheckpointError) {
                    _ = try writer.save(step, pattern(step, count: 10))
                    codes.withLock { $0.append(nil) }
                } catch {
                    codes.withLock { $0.append(error.code) }
                }
                codes.wakeAll()
            }
        }
        gate.open()
        #expect(
            codes.wait(deadline: SystemClock.monotonicTime + deadlineNanoseconds) { $0.count == 2 })
        waiter.join()
        #expect(codes.withLock { $0 } == [nil, nil])
        writer.abandon()
        expect(.closed, ["closed", "open the file again"]) { () throws(CheckpointError) in
            _ = try writer.save(4, pattern(4, count: 10))
        }
    }

    @Test func aPinnedSlotIsNotReusedAndWaitingForItCostsLittle() throws {
        let storage = try memoryFile(inFlight: 1)
        let writer = try CheckpointWriter(storage: storage)
        #expect(try writer.outcome(1, pattern(1, count: 70_000)) == .durable)
        let reader = try CheckpointReader(storage: RecordingStorage(openerOf: storage))
        let first = try #require(reader.decision.candidates.first)
        let selected = try reader.select(first)
        #expect(try writer.outcome(2, pattern(2, count: 70_000)) == .durable)
        // Slot of step 1 is free now, but pinned.
        let ticket = Monitor<CheckpointTicket?>(nil)
        let lookCount = Mutex(0)
        storage.setFaultHook { call in
            if case .lock = call { lookCount.withLock { $0 += 1 } }
            return nil
        }
        let saver = try WorkerThread(name: "saver") {
            let begun = try? writer.save(3, pattern(3, count: 10))
            ticket.withLock { $0 = begun }
            ticket.wakeAll()
        }
        #expect(!ticket.wait(deadline: SystemClock.monotonicTime + 400_000_000) { $0 != nil })
        #expect((2...200).contains(lookCount.withLock { $0 }), "it polls every 20 ms")
        #expect(try selected.readBytes(0..<70_000) == pattern(1, count: 70_000))
        // The time is counted once, not again at every look.
        #expect(writer.statistics.busyNanoseconds < 2_000_000_000)
        selected.close()
        #expect(
            ticket.wait(deadline: SystemClock.monotonicTime + deadlineNanoseconds) { $0 != nil })
        saver.join()
        let begun = try #require(ticket.withLock { $0 })
        #expect(try begun.wait(timeoutNanoseconds: deadlineNanoseconds) == .durable)
        try writer.close()
    }

    // MARK: Failing media

    @Test(arguments: [5, 28] as [Int32])
    func aFailingWriteEndsOnlyItsCheckpoint(error: Int32) throws {
        let storage = try memoryFile()
        let writer = try CheckpointWriter(storage: storage)
        #expect(try writer.outcome(1, pattern(1, count: 100_000)) == .durable)
        let start = try storage.geometry.dataOffset
        storage.setFaultHook {
            if case .write(let offset, _) = $0, offset >= start { return error }
            return nil
        }
        let outcome = try writer.outcome(2, pattern(2, count: 100_000))
        #expect(code(outcome) == (error == 28 ? .noSpace : .inputOutput))
        if case .failed(let failure) = outcome {
            #expect(failure.message.contains("pwrite of"))
            #expect(failure.slot != nil && failure.byteOffset != nil)
            #expect(failure.osErrorNumber == error)
        }
        storage.setFaultHook(nil)
        #expect(try storage.newest().step == 1)
        #expect(try writer.outcome(3, pattern(3, count: 100_000)) == .durable)
        #expect(writer.statistics.failedCount == 1)
        #expect(writer.statistics.quarantinedSlotCount == 0)
        try writer.close()
        #expect(try storage.newest().step == 3)
    }

    @Test func aFailedFirstFlushIsNeverRetriedAndItsSlotNotReused() throws {
        let storage = try memoryFile(inFlight: 2)
        let writer = try CheckpointWriter(storage: storage)
        #expect(try writer.outcome(1, pattern(1, count: 70_000)) == .durable)
        let before = writer.statistics.flushCount
        let flushes = { storage.callCounts[.flush] ?? 0 }
        storage.setPlan(FaultPlan([.init(.flush, number: 0, .error(5))]))
        let failed = try writer.save(2, pattern(2, count: 70_000))
        let outcome = try failed.wait(timeoutNanoseconds: deadlineNanoseconds)
        #expect(code(outcome) == .inputOutput)
        if case .failed(let error) = outcome {
            #expect(error.message.contains("F1") && error.message.contains("fdatasync"))
        }
        #expect(flushes() == 1)
        #expect(writer.statistics.flushCount == before)
        #expect(writer.statistics.quarantinedSlotCount == 1)
        let slot = try #require(
            CheckpointReader(storage: storage).decision.slots.first {
                $0.header?.sequence == failed.sequence
            }?.slot)
        let offset = try Int(storage.geometry.slotDataOffset(slot))
        let written = storage.recording.writes.count
        for step in UInt64(3)...8 {
            #expect(try writer.outcome(step, pattern(step, count: 70_000)) == .durable)
        }
        #expect(!storage.recording.writes[written...].contains { $0.offset == offset })
        try writer.close()
        #expect(try storage.newest().step == 8)
        // The next writer may use it again.
        let next = try CheckpointWriter(storage: RecordingStorage(openerOf: storage))
        #expect(next.statistics.quarantinedSlotCount == 0)
        next.abandon()
    }

    /// The kernel reports a lost write once: what a younger checkpoint wrote before that flush
    /// may be lost too, and no later flush would tell.
    @Test func aFailedFlushAlsoEndsYoungerCheckpointsThatHadWritten() throws {
        let storage = try memoryFile(inFlight: 2)
        let geometry = try storage.geometry
        var options = WriterOptions()
        options.writerWorkerCount = 4
        let writer = try CheckpointWriter(storage: storage, options: options)
        let late = geometry.slotDataOffset(SlotIndex(1)) + (1 << 16)
        let gate = Gate {
            if case .write(let offset, _) = $0 { return offset == late }
            return false
        }
        storage.setFaultHook(gate.hook)
        storage.setPlan(FaultPlan([.init(.flush, number: 0, .error(5))]))
        let flush = Gate { $0 == .flush }
        let both: MemoryStorage.FaultHook = { call in
            _ = gate.hook(call)
            return flush.hook(call)
        }
        storage.setFaultHook(both)
        let older = try writer.save(1, pattern(1, count: 10))
        #expect(flush.waitUntilHolding())
        let younger = try writer.save(2, pattern(2, count: 3 << 16))
        #expect(gate.waitUntilHolding())
        flush.open()
        #expect(code(try older.wait(timeoutNanoseconds: deadlineNanoseconds)) == .inputOutput)
        // It ends only once its own write has returned.
        #expect(younger.outcome == nil)
        gate.open()
        #expect(code(try younger.wait(timeoutNanoseconds: deadlineNanoseconds)) == .inputOutput)
        storage.setFaultHook(nil)
        #expect(writer.statistics.quarantinedSlotCount == 2)
        #expect(try writer.outcome(3, pattern(3, count: 10)) == .durable)
        try writer.close()
    }

    @Test func aWriterWithoutSlotsLeftSaysSo() throws {
        let storage = try memoryFile(inFlight: 1)
        let writer = try CheckpointWriter(storage: storage)
        #expect(try writer.outcome(1, pattern(1, count: 10)) == .durable)
        storage.setPlan(FaultPlan([.init(.flush, number: 0, .error(5))]))
        #expect(code(try writer.outcome(2, pattern(2, count: 10))) == .inputOutput)
        expect(.slotsExhausted, ["1 slots", "reopen the file"]) { () throws(CheckpointError) in
            _ = try writer.save(3, pattern(3, count: 10))
        }
        try writer.close()
        // Its lock went with it: a reader can look at the slot.
        let reader = try CheckpointReader(storage: RecordingStorage(openerOf: storage))
        for candidate in reader.decision.candidates { try reader.select(candidate).close() }
        #expect(try storage.newest().step >= 1)
    }

    @Test func aFailedSecondFlushStopsTheWriterAndReopeningFindsTheTruth() throws {
        let storage = try memoryFile(inFlight: 2)
        let writer = try CheckpointWriter(storage: storage)
        #expect(try writer.outcome(1, pattern(1, count: 70_000)) == .durable)
        storage.setPlan(FaultPlan([.init(.flush, number: 1, .error(5))]))
        #expect(code(try writer.outcome(2, pattern(2, count: 70_000))) == .failStop)
        let count = storage.recording.writes.count
        let parts = ["F2", "accepts no more checkpoints", "reopen the file"]
        expect(.failStop, parts) { () throws(CheckpointError) in
            _ = try writer.save(3, pattern(3, count: 10))
        }
        #expect(writer.statistics.isFailStop)
        expect(.failStop, parts) { () throws(CheckpointError) in try writer.close() }
        #expect(storage.recording.writes.count == count)
        #expect(storage.callCounts[.flush] == 2)
        let next = try CheckpointWriter(storage: RecordingStorage(openerOf: storage))
        #expect(try #require(next.statistics.newestDurableStep) >= 1)
        #expect(try next.outcome(3, pattern(3, count: 10)) == .durable)
        try next.close()
        #expect(try storage.newest().step == 3)
    }

    @Test func anUnreadableSlotKeepsTheFileFromBeingWritten() throws {
        let storage = try memoryFile(inFlight: 1)
        let writer = try CheckpointWriter(storage: storage)
        #expect(try writer.outcome(1, pattern(1, count: 10)) == .durable)
        try writer.close()
        let header = try storage.geometry.headerOffset(SlotIndex(0))
        let before = storage.contents
        storage.setFaultHook {
            guard case .read(let offset, let count) = $0 else { return nil }
            return (offset..<offset + UInt64(count)).contains(header) ? 5 : nil
        }
        expect(.inputOutput, ["slot 0", "nothing is written", "pcextract"]) {
            () throws(CheckpointError) in
            _ = try CheckpointWriter(storage: storage)
        }
        #expect(storage.contents == before)
        storage.setFaultHook(nil)
        #expect(try CheckpointWriter(storage: storage).statistics.newestDurableStep == 1)
    }

    // MARK: Use

    @Test func stepsDoNotGoBackUnlessTheyAreRewound() throws {
        let writer = try CheckpointWriter(storage: memoryFile())
        #expect(try writer.outcome(10, pattern(1, count: 10)) == .durable)
        expect(.stepBackwards, ["step 9", "step 10", "rewind"]) { () throws(CheckpointError) in
            _ = try writer.save(9, pattern(1, count: 10))
        }
        try writer.rewind(to: 5)
        #expect(try writer.outcome(5, pattern(1, count: 10)) == .durable)
        #expect(writer.statistics.newestDurableStep == 5)
        try writer.close()
        try writer.close()
        expect(.closed, ["is closed", "open the file again"]) { () throws(CheckpointError) in
            _ = try writer.save(11, pattern(1, count: 10))
        }
    }

    @Test func argumentsOutOfRangeChangeNothing() throws {
        let storage = try memoryFile()
        let writer = try CheckpointWriter(storage: storage)
        let count = storage.recording.writes.count
        expect(.tooLarge, ["196609 bytes", "196608", "pccheck resize"]) {
            () throws(CheckpointError) in
            _ = try writer.save(1, [UInt8](repeating: 0, count: 196_609))
        }
        expect(.invalidArgument, ["2049 bytes", "2048"]) { () throws(CheckpointError) in
            _ = try writer.save(
                step: 1, payload: CheckpointPayload(opaque: [1]),
                userMetadata: String(repeating: "x", count: 2049))
        }
        expect(.invalidArgument, ["step is", "at most"]) { () throws(CheckpointError) in
            _ = try writer.save(.max, [1])
        }
        #expect(writer.statistics.savedCount == 0)
        #expect(storage.recording.writes.count == count)
        var options = WriterOptions()
        options.writerWorkerCount = 0
        expect(.invalidArgument, ["1 to 64"]) { () throws(CheckpointError) in
            _ = try CheckpointWriter(storage: storage, options: options)
        }
    }

    @Test func aPoolThatNoMachineHasIsRefused() throws {
        let storage = try memoryFile()
        var options = WriterOptions()
        for byteCount in [UInt64(1) << 60, .max] {
            options.poolByteCount = byteCount
            expect(.outOfMemory, ["no memory for a staging pool", "smaller pool"]) {
                () throws(CheckpointError) in
                _ = try CheckpointWriter(storage: storage, options: options)
            }
        }
        options.poolByteCount = 4 << 16
        let writer = try CheckpointWriter(storage: storage, options: options)
        #expect(unsafe writer.poolMemory.count >= 4 << 16)
        #expect(try writer.outcome(1, pattern(1, count: 100_000)) == .durable)
        try writer.close()
    }

    @Test func aLockThatFailsIsAnError() throws {
        let storage = try memoryFile()
        storage.setFaultHook { call in
            if case .lock(.writer, _) = call { 5 } else { nil }
        }
        let opening = #expect(throws: CheckpointError.self) {
            try CheckpointWriter(storage: storage)
        }
        #expect(opening?.code == .inputOutput && opening?.osErrorNumber == 5)
        storage.setFaultHook(nil)
        let writer = try CheckpointWriter(storage: storage)
        storage.setFaultHook { call in
            if case .lock(.slot, _) = call { 5 } else { nil }
        }
        let saving = #expect(throws: CheckpointError.self) { try writer.save(1, [1]) }
        #expect(saving?.code == .inputOutput && saving?.slot != nil)
        storage.setFaultHook(nil)
        #expect(try writer.outcome(1, [1]) == .durable)
        try writer.close()
    }

    @Test func aWaitEndsWithItsTimeoutAndTheCheckpointGoesOn() throws {
        let storage = try memoryFile()
        var options = WriterOptions()
        options.poolByteCount = 3 << 16
        let writer = try CheckpointWriter(storage: storage, options: options)
        let gate = try dataGate(storage)
        storage.setFaultHook(gate.hook)
        // The first fills the pool, so that the second cannot be staged.
        let first = try writer.save(1, pattern(1, count: 192 << 10))
        let second = try writer.save(2, pattern(2, count: 192 << 10))
        #expect(gate.waitUntilHolding())
        expect(.timeout, ["step 2", "is not staged after"]) { () throws(CheckpointError) in
            try second.waitStaged(timeoutNanoseconds: 1_000_000)
        }
        expect(.timeout, ["step 2", "is not durable after"]) { () throws(CheckpointError) in
            _ = try second.wait(timeoutNanoseconds: 1_000_000)
        }
        gate.open()
        // The second may overtake the first.
        let outcome = try first.wait(timeoutNanoseconds: deadlineNanoseconds)
        #expect([.durable, .superseded(by: second.sequence)].contains(outcome))
        #expect(try second.wait(timeoutNanoseconds: deadlineNanoseconds) == .durable)
        try writer.close()
    }

    @Test func theCallersMemoryIsFreeOnceStaged() throws {
        let storage = try memoryFile()
        let writer = try CheckpointWriter(storage: storage)
        let gate = try dataGate(storage)
        storage.setFaultHook(gate.hook)
        let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 150_001, alignment: 1)
        // Safe: allocated above with this size, and freed below, once staged.
        unsafe memory.copyBytes(from: pattern(1, count: 150_001))
        let region = unsafe CheckpointPayload.Region(UnsafeRawBufferPointer(memory))
        let ticket = try writer.save(step: 1, payload: CheckpointPayload(opaque: [region]))
        try ticket.waitStaged(timeoutNanoseconds: deadlineNanoseconds)
        #expect(ticket.outcome == nil)
        // Safe: as above; whoever still read it would write 0xEE.
        unsafe memory.copyBytes(from: [UInt8](repeating: 0xEE, count: 150_001))
        unsafe memory.deallocate()
        gate.open()
        #expect(try ticket.wait(timeoutNanoseconds: deadlineNanoseconds) == .durable)
        try writer.close()
        #expect(try storage.newest().bytes == pattern(1, count: 150_001))
    }

    @Test func aHundredSegmentsOfOddSizesThroughASmallPool() throws {
        let storage = try memoryFile(inFlight: 2, capacity: 1 << 20)
        var options = WriterOptions()
        options.poolByteCount = 1
        options.writerWorkerCount = 1
        let writer = try CheckpointWriter(storage: storage, options: options)
        #expect(writer.statistics.poolByteCount == 64 << 10)
        let parts = (0..<100).map { pattern(UInt64($0), count: ($0 * 197) % 10_007) }
        let buffers = unsafe parts.map { part in
            let memory = UnsafeMutableRawBufferPointer.allocate(
                byteCount: max(part.count, 1), alignment: 1)
            // Safe: as large as the part; freed below, after the checkpoint has ended.
            unsafe memory.copyBytes(from: part)
            return unsafe UnsafeRawBufferPointer(rebasing: memory[..<part.count])
        }
        let regions = unsafe buffers.map { unsafe CheckpointPayload.Region($0) }
        for step in UInt64(1)...3 {
            let ticket = try writer.save(step: step, payload: CheckpointPayload(opaque: regions))
            #expect(try ticket.wait(timeoutNanoseconds: deadlineNanoseconds) == .durable)
        }
        #expect(writer.statistics.stagingStallNanoseconds > 0)
        try writer.close()
        #expect(try storage.newest().bytes == parts.flatMap(\.self))
        // Safe: nobody reads them any more.
        unsafe buffers.forEach { unsafe $0.deallocate() }
    }

    @Test func droppingAWriterEndsItsTickets() throws {
        let storage = try memoryFile()
        let gate = try dataGate(storage)
        storage.setFaultHook(gate.hook)
        var writer: CheckpointWriter? = try CheckpointWriter(storage: storage)
        let ticket = try #require(try writer?.save(1, pattern(1, count: 100_000)))
        #expect(gate.waitUntilHolding())
        let opener = try WorkerThread(name: "opener") { gate.open() }
        writer = nil
        opener.join()
        let outcome = try ticket.wait(timeoutNanoseconds: deadlineNanoseconds)
        #expect(code(outcome) == .closed || outcome == .durable)
    }
}
