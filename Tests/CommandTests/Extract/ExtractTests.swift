import CheckpointCommands
import CheckpointFormat
import CheckpointRecovery
import Foundation
import Testing

@Suite struct ExtractTests {
    let directory: TemporaryDirectory
    var out: String { directory.file("out") }

    init() throws { directory = try TemporaryDirectory() }

    func bytes(_ name: String = "out") throws -> [UInt8] {
        try [UInt8](Data(contentsOf: URL(filePath: directory.file(name))))
    }

    /// Decodes a safetensors file and compares every tensor with what was saved at `step`.
    static func check(_ bytes: [UInt8], step: UInt64, names: [String]) throws {
        let manifest = try SafetensorsManifest(
            decoding: bytes, payloadByteCount: UInt64(bytes.count))
        #expect(Set(manifest.tensors.map(\.name)) == Set(names))
        for tensor in manifest.tensors {
            let index = try #require(SampleFile.tensors.firstIndex { $0.name == tensor.name })
            let start = Int(manifest.dataOffset + tensor.dataRange.lowerBound)
            let expected = SampleFile.content(
                step: step, tensor: index, byteCount: tensor.dataRange.count)
            #expect(Array(bytes[start..<start + expected.count]) == expected, "\(tensor.name)")
        }
        #expect(manifest.metadata.first?.value == "\(step)")
    }

    static let names = SampleFile.tensors.map(\.name)

    @Test(arguments: [Codec.none, .zstd, .planesZstd])
    func theNewestCheckpointIsExtracted(codec: Codec) throws {
        let file = try SampleFile(codec: codec)
        let run = try ToolRun(.pcextract, [file.path, "-o", out])
        #expect(run.status == 0, "\(run.diagnostics)")
        #expect(run.diagnostics.contains("step 30"))
        #expect(run.output.isEmpty)
        try Self.check(bytes(), step: 30, names: Self.names)
        #expect(directory.names == ["out"], "no temporary file is left")
    }

    @Test func slotAndStepChoose() throws {
        let file = try SampleFile()
        #expect(try ToolRun(.pcextract, [file.path, "-o", out, "--step", "20"]).status == 0)
        try Self.check(bytes(), step: 20, names: Self.names)
        #expect(try ToolRun(.pcextract, [file.path, "-o", out, "--slot", "0", "-q"]).status == 0)
        try Self.check(bytes(), step: 10, names: Self.names)
        for (option, value) in [("--step", "99"), ("--slot", "3"), ("--slot", "77")] {
            let run = try ToolRun(.pcextract, [file.path, "-o", out, option, value])
            #expect(run.status == 8)
            let hint = value == "77" ? "slots are 0 to 3" : "step 30 in slot 2"
            #expect(run.diagnostics.contains(hint), "\(run.diagnostics)")
        }
        try Self.check(bytes(), step: 10, names: Self.names)
    }

    @Test func tensorsAreChosenByPattern() throws {
        let file = try SampleFile()
        let run = try ToolRun(
            .pcextract,
            [file.path, "-o", out, "--tensor", "model.*", "--tensor", "step?"])
        #expect(run.status == 0, "\(run.diagnostics)")
        try Self.check(
            bytes(), step: 30, names: ["model.weight", "model.bias", "steps"])
        let raw = try ToolRun(
            .pcextract,
            [file.path, "-o", out, "--tensor", "model.bias", "--format", "raw"])
        #expect(raw.status == 0)
        #expect(try bytes() == SampleFile.content(step: 30, tensor: 1, byteCount: 1200))
        let none = try ToolRun(.pcextract, [file.path, "-o", out, "--tensor", "nope"])
        #expect(none.status == 16 && none.diagnostics.contains("--list"))
    }

    @Test func opaquePayloadsAreExtractedRaw() throws {
        for byteCount in [0, 1, 200_000] {
            let file = try SampleFile(steps: [1], opaqueByteCount: byteCount)
            let run = try ToolRun(.pcextract, [file.path, "-o", out, "--format", "raw"])
            #expect(run.status == 0, "\(byteCount): \(run.diagnostics)")
            #expect(
                try bytes() == SampleFile.content(step: 1, tensor: 0, byteCount: byteCount))
            let refused = try ToolRun(.pcextract, [file.path, "-o", out])
            #expect(refused.status == 16 && refused.diagnostics.contains("--format raw"))
        }
    }

    @Test func standardOutputGetsTheSameBytes() throws {
        let file = try SampleFile()
        _ = try ToolRun(.pcextract, [file.path, "-o", out])
        let run = try ToolRun(.pcextract, [file.path, "-o", "-"])
        #expect(run.status == 0)
        #expect(try run.output == bytes())
    }

    // MARK: Damage

    @Test func aDamagedNewestFallsBackAndSaysSo() throws {
        let file = try SampleFile()
        try file.damageChunk(1, step: 30)
        for target in [out, "-"] {
            let run = try ToolRun(.pcextract, [file.path, "-o", target])
            #expect(run.status == 4)
            #expect(run.diagnostics.contains("falling back to step 20"), "\(run.diagnostics)")
            #expect(run.diagnostics.contains("chunk 1"))
            let found = target == "-" ? run.output : try bytes()
            try Self.check(found, step: 20, names: Self.names)
        }
    }

    @Test func aCheckpointAskedForByNameHasNoSubstitute() throws {
        let file = try SampleFile()
        try file.damageChunk(0, step: 30)
        for choice in [["--step", "30"], ["--slot", "2"]] {
            let run = try ToolRun(.pcextract, [file.path, "-o", out] + choice)
            #expect(run.status == 4)
            #expect(!run.diagnostics.contains("falling back"))
            #expect(directory.names == [], "nothing is left of a failed extraction")
            let stream = try ToolRun(.pcextract, [file.path, "-o", "-"] + choice)
            #expect(stream.status == 4 && stream.output.isEmpty)
        }
    }

    @Test func aPartIsGoodThoughAnotherPartIsDamaged() throws {
        let file = try SampleFile()
        try file.damageChunk(1, step: 30)
        let run = try ToolRun(
            .pcextract, [file.path, "-o", out, "--step", "30", "--tensor", "steps"])
        #expect(run.status == 0, "\(run.diagnostics)")
        try Self.check(bytes(), step: 30, names: ["steps"])
    }

    @Test func whenAllAreDamagedNothingIsWritten() throws {
        let file = try SampleFile()
        for step in [10, 20, 30] as [UInt64] { try file.damageChunk(0, step: step) }
        let run = try ToolRun(.pcextract, [file.path, "-o", out])
        #expect(run.status == 4)
        #expect(run.diagnostics.contains("every checkpoint is damaged"))
        #expect(directory.names == [])
    }

    // MARK: Targets

    @Test func anOldFileIsReplacedOnlyBySuccess() throws {
        let file = try SampleFile()
        try Data("old".utf8).write(to: URL(filePath: out))
        try file.damageChunk(0, step: 30)
        _ = try ToolRun(.pcextract, [file.path, "-o", out, "--step", "30"])
        #expect(try bytes() == Array("old".utf8))
        _ = try ToolRun(.pcextract, [file.path, "-o", out, "--step", "20"])
        try Self.check(bytes(), step: 20, names: Self.names)
    }

    @Test func aSymbolicLinkIsFollowed() throws {
        let file = try SampleFile()
        try Data("old".utf8).write(to: URL(filePath: out))
        try FileManager.default.createSymbolicLink(
            atPath: directory.file("link"), withDestinationPath: out)
        #expect(try ToolRun(.pcextract, [file.path, "-o", directory.file("link")]).status == 0)
        try Self.check(bytes(), step: 30, names: Self.names)
        #expect(
            try FileManager.default.destinationOfSymbolicLink(atPath: directory.file("link"))
                == out)
    }

    @Test func targetsThatMakeNoSenseAreRefused() throws {
        let file = try SampleFile()
        let before = try Data(contentsOf: URL(filePath: file.path))
        for target in [file.path, directory.path] {
            let run = try ToolRun(.pcextract, [file.path, "-o", target])
            #expect(run.status == 16, "\(run.diagnostics)")
        }
        #expect(try Data(contentsOf: URL(filePath: file.path)) == before)
        let missing = try ToolRun(.pcextract, [file.path, "-o", "/no/such/out"])
        #expect(missing.status == 8)
        for arguments in [[], ["--list", "-o", out], ["-o", out, "--slot", "0", "--step", "10"]] {
            #expect(try ToolRun(.pcextract, [file.path] + arguments).status == 16)
        }
    }

    static let canMount: Bool = {
        let script = """
            d=$(mktemp -d) && mount -t tmpfs -o size=64k none $d 2>/dev/null && umount $d \
            && rmdir $d
            """
        return (try? ToolRun(shell: script))?.status == 0
    }()

    @Test(.enabled(if: canMount, "a tmpfs cannot be mounted here (needs root)"))
    func aFullDiskLeavesNothingBehind() throws {
        let file = try SampleFile()
        let run = try ToolRun(
            shell: """
                d='\(directory.path)'; mount -t tmpfs -o size=32k none $d || exit 99
                $pcextract '\(file.path)' -o $d/out; s=$?
                ls -A $d; umount $d; exit $s
                """)
        #expect(run.status == 8, "\(run.diagnostics)")
        #expect(run.diagnostics.contains("No space left on device"))
        #expect(run.output.isEmpty, "left behind: \(run.text)")
    }

    @Test(.timeLimit(.minutes(1))) func anInterruptEndsWith32() throws {
        let file = try SampleFile(steps: [1], opaqueByteCount: 900_000)
        // The reader lets the pipe fill up, interrupts the tool, and then reads on.
        let run = try ToolRun(
            shell: """
                cd '\(directory.path)'; mkfifo pipe
                $pcextract '\(file.path)' --format raw -o pipe & p=$!
                exec 3< pipe; head -c 1000 <&3 > /dev/null; sleep 0.3
                kill -INT $p; sleep 0.2; cat <&3 > /dev/null; wait $p; echo $?
                """)
        #expect(run.text == "32\n", "\(run.text)\(run.diagnostics)")
        #expect(run.diagnostics.contains("cancelled"))
    }

    // MARK: Listing

    @Test func theListShowsCheckpointsAndTensors() throws {
        let file = try SampleFile()
        let run = try ToolRun(.pcextract, ["--list", file.path, "--tensor", "model.*"])
        #expect(run.status == 0)
        for word in ["anchored", "retained", "model.weight", "64 × 300"] {
            #expect(run.text.contains(word), "\(word)")
        }
        #expect(!run.text.contains("optimizer"))
        #expect(!run.output.contains(0x1B))
    }
}
