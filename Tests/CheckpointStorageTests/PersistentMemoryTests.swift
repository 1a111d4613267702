import CheckpointFormat
import Foundation
import Testing

@testable import CheckpointStorage

/// libpmem2 takes tmpfs for cache-line memory when it is told to. It asks at every mapping.
enum ForcedGranularity {
    /// Set once and never unset in this process: other tests read the environment meanwhile.
    // Safe, here and below: the strings are passed as C strings for the call.
    static let cacheLine: Bool = unsafe setenv("PMEM2_FORCE_GRANULARITY", "CACHE_LINE", 1) == 0
    static let folder = "/dev/shm"
    static var isPossible: Bool { FileManager.default.isWritableFile(atPath: folder) }
}

/// The real libpmem2, on files in memory.
@Suite(.enabled(if: ForcedGranularity.isPossible, "there is no writable /dev/shm"))
final class PersistentMemoryTests {
    private let directory: URL
    private var path: String { directory.appendingPathComponent("file").path }

    init() throws {
        try #require(ForcedGranularity.cacheLine)
        directory = URL(filePath: ForcedGranularity.folder)
            .appendingPathComponent("pccheck-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(at: directory) }

    private func create(byteCount: Int) throws {
        try Data(repeating: 0, count: byteCount).write(to: URL(filePath: path))
    }

    private func truncate(to byteCount: UInt64) throws {
        let handle = try FileHandle(forUpdating: URL(filePath: path))
        try handle.truncate(atOffset: byteCount)
        try handle.close()
    }

    /// What the file takes on its medium.
    private var blockByteCount: Int {
        get throws {
            var facts = stat()
            // Safe: fills the struct that it is given.
            try #require(unsafe stat(path, &facts) == 0)
            return Int(facts.st_blocks) * 512
        }
    }

    private func bytes(_ seed: Int, count: Int) -> [UInt8] {
        (0..<count).map { UInt8(truncatingIfNeeded: ($0 &* 2_654_435_761) >> 7 &+ seed) }
    }

    private func write(
        _ bytes: [UInt8], at offset: UInt64, to storage: PersistentMemoryStorage
    ) throws {
        // Safe: the array lives through the call.
        let error: StorageError? = unsafe bytes.withUnsafeBytes { bytes in
            do throws(StorageError) {
                try unsafe storage.write(bytes, at: offset)
                return nil
            } catch {
                return error
            }
        }
        if let error { throw error }
    }

    /// Why opening fails; a record when it does not.
    private func refusal(
        library: String = PersistentMemoryStorage.library,
        _ location: SourceLocation = #_sourceLocation
    ) throws -> StorageError {
        let error = #expect(throws: StorageError.self, sourceLocation: location) {
            try PersistentMemoryStorage(path: path, library: library)
        }
        return try #require(error, sourceLocation: location)
    }

    @Test func theMediumSaysWhatItIs() throws {
        try create(byteCount: 1 << 20)
        let storage = try PersistentMemoryStorage(path: path)
        #expect(storage.kind == .persistentMemory)
        #expect(storage.byteCount == 1 << 20)
        #expect(storage.granularity == .cacheLine)
        #expect(storage.unsafeShutdownCount == 0, "tmpfs does not count")
        let detail = try #require(storage.detail)
        #expect(detail == "cache line granularity, forced: the file system has no DAX")
        let deep = try PersistentMemoryStorage(path: path, isDeepFlushing: true)
        #expect(try #require(deep.detail).contains("deep flushes"))
    }

    /// Any offset, any count: head, tail and whole lines of the copy.
    @Test func whatIsWrittenIsReadAndNothingElseChanges() throws {
        let size = 5 << 20
        try create(byteCount: size)
        let storage = try PersistentMemoryStorage(path: path)
        var expected = [UInt8](repeating: 0, count: size)
        let writes = [
            (0, 4096), (4096, 1 << 20), (3, 1), (8191, 2), (12_345, 100_001), (size - 4096, 4096),
            (size - 1, 1), ((2 << 20) - 77, 200), ((4 << 20) + 13, 63), (64, 64), (200, 0),
        ]
        for (seed, (offset, count)) in writes.enumerated() {
            let bytes = bytes(seed + 1, count: count)
            try write(bytes, at: UInt64(offset), to: storage)
            expected.replaceSubrange(offset..<offset + count, with: bytes)
        }
        try storage.flush()
        #expect(try [UInt8](Data(contentsOf: URL(filePath: path))) == expected)
        let found = try storage.readBlocks(at: 4096, count: 1 << 20)
        #expect(found == Array(expected[4096..<4096 + (1 << 20)]))
        // Another opener, which has no mapping, sees the same.
        let other = try FileStorage(path: path, access: .read)
        #expect(try other.readBlocks(at: 0, count: size) == expected)
    }

    @Test func alignedBuffersAreWrittenFromTheirRange() throws {
        try create(byteCount: 64 << 10)
        let storage = try PersistentMemoryStorage(path: path)
        let buffer = AlignedBuffer(byteCount: 16384)
        buffer.copy(bytes(5, count: 16384), to: 0)
        let queue = try storage.makeWriteQueue(depth: 4, pool: nil)
        queue.submit(buffer, 4096..<12288, at: 8192, tag: 7)
        let done = queue.waitForOne()
        #expect(done.tag == 7 && done.error == nil)
        #expect(
            try storage.readBlocks(at: 8192, count: 8192)
                == Array(bytes(5, count: 16384)[4096..<12288]))
    }

    @Test(.timeLimit(.minutes(1))) func threadsWriteAtOnce() throws {
        let part = 1 << 20
        let threadCount = 4
        try create(byteCount: part * threadCount)
        let storage = try PersistentMemoryStorage(path: path, isDeepFlushing: true)
        let contents = (0..<threadCount).map { bytes($0, count: part) }
        let errors = Monitor([StorageError]())
        let threads = try (0..<threadCount).map { number in
            try WorkerThread(name: "test-\(number)") {
                let buffer = AlignedBuffer(byteCount: 4096)
                for block in 0..<part / 4096 {
                    let range = block * 4096..<(block + 1) * 4096
                    buffer.copy(Array(contents[number][range]), to: 0)
                    do throws(StorageError) {
                        try storage.write(
                            buffer, 0..<4096, at: UInt64(number * part + range.lowerBound))
                        if block % 100 == number { try storage.flush() }
                    } catch {
                        errors.withLock { $0.append(error) }
                    }
                }
            }
        }
        for thread in threads { thread.join() }
        #expect(errors.withLock { $0 } == [])
        let found = try [UInt8](Data(contentsOf: URL(filePath: path)))
        #expect(found == contents.flatMap { $0 })
    }

    @Test func locksExcludeOtherOpeners() throws {
        try create(byteCount: 4096)
        let first = try PersistentMemoryStorage(path: path)
        let second = try FileStorage(path: path, access: .write)
        #expect(try first.tryLock(.writer, exclusive: true))
        #expect(try !second.tryLock(.writer, exclusive: true))
        try first.unlock(.writer)
        #expect(try second.tryLock(.writer, exclusive: true))
    }

    // MARK: What must not be a signal

    @Test func aSparseFileGetsItsBlocks() throws {
        #expect(FileManager.default.createFile(atPath: path, contents: nil))
        try truncate(to: 8 << 20)
        #expect(try blockByteCount == 0)
        let storage = try PersistentMemoryStorage(path: path)
        #expect(try blockByteCount >= 8 << 20)
        #expect(storage.byteCount == 8 << 20)
        try storage.writeBlocks(bytes(1, count: 4096), at: 5 << 20)
        #expect(try storage.readBlocks(at: 5 << 20, count: 4096) == bytes(1, count: 4096))
    }

    @Test func aFileThatIsTruncatedUnderTheMappingIsAnErrorAndNoSignal() throws {
        try create(byteCount: 8 << 20)
        let storage = try PersistentMemoryStorage(path: path)
        try storage.writeBlocks(bytes(1, count: 4096), at: 4 << 20)
        try truncate(to: 1 << 20)
        // Reads go through pread(2).
        let read = #expect(throws: StorageError.self) {
            try storage.readBlocks(at: 4 << 20, count: 4096)
        }
        #expect(try #require(read).operation == "pread")
        // A part that was written before and one that never was.
        for offset: UInt64 in [4 << 20, 6 << 20, (1 << 20) - 2048] {
            let error = #expect(throws: StorageError.self) {
                try write(bytes(2, count: 4096), at: offset, to: storage)
            }
            #expect(try #require(error).byteOffset == offset)
            #expect("\(try #require(error))".contains("truncated while it was open"))
        }
        try storage.writeBlocks(bytes(3, count: 4096), at: 0)
        #expect(try storage.readBlocks(at: 0, count: 4096) == bytes(3, count: 4096))
    }

    @Test func nothingIsWrittenBehindTheEnd() throws {
        try create(byteCount: 5000)
        let storage = try PersistentMemoryStorage(path: path)
        #expect(storage.byteCount == 5000)
        try write([1, 2, 3, 4], at: 4996, to: storage)
        for (offset, count) in [(UInt64(4996), 5), (5000, 1), (1 << 40, 1), (.max, 1)] {
            #expect(throws: StorageError.self) {
                try write(bytes(1, count: count), at: offset, to: storage)
            }
        }
        #expect(try Data(contentsOf: URL(filePath: path)).count == 5000)
        #expect(try Data(contentsOf: URL(filePath: path)).suffix(4) == Data([1, 2, 3, 4]))
    }

    // MARK: What is refused

    @Test func anEmptyFileIsRefused() throws {
        try create(byteCount: 0)
        #expect("\(try refusal())".contains("0 bytes"))
    }

    @Test func withoutTheLibraryTheErrorNamesThePackage() throws {
        try create(byteCount: 4096)
        for library in ["libpmem2-not-there.so.1", "libc.so.6"] {
            let error = try refusal(library: library)
            #expect("\(error)".contains("install the Debian package libpmem2"))
            #expect("\(error)".contains(library))
            #expect("\(error)".contains("direct back end"))
            #expect(CheckpointError(error).code == .unsupported)
        }
    }

    @Test func aSpecialFileIsRefused() throws {
        let error = #expect(throws: StorageError.self) {
            try PersistentMemoryStorage(path: "/dev/null")
        }
        #expect("\(try #require(error))".contains("device DAX"))
        #expect(CheckpointError(try #require(error)).code == .unsupported)
        #expect(throws: StorageError.self) { try PersistentMemoryStorage(path: directory.path) }
        let missing = #expect(throws: StorageError.self) {
            try PersistentMemoryStorage(path: path)
        }
        #expect(CheckpointError(try #require(missing)).code == .notFound)
    }

    /// In processes of their own: libpmem2 reads the variable, and others read the environment.
    @Test func pageGranularityIsRefused() async throws {
        await #expect(processExitsWith: .success) {
            // What libpmem2 finds by itself, and what it is told.
            for value in [nil, "PAGE"] {
                if let value {
                    unsafe setenv("PMEM2_FORCE_GRANULARITY", value, 1)
                } else {
                    unsafe unsetenv("PMEM2_FORCE_GRANULARITY")
                }
                let path = "/dev/shm/pccheck-\(UUID().uuidString)"
                defer { try? FileManager.default.removeItem(atPath: path) }
                try Data(repeating: 0, count: 8192).write(to: URL(filePath: path))
                let error = #expect(throws: StorageError.self) {
                    try StorageBackend.persistentMemory.open(path: path)
                }
                let text = "\(try #require(error))"
                #expect(text.contains("whole pages, expected cache lines or bytes"), "\(text)")
                #expect(text.contains("-o dax") && text.contains("direct back end"), "\(text)")
                #expect(CheckpointError(try #require(error)).code == .unsupported)
                // Unasked, it is not even tried where there is no DAX.
                let opened = try StorageBackend.automatic.open(path: path)
                #expect(opened.fallbackReason == nil)
                #expect(opened.storage.kind != .persistentMemory)
            }
        }
    }

    @Test func byteGranularityIsTaken() async throws {
        await #expect(processExitsWith: .success) {
            unsafe setenv("PMEM2_FORCE_GRANULARITY", "BYTE", 1)
            let path = "/dev/shm/pccheck-\(UUID().uuidString)"
            defer { try? FileManager.default.removeItem(atPath: path) }
            try Data(repeating: 0, count: 8192).write(to: URL(filePath: path))
            let storage = try PersistentMemoryStorage(path: path)
            #expect(storage.granularity == .byte)
            try storage.writeBlocks([UInt8](repeating: 9, count: 4096), at: 4096)
            #expect(try storage.readBlocks(at: 4096, count: 4096).allSatisfy { $0 == 9 })
        }
    }

    @Test func aDAXFileThatCannotBeMappedFallsBackVisibly() throws {
        try create(byteCount: 8192)
        let file = try FileStorage(path: path, access: .write)
        let without = StorageBackend.preferPersistentMemory(to: file, library: "libpmem2-no.so")
        #expect(without.storage === file)
        let reason = try #require(without.fallbackReason)
        #expect(reason.contains("DAX") && reason.contains("Debian package libpmem2"))
        let with = StorageBackend.preferPersistentMemory(to: file)
        #expect(with.storage.kind == .persistentMemory && with.fallbackReason == nil)
    }

    // MARK: Deep flushes

    @Test(
        arguments: [
            ([], []), ([(0, 1)], [(0, 1)]), ([(4, 8), (0, 4)], [(0, 8)]),
            ([(0, 4), (5, 8)], [(0, 4), (5, 8)]), ([(0, 10), (2, 3), (9, 12)], [(0, 12)]),
            ([(7, 9), (7, 9), (1, 2)], [(1, 2), (7, 9)]),
        ] as [([(UInt64, UInt64)], [(UInt64, UInt64)])])
    func rangesAreMerged(given: [(UInt64, UInt64)], expected: [(UInt64, UInt64)]) {
        #expect(
            PersistentMemoryStorage.merged(given.map { $0.0..<$0.1 })
                == expected.map { $0.0..<$0.1 })
    }

    @Test func deepFlushesSucceed() throws {
        try create(byteCount: 8 << 20)
        let storage = try PersistentMemoryStorage(path: path, isDeepFlushing: true)
        try storage.flush()
        for offset: UInt64 in [0, 1000, 3 << 20, (8 << 20) - 4096] {
            try write(bytes(1, count: 4096), at: offset, to: storage)
        }
        try storage.flush()
        try storage.flush()
        #expect(try storage.readBlocks(at: 3 << 20, count: 4096) == bytes(1, count: 4096))
    }
}
