internal import CheckpointFormat

/// A JSON document for programs. Keys keep their order.
indirect enum JSONValue: Equatable, Sendable {
    case null
    case bool(Bool)
    case integer(UInt64)
    /// A value that a tensor holds: it may be negative.
    case signed(Int128)
    /// A measured figure; null when it is not finite.
    case decimal(Double)
    case string(String)
    case array([JSONValue])
    case object([Member])

    struct Member: Equatable, Sendable {
        var key: String
        var value: JSONValue
    }

    /// The schema of everything that the tools print; a change of meaning raises it.
    static let schemaVersion: UInt64 = 1

    /// A tool's document: who made it, and what it says.
    static func document(tool: String, _ members: KeyValuePairs<String, JSONValue>) -> JSONValue {
        document(tool: tool, members.map { Member(key: $0, value: $1) })
    }

    static func document(tool: String, _ members: [Member]) -> JSONValue {
        object(
            [
                Member(key: "schema_version", value: .integer(schemaVersion)),
                Member(key: "tool", value: .string(tool)),
                Member(key: "tool_version", value: .string(Tool.version)),
            ] + members)
    }

    static func dictionary(_ members: KeyValuePairs<String, JSONValue>) -> JSONValue {
        object(members.map { Member(key: $0, value: $1) })
    }

    static func count(_ value: Int) -> JSONValue { .integer(UInt64(value)) }
    static func text(_ value: (some CustomStringConvertible)?) -> JSONValue {
        value.map { .string($0.description) } ?? .null
    }
    static func number(_ value: UInt64?) -> JSONValue { value.map { .integer($0) } ?? .null }

    /// The document's bytes, indented, with a line feed at the end.
    var bytes: [UInt8] {
        var output: [UInt8] = []
        append(to: &output, depth: 0)
        output.append(0x0A)
        return output
    }

    /// Writes this object with one more member, a list that may be too long to hold: its
    /// elements are made, and written, one by one.
    func write(
        to output: Output, listing key: String, _ elements: some Sequence<JSONValue>
    ) {
        guard case .object(let members) = self else { preconditionFailure("a document") }
        var bytes = Self.object(members + [Member(key: key, value: .array([]))]).bytes
        let end = Array("]\n}\n".utf8)
        bytes.removeLast(end.count)
        var isEmpty = true
        for element in elements {
            bytes += Array((isEmpty ? "\n    " : ",\n    ").utf8)
            element.append(to: &bytes, depth: 2)
            output.write(bytes)
            bytes.removeAll(keepingCapacity: true)
            isEmpty = false
        }
        output.write(bytes + (isEmpty ? [] : Array("\n  ".utf8)) + end)
    }

    /// The document on one line, with a line feed at the end: for JSON lines.
    var line: [UInt8] {
        var output: [UInt8] = []
        appendCompact(to: &output)
        output.append(0x0A)
        return output
    }

    private func appendCompact(to output: inout [UInt8]) {
        switch self {
        case .array(let values):
            output.append(0x5B)
            for (index, value) in values.enumerated() {
                if index > 0 { output.append(0x2C) }
                value.appendCompact(to: &output)
            }
            output.append(0x5D)
        case .object(let members):
            output.append(0x7B)
            for (index, member) in members.enumerated() {
                if index > 0 { output.append(0x2C) }
                Self.appendString(member.key, to: &output)
                output.append(0x3A)
                member.value.appendCompact(to: &output)
            }
            output.append(0x7D)
        default: append(to: &output, depth: 0)
        }
    }

    private func append(to output: inout [UInt8], depth: Int) {
        switch self {
        case .null: output += Array("null".utf8)
        case .bool(let value): output += Array((value ? "true" : "false").utf8)
        case .integer(let value): output += Array("\(value)".utf8)
        case .signed(let value): output += Array("\(value)".utf8)
        case .decimal(let value):
            output += Array((value.isFinite ? "\(value)" : "null").utf8)
        case .string(let value): Self.appendString(value, to: &output)
        case .array(let values):
            // Numbers, such as a shape, stay on one line.
            let isShort = values.allSatisfy {
                if case .integer = $0 { true } else { false }
            }
            Self.appendList("[", "]", values, to: &output, depth: depth, isShort: isShort) {
                $0.append(to: &$1, depth: depth + 1)
            }
        case .object(let members):
            Self.appendList("{", "}", members, to: &output, depth: depth, isShort: false) {
                Self.appendString($0.key, to: &$1)
                $1 += Array(": ".utf8)
                $0.value.append(to: &$1, depth: depth + 1)
            }
        }
    }

    private static func appendList<Element>(
        _ open: String, _ close: String, _ elements: [Element], to output: inout [UInt8],
        depth: Int, isShort: Bool, _ appendElement: (Element, inout [UInt8]) -> Void
    ) {
        output += Array(open.utf8)
        let indent = [UInt8](repeating: 0x20, count: 2 * depth)
        for (index, element) in elements.enumerated() {
            if isShort {
                if index > 0 { output += Array(", ".utf8) }
            } else {
                output += Array((index > 0 ? ",\n" : "\n").utf8) + indent + [0x20, 0x20]
            }
            appendElement(element, &output)
        }
        if !isShort && !elements.isEmpty { output += [0x0A] + indent }
        output += Array(close.utf8)
    }

    /// Control and direction characters are escaped too, so that JSON on a terminal is harmless.
    private static func appendString(_ text: String, to output: inout [UInt8]) {
        output.append(0x22)
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"", "\\": output += [0x5C] + Array(String(scalar).utf8)
            case "\n": output += Array("\\n".utf8)
            case "\t": output += Array("\\t".utf8)
            default:
                if PrintableText.isUnsafe(scalar) {
                    for unit in String(scalar).utf16 {
                        let digits = String(unit, radix: 16)
                        let zeros = String(repeating: "0", count: 4 - digits.count)
                        output += Array("\\u\(zeros)\(digits)".utf8)
                    }
                } else {
                    output += Array(String(scalar).utf8)
                }
            }
        }
        output.append(0x22)
    }
}
