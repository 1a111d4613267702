/// What a scanner throws, which names the document that it reads.
package protocol JSONScannerFailure: Error {
    init(json message: String)
}

extension FormatError: JSONScannerFailure {
    package init(json message: String) { self = .invalidManifest(message) }
}

/// The one reader of JSON: the manifests of payloads, the state documents in them, and any other
/// text that is compared leaf by leaf.
///
/// It reads token by token, without recursion, and allocates nothing beyond the strings that the
/// caller asks for. The caller names what must come next, so that the caller's code fixes the
/// nesting, and hostile nesting is simply unexpected.
package struct JSONScanner<Failure: JSONScannerFailure> {
    /// What the next byte begins.
    package enum Kind: Equatable { case object, array, string, number, null, bool(Bool) }

    /// What becomes of half a surrogate pair, which no UTF-8 can hold.
    package enum HalfPairs {
        case refused
        /// It gets the three bytes that its number would have, as Python's `surrogatepass` reads
        /// and writes it.
        case kept
    }

    private let bytes: [UInt8]
    package private(set) var position: Int
    private let end: Int

    package init(_ bytes: [UInt8]) { self.init(bytes, bytes.indices) }

    package init(_ bytes: [UInt8], _ range: Range<Int>) {
        precondition(range.upperBound <= bytes.count, "the range lies in the bytes")
        self.bytes = bytes
        position = range.lowerBound
        end = range.upperBound
    }

    private var next: UInt8? { position < end ? bytes[position] : nil }

    package func failure(_ expected: String) -> Failure {
        let found = next.map { byte in
            (0x20...0x7E).contains(byte)
                ? "'\(UnicodeScalar(byte))'" : "byte 0x\(String(byte, radix: 16))"
        }
        return Failure(
            json: "byte \(position) is \(found ?? "past the end of the JSON"), expected \(expected)"
        )
    }

    /// The bytes that were consumed since `start`.
    package func bytes(since start: Int) -> ArraySlice<UInt8> { bytes[start..<position] }

    /// Consumes bytes as long as they fit.
    package mutating func skip(while isFitting: (UInt8) -> Bool) {
        while let byte = next, isFitting(byte) { position += 1 }
    }

    package mutating func skipSpace() {
        skip { $0 == 0x20 || $0 == 0x0A || $0 == 0x0D || $0 == 0x09 }
    }

    /// What comes next, after white space.
    package mutating func kind() throws(Failure) -> Kind {
        skipSpace()
        switch next {
        case UInt8(ascii: "{"): return .object
        case UInt8(ascii: "["): return .array
        case UInt8(ascii: "\""): return .string
        case UInt8(ascii: "n"): return .null
        case UInt8(ascii: "t"): return .bool(true)
        case UInt8(ascii: "f"): return .bool(false)
        case UInt8(ascii: "-"), .some(0x30...0x39): return .number
        default: throw failure("a value")
        }
    }

    /// `character` comes next, without white space.
    package func isNext(_ character: Unicode.Scalar) -> Bool { next == UInt8(ascii: character) }

    /// Consumes `character`, after white space.
    package mutating func expect(_ character: Unicode.Scalar) throws(Failure) {
        guard consume(character) else { throw failure("'\(character)'") }
    }

    /// Consumes `character` when it is next after white space.
    package mutating func consume(_ character: Unicode.Scalar) -> Bool {
        skipSpace()
        guard isNext(character) else { return false }
        position += 1
        return true
    }

    /// Nothing but white space may follow.
    package mutating func expectEnd() throws(Failure) {
        skipSpace()
        guard position == end else { throw failure("the end of the JSON") }
    }

    /// An integer from 0 to 2⁶⁴ − 1, in JSON's shortest form.
    package mutating func unsignedInteger() throws(Failure) -> UInt64 {
        skipSpace()
        guard let first = next, (0x30...0x39).contains(first) else {
            throw failure("an unsigned integer")
        }
        position += 1
        var value = UInt64(first - 0x30)
        while let byte = next, (0x30...0x39).contains(byte) {
            guard value > 0, let larger = value.multiplied(by: 10, plus: UInt64(byte - 0x30))
            else { throw failure("an integer without leading zeros and below 2^64") }
            value = larger
            position += 1
        }
        if let byte = next, [0x2E, 0x65, 0x45].contains(byte) {
            throw failure("an integer, not a fraction")
        }
        return value
    }

    /// Consumes `word`, such as `true`.
    package mutating func expect(word: String) throws(Failure) {
        for byte in word.utf8 {
            guard next == byte else { throw failure(word) }
            position += 1
        }
    }

    /// The text of any number: at most 64 bytes.
    package mutating func number() throws(Failure) -> String {
        skipSpace()
        let start = position
        skip { (0x30...0x39).contains($0) || "+-.eE".utf8.contains($0) }
        guard position > start, position - start <= 64 else { throw failure("a number") }
        return String(decoding: bytes(since: start), as: UTF8.self)
    }

    /// The bytes of a string, unescaped: at most `limit` of them, and valid UTF-8 but for half
    /// pairs that are kept.
    package mutating func string(
        limit: Int = .max, halfPairs: HalfPairs = .refused
    ) throws(Failure) -> [UInt8] {
        try expect("\"")
        var content: [UInt8] = []
        while true {
            let start = position
            skip { $0 >= 0x20 && $0 != 0x22 && $0 != 0x5C }
            guard content.count + (position - start) <= limit else {
                throw Failure(json: "a string at byte \(start) is longer than \(limit) bytes")
            }
            content.append(contentsOf: bytes(since: start))
            guard let byte = next, byte >= 0x20 else {
                throw failure("the rest of a string")
            }
            position += 1
            if byte == 0x22 { break }
            try escape(into: &content, halfPairs)
        }
        // Escapes make valid UTF-8; the bytes between them may not be.
        guard halfPairs == .kept || String(validating: content, as: UTF8.self) != nil else {
            throw Failure(json: "a string before byte \(position) is not UTF-8")
        }
        return content
    }

    private mutating func escape(
        into content: inout [UInt8], _ halfPairs: HalfPairs
    ) throws(Failure) {
        guard let kind = next else { throw failure("an escaped character") }
        position += 1
        switch kind {
        case 0x22, 0x5C, 0x2F: content.append(kind)
        case UInt8(ascii: "b"): content.append(0x08)
        case UInt8(ascii: "f"): content.append(0x0C)
        case UInt8(ascii: "n"): content.append(0x0A)
        case UInt8(ascii: "r"): content.append(0x0D)
        case UInt8(ascii: "t"): content.append(0x09)
        case UInt8(ascii: "u"):
            let value = try escapedValue(halfPairs)
            if let scalar = Unicode.Scalar(value) {
                content.append(contentsOf: String(Character(scalar)).utf8)
            } else {
                content += [
                    UInt8(0xE0 | value >> 12), UInt8(0x80 | value >> 6 & 0x3F),
                    UInt8(0x80 | value & 0x3F),
                ]
            }
        default:
            position -= 1
            throw failure("one of the escapes of JSON")
        }
    }

    /// The scalar of one `\u` escape or of a pair of them; a half pair only when it is kept.
    private mutating func escapedValue(_ halfPairs: HalfPairs) throws(Failure) -> UInt32 {
        let unit = UInt32(try hexadecimalUnit())
        guard (0xD800...0xDFFF).contains(unit) else { return unit }
        let low = position
        var ahead = self
        if unit < 0xDC00, ahead.skipEscapeStart() {
            let second = UInt32(try ahead.hexadecimalUnit())
            if (0xDC00...0xDFFF).contains(second) {
                self = ahead
                return 0x10000 + ((unit & 0x3FF) << 10 | second & 0x3FF)
            }
            if halfPairs == .refused {
                throw Failure(json: "byte \(low) does not complete a surrogate pair")
            }
        }
        guard halfPairs == .kept else {
            throw Failure(json: "byte \(low) follows half of a surrogate pair")
        }
        return unit
    }

    private mutating func skipEscapeStart() -> Bool {
        guard next == 0x5C, position + 1 < end, bytes[position + 1] == UInt8(ascii: "u") else {
            return false
        }
        position += 2
        return true
    }

    private mutating func hexadecimalUnit() throws(Failure) -> UInt16 {
        var value: UInt16 = 0
        for _ in 0..<4 {
            guard let byte = next, let digit = Self.hexadecimalDigit(byte) else {
                throw failure("four hexadecimal digits")
            }
            value = value << 4 | digit
            position += 1
        }
        return value
    }

    private static func hexadecimalDigit(_ byte: UInt8) -> UInt16? {
        switch byte {
        case 0x30...0x39: UInt16(byte - 0x30)
        case 0x41...0x46: UInt16(byte - 0x41 + 10)
        case 0x61...0x66: UInt16(byte - 0x61 + 10)
        default: nil
        }
    }
}
