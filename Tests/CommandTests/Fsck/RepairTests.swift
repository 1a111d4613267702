import CheckpointCommands
import CheckpointFormat
import CheckpointRecovery
import CheckpointWriter
import Foundation
import Testing

/// `pcfsck -y`, its undo file, and what stops it.
@Suite struct RepairTests {
    private func bytes(_ path: String) throws -> Data { try Data(contentsOf: URL(filePath: path)) }

    /// A file of which every superblock copy, the header of the newest slot and one identity
    /// block are damaged.
    private func damaged() throws -> SampleFile {
        let file = try SampleFile()
        let decision = try file.decision()
        let geometry = decision.identity.geometry
        for parity in [0, 1] {
            for offset in geometry.superblockOffsets(parity: parity) {
                try file.damage(offset + 40)
            }
        }
        try file.damage(try #require(decision.candidates.first).headerOffset + 60)
        try file.damage(100)
        return file
    }

    private func undoName(_ file: SampleFile) throws -> String {
        let name = try #require(file.directory.names.first { $0.contains(".undo-") })
        return file.directory.file(name)
    }

    @Test func thePlanIsShownAndNothingIsChanged() throws {
        let file = try damaged()
        let before = try bytes(file.path)
        let run = try ToolRun(.pcfsck, ["-n", file.path])
        #expect(run.status == 4)
        for text in [
            "-p would", "-y would, too", "rewrite the block at byte 0 from the intact copy",
            "write superblock generation 1 at byte 8192, which anchors step 20 in slot 1",
            "write an empty header into slot 2", "verified in full before",
        ] {
            #expect(run.text.contains(text), "\(text) in:\n\(run.text)")
        }
        let json = try ToolRun(.pcfsck, ["--json", file.path]).json()
        let files = try #require(json["files"] as? [[String: Any]])
        let planned = try #require(files[0]["repairs_planned"] as? [[String: Any]])
        let classes = planned.map { $0["class"] as? String }
        #expect(classes == ["safe", "full", "full", "full", "full", "full"])
        #expect(planned.allSatisfy { ($0["action"] as? String)?.isEmpty == false })
        #expect(files[0]["undo_file"] is NSNull)
        #expect(try bytes(file.path) == before)
    }

    @Test func everythingIsRepairedOnceAndTakenBack() throws {
        let file = try damaged()
        let before = try bytes(file.path)
        let run = try ToolRun(.pcfsck, ["-y", file.path])
        #expect(run.status == 1, "\(run.text)\(run.diagnostics)")
        #expect(run.text.contains("6 steps to do") && run.text.contains("6 repairs made"))
        #expect(run.text.contains("loads step 20 from slot 1"))
        let undo = try undoName(file)
        #expect(run.text.contains("pcfsck --apply-undo \(undo) \(file.path)"))

        let repaired = try bytes(file.path)
        let again = try ToolRun(.pcfsck, ["-y", "--verify", "full", file.path])
        #expect(again.status == 0, "\(again.text)")
        #expect(try bytes(file.path) == repaired)
        #expect(file.directory.names.count == 2)

        let taken = try ToolRun(.pcfsck, ["--apply-undo", undo, file.path])
        #expect(taken.status == 0 && taken.text.contains("6 blocks restored"))
        #expect(try bytes(file.path) == before)
        let twice = try ToolRun(.pcfsck, ["--json", "--apply-undo", undo, file.path])
        #expect(twice.status == 0)
        #expect(try twice.json()["restored_block_count"] as? Int == 0)
        #expect(try bytes(file.path) == before)
    }

    /// The mirror, a part of it, or the whole end: what is missing comes from the other copies.
    @Test(arguments: [1, 700, 4096, 5000, 12_288])
    func aLostEndIsRestoredAndTakenBack(missing: UInt64) throws {
        let file = try SampleFile()
        let whole = try bytes(file.path)
        try file.truncate(to: UInt64(whole.count) - missing)
        let cut = try bytes(file.path)

        let before = try ToolRun(.pcfsck, [file.path])
        #expect(before.status == 4 && before.text.contains("PCK-I013"))
        #expect(before.text.contains("loads step 30"), "\(before.text)")
        #expect(try ToolRun(.pcfsck, ["-p", file.path]).status == 4)
        #expect(try bytes(file.path) == cut)
        let summary = try ToolRun(.pcinspect, [file.path])
        #expect(summary.status == 4 && summary.text.contains("the end of the file is missing"))
        let output = file.directory.file("out.safetensors")
        let extracted = try ToolRun(.pcextract, [file.path, "-o", output])
        #expect(extracted.status == 0 && extracted.diagnostics.contains("pcfsck -y"))

        let run = try ToolRun(.pcfsck, ["-y", file.path])
        #expect(run.status == 1, "\(run.text)\(run.diagnostics)")
        #expect(try bytes(file.path) == whole)
        let undo = try undoName(file)
        #expect(try ToolRun(.pcfsck, ["-y", "--verify", "full", file.path]).status == 0)
        let taken = try ToolRun(.pcfsck, ["--apply-undo", undo, file.path])
        #expect(taken.status == 0, "\(taken.diagnostics)")
        #expect(try bytes(file.path) == cut)
        #expect(try ToolRun(.pcfsck, ["--apply-undo", undo, file.path]).status == 0)
        #expect(try bytes(file.path) == cut)
    }

    @Test func aWriterGoesOnAfterARepair() throws {
        let file = try damaged()
        #expect(try ToolRun(.pcfsck, ["-y", file.path]).status == 1)
        let undo = try undoName(file)
        try CheckpointWriter(path: file.path).close()
        #expect(try file.decision().candidates.first?.step == 20)
        // Too late to take it back: the writer's superblock stands on it.
        let late = try ToolRun(.pcfsck, ["--apply-undo", undo, file.path])
        #expect(late.status == 8 && late.diagnostics.contains("was changed since the repair"))
    }

    @Test(arguments: ["-p", "-y"]) func theUndoFileGoesWhereItIsSaid(option: String) throws {
        let file = try damaged()
        let before = try bytes(file.path)
        let undo = file.directory.file("take-it-back")
        let run = try ToolRun(.pcfsck, [option, "--undo", undo, file.path])
        #expect(run.status.isMultiple(of: 2) == false, "\(run.text)")
        #expect(file.directory.names == ["run.pcc", "take-it-back"])
        #expect(try ToolRun(.pcfsck, ["--apply-undo", undo, file.path]).status == 0)
        #expect(try bytes(file.path) == before)
        // The name is taken now, so that nothing is changed.
        let taken = try ToolRun(.pcfsck, [option, "--undo", undo, file.path])
        #expect(taken.status == 4 | 8, "\(taken.text)")
        #expect(taken.text.contains("so nothing is changed"))
        #expect(try bytes(file.path) == before)
    }

    @Test func whatIsNoUndoFileIsRefused() throws {
        let file = try damaged()
        #expect(try ToolRun(.pcfsck, ["-y", file.path]).status == 1)
        let repaired = try bytes(file.path)
        let undo = try undoName(file)
        let other = try SampleFile()
        let foreign = try ToolRun(.pcfsck, ["--apply-undo", undo, other.path])
        #expect(foreign.status == 16 && foreign.diagnostics.contains("of this one"))
        var content = try bytes(undo)
        content[9000] ^= 1
        try content.write(to: URL(filePath: undo))
        for wrong in [undo, file.path, "/dev/null", file.directory.path, "/no/such/file"] {
            let run = try ToolRun(.pcfsck, ["--apply-undo", wrong, file.path])
            #expect(run.status == 16 || run.status == 8, "\(wrong): \(run.diagnostics)")
            #expect(!run.diagnostics.isEmpty)
        }
        #expect(try bytes(file.path) == repaired)
    }

    @Test(arguments: [
        ["--undo", "u"], ["-p", "--undo", "u", "second"], ["-y", "--apply-undo", "u"],
        ["--apply-undo", "u", "second"],
    ])
    func wrongUsageEndsWith16(arguments: [String]) throws {
        #expect(try ToolRun(.pcfsck, arguments + ["file"]).status == 16)
    }

    @Test func aBusyFileIsLeft() throws {
        let file = try SampleFile()
        let writer = try CheckpointWriter(path: file.path)
        try file.damage(3 * 4096 + 5)
        let run = try ToolRun(.pcfsck, ["-y", file.path])
        #expect(run.status == 8, "\(run.text)")
        #expect(run.text.contains("a writer has the file open"))
        #expect(file.directory.names == ["run.pcc"])
        try writer.close()
        #expect(try ToolRun(.pcfsck, ["-y", file.path]).status == 1)
    }

    /// Killed at any moment: the undo file, when there is one, brings every byte back, and a second
    /// repair ends as the first would have.
    @Test func aKilledRepairIsFinishedOrTakenBack() throws {
        let file = try damaged()
        let before = try bytes(file.path)
        let url = URL(filePath: file.path)
        for delay in stride(from: 0.005, through: 0.105, by: 0.01) {
            _ = try ToolRun(
                shell: "timeout -s KILL \(delay) $pcfsck -y '\(file.path)' >/dev/null 2>&1; true")
            let middle = try bytes(file.path)
            if let undo = file.directory.names.first(where: {
                $0.contains(".undo-") && !$0.contains(".creating-")
            }).map(file.directory.file) {
                let taken = try ToolRun(.pcfsck, ["--apply-undo", undo, file.path])
                #expect(taken.status == 0, "\(taken.diagnostics)")
            }
            #expect(try bytes(file.path) == before, "killed after \(delay) s")
            try middle.write(to: url)
            let again = try ToolRun(.pcfsck, ["-y", file.path])
            #expect(again.status <= 1, "killed after \(delay) s: \(again.text)")
            #expect(try file.decision().candidates.first?.step == 20)
            try before.write(to: url)
            for name in file.directory.names where name != "run.pcc" {
                try FileManager.default.removeItem(atPath: file.directory.file(name))
            }
        }
    }

    /// A choice between data is asked about on a terminal; the answer no is the default.
    @Test(arguments: ["y", "n", ""]) func choicesAreAskedAbout(answer: String) throws {
        let file = try SampleFile()
        try repeatSequence(file)
        let before = try bytes(file.path)
        let silent = try ToolRun(.pcfsck, ["-y", file.path])
        #expect(silent.status == 4 && silent.text.contains("a choice between data"))
        #expect(try bytes(file.path) == before)
        let run = try ToolRun(
            shell: """
                (sleep 1; echo '\(answer)') | script -qec "$pcfsck -y '\(file.path)'" /dev/null
                """)
        #expect(run.text.contains("yes or no?"), "\(run.text)")
        let isAgreed = answer == "y"
        #expect(run.status == (isAgreed ? 1 : 4), "\(run.text)")
        #expect(try (bytes(file.path) == before) == !isAgreed)
    }

    /// The newest superblock does not retain slot 0 any more, which repeats the newest sequence.
    private func repeatSequence(_ file: SampleFile) throws {
        let decision = try file.decision()
        let identity = decision.identity
        let writes = try #require(FileHandle(forUpdatingAtPath: file.path))
        defer { try? writes.close() }
        var superblock = try #require(decision.superblock)
        superblock.retained = []
        for offset in identity.geometry.superblockOffsets(parity: superblock.generation.parity) {
            try writes.seek(toOffset: offset)
            try writes.write(contentsOf: Data(superblock.encoded().bytes))
        }
        var header = try #require(decision.slots[0].header)
        header.sequence = try #require(superblock.anchor?.sequence)
        try writes.seek(toOffset: identity.geometry.headerOffset(SlotIndex(0)))
        try writes.write(contentsOf: Data(header.encoded().bytes))
    }
}

/// Repairs where nothing, or not enough, can be written.
@Suite(
    .serialized, .enabled(if: TinyFileSystem.isPossible, "mounting a tmpfs needs root"),
    .timeLimit(.minutes(2)))
struct FullDiskTests {
    private func copy(_ file: SampleFile, to path: String) throws {
        try FileManager.default.copyItem(atPath: file.path, toPath: path)
    }

    @Test func withoutRoomForTheUndoFileNothingIsChanged() throws {
        let file = try SampleFile()
        try file.damage(3 * 4096 + 5)
        let size = try Data(contentsOf: URL(filePath: file.path)).count
        let disk = try TinyFileSystem(byteCount: size + 4096)
        let path = disk.path + "/run.pcc"
        try copy(file, to: path)
        let run = try ToolRun(.pcfsck, ["-y", path])
        #expect(run.status == 8 && run.text.contains("No space left"), "\(run.text)")
        #expect(run.text.contains("so nothing is changed"))
        #expect(disk.names == ["run.pcc"])
        #expect(FileManager.default.contentsEqual(atPath: path, andPath: file.path))
        // Elsewhere there is room.
        let undo = file.directory.file("undo")
        #expect(try ToolRun(.pcfsck, ["-y", "--undo", undo, path]).status == 1)
    }

    @Test func aReadOnlyFileIsLeft() throws {
        let file = try SampleFile()
        try file.damage(3 * 4096 + 5)
        let disk = try TinyFileSystem(byteCount: 16 << 20)
        let path = disk.path + "/run.pcc"
        try copy(file, to: path)
        try disk.makeReadOnly()
        #expect(try ToolRun(.pcfsck, [path]).status == 0)
        let run = try ToolRun(.pcfsck, ["-y", path])
        #expect(run.status == 8 && run.text.contains("mounted read-only"), "\(run.text)")
        let output = file.directory.file("out.pcc")
        let rescue = try ToolRun(.pccheck, ["rescue", path, "--step", "20", "--output", output])
        #expect(rescue.status == 0, "\(rescue.diagnostics)")
    }

    @Test func aRescueThatDoesNotFitLeavesNothing() throws {
        let file = try SampleFile()
        let disk = try TinyFileSystem(byteCount: 256 << 10)
        let output = disk.path + "/out.pcc"
        let run = try ToolRun(.pccheck, ["rescue", file.path, "--step", "20", "--output", output])
        #expect(run.status == 8 && run.diagnostics.contains("No space left"), "\(run.diagnostics)")
        #expect(disk.names.isEmpty)
    }
}
