import CheckpointCheck
import Foundation
import Testing

/// spec/PROBLEMS.md and the catalogue say the same.
@Suite struct ProblemCatalogueTests {
    private static let specURL = URL(filePath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        .appending(path: "spec/PROBLEMS.md")

    @Test func tableOfTheSpecIsTheCatalogue() throws {
        let spec = try String(contentsOf: Self.specURL, encoding: .utf8)
        let rows = spec.split(separator: "\n").map(String.init).filter {
            $0.hasPrefix("| PCK-") || $0.hasPrefix("| ID") || $0.hasPrefix("|---|---|---|---|---|")
        }
        #expect(
            rows == ProblemCatalogue.markdownTable,
            """
            spec/PROBLEMS.md must hold these rows:
            \(ProblemCatalogue.markdownTable.joined(separator: "\n"))
            """)
    }

    @Test func identifiersAreUniqueAndWellFormed() {
        let identifiers = ProblemCatalogue.all.map(\.id)
        #expect(Set(identifiers).count == identifiers.count)
        for id in identifiers {
            #expect(id.wholeMatch(of: /PCK-[IBSTCX][0-9]{3}/) != nil, "\(id)")
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
