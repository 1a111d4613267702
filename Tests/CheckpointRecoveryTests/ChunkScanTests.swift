import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import StorageFaults
import Synchronization
import Testing

@Suite struct ChunkScanTests {
    /// Five chunks, of which the fourth is damaged.
    private func checkpoint(
        _ workerCount: Int = 4, lateChunk: Int? = nil
    ) throws -> (SelectedCheckpoint, [UInt8]) {
        var builder = try ImageBuilder(capacity: 512 << 10)
        let content = ImageBuilder.Content.opaque(byteCount: 300_000, seed: 3)
        let anchor = builder.complete(slot: 0, sequence: 1, content: content)
        builder.commit(builder.superblock(generation: 1, anchor: anchor))
        let start = builder.geometry.slotDataOffset(SlotIndex(0))
        builder.flip(start + 3 * 65536 + 9)
        let storage = builder.storage()
        if let lateChunk {
            let late = start + UInt64(lateChunk) * 65536
            storage.setFaultHook { call in
                if case .read(late, _) = call { SystemClock.sleep(nanoseconds: 30_000_000) }
                return nil
            }
        }
        let reader = try CheckpointReader(storage: storage, workerCount: workerCount)
        return (try reader.select(#require(reader.decision.candidates.first)), content.bytes)
    }

    @Test func wholeChunksAndDamagedOnesAreHandedOut() throws {
        let (selected, payload) = try checkpoint()
        let seen = Mutex<[Int: Bool]>([:])
        try selected.forEachChunk([0, 1, 3, 4]) { chunk, bytes in
            let offset = Int(chunk.payloadOffset)
            let expected = payload[offset..<min(offset + 65536, payload.count)]
            // Safe: the view is valid during the call.
            let isSame = unsafe bytes.withUnsafeBytes { unsafe $0.elementsEqual(expected) }
            seen.withLock { $0[chunk.index] = isSame }
        } damaged: { damage in
            seen.withLock { $0[damage.index] = false }
            #expect(selected.error(damage).message.contains("chunk 3"))
        }
        #expect(seen.withLock { $0 } == [0: true, 1: true, 3: false, 4: true])
    }

    @Test func whatTheBodyThrowsEndsTheScan() throws {
        let (selected, _) = try checkpoint()
        let count = Mutex(0)
        #expect(throws: CheckpointError.self) {
            try selected.forEachChunk(Array(0..<5)) { _, _ throws(CheckpointError) in
                count.withLock { $0 += 1 }
                throw CheckpointError(.invalidArgument, "enough")
            } damaged: { _ in
            }
        }
        #expect(count.withLock { $0 } < 5)
        selected.close()
        #expect(throws: CheckpointError.self) {
            try selected.forEachChunk([0]) { _, _ in
            } damaged: { _ in
            }
        }
    }

    /// However late one is read, those behind it wait for it.
    @Test(arguments: [1, 2, 4], [nil, 1, 3] as [Int?])
    func chunksComeInOrder(workerCount: Int, late: Int?) throws {
        let (selected, payload) = try checkpoint(workerCount, lateChunk: late)
        let order = [2, 0, 1, 4]
        let seen = Mutex<[Int]>([])
        try selected.forEachChunk(order, inOrder: true) { chunk, bytes in
            seen.withLock { $0.append(chunk.index) }
            // Safe: the view is valid during the call.
            let first = unsafe bytes.withUnsafeBytes { unsafe $0[0] }
            #expect(first == payload[chunk.index * 65536])
        }
        #expect(seen.withLock { $0 } == order)
    }

    /// Those before it are handed out, and none behind it, whichever is read first.
    @Test(arguments: [1, 2, 4], [nil, 1, 3] as [Int?])
    func damageEndsAnOrderedWalk(workerCount: Int, late: Int?) throws {
        let (selected, _) = try checkpoint(workerCount, lateChunk: late)
        let seen = Mutex<[Int]>([])
        let error = #expect(throws: CheckpointError.self) {
            try selected.forEachChunk(inOrder: true) { chunk, _ throws(CheckpointError) in
                seen.withLock { $0.append(chunk.index) }
            }
        }
        #expect(error?.code == .corrupt && error?.message.contains("chunk 3") == true)
        #expect(seen.withLock { $0 } == [0, 1, 2])
    }

    /// Every chunk matches, and the payload is another one than the header's: only all of it tells.
    @Test func thePayloadsDigestIsVerifiedWithAllOfIt() throws {
        var builder = try ImageBuilder(capacity: 512 << 10)
        let content = ImageBuilder.Content.opaque(byteCount: 300_000, seed: 3)
        let anchor = builder.complete(slot: 0, sequence: 1, content: content)
        builder.commit(builder.superblock(generation: 1, anchor: anchor))
        let storage = builder.storage()
        let found = try #require(CheckpointReader(storage: storage).decision.candidates.first)
        var header = found.header
        header.logicalDigest = .zero
        let candidate = Candidate(
            slot: found.slot, header: header, headerDigest: found.headerDigest,
            table: found.table, kind: found.kind, geometry: builder.geometry)
        let selected = try CheckpointReader(storage: storage).select(candidate)
        defer { selected.close() }
        try selected.forEachChunk(Array(0..<5)) { _, _ in }
        try selected.forEachChunk { _, _ in
        } damaged: { _ in
        }
        #expect(try selected.leadingBytes(300_000) == content.bytes)
        for call in [
            { try selected.forEachChunk { _, _ in } },
            { _ = try selected.readBytes(0..<300_000) },
        ] {
            let error = #expect(throws: CheckpointError.self) { try call() }
            #expect(error?.message.contains("every chunk matches its digest, but") == true)
        }
    }
}
