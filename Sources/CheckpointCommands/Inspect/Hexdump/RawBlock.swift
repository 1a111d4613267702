internal import CheckpointFormat

/// Bytes that may be a block, read field by field without believing any of them.
struct RawBlock {
    let bytes: [UInt8]

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    func has(_ field: LayoutField) -> Bool { field.range.upperBound <= bytes.count }

    func content(_ field: LayoutField) -> [UInt8] {
        has(field) ? Array(bytes[field.range]) : []
    }

    /// The little-endian integer of up to 8 bytes; 0 beyond the end.
    func integer(_ field: LayoutField) -> UInt64 {
        content(field).prefix(8).reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }

    func digest(_ field: LayoutField) -> Digest {
        Digest(
            low: integer(LayoutField(field.name, field.offset, 8)),
            high: integer(LayoutField(field.name, field.offset + 8, 8)))
    }

    func identifier(_ field: LayoutField) -> Identifier128 {
        has(field) ? Identifier128(bytes: content(field)) : .zero
    }

    /// What the bytes before `field` have for a digest.
    func computedDigest(before field: LayoutField) -> Digest {
        Digest(of: bytes, 0..<min(field.offset, bytes.count))
    }

    var isZero: Bool { bytes.allSatisfy { $0 == 0 } }
}

/// A field of a block, with what it says and whether that is right.
struct AnnotatedField {
    enum Verdict: Equatable {
        /// It is what other bytes say that it must be.
        case right
        /// What it should be.
        case wrong(String)
        /// There is nothing to compare it with.
        case unchecked
    }

    let field: LayoutField
    var value: String
    var verdict: Verdict
    /// What is worth knowing beside it.
    var note: String?

    var isWrong: Bool {
        if case .wrong = verdict { true } else { false }
    }
}

/// Names the fields of one kind of block.
struct FieldJudge {
    let block: RawBlock

    /// `value`, which is right exactly when `isRight`.
    func judged(
        _ field: LayoutField, _ value: some CustomStringConvertible, _ isRight: Bool,
        expected: @autoclosure () -> String, note: String? = nil
    ) -> AnnotatedField {
        AnnotatedField(
            field: field, value: value.description, verdict: isRight ? .right : .wrong(expected()),
            note: note)
    }

    func plain(
        _ field: LayoutField, _ value: some CustomStringConvertible, note: String? = nil
    ) -> AnnotatedField {
        AnnotatedField(field: field, value: value.description, verdict: .unchecked, note: note)
    }

    func number(_ field: LayoutField) -> AnnotatedField { plain(field, block.integer(field)) }

    /// The integer must be `expected`.
    func number(_ field: LayoutField, equals expected: UInt64?) -> AnnotatedField {
        let found = block.integer(field)
        guard let expected else { return plain(field, found) }
        return judged(field, found, found == expected, expected: "\(expected)")
    }

    func number(_ field: LayoutField, in range: ClosedRange<UInt64>) -> AnnotatedField {
        let found = block.integer(field)
        return judged(
            field, found, range.contains(found),
            expected: "\(range.lowerBound) to \(range.upperBound)")
    }

    /// One of several numbers that have names.
    func name(_ field: LayoutField, _ names: [UInt64: String]) -> AnnotatedField {
        let found = block.integer(field)
        let known = names.keys.sorted().map { "\($0)" }.joined(separator: ", ")
        return judged(
            field, names[found].map { "\(found) (\($0))" } ?? "\(found)", names[found] != nil,
            expected: "one of \(known)")
    }

    func bytes(_ field: LayoutField) -> AnnotatedField {
        plain(field, Self.hexadecimal(block.content(field)))
    }

    func magic(_ field: LayoutField, _ expected: [UInt8]) -> AnnotatedField {
        let found = block.content(field)
        return judged(
            field, Self.ascii(found), found == expected, expected: Self.ascii(expected))
    }

    func time(_ field: LayoutField) -> AnnotatedField {
        let found = block.integer(field)
        return plain(field, found == 0 ? "0" : "\(found) (\(Quantity.date(found)))")
    }

    func identifier(_ field: LayoutField, equals expected: Identifier128?) -> AnnotatedField {
        let found = block.identifier(field)
        guard let expected else { return plain(field, found) }
        return judged(field, found, found == expected, expected: "\(expected), this file's")
    }

    func digest(_ field: LayoutField) -> AnnotatedField { plain(field, block.digest(field)) }

    func digest(
        _ field: LayoutField, equals computed: Digest?, of what: String
    ) -> AnnotatedField {
        let found = block.digest(field)
        guard let computed else { return plain(field, found, note: "there is no \(what)") }
        return judged(field, found, found == computed, expected: "\(computed), of \(what)")
    }

    func checksum(_ field: LayoutField) -> AnnotatedField {
        digest(
            field, equals: block.computedDigest(before: field),
            of: "the \(field.offset) bytes before it")
    }

    /// Text of `count` bytes, and zeros behind it; up to the first zero when `count` is nil.
    func text(_ field: LayoutField, count: UInt64? = nil) -> AnnotatedField {
        let content = block.content(field)
        let length = Int(
            min(count ?? UInt64(content.prefix { $0 != 0 }.count), UInt64(content.count)))
        let isPadded = content[length...].allSatisfy { $0 == 0 }
        guard let text = String(validating: content[..<length], as: UTF8.self) else {
            return judged(
                field, Self.hexadecimal(Array(content[..<length])), false, expected: "UTF-8")
        }
        return judged(
            field, "\"\(text)\"", isPadded, expected: "zeros behind the \(length) bytes of text")
    }

    func reserved(_ field: LayoutField) -> AnnotatedField {
        let content = block.content(field)
        let used = content.indices.filter { content[$0] != 0 }
        guard let first = used.first else { return judged(field, "zero", true, expected: "") }
        return judged(
            field, "\(Quantity.plural(used.count, "byte")) in use, the first at +\(first)", false,
            expected: "zero")
    }

    /// Every field of `layout`; `judge` for those that have a meaning and lie inside the block.
    func all(
        _ layout: [LayoutField], _ judge: (LayoutField) -> AnnotatedField
    ) -> [AnnotatedField] {
        layout.map { field in
            guard block.has(field) else {
                return AnnotatedField(
                    field: field, value: "—", verdict: .wrong("bytes; the file ends before them"))
            }
            return field.isReserved ? reserved(field) : judge(field)
        }
    }

    static func hexadecimal(_ bytes: [UInt8]) -> String {
        let shown = bytes.prefix(24).map { $0.digits(2, radix: 16) }.joined()
        return bytes.count > 24 ? shown + "…" : shown
    }

    static func ascii(_ bytes: [UInt8]) -> String {
        bytes.map { byte in
            (0x21...0x7E).contains(byte)
                ? String(UnicodeScalar(byte))
                : "\\x" + byte.digits(2, radix: 16)
        }.joined()
    }
}
