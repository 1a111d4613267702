import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import CheckpointWriter
import StorageFaults
import Testing

/// What the file of a group keeps, and when a slot of it is used again: GROUP.md, "What a rank
/// keeps".
@Suite struct GroupWriterTests {
    private func bytes(_ step: UInt64) -> [UInt8] { pattern(step, count: 100_000) }

    private func open(
        _ storage: RecordingStorage, _ busyPolicy: BusyPolicy = .fail
    ) throws -> CheckpointWriter {
        var options = WriterOptions()
        options.acceptsGroup = true
        options.busyPolicy = busyPolicy
        return try CheckpointWriter(storage: storage, options: options)
    }

    private func file(
        inFlight: Int = 2, retain: Int = 1
    ) throws -> RecordingStorage {
        try memoryFile(inFlight: inFlight, retain: retain, ofGroup: true)
    }

    private func begun(
        _ storage: RecordingStorage, _ busyPolicy: BusyPolicy = .fail
    ) throws -> CheckpointWriter {
        let writer = try open(storage, busyPolicy)
        try writer.beginAttempt(GroupAttempt(number: 1))
        return writer
    }

    private func named(_ storage: some Storage) throws -> [UInt64] {
        try CheckpointReader(storage: storage).decision.candidates
            .filter { $0.kind == .anchored || $0.kind == .retained }.map(\.step)
    }

    private func saveDurably(
        _ step: UInt64, _ writer: CheckpointWriter
    ) throws -> SequenceNumber {
        let ticket = try writer.save(step, bytes(step))
        #expect(try ticket.wait(timeoutNanoseconds: deadlineNanoseconds) == .durable)
        return ticket.sequence
    }

    @Test func nothingIsSavedBeforeAnAttempt() throws {
        let storage = try file()
        #expect(throws: CheckpointError.self) { try CheckpointWriter(storage: storage) }
        let writer = try open(storage)
        #expect(throws: CheckpointError.self) { try writer.save(1, bytes(1)) }
        try writer.beginAttempt(GroupAttempt(number: 3))
        _ = try saveDurably(1, writer)
        #expect(throws: CheckpointError.self) { try writer.rewind(to: 0) }
        // A step names one checkpoint of an attempt.
        #expect(throws: CheckpointError.self) { try writer.save(1, bytes(1)) }
        for number in [UInt64(0), 2, 3, .max] {
            var attempt = GroupAttempt(number: number)
            attempt.base = GroupCheckpointName(attempt: 3, step: 1)
            #expect(throws: CheckpointError.self) { try writer.beginAttempt(attempt) }
        }
        try writer.close()
        let plain = try CheckpointWriter(storage: memoryFile())
        #expect(throws: CheckpointError.self) {
            try plain.beginAttempt(GroupAttempt(number: 1))
        }
    }

    @Test func theUndecidedStay() throws {
        let storage = try file()
        let writer = try begun(storage)
        let sequences = try (1...3).map { try saveDurably($0, writer) }
        #expect(try named(storage) == [3, 2, 1])
        #expect(try CheckpointReader(storage: storage).decision.superblock?.watermark == nil)
        // No slot is left before a verdict.
        #expect(throws: CheckpointError.self) { try writer.save(4, bytes(4)) }
        #expect(writer.statistics.group?.undecidedCount == 3)
        writer.decide(sequences[0], isComplete: true)
        // The newest complete one stays.
        #expect(throws: CheckpointError.self) { try writer.save(4, bytes(4)) }
        writer.decide(sequences[1], isComplete: true)
        #expect(try isDone(within: deadlineNanoseconds) { self.waitForSlot(writer) })
        _ = try saveDurably(4, writer)
        #expect(try named(storage) == [4, 3, 2])
        #expect(
            writer.statistics.group?.watermark == GroupCheckpointName(attempt: 1, step: 2))
        try writer.close()
        let superblock = try CheckpointReader(storage: storage).decision.superblock
        #expect(superblock?.watermark == GroupCheckpointName(attempt: 1, step: 2))
        #expect(superblock?.attempt == 1)
    }

    /// How all ranks see what was lost, however often they try. Slots and sequences that a
    /// superblock names.
    private func namedSlots(_ storage: some Storage) throws -> [SlotIndex: SequenceNumber] {
        let superblock = try #require(CheckpointReader(storage: storage).decision.superblock)
        var named = Dictionary(
            uniqueKeysWithValues: superblock.retained.map { ($0.slot, $0.sequence) })
        if let anchor = superblock.anchor { named[anchor.slot] = anchor.sequence }
        return named
    }

    @Test(arguments: [1, 2, 3] as [UInt64]) func openingNamesWhatWasNamed(
        damagedStep: UInt64
    ) throws {
        let intact = try file()
        let writer = try begun(intact)
        for step in UInt64(1)...3 { _ = try saveDurably(step, writer) }
        try writer.close()
        let named = try namedSlots(intact)
        #expect(named.count == 3)
        let damaged = try #require(
            CheckpointReader(storage: intact).decision.candidates.first {
                $0.step == damagedStep
            })
        var bytes = intact.contents
        bytes[Int(try intact.geometry.headerOffset(damaged.slot)) + 20] ^= 1
        let storage = RecordingStorage(contents: bytes)
        for _ in 1...2 {
            try open(storage).close()
            #expect(try namedSlots(storage) == named)
        }
        // The attempt that they agree on names what they chose.
        let after = try open(storage)
        try after.beginAttempt(GroupAttempt(number: 2))
        #expect(try namedSlots(storage).isEmpty)
        for step in UInt64(11)...13 { _ = try saveDurably(step, after) }
        try after.close()
    }

    private func waitForSlot(_ writer: CheckpointWriter) {
        while writer.statistics.group?.freeSlotCount == 0 {
            SystemClock.sleep(nanoseconds: 1_000_000)
        }
    }

    /// A rank whose saves fail costs the others nothing that was complete.
    @Test func theVoidMakeRoomAndTheLastCompleteOneStays() throws {
        let storage = try file()
        let writer = try begun(storage, .wait(timeoutNanoseconds: deadlineNanoseconds))
        writer.decide(try saveDurably(1, writer), isComplete: true)
        for step in UInt64(2)...9 {
            writer.decide(try saveDurably(step, writer), isComplete: false)
        }
        #expect(try named(storage).contains(1))
        #expect(
            writer.statistics.group?.watermark == GroupCheckpointName(attempt: 1, step: 1))
        writer.abandon()
        // After a power cut too.
        #expect(try named(storage.afterPowerCut).contains(1))
    }

    @Test func aSecondVerdictChangesNothing() throws {
        let storage = try file()
        let writer = try begun(storage)
        let first = try saveDurably(1, writer)
        writer.decide(first, isComplete: true)
        writer.decide(first, isComplete: false)
        let second = try saveDurably(2, writer)
        writer.decide(second, isComplete: false)
        writer.decide(second, isComplete: true)
        _ = try saveDurably(3, writer)
        #expect(try named(storage) == [3, 1])
        #expect(
            writer.statistics.group?.watermark == GroupCheckpointName(attempt: 1, step: 1))
        try writer.close()
    }

    @Test func aVerdictFreesASlotForASaveThatWaits() throws {
        let storage = try file()
        let writer = try begun(storage, .wait(timeoutNanoseconds: deadlineNanoseconds))
        let sequences = try (1...3).map { try saveDurably($0, writer) }
        let bytes = bytes(4)
        let isDone = Monitor(false)
        let thread = try WorkerThread(name: "test") {
            _ = try? writer.outcome(4, bytes)
            isDone.withLock { $0 = true }
            isDone.wakeAll()
        }
        #expect(!isDone.wait(deadline: SystemClock.monotonicTime + 50_000_000) { $0 })
        writer.decide(sequences[0], isComplete: false)
        #expect(isDone.wait(deadline: SystemClock.monotonicTime + deadlineNanoseconds) { $0 })
        thread.join()
        #expect(try named(storage) == [4, 3, 2])
        try writer.close()
    }

    /// The slot is not written before a superblock is durable that does not name it.
    @Test func aVerdictFreesASlotOnlyThroughASuperblock() throws {
        let storage = try file()
        let writer = try begun(storage)
        let sequences = try (1...3).map { try saveDurably($0, writer) }
        let gate = Gate { if case .flush = $0 { true } else { false } }
        storage.setFaultHook(gate.hook)
        writer.decide(sequences[0], isComplete: false)
        #expect(gate.waitUntilHolding())
        #expect(throws: CheckpointError.self) { try writer.save(4, bytes(4)) }
        gate.open()
        #expect(try isDone(within: deadlineNanoseconds) { self.waitForSlot(writer) })
        _ = try saveDurably(4, writer)
        try writer.close()
    }

    @Test func anAttemptBeginsWithItsBase() throws {
        let storage = try file(inFlight: 2, retain: 2)
        let writer = try begun(storage)
        var sequences: [SequenceNumber] = []
        for step in UInt64(1)...4 {
            sequences.append(try saveDurably(step, writer))
            if step < 4 { writer.decide(sequences[Int(step) - 1], isComplete: true) }
        }
        writer.abandon()
        let next = try open(storage)
        // The ranks agreed on step 2, since another one lost its step 3.
        var attempt = GroupAttempt(number: 2, base: GroupCheckpointName(attempt: 1, step: 2))
        attempt.baseSequence = sequences[1]
        try next.beginAttempt(attempt)
        let decision = try CheckpointReader(storage: storage).decision
        #expect(decision.superblock?.anchor?.step == 2)
        #expect(decision.superblock?.attempt == 2)
        #expect(decision.superblock?.watermark == attempt.base)
        #expect(try named(storage.afterPowerCut) == [2])
        // Another history of the same steps.
        _ = try saveDurably(3, next)
        let names = try CheckpointReader(storage: storage).decision.candidates
            .filter { $0.kind == .anchored || $0.kind == .retained }.map(\.header.groupName)
        #expect(
            names == [
                GroupCheckpointName(attempt: 2, step: 3), GroupCheckpointName(attempt: 1, step: 2),
            ])
        next.abandon()
    }

    @Test func aBaseThatIsNotHereIsRefused() throws {
        let storage = try file()
        let writer = try begun(storage)
        let sequence = try saveDurably(5, writer)
        var attempt = GroupAttempt(number: 2, base: GroupCheckpointName(attempt: 1, step: 6))
        attempt.baseSequence = sequence
        #expect(throws: CheckpointError.self) { try writer.beginAttempt(attempt) }
        attempt.base = GroupCheckpointName(attempt: 1, step: 5)
        attempt.baseSequence = SequenceNumber(rawValue: 99)
        #expect(throws: CheckpointError.self) { try writer.beginAttempt(attempt) }
        // Nothing changed.
        _ = try saveDurably(6, writer)
        #expect(try named(storage) == [6, 5])
        try writer.close()
    }

    /// As after a resize: the attempt goes on, and verdicts still come.
    @Test func theSameAttemptGoesOn() throws {
        let storage = try file()
        let writer = try begun(storage)
        let first = try saveDurably(1, writer)
        let second = try saveDurably(2, writer)
        writer.decide(first, isComplete: true)
        try writer.close()
        let next = try open(storage)
        try next.beginAttempt(GroupAttempt(number: 1))
        #expect(next.statistics.group?.undecidedCount == 1)
        next.decide(second, isComplete: true)
        #expect(next.statistics.group?.watermark == GroupCheckpointName(attempt: 1, step: 2))
        _ = try saveDurably(3, next)
        #expect(try named(storage) == [3, 2])
        try next.close()
    }

    /// Below the watermark too, the medium does not tell a void one from a complete one.
    @Test func verdictsAreRecordedAgainWhenAnAttemptGoesOn() throws {
        let storage = try file(inFlight: 2, retain: 2)
        let writer = try begun(storage)
        let sequences = try (1...3).map { try saveDurably($0, writer) }
        for (sequence, isComplete) in zip(sequences, [true, false, true]) {
            writer.decide(sequence, isComplete: isComplete)
        }
        try writer.close()
        let next = try open(storage)
        try next.beginAttempt(GroupAttempt(number: 1))
        #expect(next.statistics.group?.undecidedCount == 2)
        next.decide(sequences[0], isComplete: true)
        next.decide(sequences[1], isComplete: false)
        // An older verdict does not lower it.
        #expect(next.statistics.group?.watermark == GroupCheckpointName(attempt: 1, step: 3))
        let fourth = try saveDurably(4, next)
        #expect(try named(storage) == [4, 3, 1])
        next.decide(fourth, isComplete: true)
        _ = try saveDurably(5, next)
        #expect(try named(storage) == [5, 4, 3])
        try next.close()
    }

    @Test func anAttemptThatIsNotDurableStopsTheWriter() throws {
        let storage = try file()
        let writer = try begun(storage)
        let sequence = try saveDurably(1, writer)
        storage.setFaultHook { call in if case .flush = call { 5 } else { nil } }
        var attempt = GroupAttempt(number: 2, base: GroupCheckpointName(attempt: 1, step: 1))
        attempt.baseSequence = sequence
        #expect(throws: CheckpointError.self) { try writer.beginAttempt(attempt) }
        #expect(writer.statistics.isFailStop)
        storage.setFaultHook(nil)
        writer.abandon()
        #expect(try storage.afterPowerCut.newest().step == 1)
    }
}
