internal import CheckpointFormat

/// The JSON text of a state document, in whose strings Python may keep half a surrogate pair.
typealias StateText = JSONScanner<StateDocumentError>

extension StateDocumentError: JSONScannerFailure {
    init(json message: String) { self.init(message) }
}

extension JSONScanner<StateDocumentError> {
    mutating func text() throws(Failure) -> [UInt8] { try string(halfPairs: .kept) }

    /// The object that is next has a first key that begins with `$`.
    func isTagged() -> Bool {
        var ahead = self
        return ahead.consume("{") && ahead.consume("\"") && ahead.isNext("$")
    }

    mutating func expectKey(_ key: String) throws(Failure) {
        guard try text() == Array(key.utf8) else { throw failure("the key \(key)") }
        try expect(":")
    }

    /// A string of base64, decoded.
    mutating func base64() throws(Failure) -> [UInt8] {
        let text = try text()
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
