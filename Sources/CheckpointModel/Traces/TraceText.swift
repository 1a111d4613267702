/// Numbers of a trace: plain decimals, so that `nan`, `inf` and hexadecimal digits are refused.
enum TraceNumber {
    static func decimal(_ text: String, _ expected: String, line: Int?) throws(TraceError) -> Double
    {
        let isPlain = text.utf8.allSatisfy {
            (0x30...0x39).contains($0) || "+-.eE".utf8.contains($0)
        }
        guard isPlain, let value = Double(text) else {
            throw TraceError(.malformed, line: line, "found \(quoted(text)), expected \(expected)")
        }
        guard value.isFinite, value >= 0 else {
            throw TraceError(.outOfRange, line: line, "found \(quoted(text)), expected \(expected)")
        }
        return value
    }

    /// A number without a fraction, up to `limit`.
    static func whole(
        _ text: String, _ expected: String, limit: Int, line: Int?
    ) throws(TraceError) -> Int {
        let value = try decimal(text, expected, line: line)
        guard value <= Double(limit), value == value.rounded() else {
            throw TraceError(
                .outOfRange, line: line,
                "found \(quoted(text)), expected \(expected): a whole number up to \(limit)")
        }
        return Int(value)
    }

    /// What was found, short enough for a message.
    static func quoted(_ text: String) -> String {
        text.count > 40 ? "\"\(text.prefix(40))…\"" : "\"\(text)\""
    }
}

/// Rows of comma-separated values; a field may be in double quotes.
struct CSVReader {
    private let bytes: [UInt8]
    private var position = 0
    /// Of the row that was returned last, from 1.
    private(set) var line = 0
    private var nextLine = 1

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    /// The next row that is not empty; nil at the end.
    mutating func row() throws(TraceError) -> [String]? {
        while position < bytes.count {
            line = nextLine
            let fields = try fields()
            if fields != [""] { return fields }
        }
        return nil
    }

    private mutating func fields() throws(TraceError) -> [String] {
        var fields: [String] = []
        while true {
            fields.append(try field())
            guard fields.count <= TraceLimits.fieldCount else {
                throw TraceError(
                    .tooLarge, line: line,
                    "found more than \(TraceLimits.fieldCount) fields, expected fewer")
            }
            guard position < bytes.count else { return fields }
            let byte = bytes[position]
            position += 1
            if byte == 0x0A {
                nextLine += 1
                return fields
            }
        }
    }

    /// Up to the comma or the line feed that ends it, which stays.
    private mutating func field() throws(TraceError) -> String {
        var content: [UInt8] = []
        var isQuoted = false
        while position < bytes.count {
            let byte = bytes[position]
            if byte == 0x22 {
                let isDoubled =
                    isQuoted && position + 1 < bytes.count && bytes[position + 1] == 0x22
                if isDoubled { content.append(byte) } else { isQuoted.toggle() }
                position += isDoubled ? 2 : 1
                continue
            }
            if !isQuoted, byte == 0x2C || byte == 0x0A { break }
            if isQuoted, byte == 0x0A { nextLine += 1 }
            content.append(byte)
            position += 1
            guard content.count <= TraceLimits.fieldByteCount else {
                throw TraceError(
                    .tooLarge, line: line,
                    "found a field of more than \(TraceLimits.fieldByteCount) bytes, expected a "
                        + "shorter one")
            }
        }
        guard !isQuoted else {
            throw TraceError(
                .truncated, line: line, "found the end inside quotes, expected a closing quote")
        }
        if content.last == 0x0D { content.removeLast() }
        guard let text = String(validating: content, as: UTF8.self) else {
            throw TraceError(
                .malformed, line: line, "found bytes that are not UTF-8, expected text")
        }
        return text
    }
}

/// Names of nodes as numbers from 0, in the order in which they appear.
struct NodeNames {
    private var numbers: [String: Int] = [:]
    var count: Int { numbers.count }

    mutating func number(_ name: String, line: Int) throws(TraceError) -> Int {
        if let number = numbers[name] { return number }
        guard !name.isEmpty else {
            throw TraceError(.malformed, line: line, "found no name, expected that of a node")
        }
        guard numbers.count < TraceLimits.nodeCount else {
            throw TraceError(
                .tooLarge, line: line,
                "found more than \(TraceLimits.nodeCount) nodes, expected fewer")
        }
        numbers[name] = numbers.count
        return numbers.count - 1
    }
}
