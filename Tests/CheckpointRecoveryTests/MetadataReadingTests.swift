import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import StorageFaults
import Testing

@Suite struct MetadataReadingTests {
    private func builder() throws -> ImageBuilder {
        var builder = try ImageBuilder(inFlight: 7, retain: 1)
        let anchor = builder.complete(slot: 3, sequence: 9)
        builder.commit(builder.superblock(generation: 2, anchor: anchor))
        return builder
    }

    @Test func smallMetadataTakesThreeReads() throws {
        let storage = try builder().storage()
        let calls = Monitor(0)
        storage.setFaultHook { _ in
            calls.withLock { $0 += 1 }
            return nil
        }
        let decision = try SlotSelection.decide(MetadataImage.read(from: storage))
        #expect(decision.candidates.count == 1)
        #expect(calls.withLock { $0 } == 3)
    }

    /// One bad sector costs the block it is in, and nothing else.
    @Test func badSectorCostsOneBlock() throws {
        let builder = try builder()
        let storage = builder.storage()
        let bad = builder.geometry.headerOffset(SlotIndex(5))
        storage.setFaultHook { call in
            guard case .read(let offset, let byteCount) = call else { return nil }
            return (offset..<offset + UInt64(byteCount)).contains(bad) ? 5 : nil
        }
        let image = try MetadataImage.read(from: storage)
        let decision = try SlotSelection.decide(image)
        #expect(decision.slots[5].reason == .unreadable)
        #expect(decision.slots.filter { $0.reason == .unreadable }.count == 1)
        #expect(decision.candidates.map(\.sequence.rawValue) == [9])
        #expect(image.readFailures.map(\.byteOffset) == [bad])
    }

    @Test func badSectorInAChunkTableCostsItsSlot() throws {
        let builder = try builder()
        let storage = builder.storage()
        let bad = builder.geometry.tableOffset(SlotIndex(3))
        storage.setFaultHook { call in
            guard case .read(let offset, let byteCount) = call else { return nil }
            return (offset..<offset + UInt64(byteCount)).contains(bad) ? 5 : nil
        }
        let decision = try SlotSelection.decide(MetadataImage.read(from: storage))
        #expect(decision.slots[3].reason == .tableDamaged)
        // 100 000 bytes in chunks of 64 KiB.
        #expect(decision.slots[3].detail == .truncated(found: 0, expected: 96))
        #expect(decision.candidates.isEmpty)
    }

    @Test func badSectorInTheHeadLeavesTheMirror() throws {
        let storage = try builder().storage()
        storage.setFaultHook { call in
            if case .read(offset: 0, _) = call { 5 } else { nil }
        }
        let decision = try SlotSelection.decide(MetadataImage.read(from: storage))
        #expect(decision.identityFindings.map(\.isUnreadable) == [true, false])
        #expect(decision.candidates.count == 1)
    }

    @Test func deadMediumIsAnInputOutputError() throws {
        let storage = try builder().storage()
        storage.setFaultHook { _ in 5 }
        let error = #expect(throws: CheckpointError.self) {
            try MetadataImage.read(from: storage)
        }
        #expect(error?.code == .inputOutput)
        #expect(error?.osErrorNumber == 5)
    }

    /// A region that cannot be read at once is read slot by slot, and each table only as far as
    /// it goes: three headers and one table after the failed attempt.
    @Test func metadataIsReadSlotBySlotWhenItMust() throws {
        var builder = try ImageBuilder()
        let anchor = builder.complete(slot: 1, sequence: 4)
        builder.commit(builder.superblock(generation: 2, anchor: anchor))
        let atOnce = try SlotSelection.decide(MetadataImage.read(from: builder.storage()))
        let storage = builder.storage()
        let metadata = builder.geometry.metadataOffset..<builder.geometry.dataOffset
        let sizes = Monitor([Int]())
        storage.setFaultHook { call in
            guard case .read(let offset, let byteCount) = call, metadata.contains(offset) else {
                return nil
            }
            sizes.withLock { $0.append(byteCount) }
            return byteCount > 4096 ? 5 : nil
        }
        let single = try SlotSelection.decide(MetadataImage.read(from: storage))
        #expect(single.candidates == atOnce.candidates)
        #expect(sizes.withLock { $0 } == [6 * 4096, 4096, 4096, 4096, 4096])
    }
}
