import CheckpointFormat
import CheckpointStorage
import CheckpointWriter
import StorageFaults
import Synchronization
import Testing

/// COMMIT.md, rule 7, and what a writer says where there are no locks.
@Suite struct MarkFirstTests {
    private func storage() throws -> MemoryStorage {
        let directory = try TemporaryDirectory()
        let path = directory.file()
        try createFile(path, capacity: 1 << 20, inFlight: 2, retain: 1)
        let file = try FileStorage(path: path, access: .read)
        return MemoryStorage(contents: try file.readBlocks(at: 0, count: Int(file.byteCount)))
    }

    @Test func noChunkIsWrittenBeforeTheMark() throws {
        let storage = try storage()
        let writer = try CheckpointWriter(storage: storage)
        let geometry = writer.identity.geometry
        let marks = Set(geometry.slots.map(geometry.headerOffset))
        let isMarked = Mutex(false)
        let early = Mutex(0)
        storage.setFaultHook { call in
            guard case .write(let offset, _) = call else { return nil }
            if marks.contains(offset) {
                // Long enough for every chunk to be copied and waiting.
                if !isMarked.withLock({ $0 }) { SystemClock.sleep(nanoseconds: 100_000_000) }
                isMarked.withLock { $0 = true }
            } else if offset >= geometry.dataOffset, !isMarked.withLock({ $0 }) {
                early.withLock { $0 += 1 }
            }
            return nil
        }
        let payload = CheckpointPayload(opaque: pattern(1, count: 900_000))
        let ticket = try writer.save(step: 1, payload: payload)
        // A caller that waits makes the writers stand back, and the mark must not.
        try ticket.waitStaged()
        #expect(try ticket.wait() == .durable)
        #expect(early.withLock { $0 } == 0)
        try writer.close()
    }

    /// EINVAL, ENOLCK, ENOSYS, EOPNOTSUPP.
    @Test(arguments: [Int32(22), 37, 38, 95])
    func aWriterIsRefusedWhereThereAreNoLocks(number: Int32) throws {
        let storage = try storage()
        let before = storage.contents
        storage.setFaultHook { call in if case .lock = call { number } else { nil } }
        let error = #expect(throws: CheckpointError.self) { try CheckpointWriter(storage: storage) }
        #expect(error?.code == .unsupported && error?.osErrorNumber == number)
        #expect(error?.message.contains("has no open-file-description locks") == true)
        #expect(error?.message.contains("move the file to a local file system") == true)
        #expect(storage.contents == before)
    }
}
