/// Why a block, a table or a manifest cannot be accepted.
public enum FormatError: Error, Hashable, Sendable {
    /// Fewer bytes than the structure needs.
    case truncated(found: UInt64, expected: UInt64)
    /// The first eight bytes are not this structure's.
    case wrongMagic(found: [UInt8])
    /// Another block of a PCcheck file is in the place of an identity block.
    case strayBlock(String)
    /// The magic was changed the way a text-mode transfer changes it.
    case textModeDamage
    /// All bytes of the block are zero: it was never written, or lost.
    case blank
    case checksumMismatch(found: Digest, expected: Digest)
    /// The major version is one that this program does not know.
    case unsupportedVersion(major: UInt16, minor: UInt16)
    /// Incompatible features are set that this program does not know.
    case unknownIncompatibleFeatures(UInt64)
    case foreignFile(found: Identifier128, expected: Identifier128)
    case misdirected(foundOffset: UInt64, expectedOffset: UInt64)
    case wrongSlot(found: SlotIndex, expected: SlotIndex)
    case reservedBytesNotZero(offset: Int)
    /// A field holds a value outside its documented range.
    case invalidField(String, found: UInt64, expected: String)
    case invalidManifest(String)
    case invalidCompression(String)
}

extension FormatError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .truncated(let found, let expected):
            "it ends after \(found) bytes, expected \(expected)"
        case .wrongMagic(let found):
            "the magic is \(Self.escaped(found)), expected that of a PCcheck structure"
        case .strayBlock(let name):
            "a \(name) is in the place of an identity block: a write was misdirected"
        case .textModeDamage:
            "line ends were rewritten, as a text-mode transfer does; copy the file in binary mode"
        case .blank: "it is all zero: never written, or lost"
        case .checksumMismatch(let found, let expected):
            "the content has digest \(found), but it records \(expected)"
        case .unsupportedVersion(let major, let minor):
            "format version is \(major).\(minor), expected \(FormatVersion.current.major).x; "
                + "a newer PCcheck can read it"
        case .unknownIncompatibleFeatures(let mask):
            "incompatible features 0x\(String(mask, radix: 16)) are set that this version does not "
                + "know; a newer PCcheck can read it"
        case .foreignFile(let found, let expected):
            "it belongs to file \(found), expected \(expected)"
        case .misdirected(let found, let expected):
            "it records byte \(found) as its place, expected byte \(expected)"
        case .wrongSlot(let found, let expected):
            "it records slot \(found) as its own, expected slot \(expected)"
        case .reservedBytesNotZero(let offset):
            "reserved byte \(offset) is not zero; a newer writer, or damage before it was sealed"
        case .invalidField(let name, let found, let expected):
            "\(name) is \(found), expected \(expected)"
        case .invalidManifest(let why): "the manifest is invalid: \(why)"
        case .invalidCompression(let why): "the compressed data is invalid: \(why)"
        }
    }

    private static func escaped(_ bytes: [UInt8]) -> String {
        bytes.map { byte in
            (0x21...0x7E).contains(byte)
                ? String(UnicodeScalar(byte))
                : "\\x" + (byte < 16 ? "0" : "") + String(byte, radix: 16)
        }.joined()
    }
}
