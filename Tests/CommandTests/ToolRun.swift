import CheckpointCommands
import Foundation
import Testing

/// One run of a real binary.
struct ToolRun {
    let status: Int32
    let output: [UInt8]
    let diagnostics: String

    var text: String { String(decoding: output, as: UTF8.self) }
    var lines: [Substring] { text.split(separator: "\n", omittingEmptySubsequences: false) }

    /// The folder of the build products: this test's executable lies in it.
    static let products = URL(filePath: "/proc/self/exe").resolvingSymlinksInPath()
        .deletingLastPathComponent()

    static func path(_ tool: Tool) -> String { products.appending(path: tool.rawValue).path }

    /// Runs `tool` and waits for it.
    init(
        _ tool: Tool, _ arguments: [String], environment: [String: String] = ["LANG": "C.UTF-8"]
    ) throws {
        try self.init(executable: Self.path(tool), arguments, environment: environment)
    }

    /// Runs a shell script in which `$pcfsck` and so on are the tools.
    init(shell script: String, environment: [String: String] = ["LANG": "C.UTF-8"]) throws {
        var environment = environment
        for tool in Tool.allCases { environment[tool.rawValue] = Self.path(tool) }
        environment["PATH"] = ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin"
        try self.init(
            executable: "/bin/bash", ["-c", script], environment: environment)
    }

    private init(
        executable: String, _ arguments: [String], environment: [String: String]
    ) throws {
        // Output goes to files, so that a full pipe never stops the tool.
        let folder = try TemporaryDirectory()
        let outputFile = folder.file("output")
        let diagnosticsFile = folder.file("diagnostics")
        for path in [outputFile, diagnosticsFile] {
            try Data().write(to: URL(filePath: path))
        }
        let process = Process()
        process.executableURL = URL(filePath: executable)
        process.arguments = arguments
        process.environment = environment
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = try FileHandle(forWritingTo: URL(filePath: outputFile))
        process.standardError = try FileHandle(forWritingTo: URL(filePath: diagnosticsFile))
        try process.run()
        process.waitUntilExit()
        #expect(process.terminationReason == .exit, "\(executable) was killed by a signal")
        status = process.terminationStatus
        output = try [UInt8](Data(contentsOf: URL(filePath: outputFile)))
        diagnostics = try String(contentsOf: URL(filePath: diagnosticsFile), encoding: .utf8)
    }

    /// The output as JSON.
    func json() throws -> [String: Any] {
        try #require(
            JSONSerialization.jsonObject(with: Data(output)) as? [String: Any], "\(text)")
    }
}

/// A directory that is removed with its content.
final class TemporaryDirectory {
    let path: String

    init() throws {
        path =
            FileManager.default.temporaryDirectory
            .appendingPathComponent("pccheck-commands-\(UUID().uuidString)").path
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    func file(_ name: String) -> String { "\(path)/\(name)" }

    /// Names in the directory, sorted.
    var names: [String] {
        (try? FileManager.default.contentsOfDirectory(atPath: path))?.sorted() ?? []
    }
}
