import CheckpointCheck
import Foundation
import Testing

/// spec/PROBLEMS.md and the catalogue say the same.
@Suite struct ProblemCatalogueTests {
    private static let specURL = URL(filePath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        .appending(path: "spec/PROBLEMS.md")

    /// The page: its text is written by hand, its table is generated.
    ///
    ///     PCCHECK_WRITE_PROBLEMS=1 swift test --filter ProblemCatalogueTests
    @Test func tableOfTheSpecIsTheCatalogue() throws {
        let spec = try String(contentsOf: Self.specURL, encoding: .utf8)
        let lines = spec.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
        let start = try #require(lines.firstIndex { $0.hasPrefix("| ID ") }, "no table")
        let end = lines[start...].firstIndex { !$0.hasPrefix("|") } ?? lines.endIndex
        let generated = lines[..<start] + ProblemCatalogue.markdownTable + lines[end...]
        if ProcessInfo.processInfo.environment["PCCHECK_WRITE_PROBLEMS"] != nil {
            try Data(generated.joined(separator: "\n").utf8).write(to: Self.specURL)
        } else {
            #expect(
                Array(lines[start..<end]) == ProblemCatalogue.markdownTable,
                "make the table of spec/PROBLEMS.md again, as the comment of this test says")
        }
    }

    @Test func identifiersAreUniqueAndWellFormed() {
        let identifiers = ProblemCatalogue.all.map(\.id)
        #expect(Set(identifiers).count == identifiers.count)
        for id in identifiers {
            #expect(id.wholeMatch(of: /PCK-[IBSTCXG][0-9]{3}/) != nil, "\(id)")
            #expect(ProblemCatalogue.problem(id)?.id == id)
        }
        #expect(ProblemCatalogue.problem("PCK-Z999") == nil)
    }

    @Test func everyProblemSaysWhatItMeansAndWhatToDo() {
        for problem in ProblemCatalogue.all {
            #expect(problem.explanation.hasSuffix("."), "\(problem.id)")
            #expect(problem.advice.hasSuffix("."), "\(problem.id)")
            #expect(!problem.title.hasSuffix("."), "\(problem.id)")
            let cells = problem.title + problem.explanation + problem.advice
            #expect(!cells.contains("|"), "\(problem.id) would break the table")
        }
    }
}
