internal import CheckpointFormat

/// Turns the stored elements of a tensor into numbers.
///
/// Elements are decoded in units: the least number of whole bytes that holds whole elements. That
/// is one element, but two in a byte of `F4`, the first in the low half, and four in three bytes
/// of the `F6` types, the first in the lowest bits.
struct ElementDecoder: Sendable {
    /// What a unit is made of.
    private enum Kind {
        case float32, float64, float16, brain16, complex
        case signed16, unsigned16, signed32, unsigned32, signed64, unsigned64
        /// A byte is one element; the table has its 256 values.
        case byte([Double])
        /// A byte is two elements, with 16 values each.
        case nibbles([Double])
        /// Three bytes are four elements, with 64 values each.
        case sixBits([Double])
    }

    /// Units that fit the scratch memory of one pass, which stays in the first-level cache.
    static let blockUnitCount = 512

    private let kind: Kind
    let unitByteCount: Int
    /// Elements in a unit.
    let unitElementCount: Int
    /// Numbers that a unit gives: a complex element gives its two parts.
    let unitNumberCount: Int

    var isComplex: Bool { unitNumberCount > unitElementCount }

    /// The elements are integers whose values a Double may not hold exactly.
    var is64BitInteger: Bool {
        switch kind {
        case .signed64, .unsigned64: true
        default: false
        }
    }

    /// nil for a type that has no numbers; every type of safetensors has.
    init?(_ type: ElementType) {
        guard let kind = Self.kind(type) else { return nil }
        self.kind = kind
        switch kind {
        case .nibbles: (unitByteCount, unitElementCount, unitNumberCount) = (1, 2, 2)
        case .sixBits: (unitByteCount, unitElementCount, unitNumberCount) = (3, 4, 4)
        case .complex: (unitByteCount, unitElementCount, unitNumberCount) = (8, 1, 2)
        default:
            (unitByteCount, unitElementCount, unitNumberCount) = (type.bitCount / 8, 1, 1)
        }
    }

    private static func kind(_ type: ElementType) -> Kind? {
        switch type.name {
        case "F32": .float32
        case "F64": .float64
        case "F16": .float16
        case "BF16": .brain16
        case "C64": .complex
        case "I16": .signed16
        case "U16": .unsigned16
        case "I32": .signed32
        case "U32": .unsigned32
        case "I64": .signed64
        case "U64": .unsigned64
        case "BOOL": .byte((0..<256).map { $0 == 0 ? 0 : 1 })
        case "U8": .byte((0..<256).map(Double.init))
        case "I8": .byte((0..<256).map { Double(Int8(truncatingIfNeeded: $0)) })
        case "F8_E8M0": .byte((0..<256).map { $0 == 255 ? .nan : SmallFloat.power($0 - 127) })
        case "F4": SmallFloat.named[type.name].map { .nibbles($0.values) }
        case "F6_E2M3", "F6_E3M2": SmallFloat.named[type.name].map { .sixBits($0.values) }
        default: SmallFloat.named[type.name].map { .byte($0.values) }
        }
    }

    /// Decodes `unitCount` units, at most `blockUnitCount` of them.
    func decode(
        _ source: UnsafeRawPointer, unitCount: Int, into numbers: UnsafeMutablePointer<Double>
    ) {
        precondition(unitCount <= Self.blockUnitCount, "a block of units")
        switch kind {
        // Safe: the caller's memory holds `unitCount` units, and room for their numbers.
        case .float32: unsafe convert(source, unitCount, numbers) { (x: Float) in Double(x) }
        case .complex: unsafe convert(source, unitCount * 2, numbers) { (x: Float) in Double(x) }
        case .float64: unsafe convert(source, unitCount, numbers) { (x: Double) in x }
        case .float16:
            unsafe convert(source, unitCount, numbers) { (x: UInt16) in Self.half(x) }
        case .brain16:
            unsafe convert(source, unitCount, numbers) { (x: UInt16) in
                Double(Float(bitPattern: UInt32(x) << 16))
            }
        case .signed16: unsafe convert(source, unitCount, numbers) { (x: Int16) in Double(x) }
        case .unsigned16: unsafe convert(source, unitCount, numbers) { (x: UInt16) in Double(x) }
        case .signed32: unsafe convert(source, unitCount, numbers) { (x: Int32) in Double(x) }
        // Safe: as above.
        case .unsigned32: unsafe convert(source, unitCount, numbers) { (x: UInt32) in Double(x) }
        case .signed64: unsafe convert(source, unitCount, numbers) { (x: Int64) in Double(x) }
        case .unsigned64: unsafe convert(source, unitCount, numbers) { (x: UInt64) in Double(x) }
        case .byte(let table):
            unsafe convert(source, unitCount, numbers) { (x: UInt8) in table[Int(x)] }
        case .nibbles(let table):
            for index in 0..<unitCount {
                // Safe: as above.
                let byte = unsafe source.load(fromByteOffset: index, as: UInt8.self)
                unsafe numbers[2 * index] = table[Int(byte & 15)]
                unsafe numbers[2 * index + 1] = table[Int(byte >> 4)]
            }
        case .sixBits(let table):
            for index in 0..<unitCount {
                var bits: UInt32 = 0
                for part in 0..<3 {
                    // Safe: as above.
                    let byte = unsafe source.load(fromByteOffset: 3 * index + part, as: UInt8.self)
                    bits |= UInt32(byte) << (8 * part)
                }
                for part in 0..<4 {
                    // Safe: as above.
                    unsafe numbers[4 * index + part] = table[Int(bits >> (6 * part) & 63)]
                }
            }
        }
    }

    @inline(__always)
    private func convert<Stored: BitwiseCopyable>(
        _ source: UnsafeRawPointer, _ count: Int, _ numbers: UnsafeMutablePointer<Double>,
        _ number: (Stored) -> Double
    ) {
        for index in 0..<count {
            // Safe: `source` holds `count` elements, and `numbers` has room for as many.
            let stored = unsafe source.loadUnaligned(
                fromByteOffset: index &* MemoryLayout<Stored>.size, as: Stored.self)
            unsafe numbers[index] = number(stored)
        }
    }

    /// IEEE half precision. The exponent is moved to where single precision has it, and made
    /// right by a multiplication, which is exact, also for denormal numbers.
    @inline(__always)
    static func half(_ bits: UInt16) -> Double {
        let magnitude = UInt32(bits & 0x7FFF) << 13
        let sign = UInt32(bits & 0x8000) << 16
        let isFinite = bits & 0x7C00 != 0x7C00
        let scaled = Float(bitPattern: magnitude) * 0x1p112
        let finite = Float(bitPattern: scaled.bitPattern | sign)
        let special = Float(bitPattern: 0x7F80_0000 | magnitude & 0x007F_FFFF | sign)
        return Double(isFinite ? finite : special)
    }

    /// The least and the largest of `unitCount` 64-bit integers; nil for other types.
    func integerRange(_ source: UnsafeRawPointer, unitCount: Int) -> ClosedRange<Int128>? {
        switch kind {
        // Safe: the caller's memory holds `unitCount` units.
        case .signed64: unsafe range(source, unitCount, of: Int64.self)
        case .unsigned64: unsafe range(source, unitCount, of: UInt64.self)
        default: nil
        }
    }

    private func range<Stored: FixedWidthInteger & BitwiseCopyable>(
        _ source: UnsafeRawPointer, _ count: Int, of type: Stored.Type
    ) -> ClosedRange<Int128>? {
        if count == 0 { return nil }
        var (least, largest) = (Stored.max, Stored.min)
        for index in 0..<count {
            // Safe: `source` holds `count` elements.
            let value = unsafe source.loadUnaligned(fromByteOffset: index * 8, as: Stored.self)
            least = min(least, value)
            largest = max(largest, value)
        }
        return Int128(least)...Int128(largest)
    }

    /// The largest distance between two runs of 64-bit integers, exact before it is rounded.
    func largestDistance(
        _ first: UnsafeRawPointer, _ second: UnsafeRawPointer, unitCount: Int
    ) -> Double {
        func distance<Stored: FixedWidthInteger & BitwiseCopyable>(_ type: Stored.Type) -> Double {
            var largest: UInt64 = 0
            for index in 0..<unitCount {
                // Safe: the caller's memory holds `unitCount` units twice.
                let a = unsafe first.loadUnaligned(fromByteOffset: index * 8, as: Stored.self)
                let b = unsafe second.loadUnaligned(fromByteOffset: index * 8, as: Stored.self)
                largest = max(largest, UInt64(truncatingIfNeeded: a > b ? a &- b : b &- a))
            }
            return Double(largest)
        }
        if case .unsigned64 = kind { return distance(UInt64.self) }
        return distance(Int64.self)
    }
}

/// The floating-point types of a byte or less, as sign, exponent and mantissa.
///
/// Sources: the OCP specifications "8-bit Floating Point" (OFP8) 1.0 and "Microscaling Formats" 1.0
/// for `F8_E4M3`, `F8_E5M2`, `F6` and `F4`; Noune et al., "8-bit Numerical Formats for Deep Neural
/// Networks", for the FNUZ types.
struct SmallFloat {
    enum Specials {
        /// As in IEEE 754: the highest exponent holds infinity and NaN.
        case ieee
        /// No infinity; all bits one but the sign is NaN.
        case allOnes
        /// No infinity and no negative zero: that pattern is NaN.
        case negativeZero
        /// Every pattern is a finite number.
        case finite
    }

    let exponentBitCount: Int
    let mantissaBitCount: Int
    let bias: Int
    let specials: Specials

    static let named: [String: SmallFloat] = [
        "F8_E4M3": SmallFloat(
            exponentBitCount: 4, mantissaBitCount: 3, bias: 7, specials: .allOnes),
        "F8_E5M2": SmallFloat(
            exponentBitCount: 5, mantissaBitCount: 2, bias: 15, specials: .ieee),
        "F8_E4M3FNUZ": SmallFloat(
            exponentBitCount: 4, mantissaBitCount: 3, bias: 8, specials: .negativeZero),
        "F8_E5M2FNUZ": SmallFloat(
            exponentBitCount: 5, mantissaBitCount: 2, bias: 16, specials: .negativeZero),
        "F6_E2M3": SmallFloat(
            exponentBitCount: 2, mantissaBitCount: 3, bias: 1, specials: .finite),
        "F6_E3M2": SmallFloat(
            exponentBitCount: 3, mantissaBitCount: 2, bias: 3, specials: .finite),
        "F4": SmallFloat(exponentBitCount: 2, mantissaBitCount: 1, bias: 1, specials: .finite),
    ]

    /// 2 to the power of `exponent`.
    static func power(_ exponent: Int) -> Double {
        Double(sign: .plus, exponent: exponent, significand: 1)
    }

    /// The value of every bit pattern.
    var values: [Double] {
        (0..<1 << (1 + exponentBitCount + mantissaBitCount)).map(value)
    }

    private func value(_ bits: Int) -> Double {
        let mantissa = bits & ((1 << mantissaBitCount) - 1)
        let exponent = (bits >> mantissaBitCount) & ((1 << exponentBitCount) - 1)
        let isNegative = bits >> (exponentBitCount + mantissaBitCount) == 1
        let highest = (1 << exponentBitCount) - 1
        switch specials {
        case .ieee where exponent == highest:
            return mantissa != 0 ? .nan : isNegative ? -.infinity : .infinity
        case .allOnes where exponent == highest && mantissa == (1 << mantissaBitCount) - 1:
            return .nan
        case .negativeZero where isNegative && exponent == 0 && mantissa == 0: return .nan
        default: break
        }
        let hidden = exponent == 0 ? 0 : 1 << mantissaBitCount
        let scale = Self.power(max(exponent, 1) - bias - mantissaBitCount)
        let magnitude = Double(hidden + mantissa) * scale
        return isNegative ? -magnitude : magnitude
    }
}
