import CheckpointCommands
import CheckpointFormat
import CheckpointRecovery
import CheckpointWriter
import Foundation
import Testing

@Suite struct FsckTests {
    @Test func aSoundFileIsClean() throws {
        let file = try SampleFile()
        for options in [[], ["-n"], ["-p"], ["-y"], ["--verify", "full"]] {
            let run = try ToolRun(.pcfsck, options + [file.path])
            #expect(run.status == 0, "\(options): \(run.text)")
            #expect(run.text.contains("clean"))
            #expect(run.text.contains("loads step 30 from slot 2"), "\(run.text)")
            #expect(run.diagnostics.isEmpty)
        }
        #expect(
            try ToolRun(.pcfsck, ["--verify", "full", file.path]).text.contains(
                "every byte of it was verified"))
    }

    @Test func checkingChangesNothing() throws {
        let file = try SampleFile()
        try file.damage(100)
        let before = try Data(contentsOf: URL(filePath: file.path))
        for options in [[], ["-n"], ["--verify", "full"], ["--json"]] {
            #expect(try ToolRun(.pcfsck, options + [file.path]).status == 4)
        }
        #expect(try Data(contentsOf: URL(filePath: file.path)) == before)
    }

    @Test(arguments: ["-p", "-y"]) func aDamagedCopyIsRepairedOnce(option: String) throws {
        let file = try SampleFile()
        let before = try Data(contentsOf: URL(filePath: file.path))
        let geometry = try file.decision().identity.geometry
        try file.damage(100)
        try file.damage(geometry.superblockOffsets(parity: 0)[1] + 30)
        let found = try ToolRun(.pcfsck, [file.path])
        #expect(found.status == 4)
        #expect(found.text.contains("pcfsck -p repairs 2"), "\(found.text)")
        let repaired = try ToolRun(.pcfsck, [option, file.path])
        #expect(repaired.status == 1, "\(repaired.text)\(repaired.diagnostics)")
        #expect(repaired.text.contains("2 repairs made"))
        #expect(try ToolRun(.pcfsck, [option, file.path]).status == 0)
        #expect(try Data(contentsOf: URL(filePath: file.path)) == before)
    }

    @Test func aWriterAtWorkIsNotRepairedUnder() throws {
        let file = try SampleFile()
        let writer = try CheckpointWriter(path: file.path)
        try file.damage(100)
        let run = try ToolRun(.pcfsck, ["-p", file.path])
        #expect(run.status == 4 | 8, "\(run.text)")
        #expect(run.text.contains("a writer is at work"))
        #expect(run.text.contains("nothing is repaired") && run.text.contains("PCK-I001"))
        try writer.close()
        #expect(try ToolRun(.pcfsck, ["-p", file.path]).status == 1)
    }

    @Test func damageThatCannotBeRepairedStays() throws {
        let file = try SampleFile()
        try file.damage(100)
        try file.damageChunk(1, step: 30)
        let run = try ToolRun(.pcfsck, ["-p", "--verify", "full", file.path])
        #expect(run.status == 1 | 4, "\(run.text)")
        #expect(run.text.contains("PCK-C001"))
        #expect(run.text.contains("loads step 20 from slot 1"))
        #expect(run.text.contains("not step 30 in slot 2"))
    }

    @Test func manyAlikeAreCountedNotListed() throws {
        let file = try SampleFile(steps: [1], opaqueByteCount: 900_000)
        for index in 0..<9 { try file.damageChunk(index, step: 1) }
        let run = try ToolRun(.pcfsck, ["--verify", "full", file.path])
        #expect(run.status == 4)
        #expect(run.text.matches(of: /PCK-C001/).count == 4)
        #expect(run.text.contains("and 5 more of these"), "\(run.text)")
        let json = try ToolRun(.pcfsck, ["--verify", "full", "--json", file.path]).json()
        let files = try #require(json["files"] as? [[String: Any]])
        let findings = try #require(files[0]["findings"] as? [[String: Any]])
        #expect(findings.count { $0["id"] as? String == "PCK-C001" } == 9)
    }

    @Test func jsonSaysWhatTheTextSays() throws {
        let file = try SampleFile()
        try file.damageChunk(1, step: 30)
        let run = try ToolRun(
            .pcfsck, ["--json", "--verify", "full", file.path, file.directory.file("none")])
        #expect(run.status == 4 | 8)
        let object = try run.json()
        #expect(object["schema_version"] as? Int == 1)
        #expect(object["exit_status"] as? Int == 12)
        let files = try #require(object["files"] as? [[String: Any]])
        try #require(files.count == 2)
        let findings = try #require(files[0]["findings"] as? [[String: Any]])
        let damage = try #require(findings.first { $0["id"] as? String == "PCK-C001" })
        #expect(damage["slot"] as? Int == 2 && damage["chunk"] as? Int == 1)
        #expect(damage["severity"] as? String == "error")
        let resume = try #require(files[0]["resume"] as? [String: Any])
        let choice = try #require(resume["choice"] as? [String: Any])
        #expect(choice["step"] as? Int == 20)
        #expect(resume["is_proven"] as? Bool == true)
        #expect((files[1]["error"] as? String)?.contains("No such file") == true)
    }

    @Test func severalFilesAddUp() throws {
        let (first, second) = (try SampleFile(), try SampleFile(steps: []))
        let run = try ToolRun(.pcfsck, [first.path, second.path])
        #expect(run.status == 0)
        #expect(run.text.contains(first.path) && run.text.contains(second.path))
        #expect(run.text.contains("nothing was saved yet"))
        let missing = try ToolRun(.pcfsck, [first.path, "/no/such/file"])
        #expect(missing.status == 8)
        #expect(missing.text.contains("clean") && missing.diagnostics.contains("/no/such/file"))
    }

    @Test func findingsAreExplained() throws {
        let run = try ToolRun(.pcfsck, ["--explain", "pck-c001"])
        #expect(run.status == 0)
        #expect(run.text.hasPrefix("PCK-C001"))
        let unknown = try ToolRun(.pcfsck, ["--explain", "PCK-Z999"])
        #expect(unknown.status == 16 && unknown.diagnostics.contains("PCK-C001"))
    }

    @Test(arguments: [
        [], ["-p", "-n"], ["-p", "-y"], ["--verify", "some"], ["--nonsense"],
    ])
    func wrongUsageEndsWith16(arguments: [String]) throws {
        let run = try ToolRun(.pcfsck, arguments + (arguments.isEmpty ? [] : ["x"]))
        #expect(run.status == 16)
        #expect(run.diagnostics.contains("Usage:") && run.output.isEmpty)
    }

    @Test func severalFilesEndWithATable() throws {
        let (sound, damaged) = (try SampleFile(), try SampleFile(steps: [7]))
        try damaged.damageChunk(0, step: 7)
        let missing = sound.directory.file("missing.pcc")
        let paths = [sound.path, missing, damaged.path]
        let run = try ToolRun(.pcfsck, ["--verify", "full"] + paths)
        #expect(run.status == 4 | 8, "\(run.text)")
        #expect(run.diagnostics.contains("missing.pcc"))
        let table = run.lines.suffix(6)
        #expect(table.contains { $0.contains("verdict") && $0.contains("resume loads") })
        #expect(table.contains { $0.contains("clean") && $0.contains("step 30") })
        #expect(table.contains { $0.contains("missing.pcc") && $0.contains("not checked") })
        #expect(table.contains { $0.contains("damaged") && $0.contains("nothing") })
        #expect(run.text.contains("3 files: 2 not clean; "), "\(run.text)")
        #expect(run.text.contains("verified at"))

        let quiet = try ToolRun(.pcfsck, ["-q"] + paths)
        #expect(quiet.status == run.status, "\(quiet.text)")
        #expect(quiet.lines.count == 6 && !quiet.text.contains("PCK-"), "\(quiet.text)")
        let one = try ToolRun(.pcfsck, ["--quiet", sound.path])
        #expect(one.status == 0 && one.text.contains("1 file: all clean"), "\(one.text)")
        #expect(try ToolRun(.pcfsck, ["-q", "--json", sound.path]).status == 16)
    }

    @Test func anInterruptSaysHowFarItCame() throws {
        let file = try SampleFile(steps: [1, 2], opaqueByteCount: 1_000_000)
        // Named often enough that the signal finds it at work.
        let run = try ToolRun(
            shell: """
                "$pcfsck" --verify full \(String(repeating: "\(file.path) ", count: 400)) &
                sleep 0.3; kill -INT $!; wait $!
                """)
        #expect(run.status == 32, "\(run.diagnostics)")
        #expect(run.diagnostics.contains("cancelled in \(file.path)"))
        #expect(run.diagnostics.contains("nothing was changed"))
    }

    @Test func everyProblemIsExplained() throws {
        let all = try ToolRun(.pcfsck, ["--explain", "all"])
        #expect(all.status == 0)
        #expect(all.lines.count { $0.hasPrefix("PCK-") } > 40)
        let unknown = try ToolRun(.pcfsck, ["--explain", "PCK-Z001"])
        #expect(unknown.status == 16)
        #expect(unknown.diagnostics.contains("PCK-S003  slot header damaged"))
    }
}
