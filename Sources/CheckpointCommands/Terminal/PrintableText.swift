internal import CheckpointFormat

extension PrintableText {
    /// Terminal columns that `text` takes, with East Asian wide characters as two.
    static func columnCount(_ text: String) -> Int {
        text.reduce(0) { count, character in
            count + (character.unicodeScalars.first.map(isWide) ?? false ? 2 : 1)
        }
    }

    private static func isWide(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.value {
        case 0x1100...0x115F, 0x2E80...0xA4CF, 0xAC00...0xD7A3, 0xF900...0xFAFF, 0xFE30...0xFE6F,
            0xFF00...0xFF60, 0xFFE0...0xFFE6, 0x1F300...0x1F64F, 0x1F900...0x1F9FF,
            0x20000...0x3FFFD:
            true
        default:
            false
        }
    }

    /// `text` cut to `limit` columns, with an ellipsis in the middle: both ends of a tensor's name
    /// tell something.
    static func shortened(_ text: String, to limit: Int) -> String {
        guard columnCount(text) > limit, limit >= 3 else { return text }
        var (head, tail) = ("", "")
        var room = limit - 1
        var start = text.startIndex
        var end = text.endIndex
        while start < end {
            let isHeadNext = columnCount(head) <= columnCount(tail)
            let character = isHeadNext ? text[start] : text[text.index(before: end)]
            let width = columnCount(String(character))
            guard width <= room else { break }
            room -= width
            if isHeadNext {
                head.append(character)
                start = text.index(after: start)
            } else {
                end = text.index(before: end)
                tail = String(character) + tail
            }
        }
        return head + "…" + tail
    }
}
