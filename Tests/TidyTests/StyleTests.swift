import Foundation
import Testing

/// The rules of the house that a formatter does not know.
@Suite struct StyleTests {
    static let swiftFiles =
        Repository.files("Sources", [".swift"]) + Repository.files("Tests", [".swift"])
    static let codeFiles = swiftFiles + Repository.files("Sources", [".c", ".h"])

    @Test func thereIsSomethingToCheck() { #expect(Self.swiftFiles.count > 50) }

    @Test(arguments: codeFiles) func linesAndFilesAreShort(path: String) throws {
        let lines = try Repository.lines(path)
        // A C program includes one header: that of the C ABI has all of it.
        let limit = path.hasSuffix("/pccheck.h") ? 700 : 600
        #expect(lines.count <= limit, "\(path) has \(lines.count) lines")
        for (index, line) in lines.enumerated() where line.count > 100 {
            Issue.record("\(path):\(index + 1) has \(line.count) characters")
        }
    }

    @Test(arguments: codeFiles) func nothingIsLeftForLater(path: String) throws {
        // Spelled in two parts, so that this file passes its own check.
        for word in ["TO" + "DO", "FIX" + "ME", "not" + "Implemented", "unimpl" + "emented"] {
            #expect(try !Repository.text(path).contains(word), "\(path) says \(word)")
        }
    }

    /// A comment close above each `unsafe` explains why it is safe.
    @Test(arguments: Repository.files("Sources", [".swift"]))
    func everyUnsafeHasItsReason(path: String) throws {
        let lines = try Repository.lines(path)
        let use = /(=|\(|return|try|in|\{|,|^)\s*unsafe\s/
        for (index, line) in lines.enumerated() {
            let code = line.components(separatedBy: "//")[0]
            guard code.firstMatch(of: use) != nil else { continue }
            let above = lines[max(0, index - 14)...index]
            let hasReason = above.contains { $0.contains(/\/\/.*([Ss]afe|above|Unchecked)/) }
            #expect(hasReason, "\(path):\(index + 1): no comment says why this is safe")
        }
    }

    @Test(arguments: swiftFiles) func uncheckedSendableHasAProof(path: String) throws {
        let lines = try Repository.lines(path)
        for (index, line) in lines.enumerated()
        where line.contains("@unchecked " + "Sendable {") {
            let above = lines[max(0, index - 5)..<index]
            #expect(
                above.contains { $0.contains("//") },
                "\(path):\(index + 1): no comment proves that this may be shared")
        }
    }

    static let pages =
        ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"] + Repository.files("spec", [".md"])

    /// A link inside the project leads somewhere.
    @Test(arguments: pages) func linksHaveTargets(path: String) throws {
        let folder = URL(filePath: path, relativeTo: Repository.root).deletingLastPathComponent()
        for match in try Repository.text(path).matches(of: /\]\(([^)#:\s]+)(#[^)\s]*)?\)/) {
            let target = folder.appending(path: String(match.1))
            #expect(
                FileManager.default.fileExists(atPath: target.path),
                "\(path) links to \(match.1), which does not exist")
        }
    }

    /// So does a path that a page names.
    @Test(arguments: pages + ["Fixtures/README.md"]) func pathsExist(path: String) throws {
        let inside = /(?:^|[^\w\/])((?:Benchmarks|Fixtures|Sources|Tests|spec)\/[\w.\/-]*\w)/
        for match in try Repository.text(path).matches(of: inside.anchorsMatchLineEndings()) {
            let target = Repository.root.appending(path: String(match.1))
            #expect(
                FileManager.default.fileExists(atPath: target.path),
                "\(path) names \(match.1), which does not exist")
        }
    }
}
