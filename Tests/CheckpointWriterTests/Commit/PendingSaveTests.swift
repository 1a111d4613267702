import CheckpointFormat
import CheckpointStorage
import CheckpointWriter
import StorageFaults
import Synchronization
import Testing

/// The one wait of a busy writer: what ends it, and what does not.
@Suite struct PendingSaveTests {
    private func pending(_ writer: CheckpointWriter, _ step: UInt64) throws -> PendingSave {
        try writer.prepare(
            step: step, payload: CheckpointPayload(opaque: pattern(step, count: 70_000)))
    }

    /// One slot in flight, and a checkpoint in it whose flush is held back.
    private func busy(
        _ plan: FaultPlan = FaultPlan()
    ) throws -> (CheckpointWriter, RecordingStorage, Gate, CheckpointTicket) {
        let storage = try memoryFile(inFlight: 1)
        let writer = try CheckpointWriter(storage: storage)
        #expect(try writer.outcome(1, pattern(1, count: 10)) == .durable)
        let gate = Gate { if case .flush = $0 { true } else { false } }
        storage.setFaultHook(gate.hook)
        storage.setPlan(plan)
        let ticket = try writer.save(2, pattern(2, count: 10))
        #expect(gate.waitUntilHolding())
        return (writer, storage, gate, ticket)
    }

    /// Runs `body` on a thread once that thread waits; returns what its save came to.
    private func waiting(
        _ writer: CheckpointWriter, _ body: () throws -> Void
    ) throws -> CheckpointError.Code? {
        let code = Monitor<CheckpointError.Code??>(nil)
        let saver = try WorkerThread(name: "saver") {
            do throws(CheckpointError) {
                _ = try writer.save(3, pattern(3, count: 10))
                code.withLock { $0 = .some(nil) }
            } catch {
                code.withLock { $0 = .some(error.code) }
            }
            code.wakeAll()
        }
        while writer.statistics.busyNanoseconds == 0 { SystemClock.sleep(nanoseconds: 1_000_000) }
        try body()
        let found = code.waitFor(deadline: SystemClock.monotonicTime + deadlineNanoseconds) { $0 }
        saver.join()
        return try #require(found)
    }

    @Test func itBeginsOnceASlotIsFree() throws {
        let (writer, _, gate, first) = try busy()
        let pending = try pending(writer, 3)
        #expect(try pending.begin(isUrgent: false) == nil)
        let error = #expect(throws: CheckpointError.self) {
            try pending.wait(isUrgent: false, timeoutNanoseconds: 1_000_000)
        }
        #expect(error?.code == .timeout)
        #expect(error?.message.contains("1 of 1 checkpoints are in flight") == true)
        gate.open()
        try pending.wait(isUrgent: false, timeoutNanoseconds: deadlineNanoseconds)
        let ticket = try #require(try pending.begin(isUrgent: false))
        #expect(try first.wait(timeoutNanoseconds: deadlineNanoseconds) == .durable)
        #expect(try ticket.wait(timeoutNanoseconds: deadlineNanoseconds) == .durable)
        try writer.close()
    }

    /// While a slot is in flight there is nothing to ask again and again.
    @Test func itSleepsWhileNoReaderIsInTheWay() throws {
        let (writer, storage, gate, _) = try busy()
        let lookCount = Mutex(0)
        let code = try waiting(writer) {
            storage.setFaultHook { call in
                if case .lock = call { lookCount.withLock { $0 += 1 } }
                return nil
            }
            SystemClock.sleep(nanoseconds: 200_000_000)
            #expect(lookCount.withLock { $0 } == 0)
            gate.open()
        }
        #expect(code == nil)
        try writer.close()
    }

    /// The flush of the only checkpoint in flight fails, and with it goes the last slot.
    @Test func itEndsWhenTheLastSlotIsLost() throws {
        let (writer, _, gate, first) = try busy(
            FaultPlan([.init(.flush, number: 0, .error(5))]))
        #expect(try waiting(writer) { gate.open() } == .slotsExhausted)
        guard case .failed = try first.wait(timeoutNanoseconds: deadlineNanoseconds) else {
            Issue.record("the flush did not fail")
            return
        }
        try writer.close()
    }

    @Test func itEndsWithTheWriter() throws {
        let (writer, _, gate, _) = try busy()
        let code = try waiting(writer) {
            // Closing waits for what is in flight, and that for the gate; the save does not.
            _ = try WorkerThread(name: "closer") { try? writer.close() }
            SystemClock.sleep(nanoseconds: 50_000_000)
        }
        #expect(code == .closed)
        gate.open()
    }

    /// What rejects a checkpoint frees its slot, and wakes who waits for that.
    @Test func itHearsOfARejection() throws {
        let storage = try memoryFile(inFlight: 1)
        let writer = try CheckpointWriter(storage: storage)
        let first = try writer.save(
            step: 1, payload: CheckpointPayload(opaque: pattern(1, count: 10)), needsApproval: true)
        #expect(try waiting(writer) { writer.reject(first, because: "a test") } == nil)
        try writer.close()
    }

    /// An urgent save keeps its claim on the next slot while it does something else.
    @Test func theClaimOfAnUrgentOneOutlivesItsWait() throws {
        let (writer, _, gate, first) = try busy()
        var urgent: PendingSave? = try pending(writer, 4)
        #expect(throws: CheckpointError.self) {
            try urgent?.wait(isUrgent: true, timeoutNanoseconds: 1_000_000)
        }
        gate.open()
        #expect(try first.wait(timeoutNanoseconds: deadlineNanoseconds) == .durable)
        let plain = try pending(writer, 3)
        #expect(try plain.begin(isUrgent: false) == nil)
        let error = #expect(throws: CheckpointError.self) {
            try plain.wait(isUrgent: false, timeoutNanoseconds: 1_000_000)
        }
        #expect(error?.message.contains("an urgent save waits for the next slot") == true)
        urgent = nil
        #expect(try plain.begin(isUrgent: false) != nil)
        try writer.close()
    }

    /// Its caller may find later that it is not urgent: its own claim is not in its way.
    @Test func anUrgentOneStaysUrgent() throws {
        let (writer, _, gate, first) = try busy()
        let pending = try pending(writer, 3)
        #expect(throws: CheckpointError.self) {
            try pending.wait(isUrgent: true, timeoutNanoseconds: 1_000_000)
        }
        gate.open()
        #expect(try first.wait(timeoutNanoseconds: deadlineNanoseconds) == .durable)
        try pending.wait(isUrgent: false, timeoutNanoseconds: 1_000_000_000)
        let ticket = try #require(try pending.begin(isUrgent: false))
        #expect(try ticket.wait(timeoutNanoseconds: deadlineNanoseconds) == .durable)
        try writer.close()
    }

    /// A limit beyond what the clock can count to is no limit.
    @Test func theLongestTimeoutDoesNotEndAtOnce() throws {
        let storage = try memoryFile(inFlight: 1)
        var options = WriterOptions()
        options.busyPolicy = .wait(timeoutNanoseconds: .max)
        let writer = try CheckpointWriter(storage: storage, options: options)
        let first = try writer.save(
            step: 1, payload: CheckpointPayload(opaque: pattern(1, count: 10)), needsApproval: true)
        #expect(try waiting(writer) { writer.reject(first, because: "a test") } == nil)
        try writer.close()
    }
}
