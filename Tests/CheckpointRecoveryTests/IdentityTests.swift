import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import StorageFaults
import Testing

@Suite struct IdentityTests {
    /// A file whose identity blocks were replaced, and what its error must say.
    private func error(
        _ change: (inout ImageBuilder) throws -> Void
    ) throws -> CheckpointError? {
        var builder = try ImageBuilder()
        try change(&builder)
        return #expect(throws: CheckpointError.self) {
            try SlotSelection.decide(MetadataImage.read(from: builder.storage()))
        }
    }

    private func resealed(
        _ builder: ImageBuilder, _ change: (inout [UInt8]) -> Void
    ) -> [UInt8] {
        var block = builder.identity.encoded()
        let field = IdentityBlock.Layout.checksum
        change(&block)
        let digest = Digest(of: block, 0..<field.offset)
        for index in 0..<8 {
            block[field.offset + index] = UInt8(truncatingIfNeeded: digest.low >> (8 * index))
            block[field.offset + 8 + index] = UInt8(truncatingIfNeeded: digest.high >> (8 * index))
        }
        return block
    }

    private func putBoth(_ block: [UInt8], _ builder: inout ImageBuilder) {
        for offset in builder.geometry.identityOffsets { builder.put(block, at: offset) }
    }

    @Test(arguments: [0, 1]) func oneBadCopyIsEnough(_ bad: Int) throws {
        var builder = try ImageBuilder()
        builder.commit(
            builder.superblock(generation: 2, anchor: builder.complete(slot: 0, sequence: 1)))
        builder.flip(builder.geometry.identityOffsets[bad] + 100)
        let decision = try SlotSelection.decide(MetadataImage.read(from: builder.storage()))
        #expect(decision.identity == builder.identity)
        #expect(decision.candidates.map(\.kind) == [.anchored])
        #expect(decision.identityFindings.map(\.agreesWithChosen) == [bad == 1, bad == 0])
    }

    @Test func copyOfAnotherFileIsNotChosen() throws {
        var builder = try ImageBuilder()
        let other = try ImageBuilder(fileUUID: Identifier128(bytes: Array(0x30..<0x40)))
        builder.put(other.identity.encoded(), at: builder.geometry.identityOffsets[1])
        let decision = try SlotSelection.decide(MetadataImage.read(from: builder.storage()))
        #expect(decision.identity == builder.identity)
        #expect(!decision.identityFindings[1].agreesWithChosen)
    }

    @Test func wrongMagic() throws {
        let error = try error { builder in
            putBoth(Array("%PDF-1.7".utf8) + [UInt8](repeating: 7, count: 4088), &builder)
        }
        #expect(error?.code == .notACheckpointFile)
        #expect(error?.message.contains("%PDF-1.7") == true)
        #expect(error?.message.contains("not a PCcheck file") == true)
    }

    @Test func textModeTransfer() throws {
        let error = try error { builder in
            let stripped = builder.identity.encoded().filter { $0 != 0x0D }
            builder.put(stripped, at: 0)
            builder.flip(builder.geometry.identityOffsets[1])
        }
        #expect(error?.code == .notACheckpointFile)
        #expect(error?.message.contains("binary mode") == true)
    }

    @Test func newerMajorVersion() throws {
        let error = try error { builder in
            putBoth(resealed(builder) { $0[8] = 2 }, &builder)
        }
        #expect(error?.code == .unsupported)
        #expect(error?.message.contains("format version is 2.0, expected 1.x") == true)
    }

    @Test func unknownIncompatibleFeature() throws {
        let error = try error { builder in
            putBoth(resealed(builder) { $0[32] = 4 }, &builder)
        }
        #expect(error?.code == .unsupported)
        #expect(error?.message.contains("incompatible features 0x4") == true)
    }

    @Test func bothCopiesDamaged() throws {
        let error = try error { builder in
            for offset in builder.geometry.identityOffsets { builder.flip(offset + 50) }
        }
        #expect(error?.code == .corrupt)
        #expect(error?.message.contains("its mirror at byte") == true)
    }

    @Test func allZero() throws {
        let error = try error { builder in
            builder.bytes = [UInt8](repeating: 0, count: builder.bytes.count)
        }
        #expect(error?.code == .corrupt)
        #expect(error?.message.contains("creation was interrupted") == true)
    }

    @Test(arguments: [0, 1, 4095, 4096, 20_000]) func tooSmallToBeAFile(_ count: Int) throws {
        let builder = try ImageBuilder()
        let storage = MemoryStorage(contents: Array(builder.bytes[..<count]))
        let error = #expect(throws: CheckpointError.self) {
            try SlotSelection.decide(MetadataImage.read(from: storage))
        }
        #expect(error?.code == .notACheckpointFile)
        #expect(error?.message.contains("\(count) bytes") == true)
    }

    @Test func anImageWithoutIdentityBlocksIsNoFile() {
        let error = #expect(throws: CheckpointError.self) {
            try SlotSelection.decide(MetadataImage(fileByteCount: 0, identityBlocks: []))
        }
        #expect(error?.code == .notACheckpointFile)
        #expect(error?.message == "the image has no identity block")
    }

    @Test func truncatedFileIsRefusedUnlessAllowed() throws {
        var builder = try ImageBuilder()
        builder.commit(
            builder.superblock(generation: 2, anchor: builder.complete(slot: 0, sequence: 1)))
        let full = builder.geometry.fileByteCount
        let storage = MemoryStorage(contents: Array(builder.bytes[..<(builder.bytes.count / 2)]))
        let image = try MetadataImage.read(from: storage)
        let error = #expect(throws: CheckpointError.self) { try SlotSelection.decide(image) }
        #expect(error?.code == .notACheckpointFile)
        #expect(error?.message.contains("\(full / 2) bytes, expected \(full)") == true)
        let decision = try SlotSelection.decide(image, allowsTruncation: true)
        #expect(decision.isTruncated)
        #expect(decision.candidates.map(\.kind) == [.anchored])
        #expect(decision.superblockFindings.filter(\.isUnreadable).count == 2)
    }

    @Test func appendedBytesDoNotHideTheTail() throws {
        var builder = try ImageBuilder()
        builder.commit(
            builder.superblock(generation: 2, anchor: builder.complete(slot: 0, sequence: 1)))
        let storage = MemoryStorage(
            contents: builder.bytes + [UInt8](repeating: 1, count: 10_000))
        let decision = try SlotSelection.decide(MetadataImage.read(from: storage))
        #expect(decision.identityFindings.map(\.agreesWithChosen) == [true, true])
        #expect(decision.superblockFindings.filter { $0.superblock != nil }.count == 2)
    }
}
