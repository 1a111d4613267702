import CheckpointCommands
import CheckpointFormat
import CheckpointRecovery
import Foundation
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
                $pccheck create x.pcc --capacity 2G --in-flight 1 & p=$!
                until ls | grep -q creating; do sleep 0.01; done
                sleep 0.1; kill -INT $p; wait $p; echo $?; ls
                """)
        #expect(run.text == "32\n", "\(run.text)\(run.diagnostics)")
        #expect(run.diagnostics.contains("cancelled"))
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
