/// A number of a state document in the form that NumPy and Python gave it.
enum NumpyScalar {
    case bool(Bool)
    case integer(Int64)
    case unsigned(UInt64)
    case float(Double)
    case complex(Double, Double)

    /// - Parameter type: such as `<f4`.
    /// - Returns: nil for a type that is no number, or another count of bytes.
    init?(type: String, bytes: [UInt8]) {
        var letters = Array(type.utf8)
        guard letters.count >= 3 else { return nil }
        let isBig = letters.removeFirst() == UInt8(ascii: ">")
        let kind = letters.removeFirst()
        // Times have a unit behind the size.
        let digits = letters.prefix { (0x30...0x39).contains($0) }
        let count = Int(String(decoding: digits, as: UTF8.self))
        guard let count, count == bytes.count, [1, 2, 4, 8, 16].contains(count) else { return nil }
        func bits(_ range: Range<Int>) -> UInt64 {
            let part = isBig ? Array(bytes[range]) : bytes[range].reversed()
            return part.reduce(0) { $0 << 8 | UInt64($1) }
        }
        switch (kind, count) {
        case (UInt8(ascii: "b"), 1): self = .bool(bytes[0] != 0)
        case (UInt8(ascii: "u"), ...8): self = .unsigned(bits(0..<count))
        case (UInt8(ascii: "i"), ...8), (UInt8(ascii: "m"), 8), (UInt8(ascii: "M"), 8):
            let shift = 64 - 8 * count
            self = .integer(Int64(bitPattern: bits(0..<count) << UInt64(shift)) >> Int64(shift))
        case (UInt8(ascii: "f"), 2...8):
            guard let value = Self.float(bits(0..<count), byteCount: count) else { return nil }
            self = .float(value)
        case (UInt8(ascii: "c"), 8...16):
            let half = count / 2
            guard let real = Self.float(bits(0..<half), byteCount: half),
                let imaginary = Self.float(bits(half..<count), byteCount: half)
            else { return nil }
            self = .complex(real, imaginary)
        default: return nil
        }
    }

    private static func float(_ bits: UInt64, byteCount: Int) -> Double? {
        switch byteCount {
        case 8: Double(bitPattern: bits)
        case 4: Double(Float(bitPattern: UInt32(bits)))
        case 2: ElementDecoder.half(UInt16(bits))
        default: nil
        }
    }

    func write(_ pickle: inout PickleWriter) {
        switch self {
        case .bool(let value): pickle.bool(value)
        case .integer(let value): pickle.integer(value)
        case .unsigned(let value): pickle.integer(value)
        case .float(let value): pickle.float(value)
        case .complex(let real, let imaginary):
            pickle.global("builtins", "complex")
            pickle.float(real)
            pickle.float(imaginary)
            pickle.tuple2()
            pickle.reduce()
        }
    }

    /// The torch type of an array whose NumPy type is `type`; nil when its stored type is that.
    static func torchType(_ type: String) -> String? {
        switch type.dropFirst() {
        case "c8": "complex64"
        case "c16": "complex128"
        // Big-endian and extension types are stored as what torch calls them; times as integers.
        default: nil
        }
    }

    /// A float that JSON has no number for: `inf`, `-inf`, `nan`, or `nan:` and its bytes.
    static func float(_ text: String) -> Double? {
        switch text {
        case "inf": return .infinity
        case "-inf": return -.infinity
        case "nan": return .nan
        default:
            guard text.utf8.count == 20, text.hasPrefix("nan:"),
                let swapped = UInt64(text.dropFirst(4), radix: 16)
            else { return nil }
            return Double(bitPattern: swapped.byteSwapped)
        }
    }

    /// The bytes of an integer such as `-0x20000000000000`, lowest first; nil for another text,
    /// and for one that is too long for torch.
    static func twosComplement(hexadecimal text: String) -> [UInt8]? {
        let isNegative = text.hasPrefix("-")
        let prefix = isNegative ? "-0x" : "0x"
        var digits = Array(text.utf8.dropFirst(prefix.utf8.count))
        guard text.hasPrefix(prefix), !digits.isEmpty,
            digits.count / 2 + 2 <= PickleWriter.longByteCountMaximum
        else { return nil }
        if digits.count % 2 == 1 { digits.insert(UInt8(ascii: "0"), at: 0) }
        var bytes: [UInt8] = []
        for index in stride(from: 0, to: digits.count, by: 2) {
            let pair = String(decoding: digits[index..<index + 2], as: UTF8.self)
            guard !"+-".contains(pair.prefix(1)), let byte = UInt8(pair, radix: 16) else {
                return nil
            }
            bytes.insert(byte, at: 0)
        }
        // Room for the sign.
        bytes.append(0)
        guard isNegative else { return bytes }
        var carry: UInt16 = 1
        return bytes.map { byte in
            let sum = UInt16(~byte) + carry
            carry = sum >> 8
            return UInt8(truncatingIfNeeded: sum)
        }
    }
}
