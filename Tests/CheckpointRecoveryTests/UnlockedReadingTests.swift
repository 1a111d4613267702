import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import StorageFaults
import Synchronization
import Testing

/// Reading where there are no locks, and reading a slot that a writer has taken all the same: what
/// was taken is `busy`, what is rotten is `corrupt`, and no byte of another checkpoint is returned.
@Suite struct UnlockedReadingTests {
    /// EINVAL, ENOLCK, ENOSYS, EOPNOTSUPP.
    static let missingLocks: [Int32] = [22, 37, 38, 95]

    private let content = ImageBuilder.Content.opaque(byteCount: 300_001, seed: 7)

    /// Sequence 5 anchored in slot 0, sequence 4 older in slot 1.
    private func builder(codec: Codec = .none) throws -> ImageBuilder {
        var builder = try ImageBuilder(capacity: 512 << 10)
        builder.complete(slot: 1, sequence: 4)
        let anchor = builder.complete(slot: 0, sequence: 5, content: content, codec: codec)
        builder.commit(builder.superblock(generation: 3, anchor: anchor))
        return builder
    }

    private func withoutLocks(_ storage: MemoryStorage, _ number: Int32) {
        storage.setFaultHook { call in if case .lock = call { number } else { nil } }
    }

    @Test(arguments: missingLocks) func aReaderNeedsNoLocks(number: Int32) throws {
        let storage = try builder().storage()
        withoutLocks(storage, number)
        let reader = try CheckpointReader(storage: storage)
        let candidate = try #require(reader.decision.candidates.first)
        let first = try reader.select(candidate)
        let second = try reader.select(candidate)
        #expect(!first.isPinned && !second.isPinned)
        first.close()
        #expect(try second.readBytes(0..<300_001) == content.bytes)
        try second.verify()
        second.close()
        let loaded = try reader.loadNewest { selected throws(CheckpointError) in
            try selected.verify()
        }
        #expect(loaded.candidate.sequence.rawValue == 5 && loaded.rejected.isEmpty)
    }

    @Test func aReaderThatLocksIsPinned() throws {
        let reader = try CheckpointReader(storage: builder().storage())
        let selected = try reader.select(try #require(reader.decision.candidates.first))
        #expect(selected.isPinned)
        selected.close()
        #expect(!selected.isPinned)
    }

    private typealias Way = @Sendable (SelectedCheckpoint) throws -> Void

    private static let ways: [(name: String, read: Way)] = [
        ("readBytes", { _ = try $0.readBytes(0..<300_001) }),
        ("verify", { try $0.verify() }),
        ("check", { _ = try $0.check() }),
        ("leadingBytes", { _ = try $0.leadingBytes(200_000) }),
        ("forEachChunk", { try $0.forEachChunk { _, _ in } }),
        ("one chunk", { try $0.forEachChunk([2]) { _, _ in } }),
        ("in order", { try $0.forEachChunk(inOrder: true) { _, _ in } }),
        (
            "with damage",
            {
                try $0.forEachChunk { _, _ in
                } damaged: { _ in
                }
            }
        ),
    ]

    /// The writer marks the header, then overwrites a chunk, while the reader holds the slot
    /// without a lock, or with one that an urgent save has broken.
    @Test(arguments: ways.map(\.name), [true, false])
    func aSlotThatWasTakenIsBusy(way: String, isLocked: Bool) throws {
        for codec in Codec.allCases { try takeSlot(way, isLocked, codec) }
    }

    private func takeSlot(_ way: String, _ isLocked: Bool, _ codec: Codec) throws {
        let builder = try builder(codec: codec)
        let storage = builder.storage()
        if !isLocked { withoutLocks(storage, 22) }
        let reader = try CheckpointReader(storage: storage)
        let candidate = try #require(reader.decision.candidates.first)
        let selected = try reader.select(candidate)
        defer { selected.close() }
        var taken = candidate.header
        taken.state = .writing
        taken.sequence = SequenceNumber(rawValue: 6)
        storage.overwrite(taken.encoded().bytes, at: candidate.headerOffset)
        let entry = candidate.table.entries[2]
        storage.flip(4, at: candidate.dataOffset + entry.storedOffset + 9)
        let read = try #require(Self.ways.first { $0.name == way }).read
        let error = #expect(throws: CheckpointError.self) { try read(selected) }
        #expect(error?.code == .busy)
        #expect(error?.message.contains("a writer has taken it for a newer checkpoint") == true)
        #expect(error?.slot == candidate.slot)
    }

    /// The same damage behind the header that was chosen is damage.
    @Test(arguments: [true, false]) func rotIsStillRot(isLocked: Bool) throws {
        let storage = try builder().storage()
        if !isLocked { withoutLocks(storage, 22) }
        let reader = try CheckpointReader(storage: storage)
        let candidate = try #require(reader.decision.candidates.first)
        let selected = try reader.select(candidate)
        defer { selected.close() }
        storage.flip(4, at: candidate.dataOffset + candidate.table.entries[2].storedOffset)
        let error = #expect(throws: CheckpointError.self) { try selected.verify() }
        #expect(error?.code == .corrupt)
        #expect(try selected.check().damage.map(\.index) == [2])
        let damaged = Mutex<[Int]>([])
        try selected.forEachChunk { _, _ in
        } damaged: { damage in
            damaged.withLock { $0.append(damage.index) }
        }
        #expect(damaged.withLock { $0 } == [2])
    }
}
