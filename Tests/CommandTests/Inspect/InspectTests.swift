import CheckpointCommands
import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import CheckpointWriter
import Foundation
import Testing

@Suite struct InspectTests {
    @Test func theSummaryShowsEverySlot() throws {
        let file = try SampleFile(fingerprint: "gpt/8")
        let run = try ToolRun(.pcinspect, [file.path])
        #expect(run.status == 0, "\(run.text)\(run.diagnostics)")
        #expect(run.text.contains("step 30 in slot 2"))
        #expect(run.text.contains("gpt/8"))
        for (slot, state) in [(0, "retained"), (1, "retained"), (2, "newest"), (3, "empty")] {
            #expect(
                run.lines.contains { $0.hasPrefix("     \(slot)  ") && $0.contains(state) },
                "slot \(slot): \(run.text)")
        }
        #expect(run.lines.allSatisfy { $0.count <= 80 || $0.contains(file.path) }, "\(run.text)")
        #expect(!run.output.contains(0x1B))
    }

    @Test(arguments: [
        [], ["super"], ["slots"], ["chunks"], ["tensors"], ["chunks", "--verify"],
        ["tensors", "--stats"],
    ])
    func everyViewHasJSON(view: [String]) throws {
        let file = try SampleFile(codec: .planesZstd)
        let object = try ToolRun(.pcinspect, view + [file.path, "--json"]).json()
        #expect(object["schema_version"] as? Int == 1)
        #expect(object["tool"] as? String == "pcinspect")
        let facts = try #require(object["file"] as? [String: Any])
        #expect(facts["path"] as? String == file.path)
        #expect(facts["is_damaged"] as? Bool == false)
        #expect(facts["is_writer_at_work"] as? Bool == false)
    }

    @Test func tensorsAreListedAndFiltered() throws {
        let file = try SampleFile()
        let object = try ToolRun(
            .pcinspect, ["tensors", file.path, "--json", "--tensor", "model.*", "--step", "20"]
        ).json()
        let tensors = try #require(object["tensors"] as? [[String: Any]])
        #expect(tensors.map { $0["name"] as? String } == ["model.weight", "model.bias"])
        #expect(tensors[0]["shape"] as? [Int] == [64, 300])
        #expect(tensors[0]["dtype"] as? String == "F32")
        #expect(object["step"] as? Int == 20)
        let text = try ToolRun(.pcinspect, ["tensors", file.path])
        #expect(text.status == 0)
        #expect(!text.output.contains(0x1B), "a name's escape sequence is shown, not sent")
        #expect(text.text.contains("optimizer/\\u{1b}[31mred\\n"))
        #expect(text.text.contains("a\\u{1b}[2Jb"))
    }

    @Test func damageIsShownAndToldByTheStatus() throws {
        let file = try SampleFile()
        try file.damage(file.decision().identity.geometry.headerOffset(SlotIndex(1)) + 60)
        let run = try ToolRun(.pcinspect, [file.path])
        #expect(run.status == 4)
        #expect(run.text.contains("bad header") && run.text.contains("pcfsck"))
        for view in ["super", "slots", "chunks", "tensors"] {
            #expect(try ToolRun(.pcinspect, [view, file.path]).status == 4, "\(view)")
        }
    }

    @Test func aDamagedChunkIsFoundByReadingIt() throws {
        let file = try SampleFile()
        try file.damageChunk(1, step: 30)
        #expect(try ToolRun(.pcinspect, ["chunks", file.path]).status == 0)
        let run = try ToolRun(.pcinspect, ["chunks", "--verify", "--json", file.path])
        #expect(run.status == 4)
        let chunks = try #require(try run.json()["chunks"] as? [[String: Any]])
        #expect(chunks.map { $0["state"] as? String } == ["intact", "damaged"])
    }

    @Test func aTruncatedFileIsDecodedAsFarAsItGoes() throws {
        let file = try SampleFile()
        let geometry = try file.decision().identity.geometry
        try file.truncate(to: geometry.slotDataOffset(SlotIndex(2)))
        let run = try ToolRun(.pcinspect, [file.path])
        #expect(run.status == 4)
        #expect(run.text.contains("truncated"))
        let tensors = try ToolRun(.pcinspect, ["tensors", file.path, "--step", "10"])
        #expect(tensors.text.contains("model.weight"), "\(tensors.diagnostics)")
    }

    @Test func aWriterAtWorkIsSeenAndNotDisturbed() throws {
        let file = try SampleFile()
        let writer = try CheckpointWriter(path: file.path)
        let object = try ToolRun(.pcinspect, [file.path, "--json"]).json()
        let facts = try #require(object["file"] as? [String: Any])
        #expect(facts["is_writer_at_work"] as? Bool == true)
        try writer.close()
    }

    @Test func everyFieldOfABlockIsNamedAndJudged() throws {
        let file = try SampleFile(fingerprint: "gpt/8")
        let geometry = try file.decision().identity.geometry
        let layouts: [(block: [String], fields: [LayoutField])] = [
            (["identity"], IdentityBlock.Layout.all), (["super", "1"], Superblock.Layout.all),
            (["identity-tail"], IdentityBlock.Layout.all),
            (["tail-even"], Superblock.Layout.all), (["slot", "1"], SlotHeader.Layout.all),
            (["table", "1"], ChunkEntry.Layout.all), (["chunk", "1", "0"], ChunkEntry.Layout.all),
        ]
        for (block, fields) in layouts {
            let run = try ToolRun(.pcinspect, ["hexdump", file.path] + block + ["--annotate"])
            #expect(run.status == 0, "\(block): \(run.text)\(run.diagnostics)")
            for field in fields { #expect(run.text.contains(" \(field.name) = "), "\(block)") }
        }
        // One wrong byte is found, and the checksum over it.
        try file.damage(geometry.headerOffset(SlotIndex(1)) + 24)
        let run = try ToolRun(.pcinspect, ["hexdump", file.path, "slot", "1", "--annotate"])
        #expect(run.status == 4)
        #expect(run.text.contains("✘ own_offset = "))
        #expect(run.text.contains("✘ checksum = "))
        #expect(run.text.contains("2 fields wrong"))
    }

    @Test(
        .enabled(
            if: FileManager.default.fileExists(atPath: "/usr/bin/hexdump"),
            "hexdump is not installed; run .ci/install-packages --with-tests"))
    func bytesAreShownAsHexdumpShowsThem() throws {
        let file = try SampleFile()
        for arguments in [["--offset", "0", "--length", "5000"], ["--offset", "20477"]] {
            let run = try ToolRun(.pcinspect, ["hexdump", file.path] + arguments)
            let count = arguments.last == "5000" ? "-n 5000" : "-n 256 -s 20477"
            let other = try ToolRun(shell: "hexdump -C \(count) '\(file.path)'")
            #expect(run.lines.dropFirst() == other.lines[...])
        }
    }

    @Test func aFileWithoutIdentityIsStillShown() throws {
        let file = try SampleFile()
        let geometry = try file.decision().identity.geometry
        for offset in geometry.identityOffsets { try file.damage(offset + 100) }
        let run = try ToolRun(.pcinspect, ["hexdump", file.path, "--annotate"])
        #expect(run.status == 4)
        #expect(run.text.contains("✘ checksum = ") && run.text.contains("✘ data_offset = "))
        #expect(try ToolRun(.pcinspect, ["hexdump", file.path, "slot", "0"]).status == 0)
        let found = try ToolRun(.pcinspect, [file.path])
        #expect(found.status == 4 && found.diagnostics.contains("both copies are lost"))
        for fact in ["slot 2 ", "complete, step 30, sequence 3", "superblock  right", "wrong"] {
            #expect(found.text.contains(fact), "\(fact): \(found.text)")
        }
        let lost = try ToolRun(.pcinspect, ["hexdump", file.path, "slot", "1"])
        #expect(lost.status == 4 && lost.diagnostics.contains("--offset"))
        let unknown = try ToolRun(.pcinspect, ["hexdump", file.path, "slots", "1"])
        #expect(unknown.status == 16 && unknown.diagnostics.contains("identity-tail"))
    }

    @Test func twoCheckpointsAreCompared() throws {
        let file = try SampleFile()
        let run = try ToolRun(.pcinspect, ["diff", file.path])
        #expect(run.status == 1, "\(run.diagnostics)")
        #expect(run.text.contains("step 20 in slot 1") && run.text.contains("step 30 in slot 2"))
        #expect(run.text.contains("model.weight"))
        #expect(!run.output.contains(0x1B))
        let same = try ToolRun(.pcinspect, ["diff", file.path, file.path])
        #expect(same.status == 0 && same.text.contains("the same"))
        #expect(try ToolRun(.pcinspect, ["diff", file.path, "--slots", "0"]).status == 16)
        let none = try ToolRun(.pcinspect, ["diff", file.path, "--steps", "10", "11"])
        #expect(none.status == 8 && none.diagnostics.contains("no checkpoint of step 11"))
    }

    @Test func aDumpOfTheMetadataOpensLikeTheFile() throws {
        let file = try SampleFile(codec: .zstd, fingerprint: "Geheimnis")
        let dump = file.directory.file("dump.pcc")
        let run = try ToolRun(.pcinspect, ["metadump", file.path, "-o", dump])
        #expect(run.status == 0, "\(run.diagnostics)")
        #expect(run.text.contains("manifests kept: 3"))
        #expect(try ToolRun(.pcfsck, [dump]).status == 0)
        let names = ["tensors", "--step", "20"]
        #expect(
            try ToolRun(.pcinspect, names + [dump]).text
                == ToolRun(.pcinspect, names + [file.path]).text)
        let hidden = try ToolRun(
            .pcinspect, ["metadump", file.path, "-o", dump, "--obfuscate-names"])
        #expect(hidden.status == 0)
        let bytes = try Data(contentsOf: URL(filePath: dump))
        #expect(bytes.range(of: Data("Geheimnis".utf8)) == nil)
        #expect(bytes.range(of: Data("model.weight".utf8)) == nil)
        #expect(try ToolRun(.pcfsck, [dump]).status == 0)
        let itself = try ToolRun(.pcinspect, ["metadump", file.path, "-o", file.path])
        #expect(itself.status == 16)
        #expect(try ToolRun(.pcfsck, ["--verify", "full", file.path]).status == 0)
        #expect(file.directory.names == ["dump.pcc", "run.pcc"])
    }

    @Test func opaquePayloadsHaveNoTensors() throws {
        let file = try SampleFile(steps: [1], opaqueByteCount: 1000)
        let run = try ToolRun(.pcinspect, ["tensors", file.path])
        #expect(run.status == 16)
        #expect(run.diagnostics.contains("--format raw"))
    }

    @Test func anEmptyFileHasNothingToShowButItself() throws {
        let file = try SampleFile(steps: [])
        #expect(try ToolRun(.pcinspect, [file.path]).text.contains("nothing was saved yet"))
        let run = try ToolRun(.pcinspect, ["tensors", file.path])
        #expect(run.status == 8 && run.diagnostics.contains("holds none"))
    }

    // MARK: What is no checkpoint file

    /// Each script makes `$1`.
    static let strangers: [(name: String, script: String)] = [
        ("missing", "true"), ("directory", "mkdir \"$f\""), ("FIFO", "mkfifo \"$f\""),
        ("0 bytes", ": > \"$f\""), ("text", "cat /etc/passwd > \"$f\""),
        ("zeros", "head -c 100000 /dev/zero > \"$f\""),
        ("noise", "head -c 100000 /dev/urandom > \"$f\""),
    ]

    @Test(.timeLimit(.minutes(1)), arguments: strangers)
    func strangersAreRefusedWithAReason(name: String, script: String) throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("x.pcc")
        for (tool, arguments) in [
            ("pcinspect", "\"$f\""), ("pcinspect", "tensors \"$f\" --json"), ("pcfsck", "\"$f\""),
            ("pcextract", "\"$f\" -o \"$f.out\""), ("pcextract", "--list \"$f\""),
        ] {
            let run = try ToolRun(
                shell: "f='\(path)'; rm -rf \"$f\"; \(script); $\(tool) \(arguments)")
            // pcfsck reports on whatever can be read; two blank identity blocks are damage to all.
            let isFound = tool == "pcfsck" && !["missing", "directory", "FIFO"].contains(name)
            #expect(
                run.status == (isFound || name == "zeros" ? 4 : 8),
                "\(tool) \(arguments): \(run.diagnostics)")
            let said = run.diagnostics + (isFound ? run.text : "")
            #expect(said.contains("x.pcc"), "\(tool): \(said)")
            #expect(!said.contains("Fatal error"))
        }
        #expect(directory.names.allSatisfy { $0 == "x.pcc" })
    }

    // MARK: Terminals and pipes

    @Test func aClosedPipeIsNoError() throws {
        let file = try SampleFile()
        for command in ["$pcinspect slots", "$pcinspect --json", "$pcfsck", "$pcextract -o -"] {
            let run = try ToolRun(
                shell: "\(command) '\(file.path)' | true; echo ${PIPESTATUS[0]}")
            #expect(run.text == "0\n", "\(command): \(run.text)")
            #expect(run.diagnostics.isEmpty, "\(command): \(run.diagnostics)")
        }
    }

    @Test func aFullDiskBehindStandardOutputIsAnError() throws {
        let file = try SampleFile()
        for command in ["$pcinspect", "$pcfsck --json", "$pcextract -o -"] {
            let run = try ToolRun(shell: "\(command) '\(file.path)' > /dev/full")
            #expect(run.status == 8, "\(command)")
            #expect(run.diagnostics.contains("No space left on device"))
        }
    }

    /// `script` runs a command on a terminal of its own.
    @Test(
        .enabled(
            if: FileManager.default.fileExists(atPath: "/usr/bin/script"),
            "script is not installed; run .ci/install-packages --with-tests"))
    func colourIsForTerminalsThatWantIt() throws {
        let file = try SampleFile()
        func onTerminal(_ environment: [String: String]) throws -> ToolRun {
            try ToolRun(
                shell: "script -qec \"$pcinspect '\(file.path)'\" /dev/null",
                environment: environment)
        }
        let colored = try onTerminal(["LANG": "C.UTF-8", "TERM": "xterm"])
        #expect(colored.text.contains("\u{1B}[32m"))
        #expect(colored.text.contains("█"))
        let plain = try onTerminal(["LANG": "C.UTF-8", "TERM": "xterm", "NO_COLOR": "1"])
        #expect(!plain.output.contains(0x1B))
        let dumb = try onTerminal(["LANG": "C.UTF-8", "TERM": "dumb"])
        #expect(!dumb.output.contains(0x1B))
        let ascii = try onTerminal(["LANG": "C", "TERM": "dumb"])
        #expect(ascii.output.allSatisfy { $0 < 0x80 }, "\(ascii.text)")
        #expect(ascii.text.contains("#."))
    }
}
