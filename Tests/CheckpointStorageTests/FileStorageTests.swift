import CheckpointFormat
@testable import CheckpointStorage
import Foundation
import Testing

@Suite final class FileStorageTests {
    private let directory: URL
    private var path: String { directory.appendingPathComponent("file").path }

    init() throws {
        directory = FileManager.default.temporaryDirectory
            .appendingPathComponent("pccheck-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(at: directory) }

    private var entries: [String] {
        get throws { try FileManager.default.contentsOfDirectory(atPath: directory.path) }
    }

    private func create(blockCount: Int) throws {
        let bytes = [UInt8](repeating: 0, count: blockCount * Limits.blockByteCount)
        try Data(bytes).write(to: URL(fileURLWithPath: path))
    }

    @Test(arguments: [FileStorage.Mode.automatic, .buffered])
    func whatIsWrittenIsRead(mode: FileStorage.Mode) throws {
        try create(blockCount: 4)
        let storage = try FileStorage(path: path, access: .write, mode: mode)
        #expect(storage.byteCount == 4 * 4096)
        let bytes = (0..<8192).map { UInt8(truncatingIfNeeded: $0 / 7) }
        try storage.writeBlocks(bytes, at: 4096)
        try storage.flush()
        storage.discardCache()
        #expect(try storage.readBlocks(at: 4096, count: 8192) == bytes)
        #expect(try storage.readBlocks(at: 0, count: 4096) == [UInt8](repeating: 0, count: 4096))
    }

    @Test(arguments: [
        (UInt32(512), UInt32(4), true), (4096, 4096, true), (4096, 512, true), (1, 1, true),
        (8192, 512, false), (512, 65_536, false), (520, 4, false), (4096, 3072, false),
        (0, 0, false), (512, 0, false),
    ])
    func directTransfersNeedAnAlignmentThatOurBlocksHave(
        offsetAlignment: UInt32, memoryAlignment: UInt32, isDirect: Bool
    ) {
        #expect(
            FileStorage.allowsDirect(
                offsetAlignment: offsetAlignment, memoryAlignment: memoryAlignment) == isDirect)
    }

    /// What a repair of a lost end asks for: the bytes that are there, zeros behind them, and the
    /// size back.
    @Test(arguments: [FileStorage.Mode.automatic, .buffered], [1, 512, 3996, 4096])
    func aFileIsExtendedAndCut(mode: FileStorage.Mode, lastByteCount: Int) throws {
        let bytes = [UInt8](repeating: 7, count: 4096 + lastByteCount)
        try Data(bytes).write(to: URL(fileURLWithPath: path))
        let storage = try FileStorage(path: path, access: .write, mode: mode)
        #expect(storage.byteCount == UInt64(bytes.count))
        let last =
            [UInt8](repeating: 7, count: lastByteCount)
            + [UInt8](repeating: 0, count: 4096 - lastByteCount)
        let zeros = [UInt8](repeating: 0, count: 4096)
        #expect(try storage.readPaddedBlock(at: 4096) == last)
        #expect(try storage.readPaddedBlock(at: 8192) == zeros)
        try storage.resize(to: 12_288)
        #expect(storage.byteCount == 12_288)
        #expect(try storage.readBlocks(at: 4096, count: 8192) == last + zeros)
        try storage.resize(to: UInt64(bytes.count))
        #expect(try Data(contentsOf: URL(fileURLWithPath: path)) == Data(bytes))
    }

    @Test func aFileOpenForReadingKeepsItsSize() throws {
        try create(blockCount: 2)
        let storage = try FileStorage(path: path, access: .read)
        let error = #expect(throws: StorageError.self) { try storage.resize(to: 4096) }
        #expect(error?.operation == "ftruncate" && error?.osErrorNumber == EINVAL)
        #expect(storage.byteCount == 8192)
    }

    @Test func readingBeyondTheEndSaysThatTheFileIsTruncated() throws {
        try create(blockCount: 2)
        let storage = try FileStorage(path: path, access: .read)
        let error = #expect(throws: StorageError.self) {
            try storage.readBlocks(at: 4096, count: 8192)
        }
        #expect(error?.byteOffset == 4096)
        #expect("\(try #require(error))".contains("only 4096 bytes are there"))
    }

    @Test func writingThroughAReadOnlyDescriptorFails() throws {
        try create(blockCount: 1)
        let storage = try FileStorage(path: path, access: .read)
        let error = #expect(throws: StorageError.self) {
            try storage.writeBlocks([UInt8](repeating: 1, count: 4096), at: 0)
        }
        #expect(error?.operation == "pwrite")
    }

    @Test func whatIsNoFileIsRefused() throws {
        #expect(throws: StorageError.self) {
            try FileStorage(path: directory.path, access: .write)
        }
        let device = #expect(throws: StorageError.self) {
            try FileStorage(path: "/dev/null", access: .read, mode: .buffered)
        }
        #expect("\(try #require(device))".contains("neither a regular file nor a block device"))
    }

    @Test func locksExcludeOtherOpenersAlsoInThisProcess() throws {
        try create(blockCount: 1)
        let first = try FileStorage(path: path, access: .write)
        var second: FileStorage? = try FileStorage(path: path, access: .write)
        let slot = LockByte.slot(SlotIndex(3))
        #expect(try first.tryLock(.writer, exclusive: true))
        #expect(try second?.tryLock(.writer, exclusive: true) == false)
        #expect(try first.tryLock(slot, exclusive: false))
        #expect(try second?.tryLock(slot, exclusive: false) == true)
        #expect(try first.tryLock(slot, exclusive: true) == false)
        // Closing releases what the opener held, and nothing else.
        second = nil
        #expect(try first.tryLock(slot, exclusive: true))
        try first.unlock(.writer)
        let third = try FileStorage(path: path, access: .write)
        #expect(try third.tryLock(.writer, exclusive: true))
        #expect(try third.tryLock(slot, exclusive: false) == false)
    }

    /// Opens a file in a process without standard streams, whose numbers are free then.
    static func descriptorWithoutStreams(_ mode: FileStorage.Mode) throws -> Int32 {
        let path = FileManager.default.temporaryDirectory.path + "/pccheck-\(UUID().uuidString)"
        try Data(count: Limits.blockByteCount).write(to: URL(fileURLWithPath: path))
        defer { try? FileManager.default.removeItem(atPath: path) }
        for stream in 0...2 as ClosedRange<Int32> { close(stream) }
        return try FileStorage(path: path, access: .write, mode: mode).descriptor
    }

    /// What such a program prints must not go into the file.
    @Test func aFileNeverTakesTheNumberOfAStandardStream() async {
        await #expect(processExitsWith: .success) {
            exit(try FileStorageTests.descriptorWithoutStreams(.automatic) > 2 ? 0 : 1)
        }
        await #expect(processExitsWith: .success) {
            exit(try FileStorageTests.descriptorWithoutStreams(.buffered) > 2 ? 0 : 1)
        }
    }

    /// What a killed program left goes; what is still being made, and files of other names, stay.
    @Test func aNewFileAppearsOnlyWhenItIsPublished() throws {
        do {
            var file = try NewFile(beside: path, byteCount: 8192)
            #expect(try entries.count == 1)
            #expect(!FileManager.default.fileExists(atPath: path))
            try file.publish(replacing: false)
        }
        #expect(try entries == ["file"])
        #expect(try FileStorage(path: path, access: .read).byteCount == 8192)
    }

    /// A name that the file system takes is one that a file can be made under.
    @Test(arguments: ["", "x", "ä", "🐍"])
    func aSuffixNeverMakesANameTooLong(character: String) throws {
        let count = character.isEmpty ? 0 : 255 / character.utf8.count
        let name = "f" + String(repeating: character, count: max(count - 1, 0))
        let folder = directory.path
        let path = SiblingPath.path(beside: "\(folder)/\(name)", suffix: ".creating-123")
        let made = String(path.dropFirst(folder.utf8.count + 1))
        #expect(path.hasPrefix("\(folder)/f") && path.hasSuffix(".creating-123"))
        #expect(made.utf8.count <= 255)
        #expect(name.hasPrefix(made.dropLast(13)))
        var file = try NewFile(beside: "\(folder)/\(name)", byteCount: 8192)
        try file.publish(replacing: false)
        #expect(try entries == [name])
    }

    @Test func aNameThatIsTooLongIsNamed() {
        let name = String(repeating: "x", count: 256)
        let error = { () -> StorageError? in
            do throws(StorageError) {
                var file = try NewFile(beside: "\(directory.path)/\(name)", byteCount: 8192)
                try file.publish(replacing: false)
                return nil
            } catch {
                return error
            }
        }()
        #expect(error?.osErrorNumber == 36)
        #expect(error?.description.contains("give a shorter name") == true)
    }

    @Test func anUnpublishedFileLeavesNothing() throws {
        do {
            let file = try NewFile(beside: path, byteCount: 8192)
            #expect(FileManager.default.fileExists(atPath: file.temporaryPath))
        }
        #expect(try entries.isEmpty)
    }

    @Test func publishingDoesNotReplaceUnasked() throws {
        try create(blockCount: 1)
        var file = try NewFile(beside: path, byteCount: 8192)
        let error = { () -> StorageError? in
            do throws(StorageError) {
                try file.publish(replacing: false)
                return nil
            } catch {
                return error
            }
        }()
        #expect(error?.osErrorNumber == 17)
        #expect(try FileStorage(path: path, access: .read).byteCount == 4096)
        try file.publish(replacing: true)
        #expect(try FileStorage(path: path, access: .read).byteCount == 8192)
        #expect(try entries == ["file"])
    }

    @Test func aFileTooLargeForTheDiskLeavesNothing() throws {
        let error = { () -> StorageError? in
            do throws(StorageError) {
                _ = try NewFile(beside: path, byteCount: 1 << 52)
                return nil
            } catch {
                return error
            }
        }()
        #expect(["fallocate"] == [error?.operation])
        #expect(try entries.isEmpty)
    }

    @Test func aPoolIsOneAlignedRegionAndNeverMoreThanThereIs() throws {
        let pool = try #require(StagingMemory(byteCount: 3 << 20))
        let region = unsafe pool.region
        #expect(region.count == 3 << 20)
        #expect(UInt(bitPattern: region.baseAddress) % (2 << 20) == 0)
        let available = StagingMemory.availableByteCount
        #expect(available > 0)
        // Refused before it is touched: touching it would end this process.
        #expect(StagingMemory(byteCount: Int(clamping: available) / 2 * 3) == nil)
        #expect(StagingMemory(byteCount: Int.max) == nil)
    }
}
