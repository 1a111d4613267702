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
        change(&block)
        reseal(&block, IdentityBlock.Layout.checksum)
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

    @Test func strayBlocks() throws {
        let error = try error { builder in
            putBoth(Array("PCKSUPER".utf8) + [UInt8](repeating: 7, count: 4088), &builder)
        }
        #expect(error?.code == .corrupt)
        #expect(error?.message.contains("a superblock is in the place of") == true)
        #expect(error?.message.contains("restore the file from a copy") == true)
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

    /// What the two copies say, the most telling first.
    private static let findings = [
        "format version is 2.0", "line ends were rewritten", "the content has digest",
        "the magic is", "it is all zero", "it ends after 0 bytes",
    ]

    /// An identity block that makes recovery say `findings[index]`; nil: it cannot be read.
    private func block(_ index: Int, _ builder: ImageBuilder) -> [UInt8]? {
        let good = builder.identity.encoded()
        switch index {
        case 0: return resealed(builder) { $0[8] = 2 }
        case 1: return Array((good.filter { $0 != 0x0D } + [0, 0]).prefix(4096))
        case 2: return good.enumerated().map { $0 == 100 ? $1 ^ 1 : $1 }
        case 3: return [UInt8](repeating: 7, count: 4096)
        case 4: return [UInt8](repeating: 0, count: 4096)
        default: return nil
        }
    }

    @Test(arguments: 0..<6, 0..<6) func theCopyThatSaysMostComesFirst(head: Int, tail: Int) throws {
        let builder = try ImageBuilder()
        let offsets = builder.geometry.identityOffsets
        let error = #expect(throws: CheckpointError.self) {
            try SlotSelection.decide(
                MetadataImage(
                    fileByteCount: builder.geometry.fileByteCount,
                    identityBlocks: [
                        .init(position: .head, offset: offsets[0], bytes: block(head, builder)),
                        .init(position: .tail, offset: offsets[1], bytes: block(tail, builder)),
                    ]))
        }
        let message = error?.message ?? ""
        let first = head <= tail ? "identity block" : "its mirror"
        let offset = offsets[head <= tail ? 0 : 1]
        #expect(
            message.hasPrefix("\(first) at byte \(offset): \(Self.findings[min(head, tail)])"))
        let other = head <= tail ? "; its mirror at byte" : "; identity block at byte"
        #expect(message.contains(other) && message.contains(Self.findings[max(head, tail)]))
    }

    /// 28672 bytes are the smallest file; what is smaller says so, unless its head says more.
    @Test func aSmallFileIsNamedUnlessItsHeadSaysMore() throws {
        func message(_ contents: [UInt8]) -> String? {
            #expect(throws: CheckpointError.self) {
                try SlotSelection.decide(
                    MetadataImage.read(from: MemoryStorage(contents: contents)))
            }?.message
        }
        let zeros = [UInt8](repeating: 0, count: 28_672)
        #expect(message(zeros)?.contains("creation was interrupted") == true)
        #expect(message(zeros.dropLast())?.contains("has 28671 bytes") == true)
        let damaged = try #require(block(2, ImageBuilder()))
        #expect(message(damaged + zeros[..<8192])?.contains("the content has digest") == true)
        let foreign = [UInt8](repeating: 7, count: 28_671)
        #expect(message(foreign)?.contains("at least 28672") == true)
    }

    @Test func aDamagedHeadBesideAnUnreadableMirrorIsDamage() throws {
        var builder = try ImageBuilder()
        builder.flip(100)
        let storage = builder.storage()
        let mirror = builder.geometry.identityOffsets[1]
        storage.setFaultHook { call in
            guard case .read(let offset, let byteCount) = call else { return nil }
            return (offset..<offset + UInt64(byteCount)).contains(mirror) ? 5 : nil
        }
        let image = try MetadataImage.read(from: storage)
        #expect(image.readFailures.map(\.byteOffset) == [mirror])
        let error = #expect(throws: CheckpointError.self) { try SlotSelection.decide(image) }
        #expect(error?.code == .corrupt)
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
        #expect(error?.message.contains(count == 1 ? "1 byte" : "\(count) bytes") == true)
    }

    @Test func anImageWithoutIdentityBlocksIsNoFile() {
        let error = #expect(throws: CheckpointError.self) {
            try SlotSelection.decide(MetadataImage(fileByteCount: 0, identityBlocks: []))
        }
        #expect(error?.code == .notACheckpointFile)
        #expect(error?.message == "the image has no identity block")
    }

    /// The file ends behind the first slot's header: that is not the medium's fault.
    @Test func blocksBehindTheEndAreNotReadFailures() throws {
        let builder = try ImageBuilder()
        let storage = MemoryStorage(contents: Array(builder.bytes[..<20_480]))
        let image = try MetadataImage.read(from: storage)
        #expect(image.readFailures.isEmpty)
        let decision = try SlotSelection.decide(image, allowsTruncation: true)
        #expect(decision.slots.map(\.reason) == [.empty, .unreadable, .unreadable])
    }

    @Test(arguments: [(0, 0), (1, 0), (2, 4096), (3, 8192), (5, 16_384)])
    func theMirrorIsLookedForInTheLastBlock(blockCount: Int, offset: UInt64) throws {
        let contents = [UInt8](repeating: 1, count: blockCount * 4096)
        let image = try MetadataImage.read(from: MemoryStorage(contents: contents))
        #expect(image.identityBlocks.map(\.offset) == [0, offset])
        #expect(image.identityBlocks.map { $0.bytes == nil } == [blockCount < 1, blockCount < 2])
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

    /// Every slot is there: only copies are missing, so the file is read.
    @Test(arguments: [1, 100, 4096, 4097, 8192, 12_288])
    func aFileThatLostItsEndIsRead(_ missing: Int) throws {
        var builder = try ImageBuilder()
        builder.commit(
            builder.superblock(generation: 2, anchor: builder.complete(slot: 0, sequence: 1)))
        let storage = MemoryStorage(contents: builder.bytes.dropLast(missing))
        let image = try MetadataImage.read(from: storage)
        let decision = try SlotSelection.decide(image)
        #expect(!decision.isTruncated)
        #expect(decision.candidates.map(\.kind) == [.anchored])
        #expect(image.readFailures.isEmpty)
    }

    /// One byte less, and a slot's data may be gone.
    @Test func aFileThatLostDataIsRefused() throws {
        let builder = try ImageBuilder()
        let storage = MemoryStorage(contents: builder.bytes.dropLast(12_289))
        let error = #expect(throws: CheckpointError.self) {
            try SlotSelection.decide(MetadataImage.read(from: storage))
        }
        #expect(error?.code == .notACheckpointFile)
    }

    /// A mirror that says that it lies elsewhere is another file's: it does not speak for this one.
    @Test func aMirrorOfAnotherSizeIsNotChosen() throws {
        var builder = try ImageBuilder()
        builder.commit(
            builder.superblock(generation: 2, anchor: builder.complete(slot: 0, sequence: 1)))
        builder.bytes += builder.bytes
        builder.flip(100)
        let error = #expect(throws: CheckpointError.self) {
            try SlotSelection.decide(MetadataImage.read(from: builder.storage()))
        }
        #expect(error?.code == .corrupt)
        #expect(error?.message.contains("it records byte") == true)
        // Beside a whole head it is only a copy that differs.
        builder.flip(100)
        let longer = try ImageBuilder(capacity: 256 << 10)
        builder.bytes.removeLast(builder.bytes.count / 2)
        builder.put(longer.identity.encoded(), at: builder.geometry.identityOffsets[1])
        let decision = try SlotSelection.decide(MetadataImage.read(from: builder.storage()))
        #expect(decision.identityFindings.map(\.agreesWithChosen) == [true, false])
        #expect((try? decision.identityFindings[1].result.get()) == longer.identity)
    }

    /// Two spellings of one text are two blocks: copies are compared byte by byte.
    @Test func copiesThatSpellTheirCreatorDifferentlyDiffer() throws {
        var builder = try ImageBuilder()
        for (offset, text) in zip(builder.geometry.identityOffsets, ["\u{E9}", "e\u{301}"]) {
            let block = resealed(builder) { block in
                let field = IdentityBlock.Layout.creator
                let bytes = Array(text.utf8) + [UInt8](repeating: 0, count: 32)
                block.replaceSubrange(field.range, with: bytes.prefix(field.byteCount))
            }
            builder.put(block, at: offset)
        }
        let decision = try SlotSelection.decide(MetadataImage.read(from: builder.storage()))
        #expect(decision.identityFindings.map(\.agreesWithChosen) == [true, false])
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
