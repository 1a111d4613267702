/// Where the tensors of a payload lie, and all that its manifest says of them.
///
/// It depends on nothing that changes from one checkpoint to the next of the same tensors, and is
/// worth keeping: to lay out many tensors costs more than to copy small ones.
public struct TensorLayout: Sendable {
    /// Bytes of each tensor, in the order in which they were given.
    public let byteCounts: [UInt64]
    /// Indices of the tensors in the order of their data: widest elements first, otherwise as
    /// given, so that each is aligned to its element.
    public let order: [Int]
    public let dataByteCount: UInt64
    /// The members of the manifest's JSON, without its braces.
    private let members: [UInt8]

    private typealias Bounds = SafetensorsManifest.Bounds

    /// Lays tensors out back to back.
    ///
    /// - Throws: `FormatError.invalidManifest` for names that repeat or are reserved, and for
    ///   values above `Limits`.
    public init(_ tensors: [TensorDescription]) throws(FormatError) {
        try self.init(tensors, within: Bounds())
    }

    init(
        _ tensors: [TensorDescription], within bounds: SafetensorsManifest.Bounds
    ) throws(FormatError) {
        guard tensors.count <= bounds.tensorCount else {
            throw .invalidManifest(
                "\(tensors.count) tensors, expected at most \(bounds.tensorCount)")
        }
        order = Self.payloadOrder(tensors)
        var byteCounts = [UInt64](repeating: 0, count: tensors.count)
        var members: [UInt8] = []
        var names = Set<[UInt8]>(minimumCapacity: tensors.count)
        var dataEnd: UInt64 = 0
        for index in order {
            let tensor = tensors[index]
            guard names.insert(try Self.checkedName(tensor)).inserted else {
                throw .invalidManifest("two tensors have the name \"\(tensor.name)\"")
            }
            byteCounts[index] = try tensor.byteCount
            let (end, overflow) = dataEnd.addingReportingOverflow(byteCounts[index])
            guard !overflow, end <= Limits.slotByteCount.upperBound else {
                throw .invalidManifest(
                    "the tensors have more than \(Limits.slotByteCount.upperBound) bytes")
            }
            if !members.isEmpty { members.append(UInt8(ascii: ",")) }
            Self.append(tensor, dataEnd..<end, to: &members)
            dataEnd = end
        }
        self.byteCounts = byteCounts
        self.members = members
        dataByteCount = dataEnd
    }

    /// The manifest: its length and its JSON, padded with spaces to a multiple of 4 KiB.
    ///
    /// - Throws: `FormatError.invalidManifest` for keys that repeat, and for more than `Limits`
    ///   allow.
    public func manifest(
        metadata: [(key: String, value: String)]
    ) throws(FormatError) -> [UInt8] {
        try manifest(metadata: metadata, within: SafetensorsManifest.Bounds())
    }

    func manifest(
        metadata: [(key: String, value: String)], within bounds: SafetensorsManifest.Bounds
    ) throws(FormatError) -> [UInt8] {
        let lengthByteCount = SafetensorsManifest.lengthByteCount
        var bytes = [UInt8](repeating: 0, count: lengthByteCount)
        // Most of the metadata is one document, in which every quote is escaped.
        let textByteCount = metadata.reduce(0) { $0 + $1.key.utf8.count + $1.value.utf8.count }
        bytes.reserveCapacity(members.count + textByteCount * 5 / 4 + Int(Geometry.block))
        bytes.append(UInt8(ascii: "{"))
        try Self.append(metadata, to: &bytes)
        if !metadata.isEmpty && !members.isEmpty { bytes.append(UInt8(ascii: ",")) }
        bytes += members
        bytes.append(UInt8(ascii: "}"))
        let paddedByteCount = Int(UInt64(bytes.count).roundedUp(to: Geometry.block))
        let jsonByteCount = paddedByteCount - lengthByteCount
        guard jsonByteCount <= bounds.jsonByteCount else {
            throw .invalidManifest(
                "\(jsonByteCount) bytes, expected at most \(bounds.jsonByteCount)")
        }
        bytes.append(contentsOf: repeatElement(0x20, count: paddedByteCount - bytes.count))
        for index in 0..<lengthByteCount {
            bytes[index] = UInt8(truncatingIfNeeded: jsonByteCount >> (8 * index))
        }
        return bytes
    }

    /// Indices of `tensors`, widest elements first; a stable order.
    private static func payloadOrder(_ tensors: [TensorDescription]) -> [Int] {
        let widths = Set(tensors.map(\.elementType.bitCount)).sorted(by: >)
        return widths.flatMap { width in
            tensors.indices.filter { tensors[$0].elementType.bitCount == width }
        }
    }

    private static func checkedName(_ tensor: TensorDescription) throws(FormatError) -> [UInt8] {
        let name = Array(tensor.name.utf8)
        guard name.count <= Limits.tensorNameByteCount else {
            throw .invalidManifest(
                "a tensor name has \(name.count) bytes, expected at most "
                    + "\(Limits.tensorNameByteCount)")
        }
        guard name != SafetensorsManifest.metadataName else {
            throw .invalidManifest("a tensor is named __metadata__, which is reserved")
        }
        guard tensor.shape.count <= Limits.tensorRank else {
            throw .invalidManifest(
                "tensor \"\(tensor.name)\" has \(tensor.shape.count) dimensions, expected at most "
                    + "\(Limits.tensorRank)")
        }
        return name
    }

    private static func append(
        _ metadata: [(key: String, value: String)], to bytes: inout [UInt8]
    ) throws(FormatError) {
        if metadata.isEmpty { return }
        JSONWriter.append("\"__metadata__\":{", to: &bytes)
        var keys = Set<[UInt8]>()
        for (index, entry) in metadata.enumerated() {
            guard keys.insert(Array(entry.key.utf8)).inserted else {
                throw .invalidManifest("__metadata__ has the key \"\(entry.key)\" twice")
            }
            if index > 0 { bytes.append(UInt8(ascii: ",")) }
            JSONWriter.appendString(entry.key, to: &bytes)
            bytes.append(UInt8(ascii: ":"))
            JSONWriter.appendString(entry.value, to: &bytes)
        }
        bytes.append(UInt8(ascii: "}"))
    }

    private static func append(
        _ tensor: TensorDescription, _ range: Range<UInt64>, to bytes: inout [UInt8]
    ) {
        JSONWriter.appendString(tensor.name, to: &bytes)
        JSONWriter.append(":{\"dtype\":\"", to: &bytes)
        JSONWriter.append(tensor.elementType.name, to: &bytes)
        JSONWriter.append("\",\"shape\":[", to: &bytes)
        for (index, extent) in tensor.shape.enumerated() {
            if index > 0 { bytes.append(UInt8(ascii: ",")) }
            JSONWriter.append(extent, to: &bytes)
        }
        JSONWriter.append("],\"data_offsets\":[", to: &bytes)
        JSONWriter.append(range.lowerBound, to: &bytes)
        bytes.append(UInt8(ascii: ","))
        JSONWriter.append(range.upperBound, to: &bytes)
        JSONWriter.append("]}", to: &bytes)
    }
}
