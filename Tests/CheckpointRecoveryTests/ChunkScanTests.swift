import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import StorageFaults
import Synchronization
import Testing

@Suite struct ChunkScanTests {
    /// Five chunks, of which the fourth is damaged.
    private func checkpoint() throws -> (SelectedCheckpoint, [UInt8]) {
        var builder = try ImageBuilder(capacity: 512 << 10)
        let content = ImageBuilder.Content.opaque(byteCount: 300_000, seed: 3)
        let anchor = builder.complete(slot: 0, sequence: 1, content: content)
        builder.commit(builder.superblock(generation: 1, anchor: anchor))
        builder.flip(builder.geometry.slotDataOffset(SlotIndex(0)) + 3 * 65536 + 9)
        let reader = try CheckpointReader(storage: builder.storage())
        return (try reader.select(#require(reader.decision.candidates.first)), content.bytes)
    }

    @Test func wholeChunksAndDamagedOnesAreHandedOut() throws {
        let (selected, payload) = try checkpoint()
        let seen = Mutex<[Int: Bool]>([:])
        try selected.scanChunks([0, 1, 3, 4]) { index, offset, bytes in
            let expected = payload[Int(offset)..<min(Int(offset) + 65536, payload.count)]
            // Safe: the view is valid during the call.
            let isSame = unsafe bytes.withUnsafeBytes { unsafe $0.elementsEqual(expected) }
            seen.withLock { $0[index] = isSame }
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
            try selected.scanChunks(Array(0..<5)) { _, _, _ throws(CheckpointError) in
                count.withLock { $0 += 1 }
                throw CheckpointError(.invalidArgument, "enough")
            } damaged: { _ in
            }
        }
        #expect(count.withLock { $0 } < 5)
        selected.close()
        #expect(throws: CheckpointError.self) {
            try selected.scanChunks([0]) { _, _, _ in
            } damaged: { _ in
            }
        }
    }

    @Test func aLoaderKeepsItsLastChunk() throws {
        let (selected, payload) = try checkpoint()
        let loader = selected.makeChunkLoader()
        #expect(loader.loadedIndex == nil)
        for index in [4, 4, 0] {
            let first = try loader.withChunk(index) { bytes in
                // Safe: the view is valid during the call.
                unsafe bytes.withUnsafeBytes { unsafe $0[0] }
            }
            #expect(first == payload[index * 65536])
            #expect(loader.loadedIndex == index)
        }
        #expect(throws: CheckpointError.self) { try loader.withChunk(3) { _ in } }
        #expect(loader.loadedIndex == nil, "its buffers hold nothing that was verified")
        selected.close()
        #expect(throws: CheckpointError.self) { try loader.withChunk(0) { _ in } }
    }
}
