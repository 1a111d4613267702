import CheckpointFormat
import CheckpointStorage
import CheckpointWriter
import StorageFaults
import Testing

@testable import CheckpointCheck

/// Undo files that are damaged, of another file, or too late change nothing.
@Suite struct UndoTests {
    private func repaired() throws -> (storage: MemoryStorage, undo: UndoFile, old: [UInt8]) {
        let image = try Fixture.image("corrupt/header-damaged-anchored")
        let storage = MemoryStorage(contents: image)
        let plan = FullRepairTests.plan(storage)
        try plan.apply(to: storage)
        return (storage, try #require(plan.undoFile(stamp: FullRepairTests.stamp)), image)
    }

    private func expectRefusal(
        _ undo: UndoFile, _ storage: MemoryStorage, _ code: CheckpointError.Code, _ text: String
    ) {
        let before = storage.contents
        let error = #expect(throws: CheckpointError.self) {
            _ = try Undoing(undo).apply(to: storage)
        }
        #expect(error?.code == code && error?.message.contains(text) == true, "\(text)")
        #expect(storage.contents == before)
    }

    @Test func anyDamagedByteIsRefused() throws {
        let bytes = try repaired().undo.encoded()
        for offset in stride(from: 0, to: bytes.count, by: 97) {
            var damaged = bytes
            damaged[offset] ^= 0x10
            #expect(throws: FormatError.self, "byte \(offset)") {
                _ = try UndoFile(decoding: damaged)
            }
        }
        for count in [0, 4095, 4096, 8192, bytes.count - 1, bytes.count - 4096] {
            #expect(throws: FormatError.self) {
                _ = try UndoFile(decoding: Array(bytes[..<count]))
            }
        }
        #expect(throws: FormatError.self) { _ = try UndoFile(decoding: bytes + bytes) }
    }

    @Test func anotherFileIsRefused() throws {
        let (storage, undo, _) = try repaired()
        var foreign = undo
        foreign.fileUUID = Identifier128(bytes: Array(0x60..<0x70))
        expectRefusal(foreign, storage, .invalidArgument, "is of file 60616263")
        var other = undo
        other.fileByteCount += 4096
        expectRefusal(other, storage, .busy, "bytes, expected")
    }

    @Test func payloadIsOutOfReach() throws {
        var (storage, undo, _) = try repaired()
        let geometry = try #require(FullRepairTests.check(storage).identity?.geometry)
        undo.records[0].byteOffset = geometry.slotDataOffset(SlotIndex(1))
        expectRefusal(undo, storage, .invalidArgument, "which is payload")
    }

    @Test func whatLiesBehindTheFileIsOutOfReach() throws {
        var (storage, undo, _) = try repaired()
        undo.records[0].byteOffset = storage.byteCount
        expectRefusal(undo, storage, .invalidArgument, "behind the file")
    }

    /// A file that got its end back has its size again: another size is another file's.
    @Test func anExtendedFileHasOneOfTwoSizes() throws {
        let image = try Fixture.image("corrupt/truncated-tail")
        let storage = MemoryStorage(contents: image)
        let plan = FullRepairTests.plan(storage)
        let undo = try #require(plan.undoFile(stamp: FullRepairTests.stamp))
        try plan.apply(to: storage)
        let longer = MemoryStorage(contents: storage.contents + [UInt8](repeating: 0, count: 4096))
        expectRefusal(undo, longer, .busy, "bytes, expected")
        // The power went after the file got its size, and before the first block.
        let extended = MemoryStorage(contents: image)
        try extended.resize(to: storage.byteCount)
        #expect(try Undoing(undo).apply(to: extended) == 3)
        #expect(extended.contents == image)
    }

    @Test func aWriterSinceIsNoticed() throws {
        let (storage, undo, _) = try repaired()
        let writer = try CheckpointWriter(storage: MemoryStorage(openerOf: storage))
        expectRefusal(undo, storage, .locked, "a writer has the file open")
        try writer.close()
        expectRefusal(undo, storage, .busy, "its newest superblock is of generation")
    }

    @Test func aBlockThatIsNeitherIsNoticed() throws {
        let (storage, undo, old) = try repaired()
        // A whole block of another time, where the last one was written.
        let last = try #require(undo.records.last)
        let report = FullRepairTests.check(storage)
        let identity = try #require(report.identity)
        let slot = try #require(
            identity.geometry.slots.first {
                identity.geometry.headerOffset($0) == last.byteOffset
            })
        var header = SlotHeader(
            emptySlot: slot, fileUUID: identity.fileUUID, geometry: identity.geometry)
        header.state = .writing
        header.sequence = SequenceNumber(rawValue: 9)
        let repaired = storage.contents
        storage.overwrite(header.encoded().bytes, at: last.byteOffset)
        expectRefusal(undo, storage, .busy, "is neither the old one")
        // A torn one, where the others are done already: somebody else tore it.
        storage.overwrite(repaired, at: 0)
        storage.flip(1, at: undo.records[0].byteOffset + 30)
        expectRefusal(undo, storage, .busy, "is neither the old one")
        storage.overwrite(repaired, at: 0)
        #expect(try Undoing(undo).apply(to: storage) == undo.records.count)
        #expect(storage.contents == old)
    }
}
