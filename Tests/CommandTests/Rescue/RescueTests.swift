import CheckpointCommands
import CheckpointFormat
import CheckpointRecovery
import CheckpointWriter
import Foundation
import Testing

/// `pccheck rescue` with the real binary.
@Suite struct RescueTests {
    private func bytes(_ path: String) throws -> Data { try Data(contentsOf: URL(filePath: path)) }

    private func rescue(_ arguments: [String]) throws -> ToolRun {
        try ToolRun(.pccheck, ["rescue"] + arguments)
    }

    private func loadedStep(_ path: String) throws -> UInt64 {
        try CheckpointReader(path: path).loadNewest { selected throws(CheckpointError) in
            try selected.verify()
            return selected.candidate.step
        }.value
    }

    @Test func aNewFileGoesBack() throws {
        let file = try SampleFile()
        let before = try bytes(file.path)
        let out = file.directory.file("out.pcc")
        let run = try rescue([file.path, "--step", "10", "--output", out])
        #expect(run.status == 0, "\(run.diagnostics)")
        for text in [
            "loads step 10 from slot 0 then", "every byte of it was verified",
            "set aside step 20 in slot 1", "set aside step 30 in slot 2", "loads step 10",
        ] {
            #expect(run.text.contains(text), "\(text) in:\n\(run.text)")
        }
        #expect(try bytes(file.path) == before)
        #expect(try loadedStep(out) == 10)
        #expect(try ToolRun(.pcfsck, ["--verify", "full", out]).status == 0)
        #expect(file.directory.names == ["out.pcc", "run.pcc"])

        // What was set aside comes back, and goes on from there.
        let forward = file.directory.file("forward.pcc")
        #expect(try rescue([out, "--promote", "2", "--output", forward]).status == 0)
        #expect(try loadedStep(forward) == 30)
        let writer = try CheckpointWriter(path: forward)
        try writer.close()
        let sequence = try CheckpointReader(path: forward).decision.superblock?.sequenceLimit ?? 0
        #expect(sequence > 3)
    }

    /// All data is there, so that the new file is a whole one.
    @Test(arguments: [100, 12_288] as [UInt64]) func aLostEndIsRescued(missing: UInt64) throws {
        let file = try SampleFile()
        let whole = try bytes(file.path)
        try file.truncate(to: UInt64(whole.count) - missing)
        let output = file.directory.file("rescued.pcc")
        let run = try rescue([file.path, "--step", "20", "--output", output])
        #expect(run.status == 0, "\(run.text)\(run.diagnostics)")
        #expect(!run.text.contains("unreadable"), "\(run.text)")
        #expect(try ToolRun(.pcfsck, ["--verify", "full", output]).status == 0)
        #expect(try loadedStep(output) == 20)
        let undo = file.directory.file("undo")
        let cut = try bytes(file.path)
        let place = try rescue([file.path, "--step", "20", "--in-place", "--undo", undo])
        #expect(place.status == 0, "\(place.text)\(place.diagnostics)")
        #expect(try ToolRun(.pcfsck, ["--verify", "full", file.path]).status == 0)
        #expect(try loadedStep(file.path) == 20)
        #expect(try ToolRun(.pcfsck, ["--apply-undo", undo, file.path]).status == 0)
        #expect(try bytes(file.path) == cut)
    }

    @Test func inPlaceIsTakenBack() throws {
        let file = try SampleFile()
        let before = try bytes(file.path)
        let undo = file.directory.file("undo")
        let run = try rescue([file.path, "--back-to", "1", "--in-place", "--undo", undo])
        #expect(run.status == 0, "\(run.diagnostics)")
        #expect(try loadedStep(file.path) == 20)
        #expect(run.text.contains("pcfsck --apply-undo \(undo) \(file.path)"))
        #expect(try ToolRun(.pcfsck, ["--apply-undo", undo, file.path]).status == 0)
        #expect(try bytes(file.path) == before)
    }

    @Test func rebuildsSuperblocks() throws {
        let file = try SampleFile()
        let geometry = try file.decision().identity.geometry
        for parity in [0, 1] {
            for offset in geometry.superblockOffsets(parity: parity) { try file.damage(offset) }
        }
        try file.damage(60)
        let out = file.directory.file("out.pcc")
        let run = try rescue([file.path, "--rebuild", "--output", out, "--json"])
        #expect(run.status == 0, "\(run.diagnostics)")
        let json = try run.json()
        #expect(json["step"] as? Int == 30 && json["output"] as? String == out)
        #expect((json["repairs_made"] as? [Any])?.count == 5)
        #expect((json["slots_set_aside"] as? [Any])?.isEmpty == true)
        #expect(try ToolRun(.pcfsck, ["--verify", "full", out]).status == 0)
    }

    @Test func aDryRunWritesNothing() throws {
        let file = try SampleFile()
        let before = try bytes(file.path)
        let run = try rescue([file.path, "--step", "20", "--dry-run"])
        #expect(run.status == 0 && run.text.contains("dry run"), "\(run.text)")
        let json = try rescue([file.path, "--step", "20", "--dry-run", "--json"]).json()
        #expect(json["is_dry_run"] as? Bool == true)
        #expect(json["slots_set_aside"] as? [Int] == [2])
        #expect(try bytes(file.path) == before && file.directory.names == ["run.pcc"])
    }

    @Test func whatCannotBeHadIsRefused() throws {
        let file = try SampleFile()
        try file.damageChunk(1, step: 20)
        let out = file.directory.file("out.pcc")
        let before = try bytes(file.path)
        let cases: [(arguments: [String], status: Int32, text: String)] = [
            (["--step", "20"], 4, "chunk 1 has digest"),
            (["--step", "7"], 4, "no slot holds step 7; there is 30, 20, 10"),
            (["--back-to", "9"], 16, "there is no slot 9"),
            (["--promote", "2"], 16, "anchored already"),
            (["--promote", "0"], 16, "--back-to 0"),
            (["--back-to", "3"], 4, "holds no complete checkpoint: it is empty"),
            (["--promote", "3"], 4, "holds no complete checkpoint: it is empty"),
        ]
        for item in cases {
            let run = try rescue([file.path] + item.arguments + ["--output", out])
            #expect(run.status == item.status, "\(item.arguments): \(run.diagnostics)")
            #expect(run.diagnostics.contains(item.text), "\(run.diagnostics)")
        }
        let same = try rescue([file.path, "--step", "30", "--output", file.path])
        #expect(same.status == 8 && same.diagnostics.contains("exists"), "\(same.diagnostics)")
        #expect(try bytes(file.path) == before && file.directory.names == ["run.pcc"])
        for wrong in ["/no/such/file", "/dev/null"] {
            let run = try rescue([wrong, "--rebuild", "--output", out])
            #expect(run.status == 8 && !run.diagnostics.isEmpty, "\(wrong)")
        }
        let folder = try rescue([file.directory.path, "--rebuild", "--output", out])
        #expect(folder.status == 16 && folder.diagnostics.contains("is a folder"))
    }

    @Test(arguments: [
        ["--step", "10"], ["--step", "10", "--rebuild", "--dry-run"], ["--dry-run"],
        ["--step", "10", "--in-place"], ["--step", "10", "--output", "x", "--undo", "u"],
        ["--step", "10", "--output", "x", "--in-place", "--undo", "u"],
        ["--step", "10", "--dry-run", "--output", "x"],
    ])
    func wrongUsageEndsWith16(arguments: [String]) throws {
        #expect(try rescue(["file"] + arguments).status == 16)
    }

    @Test func aBusyFileIsRefused() throws {
        let file = try SampleFile()
        let writer = try CheckpointWriter(path: file.path)
        let out = file.directory.file("out.pcc")
        for rest in [["--output", out], ["--in-place", "--undo", out]] {
            let run = try rescue([file.path, "--step", "10"] + rest)
            #expect(run.status == 8 && run.diagnostics.contains("a writer"), "\(run.diagnostics)")
        }
        #expect(file.directory.names == ["run.pcc"])
        try writer.close()
    }

    /// Killed in the middle: no file under the name, the source as it was, and the next one works.
    @Test func aKilledRescueIsDoneAgain() throws {
        let file = try SampleFile()
        let before = try bytes(file.path)
        let out = file.directory.file("out.pcc")
        for delay in [0.01, 0.03, 0.05] {
            _ = try ToolRun(
                shell: """
                    timeout -s KILL \(delay) $pccheck rescue '\(file.path)' --step 10 \
                        --output '\(out)' >/dev/null 2>&1; true
                    """)
            if FileManager.default.fileExists(atPath: out) {
                #expect(try loadedStep(out) == 10)
                try FileManager.default.removeItem(atPath: out)
            }
            #expect(try bytes(file.path) == before)
        }
        #expect(try rescue([file.path, "--step", "10", "--output", out]).status == 0)
        #expect(try loadedStep(out) == 10)
    }
}
