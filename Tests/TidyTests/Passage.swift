import Foundation

/// A piece of text for people, and the line on which it begins.
struct Passage: Equatable {
    let line: Int
    var text: String

    /// What a person reads of a file: prose of Markdown and manual pages, comments and string
    /// literals of code.
    static func all(in lines: [String], path: String) -> [Passage] {
        switch (path as NSString).pathExtension {
        case "md": markdown(lines)
        case "1", "5", "8": manual(lines)
        case "swift", "c", "h": code(lines, comment: "//")
        default: code(lines, comment: "#")
        }
    }

    /// Markdown without code blocks and without code spans, which quote programs.
    static func markdown(_ lines: [String]) -> [Passage] {
        var isCode = false
        var found: [Passage] = []
        for (index, line) in lines.enumerated() {
            if line.trimmingCharacters(in: .whitespaces).hasPrefix("```") {
                isCode.toggle()
            } else if !isCode {
                found.append(Passage(line: index + 1, text: withoutCodeSpans(line)))
            }
        }
        return found
    }

    /// A code span becomes one word, so that the sentence around it stays a sentence.
    static func withoutCodeSpans(_ line: String) -> String {
        line.replacing(/`[^`]*`/, with: "CODE")
    }

    /// roff: the words of text lines and of macros that take text, without examples.
    static func manual(_ lines: [String]) -> [Passage] {
        var isCode = false
        var found: [Passage] = []
        for (index, line) in lines.enumerated() {
            if line.hasPrefix(".nf") || line.hasPrefix(".EX") { isCode = true }
            if line.hasPrefix(".fi") || line.hasPrefix(".EE") { isCode = false }
            guard !isCode, !line.hasPrefix(".\\\"") else { continue }
            let text = line.replacing(/^\.[A-Za-z]+ ?/, with: "").replacing(/\\f[A-Z]/, with: "")
            append(Passage(line: index + 1, text: text.replacing("\\-", with: "-")), to: &found)
        }
        return found
    }

    /// Comments, where those of lines that follow each other are one text, and string literals.
    static func code(_ lines: [String], comment: String) -> [Passage] {
        var found: [Passage] = []
        var literals: [Passage] = []
        var scan = CodeScan(comment: comment)
        for (index, line) in lines.enumerated() {
            let parts = scan.parts(of: line)
            if parts.comment.isEmpty {
                found.append(Passage(line: index + 1, text: ""))
            } else {
                append(Passage(line: index + 1, text: parts.comment), to: &found)
            }
            literals += parts.literals.map { Passage(line: index + 1, text: $0) }
        }
        return found.filter { !$0.text.isEmpty } + literals
    }

    /// Joins a line to the text that ends on the line before, because a phrase may begin on one
    /// line and end on the next; an empty text ends a passage.
    private static func append(_ next: Passage, to found: inout [Passage]) {
        if let last = found.last, !last.text.isEmpty, !next.text.isEmpty {
            found[found.count - 1].text += " " + next.text
        } else {
            found.append(next)
        }
    }
}

/// Splits lines of code into comments and string literals, from one line to the next.
private struct CodeScan {
    let comment: String
    /// What ends the text that a line before began: `*/`, or three quotes.
    private var end: String?
    private var isLiteral = false

    init(comment: String) { self.comment = comment }

    mutating func parts(of line: String) -> (comment: String, literals: [String]) {
        var rest = Substring(line)
        var words = ""
        var literals: [String] = []
        while !rest.isEmpty {
            if let end {
                let text = take(upTo: end, from: &rest)
                if isLiteral { literals.append(text) } else { words += text }
            } else if rest.hasPrefix(comment) {
                words += String(rest.drop { $0 == comment.first || $0 == "!" || $0 == ":" })
                rest = ""
            } else if comment == "//", rest.hasPrefix("/*") {
                begin("*/", dropping: 2, of: &rest, isLiteral: false)
            } else if let quotes = ["\"\"\"", "\"", "'"].first(where: { rest.hasPrefix($0) }) {
                if quotes.count == 3 {
                    begin(quotes, dropping: 3, of: &rest, isLiteral: true)
                } else if let text = literal(from: &rest) {
                    literals.append(text)
                }
            } else {
                rest.removeFirst()
            }
        }
        return (words.trimmingCharacters(in: CharacterSet(charactersIn: " */")), literals)
    }

    private mutating func begin(
        _ ending: String, dropping count: Int, of rest: inout Substring, isLiteral: Bool
    ) {
        end = ending
        self.isLiteral = isLiteral
        rest.removeFirst(count)
    }

    private mutating func take(upTo ending: String, from rest: inout Substring) -> String {
        guard let range = rest.range(of: ending) else {
            defer { rest = "" }
            return String(rest)
        }
        end = nil
        defer { rest = rest[range.upperBound...] }
        return String(rest[..<range.lowerBound])
    }

    /// The content of a literal that ends on its line; else drops its first quote.
    private func literal(from rest: inout Substring) -> String? {
        let quote = rest.removeFirst()
        var isEscaped = false
        for index in rest.indices {
            if isEscaped {
                isEscaped = false
            } else if rest[index] == "\\" {
                isEscaped = true
            } else if rest[index] == quote {
                defer { rest = rest[rest.index(after: index)...] }
                return String(rest[..<index])
            }
        }
        return nil
    }
}
