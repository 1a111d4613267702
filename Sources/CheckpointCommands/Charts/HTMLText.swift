internal import CheckpointFormat

/// Markup in which only the source code's own literals are markup: whatever is interpolated is
/// escaped, so that nothing from a file can become a tag, an attribute or a direction change.
struct HTMLText: ExpressibleByStringInterpolation, Sendable {
    private(set) var markup: String

    init(stringLiteral value: String) { markup = value }
    init(stringInterpolation: StringInterpolation) { markup = stringInterpolation.markup }

    struct StringInterpolation: StringInterpolationProtocol {
        fileprivate(set) var markup = ""
        init(literalCapacity: Int, interpolationCount: Int) {
            markup.reserveCapacity(literalCapacity)
        }
        mutating func appendLiteral(_ literal: String) { markup += literal }
        mutating func appendInterpolation(_ value: some CustomStringConvertible) {
            markup += HTMLText.escaped(value.description)
        }
        mutating func appendInterpolation(_ html: HTMLText) { markup += html.markup }
        mutating func appendInterpolation(_ parts: [HTMLText]) {
            for part in parts { markup += part.markup }
        }
    }

    static func += (left: inout HTMLText, right: HTMLText) { left.markup += right.markup }

    /// Fit for content and for attributes in quotes. Control and direction characters are shown as
    /// escapes, as on a terminal.
    static func escaped(_ text: String) -> String {
        var result = ""
        for scalar in PrintableText.escaped(text).unicodeScalars {
            switch scalar {
            case "&": result += "&amp;"
            case "<": result += "&lt;"
            case ">": result += "&gt;"
            case "\"": result += "&quot;"
            case "'": result += "&#39;"
            default: result.unicodeScalars.append(scalar)
            }
        }
        return result
    }
}
