#if canImport(Glibc)
    internal import Glibc
#endif

/// One named field of an on-disk block.
///
/// The layout enums list every byte of their block, and a test compares them with the offset
/// tables of spec/FORMAT.md: code, spec and disk cannot drift apart unnoticed.
public struct LayoutField: Hashable, Sendable {
    public let name: String
    public let offset: Int
    public let byteCount: Int

    public init(_ name: String, _ offset: Int, _ byteCount: Int) {
        self.name = name
        self.offset = offset
        self.byteCount = byteCount
    }

    public var range: Range<Int> { offset..<offset + byteCount }
    public var isReserved: Bool { name.hasPrefix("reserved_") }
}

/// Writes little-endian fields into a zeroed block.
struct BlockEncoder {
    private(set) var bytes: [UInt8]

    init(byteCount: Int) { bytes = [UInt8](repeating: 0, count: byteCount) }

    mutating func put<Value: FixedWidthInteger>(_ value: Value, _ field: LayoutField) {
        precondition(Value.bitWidth / 8 == field.byteCount, "width of \(field.name)")
        for index in 0..<field.byteCount {
            bytes[field.offset + index] = UInt8(truncatingIfNeeded: value >> (8 * index))
        }
    }

    mutating func put(_ digest: Digest, _ field: LayoutField) {
        put(digest.low, LayoutField(field.name, field.offset, 8))
        put(digest.high, LayoutField(field.name, field.offset + 8, 8))
    }

    /// Copies `content` to the start of the field; the rest of the field stays zero.
    mutating func put(_ content: [UInt8], _ field: LayoutField) {
        precondition(content.count <= field.byteCount, "content of \(field.name)")
        for (index, byte) in content.enumerated() { bytes[field.offset + index] = byte }
    }

    /// Stores the digest of all bytes before `field` in it, and returns it.
    mutating func seal(_ field: LayoutField) -> Digest {
        let digest = Digest(of: bytes, 0..<field.offset)
        put(digest, field)
        return digest
    }
}

/// Reads little-endian fields of a block whose size was checked.
struct BlockDecoder {
    private let bytes: [UInt8]

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    func integer<Value: FixedWidthInteger>(
        _ field: LayoutField, as type: Value.Type = Value.self
    ) -> Value {
        precondition(Value.bitWidth / 8 == field.byteCount, "width of \(field.name)")
        var value: Value = 0
        for index in (0..<field.byteCount).reversed() {
            value = value << 8 | Value(truncatingIfNeeded: bytes[field.offset + index])
        }
        return value
    }

    func digest(_ field: LayoutField) -> Digest {
        Digest(
            low: integer(LayoutField(field.name, field.offset, 8)),
            high: integer(LayoutField(field.name, field.offset + 8, 8)))
    }

    func content(_ field: LayoutField, count: Int? = nil) -> [UInt8] {
        Array(bytes[field.offset..<field.offset + (count ?? field.byteCount)])
    }

    /// The first `count` bytes of a text field; UTF-8, and zeros behind it.
    func text(_ field: LayoutField, count: Int) throws(FormatError) -> String {
        guard let text = String(validating: content(field, count: count), as: UTF8.self) else {
            throw .invalidField(field.name, found: UInt64(count), expected: "bytes of UTF-8")
        }
        guard isZero(field.offset + count..<field.range.upperBound) else {
            throw .reservedBytesNotZero(offset: field.offset + count)
        }
        return text
    }

    /// Content of a zero-padded text field.
    func paddedText(_ field: LayoutField) throws(FormatError) -> String {
        try text(field, count: content(field).prefix { $0 != 0 }.count)
    }

    /// Every byte equals the next, and the first is 0: fast also in a build without optimiser.
    func isZero(_ range: Range<Int>) -> Bool {
        guard let first = bytes[range].first else { return true }
        guard first == 0 else { return false }
        // Safe: the subscript above checked the range.
        return unsafe bytes.withUnsafeBytes { buffer in
            guard let start = buffer.baseAddress else { return false }
            return unsafe memcmp(
                start + range.lowerBound, start + range.lowerBound + 1, range.count - 1) == 0
        }
    }

    /// The digest that the bytes before `field` have, for any content of `field`.
    func computedDigest(before field: LayoutField) -> Digest {
        Digest(of: bytes, 0..<field.offset)
    }

    /// Checks magic and checksum, and distinguishes a blank block from a damaged one.
    func checkSeal(
        magic: [UInt8], _ magicField: LayoutField, _ checksumField: LayoutField
    ) throws(FormatError) {
        let found = content(magicField)
        guard found == magic else {
            if isZero(0..<checksumField.range.upperBound) { throw .blank }
            throw .wrongMagic(found: found)
        }
        let computed = computedDigest(before: checksumField)
        let recorded = digest(checksumField)
        guard computed == recorded else {
            throw .checksumMismatch(found: computed, expected: recorded)
        }
    }

    func checkReserved(_ fields: [LayoutField]) throws(FormatError) {
        for field in fields where field.isReserved && !isZero(field.range) {
            throw .reservedBytesNotZero(offset: field.offset)
        }
    }
}
