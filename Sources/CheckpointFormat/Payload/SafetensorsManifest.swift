/// The directory of a safetensors payload: which tensors it holds, and where.
public struct SafetensorsManifest: Hashable, Sendable {
    public struct Tensor: Hashable, Sendable {
        public let name: String
        public let elementType: ElementType
        public let shape: [UInt64]
        /// Relative to the start of the data, `dataOffset` of the manifest.
        public let dataRange: Range<UInt64>
    }

    private struct MetadataEntry: Hashable, Sendable {
        let key: String
        let value: String
    }

    /// In the order of their data.
    public let tensors: [Tensor]
    private var metadataEntries: [MetadataEntry]
    /// Payload bytes before the data: 8 plus the size of the JSON. `encode` makes it a
    /// multiple of 4096.
    public let dataOffset: UInt64

    /// `__metadata__`, in file order.
    public var metadata: [(key: String, value: String)] {
        metadataEntries.map { ($0.key, $0.value) }
    }

    /// The same tensors, without `__metadata__`.
    public func withoutMetadata() -> SafetensorsManifest {
        var copy = self
        copy.metadataEntries = []
        return copy
    }

    /// The limits of a manifest; lower in tests, which could not reach the real limits in time.
    struct Bounds {
        var tensorCount = Limits.tensorCount
        var jsonByteCount = Limits.manifestByteCount
    }

    static let metadataName = Array("__metadata__".utf8)
    /// The JSON's length as a number comes first.
    public static let lengthByteCount = 8

    // MARK: Encoding

    /// Lays tensors out back to back, widest elements first and otherwise in the given order, so
    /// that each is aligned to its element.
    ///
    /// - Returns: the length and the JSON, padded with spaces to a multiple of 4 KiB; the indices
    ///   of the tensors in the order of their data; and the bytes of all data.
    /// - Throws: `FormatError.invalidManifest` for names that repeat or are reserved, and for
    ///   values above `Limits`.
    public static func encode(
        _ tensors: [TensorDescription], metadata: [(key: String, value: String)]
    ) throws(FormatError) -> (bytes: [UInt8], order: [Int], dataByteCount: UInt64) {
        try encode(tensors, metadata: metadata, within: Bounds())
    }

    static func encode(
        _ tensors: [TensorDescription], metadata: [(key: String, value: String)],
        within bounds: Bounds
    ) throws(FormatError) -> (bytes: [UInt8], order: [Int], dataByteCount: UInt64) {
        let layout = try TensorLayout(tensors, within: bounds)
        let bytes = try layout.manifest(metadata: metadata, within: bounds)
        return (bytes, layout.order, layout.dataByteCount)
    }

    // MARK: Decoding

    /// `dataOffset` from the first 8 bytes of a payload: how many bytes `init(decoding:)` needs.
    public static func dataOffset(
        decoding bytes: [UInt8], payloadByteCount: UInt64
    ) throws(FormatError) -> UInt64 {
        guard bytes.count >= lengthByteCount else {
            throw .truncated(found: UInt64(bytes.count), expected: UInt64(lengthByteCount))
        }
        var length: UInt64 = 0
        for index in (0..<lengthByteCount).reversed() {
            length = length << 8 | UInt64(bytes[index])
        }
        guard length <= UInt64(Limits.manifestByteCount) else {
            throw .invalidManifest(
                "it claims \(length) bytes of JSON, expected at most \(Limits.manifestByteCount)")
        }
        let offset = length + UInt64(lengthByteCount)
        guard offset <= payloadByteCount else {
            throw .invalidManifest(
                "its JSON ends at byte \(offset), but the payload has \(payloadByteCount)")
        }
        return offset
    }

    /// Decodes and checks the manifest at the start of a payload.
    ///
    /// - Parameters:
    ///   - bytes: at least the first `dataOffset` bytes of the payload.
    ///   - payloadByteCount: bytes of the payload, which the tensors must fill exactly.
    public init(decoding bytes: [UInt8], payloadByteCount: UInt64) throws(FormatError) {
        try self.init(decoding: bytes, payloadByteCount: payloadByteCount, within: Bounds())
    }

    /// Decodes and checks the manifest at the start of the payload that `header` describes.
    public init(decoding bytes: [UInt8], header: SlotHeader) throws(FormatError) {
        try self.init(decoding: bytes, payloadByteCount: header.payloadByteCount)
        guard dataOffset == header.manifestByteCount else {
            throw .invalidField(
                "manifest_byte_count", found: header.manifestByteCount,
                expected: "\(dataOffset), where its data begins")
        }
    }

    init(
        decoding bytes: [UInt8], payloadByteCount: UInt64, within bounds: Bounds
    ) throws(FormatError) {
        dataOffset = try Self.dataOffset(decoding: bytes, payloadByteCount: payloadByteCount)
        guard UInt64(bytes.count) >= dataOffset else {
            throw .truncated(found: UInt64(bytes.count), expected: dataOffset)
        }
        var scanner = JSONScanner<FormatError>(bytes, Self.lengthByteCount..<Int(dataOffset))
        // safetensors wants the brace to come first, without white space.
        guard scanner.isNext("{") else { throw scanner.failure("'{'") }
        var tensors: [Tensor] = []
        var metadata: [MetadataEntry]?
        var names = Set<[UInt8]>()
        try scanner.expect("{")
        if !scanner.consume("}") {
            repeat {
                let name = try scanner.string(limit: Limits.tensorNameByteCount)
                guard names.insert(name).inserted else {
                    throw .invalidManifest(
                        "the key \"\(String(decoding: name, as: UTF8.self))\" is there twice")
                }
                try scanner.expect(":")
                if name == Self.metadataName {
                    metadata = try Self.decodeMetadata(&scanner)
                } else {
                    guard tensors.count < bounds.tensorCount else {
                        throw .invalidManifest("more than \(bounds.tensorCount) tensors")
                    }
                    tensors.append(try Self.decodeTensor(&scanner, name: name))
                }
            } while scanner.consume(",")
            try scanner.expect("}")
        }
        try scanner.expectEnd()
        metadataEntries = metadata ?? []
        self.tensors = try Self.inPayloadOrder(
            tensors, dataByteCount: payloadByteCount - dataOffset)
    }

    private static func decodeMetadata(
        _ scanner: inout JSONScanner<FormatError>
    ) throws(FormatError) -> [MetadataEntry] {
        var entries: [MetadataEntry] = []
        var keys = Set<[UInt8]>()
        try scanner.expect("{")
        if scanner.consume("}") { return [] }
        repeat {
            let key = try scanner.string(limit: Limits.manifestByteCount)
            guard keys.insert(key).inserted else {
                throw .invalidManifest("__metadata__ has one key twice")
            }
            try scanner.expect(":")
            let value = try scanner.string(limit: Limits.manifestByteCount)
            entries.append(
                MetadataEntry(
                    key: String(decoding: key, as: UTF8.self),
                    value: String(decoding: value, as: UTF8.self)))
        } while scanner.consume(",")
        try scanner.expect("}")
        return entries
    }

    private static func decodeTensor(
        _ scanner: inout JSONScanner<FormatError>, name: [UInt8]
    ) throws(FormatError) -> Tensor {
        let text = String(decoding: name, as: UTF8.self)
        let limit = Limits.tensorNameByteCount
        var elementType: ElementType?
        var shape: [UInt64]?
        var offsets: [UInt64]?
        try scanner.expect("{")
        repeat {
            let key = String(decoding: try scanner.string(limit: limit), as: UTF8.self)
            try scanner.expect(":")
            switch key {
            case "dtype" where elementType == nil:
                let typeName = String(
                    decoding: try scanner.string(limit: limit), as: UTF8.self)
                elementType = ElementType(name: typeName)
                guard elementType != nil else {
                    throw .invalidManifest(
                        "tensor \"\(text)\" has the unknown dtype \"\(typeName)\"")
                }
            case "shape" where shape == nil:
                shape = try decodeIntegers(&scanner)
            case "data_offsets" where offsets == nil:
                offsets = try decodeIntegers(&scanner)
            default:
                throw .invalidManifest(
                    "tensor \"\(text)\" has the key \"\(key)\", expected dtype, shape and "
                        + "data_offsets, once each")
            }
        } while scanner.consume(",")
        try scanner.expect("}")
        guard let elementType, let shape, let offsets, offsets.count == 2 else {
            throw .invalidManifest(
                "tensor \"\(text)\" lacks dtype, shape or two data_offsets")
        }
        guard offsets[0] <= offsets[1],
            try elementType.byteCount(shape: shape) == offsets[1] - offsets[0]
        else {
            throw .invalidManifest(
                "tensor \"\(text)\" has data_offsets \(offsets), which do not fit its shape "
                    + "\(shape) of \(elementType)")
        }
        return Tensor(
            name: text, elementType: elementType, shape: shape,
            dataRange: offsets[0]..<offsets[1])
    }

    private static func decodeIntegers(
        _ scanner: inout JSONScanner<FormatError>
    ) throws(FormatError) -> [UInt64] {
        var integers: [UInt64] = []
        try scanner.expect("[")
        if scanner.consume("]") { return [] }
        repeat {
            guard integers.count < Limits.tensorRank else {
                throw .invalidManifest(
                    "an array at byte \(scanner.position) has more than \(Limits.tensorRank) "
                        + "elements")
            }
            integers.append(try scanner.unsignedInteger())
        } while scanner.consume(",")
        try scanner.expect("]")
        return integers
    }

    /// The tensors sorted by offset; they must fill the data without gap or overlap.
    private static func inPayloadOrder(
        _ tensors: [Tensor], dataByteCount: UInt64
    ) throws(FormatError) -> [Tensor] {
        let sorted = tensors.sorted(by: precedes)
        var end: UInt64 = 0
        for tensor in sorted {
            guard tensor.dataRange.lowerBound == end else {
                throw .invalidManifest(
                    "tensor \"\(tensor.name)\" begins at data byte "
                        + "\(tensor.dataRange.lowerBound), expected \(end)")
            }
            end = tensor.dataRange.upperBound
        }
        guard end == dataByteCount else {
            throw .invalidManifest(
                "the tensors end at data byte \(end), but the payload has \(dataByteCount)")
        }
        return sorted
    }

    private static func precedes(_ left: Tensor, _ right: Tensor) -> Bool {
        (left.dataRange.lowerBound, left.dataRange.upperBound)
            < (right.dataRange.lowerBound, right.dataRange.upperBound)
    }
}
