import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import CheckpointWriter
import StorageFaults
import Testing

/// A checkpoint that waits for its caller's word is not committed before it has it.
@Suite struct ApprovalTests {
    private let storage: RecordingStorage
    private let writer: CheckpointWriter

    init() throws {
        storage = try memoryFile(inFlight: 2)
        writer = try CheckpointWriter(storage: storage)
        #expect(try writer.outcome(1, pattern(1, count: 100_000)) == .durable)
    }

    private func begin(_ step: UInt64) throws -> CheckpointTicket {
        try writer.save(
            step: step, payload: CheckpointPayload(opaque: pattern(step, count: 100_000)),
            needsApproval: true)
    }

    /// Every chunk is on the medium, and nothing happens.
    private func writtenButNotCommitted(_ ticket: CheckpointTicket) throws {
        try ticket.waitStaged(timeoutNanoseconds: deadlineNanoseconds)
        let error = #expect(throws: CheckpointError.self) {
            try ticket.wait(timeoutNanoseconds: 200_000_000)
        }
        #expect(error?.code == .timeout)
        #expect(try storage.newest().step == 1)
    }

    @Test func anApprovedOneIsCommitted() throws {
        let ticket = try begin(2)
        try writtenButNotCommitted(ticket)
        writer.approve(ticket)
        #expect(try ticket.wait(timeoutNanoseconds: deadlineNanoseconds) == .durable)
        writer.reject(ticket, because: "too late")
        #expect(ticket.outcome == .durable)
        #expect(try storage.newest().bytes == pattern(2, count: 100_000))
        try writer.close()
    }

    @Test func oneThatIsApprovedEarlyIsCommitted() throws {
        let ticket = try begin(2)
        writer.approve(ticket)
        #expect(try ticket.wait(timeoutNanoseconds: deadlineNanoseconds) == .durable)
    }

    @Test func aRejectedOneCostsNothingElse() throws {
        let ticket = try begin(2)
        try writtenButNotCommitted(ticket)
        writer.reject(ticket, because: "'weight' changed")
        guard case .failed(let error) = try ticket.wait(timeoutNanoseconds: deadlineNanoseconds)
        else {
            Issue.record("it ended as \(String(describing: ticket.outcome))")
            return
        }
        #expect(error.code == .rejected && error.message == "'weight' changed")
        writer.approve(ticket)
        #expect(try storage.newest().step == 1)
        // Its slot is free again: as many as the file has are saved.
        for step in 3...6 as ClosedRange<UInt64> {
            #expect(try writer.outcome(step, pattern(step, count: 1000)) == .durable)
        }
        #expect(writer.statistics.failedCount == 1 && !writer.statistics.isFailStop)
        try writer.close()
    }

    @Test func aNewerOneIsDurableFirst() throws {
        let ticket = try begin(2)
        try writtenButNotCommitted(ticket)
        #expect(try writer.outcome(3, pattern(3, count: 1000)) == .durable)
        writer.approve(ticket)
        let outcome = try ticket.wait(timeoutNanoseconds: deadlineNanoseconds)
        guard case .superseded = outcome else {
            Issue.record("it ended as \(outcome)")
            return
        }
        #expect(try storage.newest().step == 3)
    }

    @Test func closingRejectsWhatNobodyApproved() throws {
        let ticket = try begin(2)
        try writer.close()
        guard case .failed(let error) = ticket.outcome else {
            Issue.record("it ended as \(String(describing: ticket.outcome))")
            return
        }
        #expect(error.code == .rejected)
        #expect(try storage.newest().step == 1)
    }
}
