internal import CheckpointFormat

/// Names, types and headers of the arrays of an `.npz` archive.
enum NumpyArchive {
    /// The member that says which checkpoint the archive was made from, and what NumPy could not
    /// be told: an array of bytes like all the others, so that a program that walks the archive
    /// meets nothing but arrays.
    static let noteKey = "__pccheck__"

    /// How NumPy is to see a tensor.
    struct Form: Equatable, Sendable {
        /// The `descr` of a `.npy` header.
        let type: String
        let shape: [UInt64]
        /// NumPy has no such type: the array holds the bits as unsigned integers.
        let isStandIn: Bool
    }

    private static let types = [
        "BOOL": "|b1", "U8": "|u1", "I8": "|i1", "U16": "<u2", "I16": "<i2", "F16": "<f2",
        "U32": "<u4", "I32": "<i4", "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8",
        "C64": "<c8",
    ]

    static func form(of tensor: SafetensorsManifest.Tensor) -> Form {
        if let type = types[tensor.elementType.name] {
            return Form(type: type, shape: tensor.shape, isStandIn: false)
        }
        switch tensor.elementType.bitCount {
        case 16: return Form(type: "<u2", shape: tensor.shape, isStandIn: true)
        case 8: return Form(type: "|u1", shape: tensor.shape, isStandIn: true)
        default:
            // Packed types: several elements share a byte.
            let byteCount = UInt64(tensor.dataRange.count)
            return Form(type: "|u1", shape: [byteCount], isStandIn: true)
        }
    }

    /// The header of a `.npy` file, version 1.0: 65535 bytes are enough for 64 dimensions, and
    /// nothing in it is beyond ASCII, which is what versions 2.0 and 3.0 are for.
    static func header(_ form: Form) -> [UInt8] {
        let extents = form.shape.map(String.init).joined(separator: ", ")
        let shape = form.shape.count == 1 ? "(\(extents),)" : "(\(extents))"
        let text = "{'descr': '\(form.type)', 'fortran_order': False, 'shape': \(shape), }"
        let fixedByteCount = 10
        let total = (fixedByteCount + text.utf8.count + 1 + 63) / 64 * 64
        var bytes: [UInt8] = [0x93] + Array("NUMPY".utf8) + [1, 0]
        bytes.appendLittleEndian(UInt16(total - fixedByteCount))
        bytes += Array(text.utf8)
        bytes += [UInt8](repeating: 0x20, count: total - bytes.count - 1) + [0x0A]
        return bytes
    }

    /// The key of a tensor in the archive: its name, in which whatever could lead a program that
    /// unpacks the archive out of its directory, or confuse it, is written as `%` and two digits.
    ///
    /// Different names give different keys.
    static func key(of name: String) -> String {
        // By bytes: to Swift, a slash with a combining mark behind it is no slash.
        let slash = UInt8(ascii: "/")
        let dot = UInt8(ascii: ".")
        let parts = escaped(name).split(separator: slash, omittingEmptySubsequences: false)
        var bytes = Array(
            parts.map { part in
                Array(part == [dot] || part == [dot, dot] ? percents(part) : Array(part)[...])
            }.joined(separator: [slash]))
        if bytes.first == slash { bytes.replaceSubrange(..<1, with: percents([slash])) }
        // NumPy takes the suffix off a key: without this "x.npy" would hide "x".
        let suffix = Array(".npy".utf8)
        if bytes.count >= suffix.count, Array(bytes.suffix(suffix.count)) == suffix {
            let place = bytes.count - suffix.count
            bytes.replaceSubrange(place...place, with: percents([dot]))
        }
        if bytes == Array(noteKey.utf8) { bytes.replaceSubrange(..<1, with: percents(bytes[..<1])) }
        return bytes.isEmpty ? "%" : String(decoding: bytes, as: UTF8.self)
    }

    private static func escaped(_ name: String) -> [UInt8] {
        var result: [UInt8] = []
        for scalar in name.unicodeScalars {
            let bytes = Array(String(scalar).utf8)
            let isHostile = PrintableText.isUnsafe(scalar) || "%\\:".unicodeScalars.contains(scalar)
            result += isHostile ? percents(bytes[...]) : bytes[...]
        }
        return result
    }

    private static func percents(_ bytes: ArraySlice<UInt8>) -> ArraySlice<UInt8> {
        let digits = Array("0123456789ABCDEF".utf8)
        return bytes.flatMap { byte in
            [UInt8(ascii: "%"), digits[Int(byte >> 4)], digits[Int(byte & 15)]]
        }[...]
    }
}
