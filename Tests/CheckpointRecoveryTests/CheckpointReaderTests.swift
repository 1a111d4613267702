import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import StorageFaults
import Testing

@Suite struct CheckpointReaderTests {
    /// Sequence 5 anchored in slot 0, sequence 4 older in slot 1.
    private func builder(
        codec: Codec = .none, content: ImageBuilder.Content? = nil
    ) throws -> (ImageBuilder, ImageBuilder.Content) {
        var builder = try ImageBuilder(capacity: 512 << 10)
        let content = content ?? .opaque(byteCount: 300_001, seed: 7)
        builder.complete(slot: 1, sequence: 4)
        let anchor = builder.complete(slot: 0, sequence: 5, content: content, codec: codec)
        builder.commit(builder.superblock(generation: 3, anchor: anchor))
        return (builder, content)
    }

    @Test(arguments: Codec.allCases, [1, 3])
    func everyRangeReadsBackWhatWasStored(_ codec: Codec, _ workerCount: Int) throws {
        let content = try ImageBuilder.Content.tensors(
            [30_000, 1, 40_000], metadata: [("step", "50")], seed: 3)
        let (builder, _) = try builder(codec: codec, content: content)
        let reader = try CheckpointReader(storage: builder.storage(), workerCount: workerCount)
        let candidate = try #require(reader.decision.candidates.first)
        if codec != .none { #expect(candidate.table.entries.contains { $0.codec == codec }) }
        let selected = try reader.select(candidate)
        defer { selected.close() }
        let size = UInt64(content.bytes.count)
        #expect(try selected.readBytes(0..<size) == content.bytes)
        #expect(
            try selected.manifest() == Array(content.bytes[..<Int(content.manifestByteCount)]))
        var random = SplitMix64(seed: 11)
        for _ in 0..<20 {
            let start = random.next() % size
            let end = start + random.next() % (size - start + 1)
            let part = try selected.readBytes(start..<end)
            #expect(part == Array(content.bytes[Int(start)..<Int(end)]), "\(start)..<\(end)")
        }
        let whole = Monitor<[UInt8]>([])
        try selected.forEachChunk(inOrder: true) { chunk, bytes in
            // Safe: the view is valid during the call.
            let part = unsafe bytes.withUnsafeBytes { unsafe Array($0) }
            whole.withLock {
                #expect(Int(chunk.payloadOffset) == $0.count && chunk.index == $0.count >> 16)
                $0 += part
            }
        }
        #expect(whole.withLock { $0 } == content.bytes)
        try selected.verify()
        #expect(try selected.leadingBytes(65_537) == Array(content.bytes[..<65_537]))
    }

    /// A first checkpoint that is complete but not anchored yet is no damage.
    @Test func whatAWriterHasInHandIsBusy() throws {
        var builder = try ImageBuilder(capacity: 512 << 10)
        builder.complete(slot: 0, sequence: 1)
        builder.commit(builder.superblock(generation: 3, anchor: nil))
        let storage = builder.storage()
        let writer = MemoryStorage(openerOf: storage)
        #expect(try writer.tryLock(.slot(SlotIndex(rawValue: 0)), exclusive: true))
        let reader = try CheckpointReader(storage: storage, workerCount: 1)
        let error = #expect(throws: CheckpointError.self) {
            try reader.loadNewest { _ throws(CheckpointError) in }
        }
        #expect(error?.code == .busy)
        #expect(error?.message.contains("in the hands of a writer; try again") == true)
        try writer.unlock(.slot(SlotIndex(rawValue: 0)))
        #expect(try reader.loadNewest { _ throws(CheckpointError) in }.candidate.step == 10)
    }

    /// A crash before the first F1 leaves a complete slot with chunks missing: nothing was lost.
    /// Without a superblock nobody knows that it was the first.
    @Test(arguments: [true, false])
    func aFirstCheckpointCutShortIsNone(hasSuperblock: Bool) throws {
        var builder = try ImageBuilder(capacity: 512 << 10)
        builder.complete(slot: 0, sequence: 1)
        if hasSuperblock { builder.commit(builder.superblock(generation: 3, anchor: nil)) }
        builder.flip(builder.geometry.slotDataOffset(SlotIndex(0)) + 17)
        let reader = try CheckpointReader(storage: builder.storage(), workerCount: 1)
        #expect(reader.decision.mayHoldDurable == !hasSuperblock)
        let error = #expect(throws: CheckpointError.self) {
            try reader.loadNewest { _ throws(CheckpointError) in }
        }
        #expect(error?.code == (hasSuperblock ? .noCheckpoint : .corrupt))
    }

    @Test func scatteredDestinationsReadEachChunkOnce() throws {
        let (builder, content) = try builder()
        let storage = builder.storage()
        let reader = try CheckpointReader(storage: storage, workerCount: 2)
        let selected = try reader.select(try #require(reader.decision.candidates.first))
        let reads = Monitor(0)
        storage.setFaultHook { _ in
            reads.withLock { $0 += 1 }
            return nil
        }
        let ranges = [(250_000, 50_001), (0, 10), (65_530, 20), (100, 0), (70_000, 60_000)]
        let total = ranges.reduce(0) { $0 + $1.1 }
        let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: total, alignment: 16)
        defer { unsafe memory.deallocate() }
        var destinations: [Destination] = []
        var expected: [UInt8] = []
        for (offset, count) in ranges {
            let start = expected.count
            // Safe: disjoint parts of memory that lives until the end of the test.
            let part = unsafe UnsafeMutableRawBufferPointer(
                rebasing: memory[start..<start + count])
            destinations.append(unsafe Destination(payloadOffset: UInt64(offset), buffer: part))
            expected += content.bytes[offset..<offset + count]
        }
        try selected.read(destinations)
        #expect(unsafe Array(memory) == expected)
        // Chunks 0, 1, 3 and 4 of five.
        #expect(reads.withLock { $0 } == 4)
    }

    @Test func progressGrowsToThePayloadSize() throws {
        let (builder, _) = try builder()
        let reader = try CheckpointReader(storage: builder.storage(), workerCount: 3)
        let selected = try reader.select(try #require(reader.decision.candidates.first))
        let seen = Monitor([UInt64]())
        try selected.verify { count in seen.withLock { $0.append(count) } }
        let counts = seen.withLock { $0 }
        #expect(counts.count == 5 && counts == counts.sorted() && counts.last == 300_001)
    }

    @Test(arguments: Codec.allCases) func damagedChunkIsNamed(_ codec: Codec) throws {
        let content = try ImageBuilder.Content.tensors([60_000], metadata: [], seed: 3)
        var (builder, _) = try builder(codec: codec, content: content)
        let bad = builder.geometry.slotDataOffset(SlotIndex(0)) + 2 * 65536
        builder.flip(bad + 17, bit: 5)
        let reader = try CheckpointReader(storage: builder.storage())
        let selected = try reader.select(try #require(reader.decision.candidates.first))
        let error = #expect(throws: CheckpointError.self) { try selected.verify() }
        #expect(error?.code == .corrupt)
        #expect(error?.slot == SlotIndex(0) && error?.byteOffset == bad)
        #expect(error?.message.contains("chunk 2 has digest") == true)
        #expect(throws: CheckpointError.self) { try selected.readBytes(0..<200_000) }
        #expect(throws: CheckpointError.self) {
            try selected.forEachChunk { _, _ in }
        }
        #expect(try selected.readBytes(0..<131_072).count == 131_072)
    }

    /// Both chunks fail, one of them late: the error is that of the first, whoever fails first.
    @Test(arguments: [0, 1]) func theFirstDamagedChunkIsNamed(late: Int) throws {
        var (builder, _) = try builder()
        let start = builder.geometry.slotDataOffset(SlotIndex(0))
        let offsets = [start, start + 65536]
        for offset in offsets { builder.flip(offset) }
        let storage = builder.storage()
        let reader = try CheckpointReader(storage: storage, workerCount: 2)
        let selected = try reader.select(try #require(reader.decision.candidates.first))
        let isOtherRead = Monitor(false)
        storage.setFaultHook { call in
            if case .read(offsets[1 - late], _) = call {
                isOtherRead.withLock { $0 = true }
                isOtherRead.wakeAll()
            }
            if case .read(offsets[late], _) = call {
                isOtherRead.wait { $0 }
                SystemClock.sleep(nanoseconds: 50_000_000)
            }
            return nil
        }
        let error = #expect(throws: CheckpointError.self) { try selected.readBytes(0..<131_072) }
        #expect(error?.code == .corrupt && error?.byteOffset == offsets[0])
    }

    @Test func nothingIsReadBehindTheFirstDamage() throws {
        var (builder, _) = try builder()
        builder.flip(builder.geometry.slotDataOffset(SlotIndex(0)) + 65_536)
        let storage = builder.storage()
        let reader = try CheckpointReader(storage: storage, workerCount: 1)
        let selected = try reader.select(try #require(reader.decision.candidates.first))
        let start = selected.candidate.dataOffset
        let reads = Monitor(0)
        storage.setFaultHook { call in
            if case .read(let offset, _) = call, offset >= start { reads.withLock { $0 += 1 } }
            return nil
        }
        #expect(throws: CheckpointError.self) { try selected.readBytes(0..<300_001) }
        #expect(reads.withLock { $0 } == 2)
    }

    @Test func everyDamagedSlotSaysWhy() throws {
        var (builder, _) = try builder()
        let data = [0, 1].map { builder.geometry.slotDataOffset(SlotIndex($0)) }
        builder.flip(data[0])
        builder.flip(data[1] + 65_536)
        let reader = try CheckpointReader(storage: builder.storage())
        let error = #expect(throws: CheckpointError.self) {
            try reader.loadNewest { selected throws(CheckpointError) in try selected.verify() }
        }
        let message = error?.message ?? ""
        #expect(message.contains("step 50, slot 0 at byte \(data[0]): chunk 0 has"))
        #expect(message.contains("step 40, slot 1 at byte \(data[1] + 65_536): chunk 1"))
        #expect(error?.slot == SlotIndex(0) && error?.byteOffset == data[0])
    }

    @Test func wrongLogicalDigestIsFoundThoughChunksMatch() throws {
        var (builder, _) = try builder()
        let offset = builder.geometry.headerOffset(SlotIndex(0))
        let block = Array(builder.bytes[Int(offset)..<Int(offset) + 4096])
        var header = try SlotHeader(
            decoding: block, slot: SlotIndex(0), identity: builder.identity)
        header.logicalDigest.low ^= 1
        builder.put(header.encoded().bytes, at: SlotIndex(0))
        let reader = try CheckpointReader(storage: builder.storage())
        let candidate = try #require(reader.decision.candidates.first)
        #expect(candidate.kind == .older)
        let error = #expect(throws: CheckpointError.self) {
            try SlotVerifier.verify(candidate, in: builder.storage())
        }
        #expect(error?.message.contains("faulty program") == true)
        // Whoever reads all of it finds out, too; a part of it says nothing of the whole.
        let selected = try reader.select(candidate)
        defer { selected.close() }
        #expect(try selected.readBytes(0..<65_536).count == 65_536)
        let size = candidate.header.payloadByteCount
        let reading = #expect(throws: CheckpointError.self) { try selected.readBytes(0..<size) }
        #expect(reading?.code == .corrupt)
        #expect(reading?.message.contains("faulty program") == true)
    }

    @Test func loadFallsBackAndSaysSo() throws {
        var (builder, _) = try builder()
        builder.flip(builder.geometry.slotDataOffset(SlotIndex(0)) + 1)
        let storage = builder.storage()
        let reader = try CheckpointReader(storage: storage)
        let pins = Monitor(0)
        storage.setFaultHook { call in
            if case .lock = call { pins.withLock { $0 += 1 } }
            return nil
        }
        let loaded = try reader.loadNewest { selected throws(CheckpointError) in
            try selected.readBytes(0..<selected.candidate.header.payloadByteCount)
        }
        #expect(pins.withLock { $0 } == 2, "damage is not looked at twice")
        #expect(loaded.candidate.sequence.rawValue == 4)
        #expect(loaded.value == ImageBuilder.bytes(100_000, seed: 4))
        #expect(loaded.rejected.map(\.candidate.sequence.rawValue) == [5])
        #expect(loaded.rejected.first?.error.code == .corrupt)
    }

    @Test func unanchoredIsVerifiedBeforeUse() throws {
        var (builder, _) = try builder()
        builder.complete(slot: 2, sequence: 6)
        // Behind what the loader asks for, so that only full verification can find it.
        builder.flip(builder.geometry.slotDataOffset(SlotIndex(2)) + 90_000)
        let reader = try CheckpointReader(storage: builder.storage())
        let loaded = try reader.loadNewest { selected throws(CheckpointError) in
            try selected.readBytes(0..<10)
        }
        #expect(loaded.candidate.sequence.rawValue == 5)
        #expect(loaded.rejected.map(\.candidate.kind) == [.unanchored])
    }

    @Test func nothingUsableNamesEverySlot() throws {
        var builder = try ImageBuilder()
        builder.writing(slot: 1, sequence: 3)
        let reader = try CheckpointReader(storage: builder.storage())
        let none = #expect(throws: CheckpointError.self) {
            try reader.loadNewest { _ throws(CheckpointError) in }
        }
        #expect(none?.code == .noCheckpoint)
        #expect(none?.message.contains("slot 1: writing, sequence 3") == true)
        builder.complete(slot: 0, sequence: 1)
        builder.flip(builder.geometry.slotDataOffset(SlotIndex(0)))
        let damaged = try CheckpointReader(storage: builder.storage())
        let all = #expect(throws: CheckpointError.self) {
            try damaged.loadNewest { _ throws(CheckpointError) in }
        }
        #expect(all?.code == .corrupt)
        #expect(all?.message.contains("chunk 0 has digest") == true)
    }

    @Test func otherErrorsEndTheSearch() throws {
        let (builder, _) = try builder()
        let reader = try CheckpointReader(storage: builder.storage())
        let error = #expect(throws: CheckpointError.self) {
            try reader.loadNewest { selected throws(CheckpointError) in
                try selected.readBytes(0..<1 << 40)
            }
        }
        #expect(error?.code == .invalidArgument)
    }

    @Test func aPinnedSlotIsNotReused() throws {
        let (builder, _) = try builder()
        let storage = builder.storage()
        let writer = MemoryStorage(openerOf: storage)
        let reader = try CheckpointReader(storage: storage)
        let candidate = try #require(reader.decision.candidates.first)
        let first = try reader.select(candidate)
        let second = try reader.select(candidate)
        let slot = LockByte.slot(candidate.slot)
        #expect(try !writer.tryLock(slot, exclusive: true))
        let other = MemoryStorage(openerOf: storage)
        #expect(try other.tryLock(slot, exclusive: false), "readers share a slot")
        try other.unlock(slot)
        first.close()
        first.close()
        #expect(try !writer.tryLock(slot, exclusive: true))
        second.close()
        #expect(try writer.tryLock(slot, exclusive: true))
        let error = #expect(throws: CheckpointError.self) { try reader.select(candidate) }
        #expect(error?.code == .busy)
        let calls: [() throws -> Void] = [
            { _ = try first.readBytes(0..<1) }, { try first.verify() },
            { _ = try first.check() }, { _ = try first.leadingBytes(1) },
            { try first.read([]) }, { try first.forEachChunk { _, _ in } },
        ]
        for (number, call) in calls.enumerated() {
            let closed = #expect(throws: CheckpointError.self) { try call() }
            #expect(closed?.code == .closed, "call \(number)")
        }
    }

    /// Readers ahead of a slow consumer wait for its buffers, and go on when they get them.
    @Test(arguments: [0, 1, 2, 4]) func aSlowConsumerGetsEveryChunk(workerCount: Int) throws {
        let (builder, content) = try builder()
        let reader = try CheckpointReader(storage: builder.storage(), workerCount: workerCount)
        let selected = try reader.select(try #require(reader.decision.candidates.first))
        let seen = Monitor<[UInt64]>([])
        try selected.forEachChunk(inOrder: true) { chunk, bytes in
            SystemClock.sleep(nanoseconds: 20_000_000)
            let end = chunk.payloadOffset + UInt64(bytes.byteCount)
            seen.withLock { $0.append(end) }
        }
        #expect(
            seen.withLock { $0 } == [
                65_536, 131_072, 196_608, 262_144, UInt64(content.bytes.count),
            ])
    }

    @Test(arguments: [1, 2]) func aConsumerMayStopEarly(workerCount: Int) throws {
        let (builder, _) = try builder()
        let reader = try CheckpointReader(storage: builder.storage(), workerCount: workerCount)
        let selected = try reader.select(try #require(reader.decision.candidates.first))
        let error = #expect(throws: CheckpointError.self) {
            try selected.forEachChunk(inOrder: true) { chunk, _ throws(CheckpointError) in
                SystemClock.sleep(nanoseconds: 20_000_000)
                if chunk.index == 0 { throw CheckpointError(.closed, "enough") }
            }
        }
        #expect(error?.message == "enough")
    }

    @Test func aHeaderThatCannotBeReadAgainLetsTheSlotGo() throws {
        let (builder, _) = try builder()
        let storage = builder.storage()
        let reader = try CheckpointReader(storage: storage)
        let candidate = try #require(reader.decision.candidates.first)
        storage.setFaultHook { call in
            if case .read(candidate.headerOffset, _) = call { 5 } else { nil }
        }
        let error = #expect(throws: CheckpointError.self) { try reader.select(candidate) }
        #expect(error?.code == .inputOutput && error?.slot == candidate.slot)
        let writer = MemoryStorage(openerOf: storage)
        #expect(try writer.tryLock(.slot(candidate.slot), exclusive: true))
    }

    @Test func aLockThatFailsIsAnInputOutputError() throws {
        let (builder, _) = try builder()
        let storage = builder.storage()
        let reader = try CheckpointReader(storage: storage)
        let candidate = try #require(reader.decision.candidates.first)
        storage.setFaultHook { call in
            if case .lock = call { 5 } else { nil }
        }
        let error = #expect(throws: CheckpointError.self) { try reader.select(candidate) }
        #expect(error?.code == .inputOutput && error?.osErrorNumber == 5)
        #expect(error?.slot == candidate.slot)
    }

    @Test func whatWasNotAskedForIsNotTried() throws {
        let (builder, _) = try builder()
        let reader = try CheckpointReader(storage: builder.storage())
        let older = try reader.loadNewest(where: { $0.step < 50 }) { _ throws(CheckpointError) in }
        #expect(older.candidate.step == 40 && older.rejected.isEmpty)
        let error = #expect(throws: CheckpointError.self) {
            try reader.loadNewest(where: { $0.step > 50 }) { _ throws(CheckpointError) in }
        }
        #expect(error?.code == .noCheckpoint)
        let message = error?.message ?? ""
        #expect(
            message.contains("slot 0: anchored, sequence 5, step 50, not what was asked for"))
        #expect(message.contains("slot 2: empty)"))
    }

    @Test func readingBeyondThePayloadIsRefused() throws {
        let (builder, content) = try builder()
        let reader = try CheckpointReader(storage: builder.storage())
        let selected = try reader.select(try #require(reader.decision.candidates.first))
        let size = UInt64(content.bytes.count)
        #expect(try selected.readBytes(size..<size).isEmpty)
        #expect(try selected.readBytes(size - 1..<size) == content.bytes.suffix(1))
        for end in [65_535, 65_536, 65_537] {
            #expect(try selected.readBytes(0..<UInt64(end)) == Array(content.bytes[..<end]))
        }
        var byte: [UInt8] = [0]
        for offset in [size, .max] {
            // Safe: the array outlives the call, which writes nothing.
            let error = unsafe byte.withUnsafeMutableBytes { buffer in
                #expect(throws: CheckpointError.self) {
                    try selected.read([unsafe Destination(payloadOffset: offset, buffer: buffer)])
                }
            }
            #expect(error?.code == .invalidArgument && error?.slot == SlotIndex(0))
        }
    }

    /// A wreck that ends before its payload, so that the test needs no memory for it.
    @Test(arguments: [
        (UInt64(100_000_008), CheckpointError.Code.inputOutput), (100_000_009, .corrupt),
    ])
    func aManifestBeyondTheLimitIsRefused(byteCount: UInt64, code: CheckpointError.Code) throws {
        let geometry = try Geometry(
            capacity: byteCount, inFlight: 1, retain: 1, chunkByteCount: 128 << 20)
        let identity = try IdentityBlock(
            fileUUID: ImageBuilder.uuid, geometry: geometry, createdTime: 1, creator: "tests")
        let table = ChunkTable(entries: [
            ChunkEntry(
                storedOffset: 0, storedByteCount: Int(byteCount), rawByteCount: Int(byteCount),
                codec: .none, planeWidth: 1, digest: .zero)
        ]).encoded()
        var header = SlotHeader(
            emptySlot: SlotIndex(0), fileUUID: identity.fileUUID, geometry: geometry)
        header.state = .complete
        header.sequence = SequenceNumber(rawValue: 1)
        header.payloadKind = .safetensors
        header.payloadByteCount = byteCount
        header.storedByteCount = byteCount
        header.manifestByteCount = byteCount
        header.chunkCount = 1
        header.chunkTableDigest = table.digest
        var bytes = [UInt8](repeating: 0, count: Int(geometry.dataOffset))
        for (block, offset) in [
            (identity.encoded(), 0), (header.encoded().bytes, geometry.headerOffset(SlotIndex(0))),
            (table.bytes, geometry.tableOffset(SlotIndex(0))),
        ] {
            bytes.replaceSubrange(Int(offset)..<Int(offset) + block.count, with: block)
        }
        let storage = MemoryStorage(contents: bytes)
        let decision = try SlotSelection.decide(
            MetadataImage.read(from: storage), allowsTruncation: true)
        let reader = CheckpointReader(storage: storage, decision: decision)
        let selected = try reader.select(try #require(decision.candidates.first))
        let error = #expect(throws: CheckpointError.self) { try selected.manifest() }
        #expect(error?.code == code && error?.slot == SlotIndex(0))
    }

    @Test func aReusedSlotIsNoticedAndTheNewerCheckpointIsLoaded() throws {
        var (builder, _) = try builder()
        let storage = builder.storage()
        let reader = try CheckpointReader(storage: storage)
        let candidate = try #require(reader.decision.candidates.first)
        let anchor = builder.complete(slot: 0, sequence: 6)
        builder.commit(builder.superblock(generation: 4, anchor: anchor))
        storage.overwrite(builder.bytes, at: 0)
        let error = #expect(throws: CheckpointError.self) { try reader.select(candidate) }
        #expect(error?.code == .busy)
        let loaded = try reader.loadNewest { _ throws(CheckpointError) in }
        #expect(loaded.candidate.sequence.rawValue == 6 && loaded.candidate.isAnchored)
    }

    /// A writer commits between the two reads of the superblock: the reader starts over.
    @Test func refreshFollowsAWriterThatMoves() throws {
        var (builder, _) = try builder()
        let storage = builder.storage()
        let anchor = builder.complete(slot: 2, sequence: 6)
        builder.commit(builder.superblock(generation: 4, anchor: anchor))
        let newer = builder.bytes
        let reads = Monitor(0)
        storage.setFaultHook { [storage] call in
            guard case .read = call else { return nil }
            if reads.withLock({
                $0 += 1; return $0
            }) == 4 {
                storage.overwrite(newer, at: 0)
            }
            return nil
        }
        let reader = try CheckpointReader(storage: storage)
        storage.setFaultHook(nil)
        #expect(reader.decision.superblock?.generation.rawValue == 4)
        #expect(reader.decision.candidates.first?.sequence.rawValue == 6)
        #expect(reader.decision.candidates.first?.isAnchored == true)
    }

    @Test func fingerprintIsCompared() throws {
        let builder = try ImageBuilder(fingerprint: "gpt-small")
        _ = try CheckpointReader(storage: builder.storage(), fingerprint: "gpt-small")
        let error = #expect(throws: CheckpointError.self) {
            try CheckpointReader(storage: builder.storage(), fingerprint: "gpt-large")
        }
        #expect(error?.code == .fingerprintMismatch)
    }

    @Test func emptyPayloadIsWhole() throws {
        var builder = try ImageBuilder()
        builder.complete(slot: 0, sequence: 1, content: .opaque(byteCount: 0, seed: 1))
        let reader = try CheckpointReader(storage: builder.storage())
        let loaded = try reader.loadNewest { selected throws(CheckpointError) in
            try selected.readBytes(0..<0)
        }
        #expect(loaded.value.isEmpty)
    }

    @Test func missingFileIsNotFound() {
        let error = #expect(throws: CheckpointError.self) {
            try CheckpointReader(path: "/nonexistent/run.pcc")
        }
        #expect(error?.code == .notFound)
    }
}
