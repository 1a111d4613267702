internal import CheckpointFormat

/// A line for people: text whose parts may have a style.
///
/// Every part is escaped when it is added, so that nothing from a file reaches the terminal as a
/// control sequence; only rendering adds such sequences, and only where colour is on.
struct StyledText: ExpressibleByStringInterpolation, Equatable, Sendable {
    enum Style: String, Sendable {
        case bold = "1"
        case dim = "2"
        case red = "31"
        case green = "32"
        case yellow = "33"
        case cyan = "36"
    }

    struct Part: Equatable, Sendable {
        var text: String
        var style: Style?
    }

    private(set) var parts: [Part] = []

    init(stringLiteral value: String) { append(value, nil) }
    init(stringInterpolation: StringInterpolation) { self = stringInterpolation.text }
    init(_ text: String = "", _ style: Style? = nil) { append(text, style) }

    mutating func append(_ text: String, _ style: Style?) {
        if !text.isEmpty { parts.append(Part(text: PrintableText.escaped(text), style: style)) }
    }

    mutating func append(_ other: StyledText) { parts += other.parts }

    struct StringInterpolation: StringInterpolationProtocol {
        fileprivate(set) var text = StyledText()
        init(literalCapacity: Int, interpolationCount: Int) {}
        mutating func appendLiteral(_ literal: String) { text.append(literal, nil) }
        mutating func appendInterpolation(_ value: some CustomStringConvertible) {
            text.append(value.description, nil)
        }
        mutating func appendInterpolation(
            _ value: some CustomStringConvertible, _ style: Style?
        ) {
            text.append(value.description, style)
        }
        mutating func appendInterpolation(_ other: StyledText) { text.append(other) }
    }

    var plain: String { parts.map(\.text).joined() }
    var columnCount: Int { PrintableText.columnCount(plain) }

    func rendered(isColored: Bool) -> String {
        guard isColored else { return plain }
        return parts.map { part in
            part.style.map { "\u{1B}[\($0.rawValue)m\(part.text)\u{1B}[0m" } ?? part.text
        }.joined()
    }

    /// Filled up with spaces to `width` columns.
    func padded(to width: Int, isRight: Bool) -> StyledText {
        let space = String(repeating: " ", count: max(0, width - columnCount))
        return isRight ? "\(space)\(self)" : "\(self)\(space)"
    }

    /// Cut to `width` columns; the style of the first part is kept.
    func shortened(to width: Int) -> StyledText {
        columnCount <= width
            ? self : StyledText(PrintableText.shortened(plain, to: width), parts.first?.style)
    }
}
