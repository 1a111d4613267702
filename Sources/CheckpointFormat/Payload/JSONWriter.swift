/// The one writer of JSON: bytes on disk, documents for programs, and what the C ABI returns.
package enum JSONWriter {
    /// What is escaped in strings.
    package enum Escapes {
        /// Quotes, backslashes and control characters: what JSON demands, and what stands on disk.
        case required
        /// Direction characters and others that nobody sees, too: harmless on a terminal.
        case printable
    }

    package static func append(_ text: String, to output: inout [UInt8]) {
        output.append(contentsOf: text.utf8)
    }

    static func append(_ value: UInt64, to output: inout [UInt8]) {
        if value >= 10 { append(value / 10, to: &output) }
        output.append(UInt8(0x30 + value % 10))
    }

    /// `text` as a JSON string, in quotes.
    static func appendString(
        _ text: String, to output: inout [UInt8], _ escapes: Escapes = .required
    ) {
        output.append(0x22)
        switch escapes {
        case .required: appendEscaped(text.utf8, to: &output)
        case .printable: appendPrintable(text.unicodeScalars, to: &output)
        }
        output.append(0x22)
    }

    /// By bytes: what is escaped is ASCII, and the document of a state may have megabytes.
    private static func appendEscaped(_ text: String.UTF8View, to output: inout [UInt8]) {
        for byte in text {
            switch byte {
            case 0x22, 0x5C:
                output.append(0x5C)
                output.append(byte)
            case 0..<0x20: appendEscape(UInt16(byte), to: &output)
            default: output.append(byte)
            }
        }
    }

    private static func appendPrintable(
        _ text: String.UnicodeScalarView, to output: inout [UInt8]
    ) {
        for scalar in text {
            switch scalar {
            case "\"", "\\": output += [0x5C, UInt8(scalar.value)]
            case "\n": append("\\n", to: &output)
            case "\t": append("\\t", to: &output)
            case _ where scalar.value < 0x20: appendEscape(UInt16(scalar.value), to: &output)
            case _ where PrintableText.isUnsafe(scalar):
                for unit in String(scalar).utf16 { appendEscape(unit, to: &output) }
            case _ where scalar.isASCII: output.append(UInt8(scalar.value))
            default: output.append(contentsOf: String(scalar).utf8)
            }
        }
    }

    /// `\u` and four digits.
    private static func appendEscape(_ unit: UInt16, to output: inout [UInt8]) {
        let digits = String(unit, radix: 16)
        append("\\u\(String(repeating: "0", count: 4 - digits.count))\(digits)", to: &output)
    }

    // MARK: Documents

    static func compact(_ value: JSONValue, _ escapes: Escapes) -> [UInt8] {
        var output: [UInt8] = []
        append(value, to: &output, Style(escapes: escapes, depth: nil))
        return output
    }

    /// - Parameter depth: how deep the value lies in its document.
    package static func indented(_ value: JSONValue, depth: Int = 0) -> [UInt8] {
        var output: [UInt8] = []
        append(value, to: &output, Style(escapes: .printable, depth: depth))
        return output
    }

    private struct Style {
        let escapes: Escapes
        /// nil on one line.
        var depth: Int?

        var next: Style { Style(escapes: escapes, depth: depth.map { $0 + 1 }) }
    }

    private static func append(_ value: JSONValue, to output: inout [UInt8], _ style: Style) {
        switch value {
        case .null: append("null", to: &output)
        case .bool(let value): append(value ? "true" : "false", to: &output)
        case .integer(let value): append(value, to: &output)
        case .signed(let value): append("\(value)", to: &output)
        case .decimal(let value): append(value.isFinite ? "\(value)" : "null", to: &output)
        case .string(let text): appendString(text, to: &output, style.escapes)
        case .array(let values):
            // Numbers, such as a shape, stay on one line.
            let isShort = values.allSatisfy {
                if case .integer = $0 { true } else { false }
            }
            appendList("[]", values, to: &output, style, isShort: isShort) {
                append($0, to: &$1, style.next)
            }
        case .object(let members):
            appendList("{}", members, to: &output, style, isShort: false) {
                appendString($0.key, to: &$1, style.escapes)
                append(style.depth == nil ? ":" : ": ", to: &$1)
                append($0.value, to: &$1, style.next)
            }
        }
    }

    private static func appendList<Element>(
        _ brackets: String, _ elements: [Element], to output: inout [UInt8], _ style: Style,
        isShort: Bool, _ appendElement: (Element, inout [UInt8]) -> Void
    ) {
        append(String(brackets.prefix(1)), to: &output)
        let lineStart = style.depth.map { "\n" + String(repeating: " ", count: 2 * $0) }
        for (index, element) in elements.enumerated() {
            if index > 0 { append(isShort && lineStart != nil ? ", " : ",", to: &output) }
            if let lineStart, !isShort { append(lineStart + "  ", to: &output) }
            appendElement(element, &output)
        }
        if let lineStart, !isShort, !elements.isEmpty { append(lineStart, to: &output) }
        append(String(brackets.suffix(1)), to: &output)
    }
}
