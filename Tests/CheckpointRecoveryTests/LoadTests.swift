import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import StorageFaults
import Testing

private func noPause() {}

/// One way in: what is handed out is proven, and what cannot be used is passed over with a reason.
@Suite struct LoadTests {
    /// Sequence 4 older in slot 1, sequence 5 anchored in slot 0, and sequence 6 in slot 2, which
    /// no superblock names: its first chunk is intact, its second one is rotten.
    private func builder() throws -> ImageBuilder {
        var builder = try ImageBuilder(capacity: 512 << 10)
        builder.complete(slot: 1, sequence: 4)
        let anchor = builder.complete(slot: 0, sequence: 5)
        builder.commit(builder.superblock(generation: 3, anchor: anchor))
        builder.complete(slot: 2, sequence: 6)
        builder.flip(builder.geometry.slotDataOffset(SlotIndex(2)) + 90_000)
        return builder
    }

    private func newest(_ storage: any Storage) throws -> (CheckpointReader, Candidate) {
        let reader = try CheckpointReader(storage: storage)
        return (reader, try #require(reader.decision.candidates.first))
    }

    /// Also for whoever chooses by hand, and asks for intact chunks only.
    @Test func nothingOfAnUnprovenCheckpointIsHandedOut() throws {
        let (reader, candidate) = try newest(builder().storage())
        #expect(candidate.kind == .unanchored)
        let selected = try reader.select(candidate)
        defer { selected.close() }
        let calls: [() throws -> Void] = [
            { _ = try selected.readBytes(0..<10) }, { _ = try selected.manifest() },
            { _ = try selected.leadingBytes(10) },
            {
                try selected.forEachChunk([0]) { _, _ in
                } damaged: { _ in
                }
            },
            { try selected.forEachChunk([0], inOrder: true) { _, _ in } },
        ]
        for (number, call) in calls.enumerated() {
            let error = #expect(throws: CheckpointError.self) { try call() }
            #expect(error?.code == .corrupt, "call \(number)")
        }
    }

    @Test func aToolMaySeeWhatIsLeft() throws {
        let (reader, candidate) = try newest(builder().storage())
        let selected = try reader.select(candidate, proof: .waived)
        defer { selected.close() }
        #expect(try selected.readBytes(0..<10) == Array(ImageBuilder.bytes(10, seed: 6)))
        #expect(throws: CheckpointError.self) { try selected.readBytes(65_536..<65_537) }
        let load = Load(reader, proof: .waived)
        #expect(try load.next().candidate.sequence.rawValue == 6)
    }

    @Test func aProofIsMadeOnce() throws {
        var builder = try ImageBuilder(capacity: 512 << 10)
        builder.complete(slot: 0, sequence: 1)
        let storage = builder.storage()
        let (reader, candidate) = try newest(storage)
        let selected = try reader.select(candidate)
        defer { selected.close() }
        try selected.prove()
        let reads = Monitor(0)
        storage.setFaultHook { call in
            if case .read = call { reads.withLock { $0 += 1 } }
            return nil
        }
        try selected.prove()
        #expect(reads.withLock { $0 } == 0)
        _ = try selected.readBytes(0..<10)
        #expect(reads.withLock { $0 } == 1)
    }

    /// What one walk rejected for damage is not read a second time when a writer makes it start
    /// over.
    @Test func aSearchThatStartsOverKeepsItsRejections() throws {
        let storage = try builder().storage()
        let reader = try CheckpointReader(storage: storage)
        let load = Load(reader)
        #expect(try load.next().candidate.sequence.rawValue == 5)
        #expect(load.rejections.map(\.candidate.sequence.rawValue) == [6])
        let geometry = reader.decision.identity.geometry
        let start = geometry.slotDataOffset(SlotIndex(2))
        let rotten = start..<start + geometry.slotByteCount
        let reads = Monitor(0)
        storage.setFaultHook { call in
            if case .read(rotten, _) = call { reads.withLock { $0 += 1 } }
            return nil
        }
        try load.reject(CheckpointError(.busy, "a writer took it"))
        #expect(try load.next().candidate.sequence.rawValue == 5)
        #expect(load.rejections.map(\.candidate.sequence.rawValue) == [6])
        #expect(reads.withLock { $0 } == 0)
    }

    /// What a writer puts into a slot that was rejected is another checkpoint.
    @Test func aNewCheckpointInARejectedSlotIsTried() throws {
        var builder = try builder()
        let storage = builder.storage()
        let load = Load(try CheckpointReader(storage: storage))
        #expect(try load.next().candidate.sequence.rawValue == 5)
        builder.complete(slot: 2, sequence: 7)
        try MemoryStorage(openerOf: storage).writeBlocks(builder.bytes, at: 0)
        try load.reject(CheckpointError(.busy, "a writer took it"))
        #expect(try load.next().candidate.sequence.rawValue == 7)
        #expect(load.rejections.isEmpty)
    }

    /// Its writer waits for a flush, which may take longer than any search: nobody was told that it
    /// is durable, and the one that is durable is no fallback.
    @Test(arguments: [true, false])
    func oneThatItsWriterStillHasIsNoCandidate(_ hasOther: Bool) throws {
        var builder = try ImageBuilder(capacity: 512 << 10)
        let anchor = hasOther ? builder.complete(slot: 0, sequence: 5) : nil
        builder.commit(builder.superblock(generation: 3, anchor: anchor))
        let next = builder.complete(slot: 2, sequence: 6)
        let storage = builder.storage()
        let writer = MemoryStorage(openerOf: storage)
        let slot = LockByte.slot(SlotIndex(2))
        #expect(try writer.tryLock(slot, exclusive: true))
        let reader = try CheckpointReader(storage: storage)
        #expect(reader.decision.slots[2].reason == .writing)
        #expect(reader.decision.highestSequence.rawValue == 6)
        let load = Load(reader, pause: noPause)
        if hasOther {
            #expect(try load.next().candidate.sequence.rawValue == 5)
            #expect(load.rejections.isEmpty)
        } else {
            let error = #expect(throws: CheckpointError.self) { try load.next() }
            #expect(error?.code == .busy)
            let other = Load(reader, where: { $0.step == 7 }, pause: noPause)
            let absent = #expect(throws: CheckpointError.self) { try other.next() }
            #expect(absent?.code == .noCheckpoint)
        }
        // It is durable now, and its writer is about to let go: nothing else is taken silently.
        builder.commit(builder.superblock(generation: 4, anchor: next))
        try writer.writeBlocks(builder.bytes, at: 0)
        #expect(try reader.refresh().candidates.first?.sequence.rawValue == 6)
        let error = #expect(throws: CheckpointError.self) {
            try reader.select(reader.decision.candidates[0])
        }
        #expect(error?.code == .busy)
        try writer.unlock(slot)
        #expect(try Load(reader).next().candidate.sequence.rawValue == 6)
    }

    /// A reader that has a slot does not hide what is in it from others.
    @Test func oneThatAReaderHasIsACandidate() throws {
        let storage = try builder().storage()
        let other = MemoryStorage(openerOf: storage)
        #expect(try other.tryLock(.slot(SlotIndex(2)), exclusive: false))
        let reader = try CheckpointReader(storage: storage)
        #expect(reader.decision.slots[2].reason == .unanchored)
    }

    /// The damaged one is lost, but the one that a writer has may be whole again in a moment.
    @Test func oneInTheHandsOfAWriterMakesTheSearchBusy() throws {
        let storage = try builder().storage()
        let writer = MemoryStorage(openerOf: storage)
        for slot in [0, 1] {
            #expect(try writer.tryLock(.slot(SlotIndex(slot)), exclusive: true))
        }
        let load = Load(try CheckpointReader(storage: storage), pause: noPause)
        let error = #expect(throws: CheckpointError.self) { try load.next() }
        #expect(error?.code == .busy)
        #expect(error?.message.contains("in the hands of a writer") == true)
    }

    @Test func anUnreadableChunkCostsOneCheckpoint() throws {
        var builder = try ImageBuilder(capacity: 512 << 10)
        builder.complete(slot: 1, sequence: 4)
        let anchor = builder.complete(slot: 0, sequence: 5)
        builder.commit(builder.superblock(generation: 3, anchor: anchor))
        let storage = builder.storage()
        let offset = builder.geometry.slotDataOffset(SlotIndex(0))
        storage.setFaultHook { call in
            if case .read(offset, _) = call { 5 } else { nil }
        }
        let found = try CheckpointReader(storage: storage).loadNewest {
            selected throws(CheckpointError) in try selected.readBytes(0..<10)
        }
        #expect(found.candidate.sequence.rawValue == 4)
        #expect(found.rejected.map(\.error.code) == [.inputOutput])
    }

    /// The length in the header and the one in the payload must agree, or every tensor is shifted.
    @Test(arguments: [-8, 8])
    func aManifestOfAnotherLengthIsPassedOver(difference: Int64) throws {
        var builder = try ImageBuilder(capacity: 512 << 10)
        let content = try ImageBuilder.Content.tensors([30_000], metadata: [], seed: 3)
        builder.complete(slot: 1, sequence: 4, content: content)
        var wrong = content
        wrong.manifestByteCount = UInt64(Int64(content.manifestByteCount) + difference)
        let anchor = builder.complete(slot: 0, sequence: 5, content: wrong)
        builder.commit(builder.superblock(generation: 3, anchor: anchor))
        let found = try CheckpointReader(storage: builder.storage()).loadNewest {
            selected throws(CheckpointError) in try selected.tensorManifest().dataOffset
        }
        #expect(found.candidate.sequence.rawValue == 4)
        #expect(found.value == content.manifestByteCount)
        #expect(found.rejected.map(\.error.code) == [.corrupt])
    }

    /// Whoever wants tensors gets an older checkpoint when opaque bytes are rotten, and is told
    /// what the newest one is when they are not.
    @Test func opaqueBytesAreNoManifest() throws {
        var builder = try ImageBuilder(capacity: 512 << 10)
        let content = try ImageBuilder.Content.tensors([30_000], metadata: [], seed: 3)
        builder.complete(slot: 1, sequence: 4, content: content)
        let anchor = builder.complete(slot: 0, sequence: 5)
        builder.commit(builder.superblock(generation: 3, anchor: anchor))
        let intact = #expect(throws: CheckpointError.self) {
            try CheckpointReader(storage: builder.storage()).loadNewest {
                selected throws(CheckpointError) in try selected.tensorManifest()
            }
        }
        #expect(intact?.code == .invalidArgument)
        #expect(intact?.message.contains("opaque") == true)
        builder.flip(builder.geometry.slotDataOffset(SlotIndex(0)) + 90_000)
        let found = try CheckpointReader(storage: builder.storage()).loadNewest {
            selected throws(CheckpointError) in try selected.tensorManifest()
        }
        #expect(found.candidate.sequence.rawValue == 4)
    }

    /// Only damage gives two checkpoints one sequence. Both are tried.
    @Test func twoSlotsWithOneSequenceAreBothTried() throws {
        var builder = try ImageBuilder(capacity: 512 << 10)
        let anchor = builder.complete(slot: 0, sequence: 5)
        builder.complete(slot: 1, sequence: 5, step: 51)
        builder.commit(builder.superblock(generation: 3, anchor: anchor))
        builder.flip(builder.geometry.slotDataOffset(SlotIndex(0)))
        let found = try CheckpointReader(storage: builder.storage()).loadNewest {
            selected throws(CheckpointError) in try selected.readBytes(0..<10)
        }
        #expect(found.candidate.slot == SlotIndex(1) && found.candidate.step == 51)
    }

    @Test func anErrorThatSaysNothingAgainstItEndsTheSearch() throws {
        let load = Load(try CheckpointReader(storage: builder().storage()))
        _ = try load.next()
        let error = #expect(throws: CheckpointError.self) {
            try load.reject(CheckpointError(.outOfMemory, "no room"))
        }
        #expect(error?.code == .outOfMemory)
    }
}
