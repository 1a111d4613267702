import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import StorageFaults
import Testing

@Suite struct MetadataReadingTests {
    /// What is missing is zero once the file has its size again, and what is there is kept.
    @Test(arguments: [0, 1, 100, 4096, 5000, 12_288])
    func aLostEndIsExtendedWithZeros(missing: Int) throws {
        var builder = try ImageBuilder()
        builder.commit(
            builder.superblock(generation: 3, anchor: builder.complete(slot: 0, sequence: 1)))
        let storage = MemoryStorage(contents: builder.bytes.dropLast(missing))
        let image = try MetadataImage.read(from: storage)
        #expect(image.lastBytes.count == (builder.bytes.count - missing) % 4096)
        let zeros = [UInt8](repeating: 0, count: missing)
        let longer = MemoryStorage(contents: builder.bytes.dropLast(missing) + zeros)
        #expect(try image.extended(to: builder.geometry) == MetadataImage.read(from: longer))
    }

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

    /// Blocks 0 to 3 are read alone, and block 4 with its slot, not twice.
    @Test func badSectorsAreReadOnce() throws {
        let storage = try builder().storage()
        storage.setFaultHook { call in
            guard case .read(let offset, let byteCount) = call else { return nil }
            let range = offset..<offset + UInt64(byteCount)
            return range.contains(4096) || range.contains(16_384) ? 5 : nil
        }
        let image = try MetadataImage.read(from: storage)
        #expect(image.readFailures.map(\.byteOffset) == [4096, 16_384])
    }

    /// Slots with tables for so many chunks that the metadata of all has 4 MiB, or a little more;
    /// the file ends behind them, as far as this test is concerned.
    @Test(arguments: [(21_760, 4), (21_761, 7)])
    func largeMetadataIsReadSlotBySlot(chunkCount: Int, readCount: Int) throws {
        let geometry = try Geometry(
            capacity: UInt64(chunkCount) << 16, inFlight: 3, retain: 1, chunkByteCount: 1 << 16)
        let metadataByteCount = 4 * geometry.metadataStride
        #expect((metadataByteCount == 4 << 20) == (chunkCount == 21_760))
        let identity = try IdentityBlock(
            fileUUID: ImageBuilder.uuid, geometry: geometry, createdTime: 1, creator: "tests")
        let zeros = [UInt8](repeating: 0, count: Int(geometry.dataOffset) - 4096)
        let storage = MemoryStorage(contents: identity.encoded() + zeros)
        let reads = Monitor(0)
        storage.setFaultHook { _ in
            reads.withLock { $0 += 1 }
            return nil
        }
        let image = try MetadataImage.read(from: storage)
        #expect(image.slots.count == 4)
        // Head, end, and the slots: where the tail should be there is nothing to read.
        #expect(reads.withLock { $0 } == readCount)
    }

    /// A writer that moves on under every look: reading ends all the same.
    @Test func aWriterThatNeverRestsIsNotFollowedForEver() throws {
        let builder = try builder()
        let storage = builder.storage()
        let state = Monitor((reads: 0, generation: UInt64(2)))
        let anchor = try #require(
            try SlotSelection.decide(MetadataImage.read(from: storage)).superblock?.anchor)
        storage.setFaultHook { [storage] call in
            let generation = state.withLock { state in
                state.reads += 1
                if case .read(0, _) = call { state.generation += 2 }
                return state.generation
            }
            let next = builder.superblock(generation: generation, anchor: anchor)
            storage.overwrite(next.encoded().bytes, at: 4096)
            return nil
        }
        let image = try MetadataImage.readSettled(from: storage)
        storage.setFaultHook(nil)
        #expect(try SlotSelection.decide(image).candidates.map(\.kind) == [.anchored])
        // Three reads, then fifteen times two to look again and three to read anew.
        #expect(state.withLock { $0.reads } == 3 + 15 * (2 + 3))
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
