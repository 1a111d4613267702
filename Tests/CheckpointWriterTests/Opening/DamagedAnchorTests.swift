import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import CheckpointWriter
import StorageFaults
import Synchronization
import Testing

/// Opening for writing when the newest checkpoint is rotten: the older one that still loads must
/// outlive whatever the new writer does.
@Suite struct DamagedAnchorTests {
    private let payload = pattern(1, count: 100_000)

    /// Two slots: step 2 anchored, step 1 released but whole. One bit of step 2 is flipped.
    private func rottenFile() throws -> MemoryStorage {
        let directory = try TemporaryDirectory()
        let path = directory.file()
        try createFile(path, capacity: 200_000, inFlight: 1, retain: 1)
        let writer = try CheckpointWriter(path: path)
        for step in [UInt64(1), 2] {
            let bytes = step == 1 ? payload : pattern(2, count: 100_000)
            #expect(
                try writer.save(step: step, payload: CheckpointPayload(opaque: bytes)).wait()
                    == .durable)
        }
        try writer.close()
        let file = try FileStorage(path: path, access: .read)
        let image = try file.readBlocks(at: 0, count: Int(file.byteCount))
        let storage = MemoryStorage(contents: image)
        let anchor = try CheckpointReader(storage: storage).decision.candidates[0]
        #expect(anchor.step == 2)
        storage.flip(1, at: anchor.dataOffset + 70_000)
        return storage
    }

    private func loadedStep(_ storage: MemoryStorage) throws -> (UInt64, [UInt8]) {
        try CheckpointReader(storage: MemoryStorage(contents: storage.contents))
            .loadNewest { selected throws(CheckpointError) in
                (selected.candidate.step, try selected.readBytes(0..<100_000))
            }.value
    }

    @Test func theWholeOneIsKeptUntilSomethingNewerIsDurable() throws {
        let storage = try rottenFile()
        #expect(try loadedStep(storage) == (1, payload))
        let writer = try CheckpointWriter(storage: storage)
        // The second chunk is never written: step 3 stays torn.
        let isFirst = Mutex(true)
        storage.setFaultHook { call in
            guard case .write(_, let count) = call, count >= 32768 else { return nil }
            let passes = isFirst.withLock { isFirst in
                defer { isFirst = false }
                return isFirst
            }
            return passes ? nil : 5
        }
        let ticket = try writer.save(
            step: 3, payload: CheckpointPayload(opaque: pattern(3, count: 100_000)))
        guard case .failed = try ticket.wait() else {
            Issue.record("a save with a failed write is not durable")
            return
        }
        writer.abandon()
        storage.setFaultHook(nil)
        #expect(try loadedStep(storage) == (1, payload))
    }

    @Test func theNextOneTakesTheRottenSlot() throws {
        let storage = try rottenFile()
        let writer = try CheckpointWriter(storage: storage)
        #expect(writer.statistics.newestDurableStep == 1)
        let ticket = try writer.save(
            step: 3, payload: CheckpointPayload(opaque: pattern(3, count: 100_000)))
        #expect(try ticket.wait() == .durable)
        // Above the rotten one's: numbers do not go back.
        #expect(ticket.sequence.rawValue > 2)
        try writer.close()
        #expect(try loadedStep(storage).0 == 3)
    }
}

/// Sequences are never given twice, not even when a crash leaves no trace of them.
@Suite struct SequenceLimitTests {
    @Test func aSequenceWithoutATraceIsNotGivenAgain() throws {
        let directory = try TemporaryDirectory()
        let path = directory.file()
        try createFile(path)
        let file = try FileStorage(path: path, access: .read)
        let image = try file.readBlocks(at: 0, count: Int(file.byteCount))
        let storage = MemoryStorage(contents: image)
        let first = try CheckpointWriter(storage: storage)
        let afterOpening = storage.contents
        let payload = CheckpointPayload(opaque: pattern(1, count: 100))
        let lost = try first.save(step: 1, payload: payload)
        #expect(try lost.wait() == .durable)
        first.abandon()
        // Nothing that was written after opening has reached the medium.
        let second = try CheckpointWriter(storage: MemoryStorage(contents: afterOpening))
        let next = try second.save(step: 1, payload: payload)
        #expect(next.sequence > lost.sequence)
    }

    @Test func failuresInARowEndAtTheLimit() throws {
        let directory = try TemporaryDirectory()
        let path = directory.file()
        try createFile(path, inFlight: 1)
        let file = try FileStorage(path: path, access: .read)
        let image = try file.readBlocks(at: 0, count: Int(file.byteCount))
        let storage = MemoryStorage(contents: image)
        let writer = try CheckpointWriter(storage: storage)
        storage.setFaultHook { call in if case .write = call { 5 } else { nil } }
        let payload = CheckpointPayload(opaque: pattern(1, count: 100))
        for step in 1...Limits.sequenceReserve {
            guard case .failed = try writer.save(step: step, payload: payload).wait() else {
                Issue.record("step \(step) was saved though every write fails")
                return
            }
        }
        let error = #expect(throws: CheckpointError.self) {
            try writer.save(step: Limits.sequenceReserve + 1, payload: payload)
        }
        #expect(error?.code == .slotsExhausted)
        // The slot that was not taken is not locked either.
        #expect(try MemoryStorage(openerOf: storage).tryLock(.slot(SlotIndex(0)), exclusive: false))
    }

    /// Found by simulation: a candidate that verified when asked once, and not when asked again.
    @Test func errorsThatPassWhileOldCheckpointsAreVerifiedAreNoTrap() throws {
        var builder = try ImageBuilder(inFlight: 1, retain: 3, capacity: 200_000)
        builder.complete(slot: 1, sequence: 3)
        builder.complete(slot: 2, sequence: 4)
        let anchor = builder.complete(slot: 0, sequence: 5)
        builder.commit(builder.superblock(generation: 3, anchor: anchor))
        let clean = RecordingStorage(contents: builder.bytes)
        try CheckpointWriter(storage: clean).close()
        let readCount = try #require(clean.callCounts[.read])
        for number in 0..<readCount {
            let storage = RecordingStorage(contents: builder.bytes)
            storage.setPlan(FaultPlan([.init(.read, number: number, .error(5))]))
            guard let writer = try? CheckpointWriter(storage: storage) else { continue }
            #expect(writer.statistics.newestDurableSequence.rawValue >= 4, "read \(number)")
            writer.abandon()
        }
    }

    /// Found by simulation: the newest checkpoint was overwritten, because one read of it failed.
    @Test func whatCouldNotBeReadOnceIsNotOverwritten() throws {
        var builder = try ImageBuilder(inFlight: 2, retain: 1, capacity: 200_000)
        builder.complete(slot: 1, sequence: 4)
        let anchor = builder.complete(slot: 0, sequence: 5)
        builder.commit(builder.superblock(generation: 3, anchor: anchor))
        let storage = RecordingStorage(contents: builder.bytes)
        let data = builder.geometry.slotDataOffset(SlotIndex(rawValue: 0))
        storage.setFaultHook { call in
            if case .read(data, _) = call { 5 } else { nil }
        }
        let writer = try CheckpointWriter(storage: storage)
        #expect(writer.statistics.newestDurableSequence.rawValue == 4)
        #expect(writer.statistics.quarantinedSlotCount == 1)
        storage.setFaultHook(nil)
        // Nothing newer is complete, so sequence 5 is what a resume must load.
        storage.setPlan(FaultPlan([.init(.write, number: 1, .error(5))]))
        let ticket = try writer.save(
            step: 60, payload: CheckpointPayload(opaque: pattern(6, count: 200_000)))
        guard case .failed = try ticket.wait() else {
            Issue.record("a save with a failed write is not durable")
            return
        }
        writer.abandon()
        let found = try CheckpointReader(storage: MemoryStorage(contents: storage.contents))
            .loadNewest { selected throws(CheckpointError) in selected.candidate.sequence }
        #expect(found.value.rawValue == 5)
        let next = try CheckpointWriter(storage: MemoryStorage(contents: storage.contents))
        #expect(next.statistics.newestDurableSequence.rawValue == 5)
    }
}
