import Foundation

/// One sentence per line in Markdown: no line has two, and none goes over two lines.
///
/// Tables, headings, code and HTML are no prose here. What follows a list marker or a label in
/// bold ("**Why.**") is a line of its own.
enum Sentences {
    struct Fault: Equatable {
        let line: Int
        let reason: String
    }

    static func faults(in lines: [String]) -> [Fault] {
        let prose = Passage.markdown(lines)
        var found: [Fault] = []
        for (index, passage) in prose.enumerated() {
            guard let text = content(passage.text) else { continue }
            if holds(text, sentenceEndsInside) {
                found.append(Fault(line: passage.line, reason: "has two sentences"))
            }
            let next = index + 1 < prose.count ? prose[index + 1] : nil
            if let next, next.line == passage.line + 1, isContinuation(next.text),
                !text.contains(/[.?!:][)"*_\]]{0,3}$/)
            {
                found.append(Fault(line: passage.line, reason: "breaks a sentence over two lines"))
            }
        }
        return found
    }

    /// An end, and a beginning behind it. The dot of an abbreviation ends nothing.
    private static let sentenceEndsInside =
        "[^.\\s](?<!\\be\\.g|\\bi\\.e|\\betc|\\bvs)[.?!][)\"*_]{0,3} +[\"(*_\\[]{0,3}\\p{Lu}"

    private static func holds(_ text: String, _ pattern: String) -> Bool {
        text.range(of: pattern, options: .regularExpression) != nil
    }

    /// The text of a line of prose, without list marker and label; nil for anything else.
    private static func content(_ line: String) -> String? {
        let text = line.trimmingCharacters(in: .whitespaces)
        guard !text.isEmpty, !text.contains(/^(?:\||#|<|!\[|\[[^\]]*\]:|---)/) else { return nil }
        return text.replacing(/^(?:[-*+] |\d+\. )/, with: "")
            .replacing(/^\*\*[^*]+[.?!:]\*\*:? +/, with: "")
    }

    private static func isContinuation(_ line: String) -> Bool {
        content(line) != nil && !line.contains(/^\s*(?:[-*+] |\d+\. )/)
    }
}
