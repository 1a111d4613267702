import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import CheckpointWriter
import StorageFaults
import Testing

/// COMMIT.md, rule 8: an urgent save gets the first slot, and loses patience with readers.
@Suite struct UrgentSlotTests {
    private func payload(_ seed: UInt64) -> CheckpointPayload {
        CheckpointPayload(opaque: pattern(seed, count: 190_000))
    }

    /// Steps 1 and 2 are durable; the slot of step 1 is free, and a reader has it.
    private func pinned(
        _ policy: BusyPolicy
    ) throws -> (writer: CheckpointWriter, storage: RecordingStorage, older: SelectedCheckpoint) {
        let storage = try memoryFile(inFlight: 1)
        var options = WriterOptions()
        options.busyPolicy = policy
        options.urgentPatienceNanoseconds = 300_000_000
        let writer = try CheckpointWriter(storage: storage, options: options)
        #expect(try writer.save(step: 1, payload: payload(1)).wait() == .durable)
        let reader = try CheckpointReader(storage: RecordingStorage(openerOf: storage))
        let older = try reader.select(try #require(reader.decision.candidates.first))
        #expect(older.candidate.step == 1)
        #expect(try writer.save(step: 2, payload: payload(2)).wait() == .durable)
        return (writer, storage, older)
    }

    @Test func anUrgentSaveTakesASlotFromReaders() throws {
        let (writer, storage, older) = try pinned(.wait(timeoutNanoseconds: 1_000_000_000))
        let waiting = #expect(throws: CheckpointError.self) {
            try writer.save(step: 3, payload: payload(3))
        }
        #expect(waiting?.code == .timeout)
        #expect(try older.readBytes(0..<190_000) == pattern(1, count: 190_000))
        let urgent = try writer.save(step: 3, payload: payload(3), isUrgent: true)
        #expect(try urgent.wait(timeoutNanoseconds: deadlineNanoseconds) == .durable)
        #expect(writer.statistics.brokenPinCount == 1)
        // Its reader learns of it, and gets no byte of another checkpoint.
        let error = #expect(throws: CheckpointError.self) { try older.readBytes(0..<190_000) }
        #expect(error?.code == .busy)
        #expect(try storage.newest().step == 3)
        older.close()
        try writer.close()
    }

    @Test func patienceComesFirst() throws {
        let (writer, _, older) = try pinned(.fail)
        let began = SystemClock.monotonicTime
        var ticket: CheckpointTicket?
        while ticket == nil, SystemClock.monotonicTime - began < deadlineNanoseconds {
            ticket = try? writer.save(step: 3, payload: payload(3), isUrgent: true)
            if ticket == nil { SystemClock.sleep(nanoseconds: 5_000_000) }
        }
        let waited = SystemClock.monotonicTime - began
        #expect(waited >= 250_000_000, "a reader is given time to end")
        #expect(try ticket?.wait(timeoutNanoseconds: deadlineNanoseconds) == .durable)
        older.close()
        try writer.close()
    }

    /// What is named is never taken, whoever has it pinned and whoever waits.
    @Test func aKeptSlotIsNotTaken() throws {
        let (writer, storage, older) = try pinned(.wait(timeoutNanoseconds: nil))
        let reader = try CheckpointReader(storage: RecordingStorage(openerOf: storage))
        let newest = try reader.select(try #require(reader.decision.candidates.first))
        #expect(newest.candidate.step == 2)
        let gate = Gate { if case .flush = $0 { true } else { false } }
        storage.setFaultHook(gate.hook)
        let urgent = try writer.save(step: 3, payload: payload(3), isUrgent: true)
        #expect(gate.waitUntilHolding())
        #expect(try newest.readBytes(0..<190_000) == pattern(2, count: 190_000))
        #expect(try storage.afterPowerCut.newest().step == 2)
        gate.open()
        #expect(try urgent.wait(timeoutNanoseconds: deadlineNanoseconds) == .durable)
        #expect(try newest.readBytes(0..<190_000) == pattern(2, count: 190_000))
        newest.close()
        older.close()
        try writer.close()
    }

    /// Whether so many saves wait for a slot, sooner or later. Each counts its own time: together
    /// they have counted more than went by only once there are two.
    private func isWaiting(_ writer: CheckpointWriter, _ count: Int, since began: UInt64) -> Bool {
        let deadline = began + deadlineNanoseconds
        while SystemClock.monotonicTime < deadline {
            let busy = writer.statistics.busyNanoseconds
            // Taken afterwards: one alone never has more.
            let least = count == 1 ? 1 : SystemClock.monotonicTime - began
            if busy > least { return true }
            SystemClock.sleep(nanoseconds: 5_000_000)
        }
        return false
    }

    /// Another save waits already when the urgent one comes, and is served after it.
    @Test func anUrgentSaveGoesBeforeThoseThatWait() throws {
        let storage = try memoryFile(inFlight: 1)
        let writer = try CheckpointWriter(storage: storage)
        let gate = Gate { if case .flush = $0 { true } else { false } }
        storage.setFaultHook(gate.hook)
        let first = try writer.save(step: 1, payload: payload(1))
        #expect(gate.waitUntilHolding())
        let sequences = Monitor([Bool: SequenceNumber]())
        let began = SystemClock.monotonicTime
        let threads = try [false, true].map { isUrgent in
            let thread = try WorkerThread(name: isUrgent ? "urgent" : "plain") {
                let ticket = try? writer.save(
                    step: 2, payload: payload(2), isUrgent: isUrgent)
                sequences.withLock { $0[isUrgent] = ticket?.sequence }
                _ = try? ticket?.wait()
            }
            #expect(isWaiting(writer, isUrgent ? 2 : 1, since: began))
            return thread
        }
        gate.open()
        for thread in threads { thread.join() }
        #expect(try first.wait(timeoutNanoseconds: deadlineNanoseconds) == .durable)
        let found = sequences.withLock { $0 }
        let urgent = try #require(found[true])
        #expect(urgent < (try #require(found[false])))
        try writer.close()
    }
}
