import Foundation
import Testing

/// CONTRIBUTING.md, "Language": what a program can check of it.
@Suite struct ProseTests {
    static let pages = StyleTests.pages + Repository.files("Fixtures", [".md"])

    /// Whose comments, messages and manual pages keep the word list.
    static let folders = [
        "Benchmarks", "Sources", "Tests/TidyTests", "docs",
    ]
    static let scripts = [
        "Makefile", "Sources/Packaging/build-deb", "Sources/Packaging/install",
        "Sources/Packaging/pkg-config",
    ]
    /// These two files hold the phrases themselves.
    static let sources =
        scripts
        + folders.flatMap { Repository.files($0, [".swift", ".c", ".h", ".py", ".1", ".5"]) }
        .filter { !$0.hasSuffix("/WordList.swift") && !$0.hasSuffix("/ProseTests.swift") }

    @Test func thereIsSomethingToRead() {
        #expect(Self.pages.count > 20)
        #expect(Self.sources.count > 50)
    }

    @Test(arguments: pages + sources) func phrasesAreOurs(path: String) throws {
        for passage in Passage.all(in: try Repository.lines(path), path: path) {
            // This table is made from ProblemCatalogue.swift, where the words are checked.
            if passage.text.hasPrefix("| PCK-") { continue }
            for hit in try Self.hits(in: passage.text) {
                Issue.record("\(path):\(passage.line) has “\(hit.found)”; write “\(hit.instead)”")
            }
        }
    }

    @Test(arguments: pages) func everyLineIsASentence(path: String) throws {
        for fault in Sentences.faults(in: try Repository.lines(path)) {
            Issue.record("\(path):\(fault.line) \(fault.reason)")
        }
    }

    static func hits(in text: String) throws -> [(found: String, instead: String)] {
        let range = NSRange(text.startIndex..., in: text)
        let anyPhrase = try #require(Self.anyPhrase)
        guard anyPhrase.firstMatch(in: text, range: range) != nil else { return [] }
        return try UnusedPhrase.all.flatMap { entry in
            try expression(entry.phrase).matches(in: text, range: range).map {
                ((text as NSString).substring(with: $0.range), entry.instead)
            }
        }
    }

    /// Most texts have no hit at all: one search finds that out.
    private static let anyPhrase = try? expression(
        UnusedPhrase.all.map(\.phrase).joined(separator: "|"))

    private static func expression(_ phrase: String) throws -> NSRegularExpression {
        try NSRegularExpression(pattern: "\\b(?:\(phrase))\\b", options: .caseInsensitive)
    }

    // MARK: The checks find what they are for

    @Test(arguments: [
        "The other copy is whole.", "It loads the newest whole checkpoint.", "4 of 4 copies whole",
        "An invariant was broken.", "The run goes on.", "It lies at byte 12.", "Whoever opens it",
        "The header says which.", "a backup beside a live writer",
        "not verified for want of memory",
        "A quick check", "the control group", "a file that closes by itself", "It is told so.",
    ])
    func aTranslatedPhraseIsFound(text: String) throws {
        #expect(try !Self.hits(in: text).isEmpty)
    }

    @Test(arguments: [
        "a whole number of leaves", "It is a whole number.", "zeros to the whole file",
        "write: broken pipe", "make bench-quick", "none|quick|full", "quick (default): 1M",
        "The next tool lies between them.",
        "It goes ongoing.", "The copies wholesale", "a recommended size",
    ])
    func aRealMeaningPasses(text: String) throws {
        #expect(try Self.hits(in: text).isEmpty)
    }

    @Test func codeIsReadAsItsCommentsAndLiterals() {
        let swift = [
            "let whole = 1  // it goes", "// on", "let text = \"is \\\"whole\\\"\"", "/* the",
            " * end */",
        ]
        #expect(
            Passage.all(in: swift, path: "a.swift").map(\.text)
                == ["it goes on", "the end", "is \\\"whole\\\""])
        let python = ["\"\"\"It goes", "on.\"\"\"", "x = 'a'  # why"]
        #expect(
            Passage.all(in: python, path: "a.py").map(\.text) == ["why", "It goes", "on.", "a"])
        let page = ["Text with `it is whole` in it.", "```", "is whole", "```"]
        #expect(Passage.all(in: page, path: "a.md").map(\.text) == ["Text with CODE in it."])
    }

    @Test(arguments: [
        (["One sentence. Another one."], "has two sentences"),
        (["- It ends (here.) And `more`."], "has two sentences"),
        (["It ends. `save` follows."], "has two sentences"),
        (
            ["This line stops in the", "middle of its sentence."],
            "breaks a sentence over two lines"
        ),
        (["- An item that stops", "  in the middle."], "breaks a sentence over two lines"),
    ])
    func twoSentencesAndHalfOnesAreFound(lines: [String], reason: String) {
        #expect(Sentences.faults(in: lines).map(\.reason) == [reason])
    }

    @Test(arguments: [
        ["One sentence.", "Another one."], ["**Why.** One sentence."],
        ["1. **Reuse.**", "   Text."],
        ["| A cell. Two sentences. |"], ["A list:", "- tensors;", "- arrays"],
        ["See e.g. Linux 6.1."],
        ["It has these:", "", "- one"], ["```", "two. Three", "```"], ["Wait … Then it ends."],
    ])
    func aSentencePerLinePasses(lines: [String]) {
        #expect(Sentences.faults(in: lines).isEmpty)
    }
}
