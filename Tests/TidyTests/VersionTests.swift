import Foundation
import Testing

/// The file `VERSION` has the version; the Makefile, and through it the packages, read it.
///
/// These places cannot read it, and repeat it: Swift and Python must build without `make`, a
/// manual page is installed as it is, and a changelog names every version.
@Suite struct VersionTests {
    static let places: [(path: String, pattern: String)] =
        [
            (
                "Sources/CheckpointWriter/Opening/CheckpointFile.swift",
                "versionLiteral: StaticString = \"([^\"]+)\""
            ),
            ("Sources/Python/pccheck/_version.py", "^VERSION = \"([^\"]+)\""),
            ("Sources/Packaging/changelog", "^pccheck \\(([^)]+)\\)"),
            ("CHANGELOG.md", "^## ([0-9.]+)"),
        ]
        + Repository.files("Sources/CheckpointCommands/man", [".1", ".5"]).map { page in
            (page, "^\\.TH .*\"PCcheck ([^\"]+)\"")
        }

    @Test(arguments: places) func thePlaceRepeatsTheVersion(path: String, pattern: String) throws {
        let text = try Repository.text(path)
        let expression = try NSRegularExpression(pattern: pattern, options: .anchorsMatchLines)
        let match = try #require(
            expression.firstMatch(in: text, range: NSRange(text.startIndex..., in: text)),
            "\(path) has no version")
        let found = (text as NSString).substring(with: match.range(at: 1))
        #expect(found == (try Self.version()), "\(path) differs from VERSION")
    }

    @Test func theMakefileReadsTheFile() throws {
        #expect(try Repository.lines("Makefile").contains("VERSION := $(shell cat VERSION)"))
    }

    /// No other file names it.
    @Test func noOtherPlaceRepeatsTheVersion() throws {
        let version = try Self.version()
        let known = Set(Self.places.map(\.path))
        let paths =
            ["Package.swift", "Makefile"] + ProseTests.scripts + StyleTests.pages
            + Repository.files("Sources", [".swift", ".c", ".h", ".py", ".toml", ".1", ".5"])
        let name =
            "(?<![0-9.])" + NSRegularExpression.escapedPattern(for: version) + "(?!\\.?[0-9])"
        for path in Set(paths).subtracting(known) {
            for (index, line) in try Repository.lines(path).enumerated()
            where line.range(of: name, options: .regularExpression) != nil {
                Issue.record("\(path):\(index + 1) repeats the version of VERSION")
            }
        }
    }

    static func version() throws -> String {
        try Repository.text("VERSION").trimmingCharacters(in: .newlines)
    }
}
