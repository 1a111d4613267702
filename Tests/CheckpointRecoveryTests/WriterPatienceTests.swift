import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import StorageFaults
import Testing

/// A reader stays with a checkpoint whose writer waits for a flush, and not for ever.
@Suite struct WriterPatienceTests {
    /// Sequence 4 older in slot 1, and sequence 5 anchored in slot 0.
    private func builder() throws -> ImageBuilder {
        var builder = try ImageBuilder(capacity: 512 << 10)
        builder.complete(slot: 1, sequence: 4)
        let anchor = builder.complete(slot: 0, sequence: 5)
        builder.commit(builder.superblock(generation: 3, anchor: anchor))
        return builder
    }

    /// A writer holds the slot and never commits: the search ends after so many attempts.
    @Test func aSlotThatStaysTakenEndsTheSearch() throws {
        let builder = try builder()
        let storage = builder.storage()
        let writer = MemoryStorage(openerOf: storage)
        #expect(try writer.tryLock(.slot(SlotIndex(0)), exclusive: true))
        let reader = try CheckpointReader(storage: storage)
        let attempts = Monitor(0)
        storage.setFaultHook { call in
            if case .lock(.slot(SlotIndex(0)), _) = call { attempts.withLock { $0 += 1 } }
            return nil
        }
        let pauses = Monitor(0)
        let load = Load(reader, pause: { pauses.withLock { $0 += 1 } })
        #expect(try load.next().candidate.sequence.rawValue == 4)
        #expect(load.rejections.map(\.error.code) == [.busy])
        #expect(attempts.withLock { $0 } == 256)
        #expect(pauses.withLock { $0 } == 255)
    }

    /// The superblock names the checkpoint, and its writer waits for the flush of it.
    @Test func aNamedCheckpointIsAwaited() throws {
        let builder = try builder()
        let storage = builder.storage()
        let writer = MemoryStorage(openerOf: storage)
        let slot = LockByte.slot(SlotIndex(0))
        #expect(try writer.tryLock(slot, exclusive: true))
        let reader = try CheckpointReader(storage: storage)
        let newest = try #require(reader.decision.candidates.first)
        #expect(newest.slot == SlotIndex(0))
        let load = Load(reader, pause: { try? writer.unlock(slot) })
        let loaded = try load.next()
        #expect(loaded.candidate.sequence == newest.sequence)
        #expect(load.rejections.isEmpty)
        loaded.close()

        #expect(try writer.tryLock(slot, exclusive: true))
        let selected = try reader.selectFlushed(newest) {
            try? writer.unlock(slot)
            return true
        }
        #expect(selected?.candidate.sequence == newest.sequence)
        selected?.close()
        #expect(try writer.tryLock(slot, exclusive: true))
        let pauses = Monitor(0)
        let held = try reader.selectFlushed(newest) {
            pauses.withLock { count in
                count += 1
                return true
            }
        }
        #expect(held == nil && pauses.withLock { $0 } == 256)
        #expect(try reader.selectFlushed(newest, pause: { false }) == nil)
    }

    /// Nothing else is there, and its writer flushes it.
    @Test func theOnlyCheckpointIsAwaited() throws {
        var builder = try ImageBuilder(capacity: 512 << 10)
        builder.complete(slot: 0, sequence: 1)
        builder.commit(builder.superblock(generation: 3, anchor: nil))
        let storage = builder.storage()
        let writer = MemoryStorage(openerOf: storage)
        let slot = LockByte.slot(SlotIndex(0))
        #expect(try writer.tryLock(slot, exclusive: true))
        let load = Load(
            try CheckpointReader(storage: storage), pause: { try? writer.unlock(slot) })
        #expect(try load.next().candidate.sequence.rawValue == 1)
    }

    /// A slot that now holds another checkpoint is no reason to wait.
    @Test func aReusedSlotIsNotAwaited() throws {
        var builder = try builder()
        let storage = builder.storage()
        let reader = try CheckpointReader(storage: storage)
        let newest = try #require(reader.decision.candidates.first)
        let writer = MemoryStorage(openerOf: storage)
        #expect(try writer.tryLock(.slot(newest.slot), exclusive: true))
        builder.complete(slot: Int(newest.slot.rawValue), sequence: 9)
        try writer.writeBlocks(builder.bytes, at: 0)
        let error = #expect(throws: CheckpointError.self) {
            try reader.selectFlushed(newest) {
                Issue.record("waited")
                return false
            }
        }
        #expect(error?.code == .busy)
    }
}
