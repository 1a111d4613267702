import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import CheckpointWriter
import StorageFaults
import Testing

/// Opening without reading the anchored checkpoint: what a load falls back to when it is rotten
/// must outlive whatever the new writer does before its first save is durable.
@Suite struct TrustedAnchorTests {
    private func bytes(_ step: UInt64) -> [UInt8] { pattern(step, count: 100_000) }

    /// Steps 1 to `count` were durable one after another.
    private func file(
        inFlight: Int = 2, retain: Int = 1, count: UInt64 = 2
    ) throws -> RecordingStorage {
        let storage = try memoryFile(inFlight: inFlight, retain: retain)
        let writer = try CheckpointWriter(storage: storage)
        for step in 1...count { #expect(try writer.outcome(step, bytes(step)) == .durable) }
        try writer.close()
        return RecordingStorage(contents: storage.contents)
    }

    /// The same file with a byte of the payload of `step` changed.
    private func rotten(_ storage: RecordingStorage, step: UInt64) throws -> RecordingStorage {
        let candidates = try CheckpointReader(storage: storage).decision.candidates
        let candidate = try #require(candidates.first { $0.step == step })
        let medium = MemoryStorage(contents: storage.contents)
        medium.flip(4, at: candidate.dataOffset + 70_000)
        return RecordingStorage(contents: medium.contents)
    }

    private var trusting: WriterOptions {
        var options = WriterOptions()
        options.trustsAnchor = true
        options.busyPolicy = .fail
        return options
    }

    private func loaded(_ storage: RecordingStorage) throws -> (UInt64, [UInt8]) {
        let newest = try MemoryStorage(contents: storage.contents).newest()
        return (newest.step, newest.bytes)
    }

    @Test func openingReadsNoPayload() throws {
        for isTrusting in [true, false] {
            let storage = try file()
            let geometry = try storage.geometry
            let reads = Monitor(0)
            storage.setFaultHook { call in
                if case .read(let offset, _) = call,
                    (geometry.dataOffset..<geometry.tailOffset).contains(offset)
                {
                    reads.withLock { $0 += 1 }
                }
                return nil
            }
            let writer = try CheckpointWriter(
                storage: storage, options: isTrusting ? trusting : WriterOptions())
            #expect(writer.recovered?.candidate.step == 2)
            #expect(writer.recovered?.isVerified == !isTrusting)
            #expect(reads.withLock { $0 == 0 } == isTrusting)
            try writer.close()
        }
    }

    /// Every save fails until the process ends.
    @Test func theOlderOneOutlivesFailedSaves() throws {
        let storage = try rotten(file(), step: 2)
        #expect(try loaded(storage) == (1, bytes(1)))
        let writer = try CheckpointWriter(storage: storage, options: trusting)
        #expect(writer.recovered?.candidate.step == 2)
        // The first superblock of this writer hides nothing.
        #expect(try loaded(storage) == (1, bytes(1)))
        let geometry = try storage.geometry
        storage.setFaultHook { call in
            // The last chunk of each, so that the first one is overwritten.
            if case .write(let offset, _) = call, offset >= geometry.dataOffset,
                offset < geometry.tailOffset,
                (offset - geometry.dataOffset) % geometry.dataStride != 0
            {
                return 5
            }
            return nil
        }
        for step in UInt64(3)...6 {
            guard case .failed = try writer.outcome(step, bytes(step)) else {
                Issue.record("step \(step) was saved though a write fails")
                return
            }
        }
        writer.abandon()
        storage.setFaultHook(nil)
        #expect(try loaded(storage) == (1, bytes(1)))
    }

    @Test func theFirstDurableSaveReleasesIt() throws {
        let storage = try file()
        let writer = try CheckpointWriter(storage: storage, options: trusting)
        let gate = Gate { if case .flush = $0 { true } else { false } }
        storage.setFaultHook(gate.hook)
        let first = try writer.save(3, bytes(3))
        let error = #expect(throws: CheckpointError.self) { try writer.save(4, bytes(4)) }
        #expect(error?.code == .busy)
        #expect(error?.message.contains("until the first save since opening is durable") == true)
        gate.open()
        #expect(try first.wait(timeoutNanoseconds: deadlineNanoseconds) == .durable)
        let next = Gate { if case .flush = $0 { true } else { false } }
        storage.setFaultHook(next.hook)
        let tickets = try [UInt64(4), 5].map { try writer.save($0, bytes($0)) }
        next.open()
        for ticket in tickets { _ = try ticket.wait(timeoutNanoseconds: deadlineNanoseconds) }
        #expect(tickets.last?.outcome == .durable)
        try writer.close()
        #expect(try loaded(storage) == (5, bytes(5)))
    }

    /// With one slot in flight, holding would leave none: the anchored one is read.
    @Test func whereNoSlotWouldBeLeftItIsVerified() throws {
        let storage = try rotten(file(inFlight: 1), step: 2)
        let writer = try CheckpointWriter(storage: storage, options: trusting)
        #expect(writer.recovered?.candidate.step == 1 && writer.recovered?.isVerified == true)
        #expect(try writer.outcome(3, bytes(3)) == .durable)
        try writer.close()
        let whole = try file(inFlight: 1)
        let next = try CheckpointWriter(storage: whole, options: trusting)
        #expect(next.recovered?.candidate.step == 2 && next.recovered?.isVerified == true)
        #expect(try next.outcome(3, bytes(3)) == .durable)
        try next.close()
    }

    /// A retained checkpoint stays by itself, so all slots in flight are there at once.
    @Test func aRetainedOneNeedsNoHolding() throws {
        let storage = try rotten(file(retain: 2, count: 3), step: 3)
        let writer = try CheckpointWriter(storage: storage, options: trusting)
        #expect(writer.recovered?.candidate.step == 3 && writer.recovered?.isVerified == false)
        let gate = Gate { if case .flush = $0 { true } else { false } }
        storage.setFaultHook(gate.hook)
        let tickets = try [UInt64(4), 5].map { try writer.save($0, bytes($0)) }
        #expect(gate.waitUntilHolding())
        #expect(try storage.afterPowerCut.newest().step == 2)
        gate.open()
        for ticket in tickets { _ = try ticket.wait(timeoutNanoseconds: deadlineNanoseconds) }
        try writer.close()
        #expect(try loaded(storage) == (5, bytes(5)))
    }

    /// Nothing says that the F1 of a checkpoint without a superblock finished.
    @Test(arguments: [true, false]) func anUnanchoredOneIsVerified(isWhole: Bool) throws {
        var builder = try ImageBuilder(inFlight: 2, retain: 1, capacity: 200_000)
        builder.complete(slot: 1, sequence: 4)
        let anchor = builder.complete(slot: 0, sequence: 5)
        builder.complete(slot: 2, sequence: 6)
        builder.commit(builder.superblock(generation: 3, anchor: anchor))
        if !isWhole { builder.flip(builder.geometry.slotDataOffset(SlotIndex(2)) + 11) }
        let storage = RecordingStorage(contents: builder.bytes)
        let writer = try CheckpointWriter(storage: storage, options: trusting)
        #expect(writer.recovered?.candidate.sequence.rawValue == (isWhole ? 6 : 5))
        #expect(writer.recovered?.isVerified == isWhole)
        writer.abandon()
    }

    /// The slot of a newer one that cannot be read is not used, so holding would leave none.
    @Test func anUnreadableOneCountsAsUsed() throws {
        var builder = try ImageBuilder(inFlight: 2, retain: 1, capacity: 200_000)
        builder.complete(slot: 1, sequence: 4)
        let anchor = builder.complete(slot: 0, sequence: 5)
        builder.complete(slot: 2, sequence: 6)
        builder.commit(builder.superblock(generation: 3, anchor: anchor))
        let storage = RecordingStorage(contents: builder.bytes)
        let data = builder.geometry.slotDataOffset(SlotIndex(2))
        storage.setFaultHook { call in if case .read(data, _) = call { 5 } else { nil } }
        let writer = try CheckpointWriter(storage: storage, options: trusting)
        #expect(writer.recovered?.candidate.sequence.rawValue == 5)
        #expect(writer.recovered?.isVerified == true)
        storage.setFaultHook(nil)
        #expect(try writer.outcome(60, bytes(6)) == .durable)
        try writer.close()
    }

    @Test func aFileWithoutCheckpointsHasNothingToGoOnFrom() throws {
        let writer = try CheckpointWriter(storage: memoryFile(), options: trusting)
        #expect(writer.recovered == nil)
        #expect(try writer.outcome(1, bytes(1)) == .durable)
        #expect(writer.recovered == nil)
        try writer.close()
        let one = try file(count: 1)
        let next = try CheckpointWriter(storage: one, options: trusting)
        #expect(next.recovered?.candidate.step == 1 && next.recovered?.isVerified == false)
        try next.close()
    }
}
