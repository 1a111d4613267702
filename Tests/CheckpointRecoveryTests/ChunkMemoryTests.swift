import CheckpointFormat
import CheckpointStorage
import StorageFaults
import Testing

@testable import CheckpointRecovery

/// Chunks are as large as a file says, and no machine has this much.
@Suite struct ChunkMemoryTests {
    private static let tooLarge = 1 << 46

    /// A checkpoint of one chunk, whose entry claims more bytes than there is memory for.
    private func reader(codec: Codec) throws -> PayloadReader {
        var builder = try ImageBuilder()
        let anchor = builder.complete(slot: 0, sequence: 1)
        builder.commit(builder.superblock(generation: 1, anchor: anchor))
        let storage = builder.storage()
        let found = try #require(CheckpointReader(storage: storage).decision.candidates.first)
        var table = found.table
        table.entries[0].codec = codec
        table.entries[0].rawByteCount = Self.tooLarge
        table.entries[0].storedByteCount = codec == .none ? Self.tooLarge : 4096
        let candidate = Candidate(
            slot: found.slot, header: found.header, headerDigest: found.headerDigest,
            table: table, kind: found.kind, geometry: builder.geometry)
        return PayloadReader(storage: storage, candidate: candidate, workerCount: 2)
    }

    @Test(arguments: [Codec.none, .zstd]) func aChunkThatDoesNotFitIsAnError(codec: Codec) throws {
        let reader = try reader(codec: codec)
        for inOrder in [false, true] {
            let error = #expect(throws: CheckpointError.self) {
                try reader.forEachChunk([0], inOrder: inOrder) { _, _ in
                    Issue.record("there is no such memory")
                }
            }
            #expect(error?.code == .outOfMemory && error?.slot == reader.candidate.slot)
            let size = reader.candidate.header.chunkByteCount
            #expect(error?.message.contains("chunks of \(size) bytes") == true)
        }
    }

    /// Plain chunks are examined in pieces, whatever their size; compressed ones are not.
    @Test func onlyCompressedChunksAreExaminedWhole() throws {
        let plain = try reader(codec: .none)
        #expect(ChunkExaminer(plain, ChunkExaminer.Needs(plain.entries)) != nil)
        let compressed = try reader(codec: .zstd)
        #expect(ChunkExaminer(compressed, ChunkExaminer.Needs(compressed.entries)) == nil)
        var needs = ChunkExaminer.Needs(plain.entries)
        needs.pieceByteCount = Self.tooLarge
        #expect(ChunkExaminer(plain, needs) == nil)
    }
}
