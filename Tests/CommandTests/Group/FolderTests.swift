import CheckpointCommands
import CheckpointFormat
import CheckpointWriter
import Foundation
import Testing

/// `pcfsck DIR` and `pcinspect DIR`.
@Suite struct FolderTests {
    private func inspect(_ group: SampleGroup) throws -> ToolRun {
        try ToolRun(.pcinspect, [group.path])
    }

    private func row(_ run: ToolRun, _ name: String) -> [String]? {
        run.lines.first { $0.hasPrefix("  \(name) ") }.map { line in
            line.dropFirst(name.count + 2).split(separator: " ").map(String.init)
        }
    }

    @Test func theMatrixShowsWhatEveryRankHas() throws {
        let run = try inspect(.unequal())
        #expect(run.status == 0, "\(run.text)\(run.diagnostics)")
        #expect(row(run, "rank") == ["1.30", "1.20", "1.10"])
        #expect(row(run, "0") == ["█", "▓", "▓"])
        #expect(row(run, "1") == ["·", "█", "▓"])
        #expect(row(run, "on all") == ["-1", "✔", "✔"])
        for text in [
            "continues from step 20 of attempt 1",
            "on 2 ranks, each from its own file; on another number of ranks, from all 2 files",
            "not step 30 of attempt 1: rank 1: not in the file",
            "step 20 of attempt 1, known to be durable on all ranks", "\(SampleGroup.run)",
        ] {
            #expect(run.text.contains(text), "\(text): \(run.text)")
        }
    }

    @Test func ranksWithTheSameContentShareARow() throws {
        let group = try SampleGroup()
        for rank in 0..<12 {
            try group.save(rank: rank, of: 12, steps: rank == 4 ? [10] : [10, 20], complete: [10])
        }
        let run = try inspect(group)
        #expect(row(run, "0-3,5-11") == ["█", "▓"], "\(run.text)")
        #expect(row(run, "4") == ["·", "█"])
    }

    @Test func anotherNumberOfRanksIsAnotherMatrix() throws {
        let group = try SampleGroup.unequal()
        for rank in 0..<3 { try group.save(rank: rank, of: 3, attempt: 2, steps: [40]) }
        let run = try inspect(group)
        #expect(run.text.contains("continues from step 40 of attempt 2"), "\(run.text)")
        #expect(run.text.contains("on 3 ranks, each from its own file"))
        #expect(run.lines.contains("3 ranks, 3 files") && run.lines.contains("2 ranks, 2 files"))
        let fsck = try ToolRun(.pcfsck, [group.path])
        #expect(fsck.status == 0 && fsck.text.contains("continues from step 40 of attempt 2"))
        // The older files are not needed any more.
        try group.remove(1, of: 2)
        let later = try ToolRun(.pcfsck, [group.path])
        #expect(later.status == 0 && later.text.contains("warning  PCK-G001"), "\(later.text)")
    }

    @Test func anIntactGroupIsOneLine() throws {
        let group = try SampleGroup.unequal()
        for options in [[], ["-n"], ["-p"], ["-y"], ["--verify", "full"]] {
            let run = try ToolRun(.pcfsck, options + [group.path])
            #expect(run.status == 0, "\(options): \(run.text)\(run.diagnostics)")
            #expect(run.text.contains("info     PCK-G006"), "\(run.text)")
            #expect(run.text.contains("resume   continues from step 20 of attempt 1"))
            #expect(!run.text.contains(SampleGroup.name(0, of: 2)))
            #expect(run.diagnostics.isEmpty)
        }
        let quiet = try ToolRun(.pcfsck, ["-q", group.path])
        #expect(quiet.lines.count == 4 && quiet.text.contains("all clean"), "\(quiet.text)")
    }

    @Test func aMissingFileMakesTheRestartFail() throws {
        let group = try SampleGroup.unequal()
        try group.remove(1, of: 2)
        let run = try ToolRun(.pcfsck, [group.path])
        #expect(run.status == 4)
        #expect(run.text.contains("error    PCK-G001") && run.text.contains("no file of rank 1"))
        #expect(run.text.contains("error    PCK-G005") && run.text.contains("resume   fails"))
        let inspection = try inspect(group)
        #expect(inspection.status == 4)
        #expect(row(inspection, "1") == ["·", "·", "·", "no", "file"], "\(inspection.text)")
    }

    @Test func aDamagedPayloadIsFoundWhenItIsRead() throws {
        let group = try SampleGroup.unequal()
        try group.damagePayload(1, of: 2, step: 20)
        #expect(try ToolRun(.pcfsck, [group.path]).text.contains("continues from step 20"))
        let run = try ToolRun(.pcfsck, ["--verify", "full", group.path])
        #expect(run.status == 4)
        #expect(run.text.contains("PCK-C001") && run.text.contains("PCK-G005"), "\(run.text)")
        #expect(run.text.contains("continues from step 10 of attempt 1"))
        #expect(
            run.text.contains("not step 20 of attempt 1: rank 1: its slot is payload-damaged"))
    }

    @Test func filesAreRepairedOneAfterTheOther() throws {
        let group = try SampleGroup.unequal()
        for rank in 0..<2 { try group.damage(rank, of: 2, at: 100) }
        let found = try ToolRun(.pcfsck, [group.path])
        #expect(found.status == 4)
        #expect(found.text.contains("PCK-I001") && found.text.contains("2 not clean"))
        let repaired = try ToolRun(.pcfsck, ["-p", group.path])
        #expect(repaired.status == 1, "\(repaired.text)\(repaired.diagnostics)")
        #expect(repaired.text.contains("continues from step 20 of attempt 1"))
        #expect(try ToolRun(.pcfsck, [group.path]).status == 0)
    }

    @Test func filesThatDoNotBelongTogetherAreNamed() throws {
        let group = try SampleGroup.unequal()
        let other = Identifier128(bytes: [UInt8](repeating: 9, count: 16))
        try group.save(rank: 0, of: 1, run: other, steps: [10])
        try FileManager.default.copyItem(
            atPath: group.file(0, of: 2), toPath: group.file(3, of: 4))
        let run = try ToolRun(.pcfsck, [group.path])
        #expect(run.status == 4)
        for text in ["PCK-G002", "\(other)", "PCK-G003", "files do not belong together"] {
            #expect(run.text.contains(text), "\(text): \(run.text)")
        }
        #expect(try inspect(group).status == 4)
    }

    @Test func aFileThatIsNoneIsNamedAndTheOthersAreShown() throws {
        let group = try SampleGroup.unequal()
        try Data("nothing".utf8).write(to: URL(filePath: group.file(1, of: 2)))
        let run = try ToolRun(.pcfsck, [group.path])
        #expect(run.status == 4 && run.text.contains("error    PCK-G007"), "\(run.text)")
        let inspection = try inspect(group)
        #expect(inspection.status & 12 != 0)
        #expect(inspection.text.contains("its file cannot be used"))
        #expect(row(inspection, "0") == ["█", "▓", "▓"])
    }

    @Test func aWriterAtWorkIsShown() throws {
        let group = try SampleGroup.unequal()
        var options = WriterOptions()
        options.acceptsGroup = true
        options.worldSize = 2
        let writer = try CheckpointWriter(path: group.file(0, of: 2), options: options)
        #expect(try inspect(group).text.contains("at work on 1 file now"))
        try writer.close()
        #expect(try inspect(group).text.contains("writers    none"))
    }

    @Test func otherFilesAreIgnoredWithANote() throws {
        let group = try SampleGroup.unequal()
        for name in ["notes.txt", "rank-00000-of-00002.pcc.undo-1"] {
            try Data("x".utf8).write(to: URL(filePath: group.directory.file(name)))
        }
        for tool in [Tool.pcfsck, .pcinspect] {
            let run = try ToolRun(tool, [group.path])
            #expect(run.status == 0)
            #expect(run.text.contains("2 other files ignored: notes.txt, rank-"), "\(run.text)")
        }
    }

    @Test func aFolderWithoutRanksIsRefused() throws {
        let folder = try TemporaryDirectory()
        for tool in [Tool.pcfsck, .pcinspect] {
            let run = try ToolRun(tool, [folder.path])
            #expect(run.status == 8, "\(run.text)\(run.diagnostics)")
            #expect(run.diagnostics.contains("no file of a rank"), "\(run.diagnostics)")
        }
    }

    @Test func thePageShowsTheSame() throws {
        let group = try SampleGroup.unequal()
        try group.remove(1, of: 2)
        let run = try ToolRun(.pcinspect, ["--html", "-", group.path])
        #expect(run.status == 4, "\(run.diagnostics)")
        for text in [
            "<!DOCTYPE html>", "The job <strong>fails</strong>", "<td>0</td>", "no file</td>",
            "step 30, attempt 1", "missing on 1 rank", "PCK-G005", "\(SampleGroup.run)",
        ] {
            #expect(run.text.contains(text), "\(text): \(run.text)")
        }
        let full = try ToolRun(
            .pcinspect, ["--html", "-", "--verify", "full", group.path])
        #expect(full.status == 16 && full.diagnostics.contains("pcfsck --verify full"))
    }

    @Test func commandsAboutOneFileSaySo() throws {
        let group = try SampleGroup.unequal()
        for (tool, arguments) in [
            (Tool.pcinspect, ["slots", group.path]), (.pcextract, [group.path, "-o", "-"]),
            (.pccheck, ["rescue", group.path, "--step", "10", "--dry-run"]),
            (.pcfsck, ["--apply-undo", group.file(0, of: 2), group.path]),
        ] {
            let run = try ToolRun(tool, arguments)
            #expect(run.status & 24 != 0 && run.output.isEmpty, "\(run.text)")
        }
        let run = try ToolRun(.pcinspect, ["slots", group.path])
        #expect(run.status == 8 && run.diagnostics.contains("this is a folder"))
        let undo = try ToolRun(.pcfsck, ["-y", "--undo", "x", group.path])
        #expect(undo.status == 16 && undo.diagnostics.contains("--undo is of one file"))
    }

    @Test func aFileWithoutAGroupIsNoGroup() throws {
        let group = try SampleGroup()
        try group.save(rank: 0, of: 1, attempt: 0, run: .zero, steps: [10])
        let run = try ToolRun(.pcfsck, [group.path])
        #expect(run.status == 4 && run.text.contains("error    PCK-G009"), "\(run.text)")
        try group.save(rank: 0, of: 2, steps: [10])
        try group.save(rank: 1, of: 2, steps: [10])
        let more = try ToolRun(.pcfsck, [group.path])
        #expect(more.status == 0 && more.text.contains("warning  PCK-G009"), "\(more.text)")
    }

    @Test func jsonHasTheDecisionAndEveryFile() throws {
        let group = try SampleGroup.unequal()
        let document = try ToolRun(.pcinspect, ["--json", group.path]).json()
        let decision = try #require(document["decision"] as? [String: Any])
        #expect(decision["outcome"] as? String == "resume")
        #expect(decision["next_attempt"] as? Int == 2)
        #expect(
            (document["files"] as? [[String: Any]])?.compactMap { $0["rank"] as? Int } == [0, 1])
        let fsck = try ToolRun(.pcfsck, ["--json", group.path, group.file(0, of: 2)]).json()
        #expect((fsck["files"] as? [Any])?.count == 1)
        let groups = try #require(fsck["groups"] as? [[String: Any]])
        #expect(groups.first?["clean_count"] as? Int == 2)
        #expect(
            (groups.first?["findings"] as? [[String: Any]])?.first?["id"] as? String == "PCK-G006")
    }
}
