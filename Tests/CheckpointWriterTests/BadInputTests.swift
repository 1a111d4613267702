import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import CheckpointWriter
import Foundation
import StorageFaults
import Testing

/// A tmpfs of its own, mounted as long as the object lives. Needs root.
final class TemporaryFileSystem {
    static var isPossible: Bool { geteuid() == 0 && run("/bin/mount", ["-V"]) }

    let directory: TemporaryDirectory

    init?(byteCount: Int) throws {
        directory = try TemporaryDirectory()
        let arguments = ["-t", "tmpfs", "-o", "size=\(byteCount)", "tmpfs", directory.path]
        guard Self.run("/bin/mount", arguments) else { return nil }
    }

    deinit { _ = Self.run("/bin/umount", ["-l", directory.path]) }

    func makeReadOnly() -> Bool { Self.run("/bin/mount", ["-o", "remount,ro", directory.path]) }

    private static func run(_ path: String, _ arguments: [String]) -> Bool {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: path)
        process.arguments = arguments
        process.standardOutput = FileHandle.nullDevice
        process.standardError = FileHandle.nullDevice
        guard (try? process.run()) != nil else { return false }
        process.waitUntilExit()
        return process.terminationStatus == 0
    }
}

/// Files that are wrong, full, locked or foreign: a clear error, and not a byte changed.
@Suite struct BadInputTests {
    let directory: TemporaryDirectory
    let path: String

    init() throws {
        directory = try TemporaryDirectory()
        path = directory.file()
    }

    /// Opening `path` for writing throws `code`, says all of `parts`, and changes nothing.
    private func expectRefusal(
        _ code: CheckpointError.Code, _ parts: [String], options: WriterOptions = WriterOptions(),
        _ location: SourceLocation = #_sourceLocation
    ) {
        let before = FileManager.default.contents(atPath: path)
        do throws(CheckpointError) {
            _ = try CheckpointWriter(path: path, options: options)
            Issue.record("nothing was thrown", sourceLocation: location)
        } catch {
            #expect(error.code == code, "\(error)", sourceLocation: location)
            for part in parts {
                #expect(
                    error.message.contains(part), "\"\(part)\" is not in: \(error)",
                    sourceLocation: location)
            }
        }
        #expect(
            FileManager.default.contents(atPath: path) == before, "the file changed",
            sourceLocation: location)
    }

    private func put(_ bytes: [UInt8]) throws {
        try Data(bytes).write(to: URL(fileURLWithPath: path))
    }

    /// A file with one checkpoint, whose identity blocks `change` rewrote; the checksums match.
    private func putImage(identity change: (inout [UInt8]) -> Void) throws {
        var builder = try ImageBuilder()
        builder.commit(
            builder.superblock(generation: 2, anchor: builder.complete(slot: 0, sequence: 1)))
        var block = builder.identity.encoded()
        change(&block)
        let field = IdentityBlock.Layout.checksum
        let digest = Digest(of: block, 0..<field.offset)
        for index in 0..<8 {
            block[field.offset + index] = UInt8(truncatingIfNeeded: digest.low >> (8 * index))
            block[field.offset + 8 + index] = UInt8(truncatingIfNeeded: digest.high >> (8 * index))
        }
        for offset in builder.geometry.identityOffsets { builder.put(block, at: offset) }
        try put(builder.bytes)
    }

    @Test func missingFile() { expectRefusal(.notFound, [path, "pccheck create"]) }

    @Test func wrongMagic() throws {
        try put(Array("%PDF-1.7".utf8) + [UInt8](repeating: 7, count: 100_000))
        expectRefusal(.notACheckpointFile, ["%PDF-1.7", "not a PCcheck file"])
    }

    @Test(arguments: [0, 100, 4096, 30_000])
    func truncated(byteCount: Int) throws {
        try putImage { _ in }
        let whole = try Data(contentsOf: URL(fileURLWithPath: path))
        try whole.prefix(byteCount).write(to: URL(fileURLWithPath: path))
        expectRefusal(.notACheckpointFile, ["\(byteCount) bytes", "truncated"])
    }

    /// Everything can be loaded, but a superblock behind the end would only hide what is missing.
    @Test(arguments: [1, 4096, 12_288])
    func aLostEndIsRestoredBeforeAnythingIsWritten(missing: Int) throws {
        try putImage { _ in }
        let whole = try Data(contentsOf: URL(fileURLWithPath: path))
        try whole.dropLast(missing).write(to: URL(fileURLWithPath: path))
        expectRefusal(.corrupt, ["\(whole.count - missing) bytes", "pcfsck -y"])
        #expect(try loadNewest(path).step == 10)
    }

    @Test func newerVersion() throws {
        try putImage { $0[IdentityBlock.Layout.versionMajor.offset] = 9 }
        expectRefusal(.unsupported, ["version is 9.0", "expected 1", "newer PCcheck"])
    }

    @Test func unknownIncompatibleFeature() throws {
        try putImage { $0[IdentityBlock.Layout.featuresIncompatible.offset] = 0x40 }
        expectRefusal(.unsupported, ["features 0x40", "newer PCcheck"])
    }

    @Test func unknownReadOnlyFeatureStillReads() throws {
        try putImage { $0[IdentityBlock.Layout.featuresReadOnly.offset] = 0x20 }
        expectRefusal(.unsupported, ["features 0x20", "not to write", "newer PCcheck"])
        #expect(try loadNewest(path).step == 10)
    }

    @Test func unknownCompatibleFeatureReadsAndWrites() throws {
        try putImage { $0[IdentityBlock.Layout.featuresCompatible.offset] = 0x10 }
        let writer = try CheckpointWriter(path: path)
        #expect(try writer.outcome(20, pattern(1, count: 1000)) == .durable)
        try writer.close()
        #expect(try loadNewest(path).step == 20)
    }

    @Test func blocksOfAnotherFileAreNotFollowed() throws {
        var builder = try ImageBuilder()
        let anchor = builder.complete(slot: 0, sequence: 1)
        builder.commit(builder.superblock(generation: 2, anchor: anchor))
        var foreign = try ImageBuilder(fileUUID: Identifier128(bytes: Array(0x40..<0x50)))
        let other = foreign.complete(slot: 1, sequence: 9)
        foreign.commit(foreign.superblock(generation: 9, anchor: other))
        let header = foreign.geometry.headerOffset(SlotIndex(1))
        builder.put(Array(foreign.bytes[Int(header)..<Int(header) + 8192]), at: header)
        for offset in foreign.geometry.superblockOffsets(parity: 1) {
            builder.put(Array(foreign.bytes[Int(offset)..<Int(offset) + 4096]), at: offset)
        }
        try put(builder.bytes)
        let writer = try CheckpointWriter(path: path)
        #expect(writer.statistics.newestDurableSequence.rawValue == 1)
        try writer.close()
    }

    @Test func numbersAtTheirEndAreRefusedNotOverflown() throws {
        var builder = try ImageBuilder()
        let anchor = builder.complete(slot: 0, sequence: .max, step: 1)
        builder.commit(builder.superblock(generation: 2, anchor: anchor))
        try put(builder.bytes)
        expectRefusal(.corrupt, ["highest sequence", "pcextract", "new file"])
    }

    @Test func aSecondWriterIsKeptOut() throws {
        try createFile(path)
        let first = try CheckpointWriter(path: path)
        #expect(try first.outcome(1, pattern(1, count: 10)) == .durable)
        expectRefusal(.locked, ["another writer", "this process, \(getpid())", "own path"])
        var options = CheckpointFile.Options(capacity: 4096)
        options.replacesExisting = true
        let replacing = options
        let error = #expect(throws: CheckpointError.self) {
            try CheckpointFile.create(path: path, options: replacing)
        }
        #expect(error?.code == .locked)
        try first.close()
        try CheckpointWriter(path: path).close()
    }

    @Test func otherRanksAndRunsAreKeptOut() throws {
        var creation = CheckpointFile.Options(capacity: 4096)
        creation.rank = 1
        creation.worldSize = 4
        creation.fingerprint = "gpt-small"
        try CheckpointFile.create(path: path, options: creation)
        expectRefusal(.rankMismatch, ["rank 1 of 4", "rank 0 of 1", "own path"])
        var options = WriterOptions()
        options.rank = 1
        options.worldSize = 4
        options.fingerprint = "gpt-large"
        expectRefusal(
            .fingerprintMismatch, ["gpt-small", "gpt-large", "another file"], options: options)
        options.fingerprint = "gpt-small"
        try CheckpointWriter(path: path, options: options).close()
    }

    @Test func anExistingFileIsNotReplacedUnasked() throws {
        try createFile(path)
        let before = FileManager.default.contents(atPath: path)
        let error = #expect(throws: CheckpointError.self) { try createFile(path) }
        #expect(error?.code == .exists)
        #expect(error?.message.contains("choose another path") == true)
        #expect(FileManager.default.contents(atPath: path) == before)
    }

    @Test func aFileInUseIsNotReplacedAndAnIdleOneIs() throws {
        try createFile(path)
        var options = CheckpointFile.Options(capacity: 2 << 20)
        options.replacesExisting = true
        let writer = try CheckpointWriter(path: path)
        let error = #expect(throws: CheckpointError.self) {
            try CheckpointFile.create(path: path, options: options)
        }
        #expect(error?.code == .locked)
        #expect(error?.message.contains("close that writer before replacing it") == true)
        try writer.close()
        try CheckpointFile.create(path: path, options: options)
        let identity = try CheckpointReader(path: path).decision.identity
        #expect(identity.geometry.slotByteCount == 2 << 20)
    }

    @Test func aDirectoryThatIsMissingIsNamed() throws {
        let error = #expect(throws: CheckpointError.self) {
            try createFile(directory.file("none/run.pcc"))
        }
        #expect(error?.code == .notFound)
        #expect(error?.message.contains("directory does not exist") == true)
    }

    @Test(.enabled(if: TemporaryFileSystem.isPossible, "mounting needs root"))
    func aFullDiskAtCreationLeavesNothing() throws {
        let disk = try #require(try TemporaryFileSystem(byteCount: 1 << 20))
        let file = disk.directory.file()
        let error = #expect(throws: CheckpointError.self) {
            try createFile(file, capacity: 8 << 20)
        }
        #expect(error?.code == .noSpace)
        #expect(error?.message.contains("smaller capacity") == true)
        let left = try FileManager.default.contentsOfDirectory(atPath: disk.directory.path)
        #expect(left.isEmpty)
        // A smaller one fits, and works through whatever the file system offers.
        try createFile(file, capacity: 64 << 10)
        for backend in [StorageBackend.automatic, .buffered] {
            var options = WriterOptions()
            options.backend = backend
            let writer = try CheckpointWriter(path: file, options: options)
            #expect(try writer.outcome(1, pattern(1, count: 65_000)) == .durable)
            try writer.close()
        }
        #expect(try loadNewest(file).bytes == pattern(1, count: 65_000))
    }

    @Test(.enabled(if: TemporaryFileSystem.isPossible, "mounting needs root"))
    func aReadOnlyFileIsReadButNotWritten() throws {
        let disk = try #require(try TemporaryFileSystem(byteCount: 4 << 20))
        let file = disk.directory.file()
        try createFile(file, capacity: 64 << 10)
        var writer: CheckpointWriter? = try CheckpointWriter(path: file)
        #expect(try writer?.outcome(1, pattern(1, count: 1000)) == .durable)
        try writer?.close()
        // A file system with a descriptor open for writing cannot be made read-only.
        writer = nil
        try #require(disk.makeReadOnly())
        let error = #expect(throws: CheckpointError.self) { try CheckpointWriter(path: file) }
        #expect(error?.code == .readOnly)
        #expect(error?.message.contains("mounted read-only") == true)
        #expect(try loadNewest(file).step == 1)
    }

    @Test(.enabled(if: geteuid() != 0, "root may write to any file"))
    func aFileWithoutWritePermissionIsRefused() throws {
        try createFile(path)
        try FileManager.default.setAttributes([.posixPermissions: 0o444], ofItemAtPath: path)
        expectRefusal(.readOnly, ["cannot be written"])
    }

    @Test func directAndBufferedFilesReadAlike() throws {
        try createFile(path)
        for (step, backend) in [
            (UInt64(1), StorageBackend.automatic), (2, .buffered), (3, .automatic),
        ] {
            var options = WriterOptions()
            options.backend = backend
            let writer = try CheckpointWriter(path: path, options: options)
            let kind = writer.statistics.storageKind
            #expect(backend == .buffered ? kind == .buffered : [.direct, .buffered].contains(kind))
            let bytes = pattern(step, count: 200_003)
            #expect(try writer.outcome(step, bytes) == .durable)
            try writer.close()
            for reading in [FileStorage.Mode.automatic, .buffered] {
                let reader = try CheckpointReader(path: path, mode: reading)
                let newest = try reader.loadNewest { selected throws(CheckpointError) in
                    try selected.readBytes(0..<200_003)
                }
                #expect(newest.value == bytes)
            }
        }
    }
}
