import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import CheckpointWriter
import Foundation
import Logging
import StorageFaults
import Testing

/// libpmem2 takes tmpfs for cache-line memory when it is told to.
private enum ForcedGranularity {
    static let folder = "/dev/shm"
    static var isPossible: Bool { FileManager.default.isWritableFile(atPath: folder) }
    /// Set once and never unset in this process: other tests read the environment meanwhile.
    // Safe: the strings are passed as C strings for the call.
    static let cacheLine: Bool = unsafe setenv("PMEM2_FORCE_GRANULARITY", "CACHE_LINE", 1) == 0
}

/// The writer over real libpmem2, on files in memory with forced granularity.
@Suite(.enabled(if: ForcedGranularity.isPossible, "there is no writable /dev/shm"))
struct PersistentMemoryWriterTests {
    let directory: TemporaryDirectory
    let path: String

    init() throws {
        try #require(ForcedGranularity.cacheLine)
        directory = try TemporaryDirectory(in: ForcedGranularity.folder)
        path = directory.file()
    }

    private func options(isDeepFlushing: Bool = false) -> WriterOptions {
        var options = WriterOptions()
        options.backend = .persistentMemory
        options.isDeepFlushing = isDeepFlushing
        return options
    }

    @Test(arguments: [0, 1, 4095, 65536, 65537, 300_001, 1 << 20], [false, true])
    func bytesComeBackWhateverTheirCount(count: Int, isDeepFlushing: Bool) throws {
        try createFile(path)
        let bytes = pattern(UInt64(count), count: count)
        let writer = try CheckpointWriter(
            path: path, options: options(isDeepFlushing: isDeepFlushing))
        #expect(try writer.outcome(7, bytes) == .durable)
        #expect(writer.statistics.storageKind == .persistentMemory)
        #expect(writer.statistics.storageFallbackReason == nil)
        let detail = try #require(writer.statistics.storageDetail)
        #expect(detail.contains("cache line granularity"))
        #expect(detail.contains("deep flushes") == isDeepFlushing)
        try writer.close()
        let newest = try loadNewest(path)
        #expect(newest.step == 7 && newest.bytes == bytes)
        let superblock = try CheckpointReader(path: path).decision.superblock
        #expect(superblock?.storageKind == .persistentMemory)
    }

    @Test(arguments: Codec.allCases) func codecsRestoreEveryByte(codec: Codec) throws {
        try createFile(path)
        let bytes = (0..<500_000).map { UInt8(truncatingIfNeeded: $0 / 1000) }
        var options = options()
        options.codec = codec
        let writer = try CheckpointWriter(path: path, options: options)
        #expect(try writer.outcome(1, bytes) == .durable)
        try writer.close()
        #expect(try loadNewest(path).bytes == bytes)
    }

    @Test func manyInFlightAllEndAndTheNewestIsFound() throws {
        try createFile(path, capacity: 4 << 20, inFlight: 4, retain: 2)
        let writer = try CheckpointWriter(path: path, options: options())
        let tickets = try (1...40).map { try writer.save($0, pattern($0, count: 2_500_000)) }
        try writer.close()
        for ticket in tickets {
            switch ticket.outcome {
            case .durable: break
            case .superseded(let by): #expect(by > ticket.sequence)
            case let other: Issue.record("step \(ticket.step): \(String(describing: other))")
            }
        }
        let newest = try loadNewest(path)
        #expect(newest.step == 40 && newest.bytes == pattern(40, count: 2_500_000))
    }

    /// What a crash of the process leaves is found again, whichever way the file is opened next.
    @Test(arguments: [StorageBackend.persistentMemory, .automatic, .buffered])
    func anAbandonedFileGoesOn(next: StorageBackend) throws {
        try createFile(path, capacity: 4 << 20, inFlight: 2, retain: 2)
        let first = try CheckpointWriter(path: path, options: options())
        #expect(try first.outcome(1, pattern(1, count: 3_000_000)) == .durable)
        #expect(try first.outcome(2, pattern(2, count: 3_000_000)) == .durable)
        _ = try first.save(3, pattern(3, count: 3_000_000))
        first.abandon()
        let left = try loadNewest(path)
        #expect(left.step >= 2 && left.bytes == pattern(left.step, count: 3_000_000))
        var options = WriterOptions()
        options.backend = next
        let second = try CheckpointWriter(path: path, options: options)
        #expect(second.statistics.newestDurableStep == left.step)
        #expect(try second.outcome(10, pattern(10, count: 1_000_000)) == .durable)
        try second.close()
        #expect(try loadNewest(path).bytes == pattern(10, count: 1_000_000))
    }

    @Test func thereIsOneWriter() throws {
        try createFile(path)
        let writer = try CheckpointWriter(path: path, options: options())
        for backend in [StorageBackend.persistentMemory, .buffered] {
            var options = WriterOptions()
            options.backend = backend
            let error = #expect(throws: CheckpointError.self) {
                try CheckpointWriter(path: path, options: options)
            }
            #expect(error?.code == .locked)
        }
        try writer.close()
    }

    @Test func aTruncatedFileIsRefused() throws {
        try createFile(path)
        let handle = try FileHandle(forUpdating: URL(filePath: path))
        try handle.truncate(atOffset: 300_000)
        try handle.close()
        let error = #expect(throws: CheckpointError.self) {
            try CheckpointWriter(path: path, options: options())
        }
        #expect(error?.message.contains("truncated") == true)
    }

    @Test(.enabled(if: TemporaryFileSystem.isPossible, "mounting needs root"))
    func holesThatCannotBeFilledAreAnErrorAndNoSignal() throws {
        let disk = try #require(try TemporaryFileSystem(byteCount: 1 << 20))
        let file = disk.directory.file()
        try createFile(path)
        // A sparse copy, as a careless backup makes it, on a file system that is too small.
        let process = Process()
        process.executableURL = URL(filePath: "/bin/cp")
        process.arguments = ["--sparse=always", path, file]
        try process.run()
        process.waitUntilExit()
        try #require(process.terminationStatus == 0)
        let error = #expect(throws: CheckpointError.self) {
            try CheckpointWriter(path: file, options: options())
        }
        #expect(error?.code == .noSpace)
        #expect(error?.message.contains("holes") == true)
    }

    // MARK: Unsafe shutdowns

    /// A file of three checkpoints whose newest, step 3, has rotten; the last writer saw `count`
    /// unsafe shutdowns.
    private func damagedMedium(count: UInt64, isClosed: Bool) throws -> MemoryStorage {
        let medium = try MemoryStorage(
            contents: memoryFile(inFlight: 1, retain: 2).contents)
        let storage = PowerCountingStorage(medium, unsafeShutdownCount: count)
        let writer = try CheckpointWriter(storage: storage)
        for step in 1...3 {
            #expect(try writer.outcome(UInt64(step), pattern(UInt64(step), count: 100)) == .durable)
        }
        if isClosed { try writer.close() } else { writer.abandon() }
        let newest = try #require(CheckpointReader(storage: medium).decision.candidates.first)
        #expect(newest.step == 3)
        medium.flip(1, at: newest.dataOffset + 5)
        return medium
    }

    @Test(arguments: [
        // count recorded, count found, closed cleanly, step gone on from although trusted
        (UInt64(4), UInt64(4), false, UInt64(3)), (4, 5, true, 3), (4, 3, false, 3),
        (4, 5, false, 2), (0, 1, false, 2),
    ])
    func afterAnUnsafeShutdownNoAnchorIsTrusted(
        recorded: UInt64, found: UInt64, isClosed: Bool, expectedStep: UInt64
    ) throws {
        let medium = try damagedMedium(count: recorded, isClosed: isClosed)
        #expect(
            try CheckpointReader(storage: medium).decision.superblock?.unsafeShutdownCount
                == recorded)
        let log = CapturedLog()
        var options = WriterOptions()
        options.trustsAnchor = true
        options.logger = Logger(label: "test") { _ in log }
        let writer = try CheckpointWriter(
            storage: PowerCountingStorage(medium, unsafeShutdownCount: found), options: options)
        #expect(writer.statistics.newestDurableStep == expectedStep)
        #expect(log.has(.warning, "power was lost") == (expectedStep == 2))
        writer.abandon()
        let superblock = try CheckpointReader(storage: medium).decision.superblock
        #expect(superblock?.unsafeShutdownCount == found)
    }

    /// The count of a medium that nobody wrote as persistent memory says nothing.
    @Test func theFirstUseAsPersistentMemoryIsNoPowerLoss() throws {
        let medium = try MemoryStorage(contents: memoryFile().contents)
        let first = try CheckpointWriter(storage: medium)
        #expect(try first.outcome(1, pattern(1, count: 100)) == .durable)
        first.abandon()
        let log = CapturedLog()
        var options = WriterOptions()
        options.logger = Logger(label: "test") { _ in log }
        let second = try CheckpointWriter(
            storage: PowerCountingStorage(medium, unsafeShutdownCount: 9), options: options)
        #expect(!log.has(.warning, "power was lost"))
        try second.close()
        let superblock = try CheckpointReader(storage: medium).decision.superblock
        #expect(superblock?.unsafeShutdownCount == 9)
        #expect(superblock?.isCleanClose == true)
    }
}

/// Memory that says it is persistent, and how often it lost power.
private final class PowerCountingStorage: Storage {
    private let medium: MemoryStorage
    let unsafeShutdownCount: UInt64
    let kind = StorageKind.persistentMemory

    init(_ medium: MemoryStorage, unsafeShutdownCount: UInt64) {
        self.medium = medium
        self.unsafeShutdownCount = unsafeShutdownCount
    }

    var byteCount: UInt64 { medium.byteCount }
    var path: String { medium.path }

    func read(
        into buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64
    ) throws(StorageError) {
        try medium.read(into: buffer, range, at: offset)
    }

    func write(
        _ buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64
    ) throws(StorageError) {
        try medium.write(buffer, range, at: offset)
    }

    func flush() throws(StorageError) { try medium.flush() }

    func tryLock(_ byte: LockByte, exclusive: Bool) throws(StorageError) -> Bool {
        try medium.tryLock(byte, exclusive: exclusive)
    }

    func unlock(_ byte: LockByte) throws(StorageError) { try medium.unlock(byte) }
}
