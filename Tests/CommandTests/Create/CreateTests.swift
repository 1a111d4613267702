import CheckpointCommands
import CheckpointFormat
import CheckpointRecovery
import CheckpointWriter
import Foundation
import Synchronization
import Testing

@Suite struct CreateTests {
    let directory: TemporaryDirectory
    var file: String { directory.file("run.pcc") }

    init() throws { directory = try TemporaryDirectory() }

    @Test(arguments: ["zero", "fallocate"]) func aFileIsCreated(preallocation: String) throws {
        let run = try ToolRun(
            .pccheck,
            [
                "create", file, "--capacity", "1M", "--in-flight", "3", "--retain", "2", "--chunk",
                "128K", "--prealloc", preallocation, "--fingerprint", "gpt/8", "--rank", "2",
                "--world-size", "4",
            ])
        #expect(run.status == 0, "\(run.diagnostics)")
        #expect(run.text.contains("5 slots of 1 MiB"))
        #expect(run.diagnostics.isEmpty, "no progress bar off a terminal")
        let identity = try CheckpointReader(path: file).decision.identity
        #expect(identity.geometry.inFlightCount == 3 && identity.geometry.retainCount == 2)
        #expect(identity.geometry.chunkByteCount == 128 << 10)
        #expect(identity.fingerprint == "gpt/8")
        #expect(identity.rank == 2 && identity.worldSize == 4)
        #expect(directory.names == ["run.pcc"], "no temporary file is left")
        #expect(try ToolRun(.pcfsck, [file]).status == 0)
    }

    @Test func anExistingFileIsKeptUnlessItIsToBeReplaced() throws {
        try Data("precious".utf8).write(to: URL(filePath: file))
        let refused = try ToolRun(.pccheck, ["create", file, "--capacity", "64K"])
        #expect(refused.status == 8)
        #expect(refused.diagnostics.contains("exists already"))
        #expect(try String(contentsOfFile: file, encoding: .utf8) == "precious")
        let replaced = try ToolRun(.pccheck, ["create", file, "--capacity", "64K", "--replace"])
        #expect(replaced.status == 0, "\(replaced.diagnostics)")
        #expect(try ToolRun(.pcfsck, [file]).status == 0)
    }

    /// The file behind a symbolic link is replaced, in its own folder; the link stays.
    @Test func aLinkIsFollowedAndStays() throws {
        let folder = directory.file("disk")
        try FileManager.default.createDirectory(
            atPath: folder, withIntermediateDirectories: false)
        try Data("old".utf8).write(to: URL(filePath: folder + "/target.pcc"))
        try FileManager.default.createSymbolicLink(
            atPath: file, withDestinationPath: "disk/target.pcc")
        let arguments = ["create", file, "--capacity", "64K"]
        let refused = try ToolRun(.pccheck, arguments)
        #expect(refused.status == 8 && refused.diagnostics.contains("exists already"))
        let run = try ToolRun(.pccheck, arguments + ["--replace"])
        #expect(run.status == 0, "\(run.diagnostics)")
        #expect(
            try FileManager.default.destinationOfSymbolicLink(atPath: file) == "disk/target.pcc")
        #expect(try ToolRun(.pcfsck, [folder + "/target.pcc"]).status == 0)
        #expect(try FileManager.default.contentsOfDirectory(atPath: folder) == ["target.pcc"])
    }

    /// Nobody can tell where the file is to be: the link stays, too.
    @Test(arguments: [[], ["--replace"]]) func aLinkToNothingIsRefused(options: [String]) throws {
        try FileManager.default.createSymbolicLink(atPath: file, withDestinationPath: "nowhere")
        let run = try ToolRun(.pccheck, ["create", file, "--capacity", "64K"] + options)
        #expect(run.status == 8, "\(run.text)")
        if options != [] {
            #expect(run.diagnostics.contains("leads to no file"), "\(run.diagnostics)")
        }
        #expect(directory.names == ["run.pcc"])
        #expect(try FileManager.default.destinationOfSymbolicLink(atPath: file) == "nowhere")
    }

    @Test(arguments: [
        ["create"], ["create", "x"], ["create", "x", "--capacity", "lots"],
        ["create", "x", "--capacity", "1M", "--prealloc", "maybe"], ["nonsense"],
        ["create", "x", "--capacity", "0"], ["create", "x", "--capacity", "1M", "--retain", "0"],
        ["create", "x", "--capacity", "1M", "--in-flight", "65"],
        ["create", "x", "--capacity", "1M", "--chunk", "1000"],
        ["create", "x", "--capacity", "1M", "--rank", "1"],
        ["create", "x", "--capacity", "100T"],
    ])
    func wrongUsageEndsWith16(arguments: [String]) throws {
        let arguments = arguments.map { $0 == "x" ? file : $0 }
        let run = try ToolRun(.pccheck, arguments)
        #expect(run.status == 16, "\(run.text)")
        #expect(!run.diagnostics.isEmpty && run.output.isEmpty)
        #expect(directory.names == [])
    }

    @Test func convertIsACommandOfPython() throws {
        let run = try ToolRun(.pccheck, ["convert", "a.pt", "-o", "a.pcc"])
        #expect(run.status == 16 && run.output.isEmpty)
        #expect(run.diagnostics.contains("use python -m pccheck convert"))
    }

    @Test func whatTheSystemRefusesEndsWith8() throws {
        let missing = try ToolRun(.pccheck, ["create", "/no/such/x.pcc", "--capacity", "64K"])
        #expect(missing.status == 8)
        #expect(missing.diagnostics.contains("/no/such/x.pcc"))
        #expect(missing.diagnostics.contains("No such file or directory"))
        let directory = try ToolRun(.pccheck, ["create", directory.path, "--capacity", "64K"])
        #expect(directory.status == 8, "\(directory.diagnostics)")
    }

    @Test(.timeLimit(.minutes(1))) func anInterruptLeavesNothingBehind() throws {
        let run = try ToolRun(
            shell: """
                cd '\(directory.path)'
                $pccheck create x.pcc --capacity 2G --in-flight 1 --prealloc zero & p=$!
                until ls | grep -q creating; do sleep 0.01; done
                sleep 0.1; kill -INT $p; wait $p; echo $?; ls
                """)
        #expect(run.text == "32\n", "\(run.text)\(run.diagnostics)")
        #expect(run.diagnostics.contains("cancelled"))
    }

    /// Reserved, and not written: the first save must not wait for the whole file.
    @Test func blocksAreReservedAndNotWritten() throws {
        let zeros = Mutex(0)
        var options = CheckpointFile.Options(capacity: 1 << 20)
        try CheckpointFile.create(path: file, options: options) { _, _ in zeros.withLock { $0 += 1 }
        }
        #expect(zeros.withLock { $0 } == 0)
        let blocks = try ToolRun(shell: "stat -c %b '\(file)'").lines.first.flatMap { Int($0) }
        #expect((blocks ?? 0) * 512 >= 3 << 20)
        options.preallocation = .zero
        options.replacesExisting = true
        try CheckpointFile.create(path: file, options: options) { _, _ in zeros.withLock { $0 += 1 }
        }
        #expect(zeros.withLock { $0 } > 0)
    }

    /// ext2 has no fallocate: the blocks are written, so that a full disk still shows here.
    @Test(.enabled(if: TinyFileSystem.isPossible))
    func aFileSystemThatReservesNothingGetsZeros() throws {
        let run = try ToolRun(
            shell: """
                cd '\(directory.path)'
                truncate -s 16M image && mkfs.ext2 -q image && mkdir m && mount -o loop image m
                trap 'umount m' EXIT
                $pccheck create m/x.pcc --capacity 1M && stat -c %b m/x.pcc && $pcfsck m/x.pcc
                $pccheck create m/y.pcc --capacity 100M; echo $?; ls m
                """)
        #expect(run.text.contains("created m/x.pcc"), "\(run.text)\(run.diagnostics)")
        let blocks = run.lines.compactMap { Int($0) }
        #expect((blocks.first ?? 0) * 512 >= 3 << 20, "\(run.text)")
        #expect(blocks.last == 8 && run.diagnostics.contains("No space left on device"))
        #expect(!run.text.contains("creating"), "\(run.text)")
    }

    /// What a killed creation leaves is removed by the next one, which spares a living one.
    @Test(.timeLimit(.minutes(1))) func leftoversOfKilledCreationsGo() throws {
        let run = try ToolRun(
            shell: """
                cd '\(directory.path)'
                for i in 1 2; do
                    $pccheck create x.pcc --capacity 2G --in-flight 1 --prealloc zero & p=$!
                    until ls | grep -q creating; do sleep 0.01; done
                    sleep 0.5
                    [ $i = 1 ] && { kill -9 $p; wait $p; ls | grep -c creating; }
                done
                ls | grep -c creating
                $pccheck create x.pcc --capacity 64K > created; ls | grep -c creating
                kill -9 $p; wait $p
                $pccheck create x.pcc --capacity 64K --replace > created; ls
                """)
        #expect(run.lines == ["1", "1", "1", "created", "x.pcc", ""], "\(run.text)")
    }

    @Test(arguments: ["pcfsck", "pcinspect", "pcextract", "pccheck"])
    func helpAndVersion(tool: String) throws {
        for option in ["--help", "--version"] {
            let run = try ToolRun(shell: "$\(tool) \(option)")
            #expect(run.status == 0 && !run.output.isEmpty && run.diagnostics.isEmpty)
            #expect(run.lines.allSatisfy { $0.count <= 80 }, "\(run.text)")
        }
        let completion = try ToolRun(shell: "$\(tool) --generate-completion-script bash")
        #expect(completion.status == 0 && completion.text.contains(tool))
    }
}
