/// Reads the JSON of a safetensors header from bytes: strictly, without recursion, and with
/// nothing allocated beyond the strings that are asked for.
///
/// The caller names what must come next, so that the nesting is fixed by the caller's code and
/// hostile nesting is simply unexpected.
struct JSONScanner {
    private let bytes: [UInt8]
    private(set) var position: Int
    private let end: Int

    init(_ bytes: [UInt8], _ range: Range<Int>) {
        precondition(range.upperBound <= bytes.count, "the range lies in the bytes")
        self.bytes = bytes
        position = range.lowerBound
        end = range.upperBound
    }

    private var next: UInt8? { position < end ? bytes[position] : nil }

    func failure(_ expected: String) -> FormatError {
        let found = next.map { byte in
            (0x20...0x7E).contains(byte)
                ? "'\(UnicodeScalar(byte))'" : "byte 0x\(String(byte, radix: 16))"
        }
        return .invalidManifest(
            "byte \(position) is \(found ?? "past the end of the JSON"), expected \(expected)")
    }

    mutating func skipSpace() {
        while let byte = next, byte == 0x20 || byte == 0x0A || byte == 0x0D || byte == 0x09 {
            position += 1
        }
    }

    /// `character` comes next, without white space.
    func isNext(_ character: Unicode.Scalar) -> Bool { next == UInt8(ascii: character) }

    /// Consumes `character`, after white space.
    mutating func expect(_ character: Unicode.Scalar) throws(FormatError) {
        guard consume(character) else { throw failure("'\(character)'") }
    }

    /// Consumes `character` when it is next after white space.
    mutating func consume(_ character: Unicode.Scalar) -> Bool {
        skipSpace()
        guard isNext(character) else { return false }
        position += 1
        return true
    }

    /// Nothing but white space may follow.
    mutating func expectEnd() throws(FormatError) {
        skipSpace()
        guard position == end else { throw failure("the end of the JSON") }
    }

    /// An integer from 0 to 2⁶⁴ − 1, in JSON's shortest form.
    mutating func unsignedInteger() throws(FormatError) -> UInt64 {
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

    /// The bytes of a string, unescaped; valid UTF-8 and at most `limit` of them.
    mutating func string(limit: Int) throws(FormatError) -> [UInt8] {
        try expect("\"")
        var content: [UInt8] = []
        while true {
            let start = position
            while let byte = next, byte >= 0x20, byte != 0x22, byte != 0x5C { position += 1 }
            guard content.count + (position - start) <= limit else {
                throw .invalidManifest("a string at byte \(start) is longer than \(limit) bytes")
            }
            content.append(contentsOf: bytes[start..<position])
            guard let byte = next, byte >= 0x20 else {
                throw failure("the rest of a string")
            }
            position += 1
            if byte == 0x22 { break }
            try escape(into: &content)
        }
        // Escapes give valid UTF-8; the bytes between them may not.
        guard String(validating: content, as: UTF8.self) != nil else {
            throw .invalidManifest("a string before byte \(position) is not UTF-8")
        }
        return content
    }

    private mutating func escape(into content: inout [UInt8]) throws(FormatError) {
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
            let scalar = try escapedScalar()
            content.append(contentsOf: Array(String(Character(scalar)).utf8))
        default:
            position -= 1
            throw failure("one of the escapes of JSON")
        }
    }

    private mutating func escapedScalar() throws(FormatError) -> Unicode.Scalar {
        let unit = try hexadecimalUnit()
        if let scalar = Unicode.Scalar(unit) { return scalar }
        let low = position
        guard unit < 0xDC00, next == 0x5C, position + 1 < end,
            bytes[position + 1] == UInt8(ascii: "u")
        else { throw .invalidManifest("byte \(low) follows half of a surrogate pair") }
        position += 2
        let second = try hexadecimalUnit()
        let value = 0x10000 + (UInt32(unit & 0x3FF) << 10 | UInt32(second & 0x3FF))
        guard (0xDC00...0xDFFF).contains(second), let scalar = Unicode.Scalar(value) else {
            throw .invalidManifest("byte \(low) does not complete a surrogate pair")
        }
        return scalar
    }

    private mutating func hexadecimalUnit() throws(FormatError) -> UInt16 {
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

/// Appends JSON to bytes.
enum JSONWriter {
    static func append(_ text: String, to output: inout [UInt8]) {
        output.append(contentsOf: Array(text.utf8))
    }

    static func append(_ value: UInt64, to output: inout [UInt8]) {
        if value >= 10 { append(value / 10, to: &output) }
        output.append(UInt8(0x30 + value % 10))
    }

    /// `text` as a JSON string: quotes, backslashes and control characters escaped, else UTF-8.
    static func appendString(_ text: String, to output: inout [UInt8]) {
        output.append(0x22)
        for byte in text.utf8 {
            switch byte {
            case 0x22, 0x5C:
                output.append(0x5C)
                output.append(byte)
            case 0..<0x20:
                output.append(contentsOf: [0x5C, 0x75, 0x30, 0x30])
                output.append(0x30 + (byte >> 4))
                let low = byte & 0xF
                output.append(low < 10 ? 0x30 + low : 0x61 + low - 10)
            default: output.append(byte)
            }
        }
        output.append(0x22)
    }
}
