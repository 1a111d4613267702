import Foundation
import Testing

/// A tmpfs of a few blocks, mounted as long as the object lives. Needs root.
final class TinyFileSystem {
    static let isPossible = geteuid() == 0 && (try? TinyFileSystem(byteCount: 1 << 16)) != nil

    private let directory: TemporaryDirectory
    var path: String { directory.file("mount") }

    init(byteCount: Int) throws {
        directory = try TemporaryDirectory()
        let run = try ToolRun(
            shell: "mkdir '\(path)' && mount -t tmpfs -o size=\(byteCount) tmpfs '\(path)'")
        try #require(run.status == 0, "\(run.diagnostics)")
    }

    deinit { _ = try? ToolRun(shell: "umount '\(path)'") }

    /// From here on nothing can be written to it.
    func makeReadOnly() throws {
        let run = try ToolRun(shell: "mount -o remount,ro '\(path)'")
        try #require(run.status == 0, "\(run.diagnostics)")
    }

    var names: [String] {
        (try? FileManager.default.contentsOfDirectory(atPath: path))?.sorted() ?? []
    }
}
