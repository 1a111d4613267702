internal import CheckpointFormat

/// Breaks prose into lines of a terminal.
enum TextWrap {
    /// `text` behind `indent` spaces; broken between words when `width` is given.
    static func lines(_ text: String, indent: Int, width: Int?) -> [StyledText] {
        let space = String(repeating: " ", count: indent)
        let escaped = PrintableText.escaped(text)
        guard let width, width > indent + 20 else { return ["\(space)\(escaped)"] }
        var lines: [String] = []
        var line = ""
        for word in escaped.split(separator: " ") {
            let count = PrintableText.columnCount(line) + PrintableText.columnCount(String(word))
            if !line.isEmpty, indent + count + 1 > width {
                lines.append(line)
                line = ""
            }
            line += line.isEmpty ? String(word) : " \(word)"
        }
        return (lines + [line]).map { "\(space)\($0)" }
    }
}
