/// Reads the JSON text of a state document, token by token.
///
/// Beside `JSONScanner`, which reads safetensors headers, because Python strings may hold halves
/// of surrogate pairs, and numbers may be fractions.
struct StateText {
    enum Kind: Equatable { case object, array, string, number, null, bool(Bool) }

    private let bytes: [UInt8]
    private var position = 0

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    private var next: UInt8? { position < bytes.count ? bytes[position] : nil }

    func failure(_ expected: String) -> StateDocumentError {
        StateDocumentError("byte \(position) is not what was expected: \(expected)")
    }

    private mutating func skipSpace() {
        while let byte = next, [0x20, 0x09, 0x0A, 0x0D].contains(byte) { position += 1 }
    }

    mutating func kind() throws(StateDocumentError) -> Kind {
        skipSpace()
        switch next {
        case UInt8(ascii: "{"): return .object
        case UInt8(ascii: "["): return .array
        case UInt8(ascii: "\""): return .string
        case UInt8(ascii: "n"): return .null
        case UInt8(ascii: "t"): return .bool(true)
        case UInt8(ascii: "f"): return .bool(false)
        case UInt8(ascii: "-"): return .number
        case .some(UInt8(ascii: "0")...UInt8(ascii: "9")): return .number
        default: throw failure("a value")
        }
    }

    /// The object that is next has a first key that begins with `$`.
    mutating func isTagged() -> Bool {
        skipSpace()
        var ahead = self
        guard ahead.consume("{") else { return false }
        ahead.skipSpace()
        guard ahead.next == UInt8(ascii: "\"") else { return false }
        ahead.position += 1
        return ahead.next == UInt8(ascii: "$")
    }

    mutating func consume(_ character: Unicode.Scalar) -> Bool {
        skipSpace()
        guard next == UInt8(ascii: character) else { return false }
        position += 1
        return true
    }

    mutating func expect(_ character: Unicode.Scalar) throws(StateDocumentError) {
        guard consume(character) else { throw failure("'\(character)'") }
    }

    mutating func expectEnd() throws(StateDocumentError) {
        skipSpace()
        guard next == nil else { throw failure("the end") }
    }

    mutating func expectKey(_ key: String) throws(StateDocumentError) {
        guard try string() == Array(key.utf8) else { throw failure("the key \(key)") }
        try expect(":")
    }

    mutating func word(_ word: String) throws(StateDocumentError) {
        for byte in word.utf8 {
            guard next == byte else { throw failure(word) }
            position += 1
        }
    }

    /// The text of a number.
    mutating func number() throws(StateDocumentError) -> String {
        skipSpace()
        let start = position
        while let byte = next, (0x30...0x39).contains(byte) || "+-.eE".utf8.contains(byte) {
            position += 1
        }
        guard position > start, position - start <= 64 else { throw failure("a number") }
        return String(decoding: bytes[start..<position], as: UTF8.self)
    }

    /// The bytes of a string: UTF-8, but that half a surrogate pair has the three bytes that its
    /// number would have, as Python's `surrogatepass` reads and writes it.
    mutating func string() throws(StateDocumentError) -> [UInt8] {
        try expect("\"")
        var content: [UInt8] = []
        while let byte = next, byte >= 0x20 {
            position += 1
            if byte == UInt8(ascii: "\"") { return content }
            if byte == UInt8(ascii: "\\") {
                try escape(into: &content)
            } else {
                content.append(byte)
            }
        }
        throw failure("the rest of a string")
    }

    private static let escapes: [UInt8: UInt8] = [
        UInt8(ascii: "\""): 0x22, UInt8(ascii: "\\"): 0x5C, UInt8(ascii: "/"): 0x2F,
        UInt8(ascii: "b"): 0x08, UInt8(ascii: "f"): 0x0C, UInt8(ascii: "n"): 0x0A,
        UInt8(ascii: "r"): 0x0D, UInt8(ascii: "t"): 0x09,
    ]

    private mutating func escape(into content: inout [UInt8]) throws(StateDocumentError) {
        guard let kind = next else { throw failure("an escape") }
        position += 1
        if let plain = Self.escapes[kind] { return content.append(plain) }
        guard kind == UInt8(ascii: "u") else { throw failure("an escape") }
        var value = try unit()
        if (0xD800..<0xDC00).contains(value), next == UInt8(ascii: "\\") {
            var ahead = self
            ahead.position += 1
            if ahead.next == UInt8(ascii: "u") {
                ahead.position += 1
                let low = try ahead.unit()
                if (0xDC00..<0xE000).contains(low) {
                    value = 0x10000 + (value & 0x3FF) << 10 + low & 0x3FF
                    self = ahead
                }
            }
        }
        if let scalar = Unicode.Scalar(value) {
            content += Array(String(scalar).utf8)
        } else {
            content += [
                UInt8(0xE0 | value >> 12), UInt8(0x80 | value >> 6 & 0x3F),
                UInt8(0x80 | value & 0x3F),
            ]
        }
    }

    private mutating func unit() throws(StateDocumentError) -> UInt32 {
        guard position + 4 <= bytes.count,
            bytes[position..<position + 4].allSatisfy({ Character(Unicode.Scalar($0)).isHexDigit }),
            let value = UInt32(
                String(decoding: bytes[position..<position + 4], as: UTF8.self), radix: 16)
        else { throw failure("four hexadecimal digits") }
        position += 4
        return value
    }

    /// A string of base64, decoded.
    mutating func base64() throws(StateDocumentError) -> [UInt8] {
        let text = try string()
        guard text.count % 4 == 0 else { throw failure("base64") }
        let padding = text.reversed().prefix(2).prefix { $0 == UInt8(ascii: "=") }.count
        var content: [UInt8] = []
        var (bits, bitCount) = (UInt32(0), 0)
        for byte in text.dropLast(padding) {
            guard let value = Self.base64Value(byte) else { throw failure("base64") }
            bits = bits << 6 | value
            bitCount += 6
            if bitCount >= 8 {
                bitCount -= 8
                content.append(UInt8(truncatingIfNeeded: bits >> UInt32(bitCount)))
            }
        }
        return content
    }

    private static func base64Value(_ byte: UInt8) -> UInt32? {
        switch byte {
        case UInt8(ascii: "A")...UInt8(ascii: "Z"): UInt32(byte - UInt8(ascii: "A"))
        case UInt8(ascii: "a")...UInt8(ascii: "z"): UInt32(byte - UInt8(ascii: "a")) + 26
        case UInt8(ascii: "0")...UInt8(ascii: "9"): UInt32(byte - UInt8(ascii: "0")) + 52
        case UInt8(ascii: "+"): 62
        case UInt8(ascii: "/"): 63
        default: nil
        }
    }
}
