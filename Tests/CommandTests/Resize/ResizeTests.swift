import CheckpointCommands
import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import CheckpointWriter
import Foundation
import Synchronization
import Testing

/// `pccheck resize` with the real binary.
@Suite struct ResizeTests {
    private func bytes(_ path: String) throws -> Data { try Data(contentsOf: URL(filePath: path)) }

    private func resize(_ arguments: [String]) throws -> ToolRun {
        try ToolRun(.pccheck, ["resize"] + arguments)
    }

    /// The steps and payload digests that can be loaded, newest first; every byte verified.
    private func content(_ path: String) throws -> [String] {
        let storage = try FileStorage(path: path, access: .read)
        let decision = try SlotSelection.decide(MetadataImage.read(from: storage))
        return try decision.candidates.map { candidate in
            try SlotVerifier.verify(candidate, in: storage)
            try SlotVerifier.verifyManifest(candidate, in: storage)
            return "\(candidate.step) \(candidate.sequence) \(candidate.header.logicalDigest) "
                + "\(candidate.kind) \(candidate.header.userMetadata)"
        }
    }

    @Test(arguments: [Codec.none, .zstd, .planesZstd])
    func everyCheckpointIsKept(codec: Codec) throws {
        let file = try SampleFile(codec: codec)
        let before = try content(file.path)
        try FileManager.default.setAttributes([.posixPermissions: 0o640], ofItemAtPath: file.path)
        let run = try resize([file.path, "--capacity", "3M", "--in-flight", "2", "--retain", "5"])
        #expect(run.status == 0, "\(run.diagnostics)")
        #expect(run.text.contains("2 in flight + 5 retained slots of 3 MiB"), "\(run.text)")
        #expect(run.text.contains("keeps step 30"))
        #expect(try content(file.path) == before)
        let check = try ToolRun(.pcfsck, ["--verify", "full", file.path])
        #expect(check.status == 0 && check.text.contains("clean"), "\(check.text)")
        #expect(file.directory.names == ["run.pcc"])
        let mode = try FileManager.default.attributesOfItem(atPath: file.path)[.posixPermissions]
        #expect(mode as? Int == 0o640)
        // It goes on above every number that was given.
        let writer = try CheckpointWriter(path: file.path)
        #expect(writer.recovered?.candidate.step == 30)
        try writer.close()
        #expect(try content(file.path) == before)
    }

    @Test func theNewestIsKeptWhereFewerAreRetained() throws {
        let file = try SampleFile()
        let before = try content(file.path)
        let run = try resize([file.path, "--retain", "2", "--capacity", "128K"])
        #expect(run.status == 0, "\(run.diagnostics)")
        #expect(run.text.contains("drops step 10: the file retains 2"), "\(run.text)")
        #expect(try content(file.path) == Array(before.prefix(2)))
        #expect(try resize([file.path, "--retain", "1"]).status == 0)
        #expect(try content(file.path) == Array(before.prefix(1)))
        #expect(try ToolRun(.pcfsck, ["--verify", "full", file.path]).status == 0)
    }

    @Test func whatDoesNotFitChangesNothing() throws {
        let file = try SampleFile()
        let before = try bytes(file.path)
        let run = try resize([file.path, "--capacity", "64K"])
        #expect(run.status == 8)
        #expect(run.diagnostics.contains("the newest checkpoint, of step 30, takes"))
        #expect(run.diagnostics.contains("choose a capacity of at least"))
        let huge = try resize([file.path, "--capacity", "1T"])
        #expect(huge.status == 8, "\(huge.text)")
        #expect(huge.diagnostics.contains("No space left on device"), "\(huge.diagnostics)")
        #expect(huge.diagnostics.contains("beside the old file, which stays as it is"))
        #expect(!huge.diagnostics.contains("choose a smaller capacity"), "\(huge.diagnostics)")
        #expect(try resize([file.path, "--in-flight", "65"]).status == 16)
        #expect(try resize([file.path]).status == 16)
        #expect(try bytes(file.path) == before)
        #expect(file.directory.names == ["run.pcc"])
    }

    @Test func aDryRunWritesNothing() throws {
        let file = try SampleFile()
        let before = try bytes(file.path)
        let run = try resize([file.path, "--retain", "1", "--dry-run"])
        #expect(run.status == 0 && run.text.contains("this was a dry run"), "\(run.text)")
        #expect(run.text.contains("would become 1 in flight + 1 retained"))
        let same = try resize([file.path, "--retain", "3"])
        #expect(same.status == 0 && same.text.contains("nothing was changed"), "\(same.text)")
        #expect(try bytes(file.path) == before)
    }

    @Test func aFileThatAWriterHasIsRefused() throws {
        let file = try SampleFile()
        let writer = try CheckpointWriter(path: file.path)
        let run = try resize([file.path, "--retain", "1"])
        #expect(run.status == 8)
        #expect(run.diagnostics.contains("another writer has it open (process "))
        try writer.close()
        #expect(try resize([file.path, "--retain", "1"]).status == 0)
    }

    /// What a resize drops is gone: damage is listed, and is the exit status, a dry run's too.
    @Test(arguments: [20, 30] as [UInt64])
    func aDamagedOneIsDroppedAndListed(step: UInt64) throws {
        let file = try SampleFile()
        let storage = try FileStorage(path: file.path, access: .write, mode: .buffered)
        let decision = try SlotSelection.decide(MetadataImage.read(from: storage))
        let candidate = try #require(decision.candidates.first { $0.step == step })
        try storage.writeBlocks([UInt8](repeating: 0xA5, count: 4096), at: candidate.dataOffset)
        for options in [["--dry-run"], []] {
            let run = try resize([file.path, "--capacity", "2M"] + options)
            #expect(run.status == 4, "\(run.diagnostics)")
            #expect(run.text.contains("drops step \(step): it is damaged"), "\(run.text)")
        }
        let kept = step == 20 ? ["30", "10"] : ["20", "10"]
        #expect(try content(file.path).map { String($0.prefix(2)) } == kept)
    }

    /// The header of the anchored one, which no slot then has.
    @Test func aNewestWithoutAHeaderIsListed() throws {
        let file = try SampleFile()
        let storage = try FileStorage(path: file.path, access: .write, mode: .buffered)
        let newest = try #require(
            SlotSelection.decide(MetadataImage.read(from: storage)).candidates.first)
        try storage.writeBlocks(
            [UInt8](repeating: 0xA5, count: 4096), at: newest.header.ownOffset)
        let run = try resize([file.path, "--capacity", "2M"])
        #expect(run.status == 4, "\(run.diagnostics)")
        #expect(run.text.contains("drops step 30: it is damaged: the header"), "\(run.text)")
        #expect(try content(file.path).map { $0.prefix(2) } == ["20", "10"])
    }

    /// Killed at any moment, it leaves the old shape or the new one, with every checkpoint. What is
    /// left beside it goes with the next one.
    @Test(.timeLimit(.minutes(2))) func aKillLosesNothing() throws {
        let file = try SampleFile()
        let before = try content(file.path)
        let run = try ToolRun(
            shell: """
                cd '\(file.directory.path)'
                for i in $(seq 1 30); do
                    $pccheck resize run.pcc --retain $((3 + i % 2)) --in-flight $((1 + i % 3)) \
                        --capacity $((1 + i % 2))0M > /dev/null 2>&1 & p=$!
                    sleep 0.0$((i * 13 % 100))
                    kill -9 $p 2> /dev/null
                    wait $p 2> /dev/null
                    $pcfsck --verify full run.pcc > report || cat report
                    [ $(ls | grep -c creating) -gt 1 ] && ls
                done
                $pccheck resize run.pcc --retain 5 > report || cat report
                rm report
                """)
        #expect(run.text.isEmpty, "\(run.text)")
        #expect(try content(file.path) == before)
        #expect(file.directory.names == ["run.pcc"])
    }

    /// Whoever opened the old file before the resize, and gets its lock afterwards, must not write
    /// checkpoints that nobody finds.
    @Test func aWriterOfTheReplacedFileIsRefused() throws {
        let file = try SampleFile()
        let opened = try FileStorage(path: file.path, access: .write)
        #expect(try resize([file.path, "--retain", "1"]).status == 0)
        #expect(!opened.isAtItsPath)
        let error = #expect(throws: CheckpointError.self) { try CheckpointWriter(storage: opened) }
        #expect(error?.code == .locked)
        #expect(error?.message.contains("open it again") == true)
    }

    /// Every pass over the checkpoints can be followed and ended: those that verify the old file,
    /// the copy, and the one that reads the new file.
    @Test(arguments: [false, true]) func aResizeIsFollowedAndCancelled(isDryRun: Bool) throws {
        let file = try SampleFile()
        let before = try bytes(file.path)
        let shape = CheckpointFile.Shape(retain: 5)
        let cancelled = CheckpointError.Code(rawValue: -1)
        let seen = Mutex<[UInt64]>([])
        let payloads = try file.decision().candidates.map(\.header.payloadByteCount)
        let total = 3 * payloads.reduce(0, +)
        for limit in [payloads[0], total / 3, total / 3 + 1, total * 2 / 3 + 1] {
            if isDryRun, limit > total / 3 { break }
            let error = #expect(throws: CheckpointError.self) {
                try CheckpointFile.resize(path: file.path, to: shape, isDryRun: isDryRun) {
                    done, all throws(CheckpointError) in
                    #expect(all == total)
                    if done >= limit { throw CheckpointError(cancelled, "enough") }
                }
            }
            #expect(error?.code == cancelled, "\(limit) of \(total)")
            #expect(try bytes(file.path) == before && file.directory.names == ["run.pcc"])
        }
        _ = try CheckpointFile.resize(path: file.path, to: shape, isDryRun: isDryRun) { done, _ in
            seen.withLock { $0.append(done) }
        }
        #expect(seen.withLock { $0.max() } == (isDryRun ? total / 3 : total))
    }

    /// A symbolic link stays one, and the file behind it is the new one.
    @Test func aLinkStays() throws {
        let file = try SampleFile()
        let link = file.directory.file("link.pcc")
        try FileManager.default.createSymbolicLink(
            atPath: link, withDestinationPath: "run.pcc")
        #expect(try resize([link, "--capacity", "2M"]).status == 0)
        #expect(
            try FileManager.default.destinationOfSymbolicLink(atPath: link) == "run.pcc")
        let identity = try CheckpointReader(path: file.path).decision.identity
        #expect(identity.geometry.slotByteCount == 2 << 20)
    }
}
