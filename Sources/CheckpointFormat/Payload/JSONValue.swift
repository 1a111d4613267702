/// A JSON document for programs: what the tools print and what the C ABI returns. Keys keep their
/// order.
package indirect enum JSONValue: Equatable, Sendable {
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

    package struct Member: Equatable, Sendable {
        package var key: String
        package var value: JSONValue

        package init(key: String, value: JSONValue) {
            self.key = key
            self.value = value
        }
    }

    package static func dictionary(_ members: KeyValuePairs<String, JSONValue>) -> JSONValue {
        object(members.map { Member(key: $0, value: $1) })
    }

    package static func count(_ value: Int) -> JSONValue { .integer(UInt64(clamping: value)) }
    package static func count(_ value: UInt32) -> JSONValue { .integer(UInt64(value)) }
    package static func text(_ value: (some CustomStringConvertible)?) -> JSONValue {
        value.map { .string($0.description) } ?? .null
    }
    package static func number(_ value: UInt64?) -> JSONValue {
        value.map { .integer($0) } ?? .null
    }
    package static func figure(_ value: Double?) -> JSONValue {
        value.map { .decimal($0) } ?? .null
    }
    package static func flag(_ value: Bool?) -> JSONValue { value.map { .bool($0) } ?? .null }

    /// The document's bytes, indented, with a line feed at the end.
    package var bytes: [UInt8] { JSONWriter.indented(self) + [0x0A] }

    /// The document on one line, with a line feed at the end: for JSON lines.
    package var line: [UInt8] { JSONWriter.compact(self, .printable) + [0x0A] }

    /// The document on one line, in which only what JSON demands is escaped.
    package var text: String {
        String(decoding: JSONWriter.compact(self, .required), as: UTF8.self)
    }
}
