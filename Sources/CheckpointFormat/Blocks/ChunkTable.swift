/// How a chunk's bytes are stored.
public enum Codec: UInt8, Sendable, CaseIterable {
    /// As they are.
    case none = 0
    /// One zstd frame.
    case zstd = 1
    /// Byte planes of `plane_width`, then one zstd frame.
    case planesZstd = 2

    /// The name that options, JSON and tables use.
    package var label: String {
        switch self {
        case .none: "none"
        case .zstd: "zstd"
        case .planesZstd: "planes-zstd"
        }
    }
}

/// One entry of a slot's chunk table.
public struct ChunkEntry: Hashable, Sendable {
    public enum Layout {
        public static let storedOffset = LayoutField("stored_offset", 0, 8)
        public static let storedByteCount = LayoutField("stored_byte_count", 8, 4)
        public static let rawByteCount = LayoutField("raw_byte_count", 12, 4)
        public static let codec = LayoutField("codec", 16, 1)
        public static let planeWidth = LayoutField("plane_width", 17, 1)
        public static let reserved18 = LayoutField("reserved_18", 18, 6)
        public static let digest = LayoutField("digest", 24, 16)
        public static let reserved40 = LayoutField("reserved_40", 40, 8)

        public static let all = [
            storedOffset, storedByteCount, rawByteCount, codec, planeWidth, reserved18, digest,
            reserved40,
        ]
        public static let byteCount = 48
    }

    /// Byte offset from the start of the slot's data area; a multiple of 4096.
    public var storedOffset: UInt64
    public var storedByteCount: Int
    public var rawByteCount: Int
    public var codec: Codec
    /// Bytes per element of the byte-plane filter: 2, 4 or 8; 1 without the filter.
    public var planeWidth: Int
    /// Tree digest of the stored bytes; see `TreeDigest`.
    public var digest: Digest

    public init(
        storedOffset: UInt64, storedByteCount: Int, rawByteCount: Int, codec: Codec,
        planeWidth: Int, digest: Digest
    ) {
        self.storedOffset = storedOffset
        self.storedByteCount = storedByteCount
        self.rawByteCount = rawByteCount
        self.codec = codec
        self.planeWidth = planeWidth
        self.digest = digest
    }

    func encode(into encoder: inout BlockEncoder, at index: Int) {
        func field(_ field: LayoutField) -> LayoutField { Self.field(field, at: index) }
        encoder.put(storedOffset, field(Layout.storedOffset))
        encoder.put(UInt32(storedByteCount), field(Layout.storedByteCount))
        encoder.put(UInt32(rawByteCount), field(Layout.rawByteCount))
        encoder.put(codec.rawValue, field(Layout.codec))
        encoder.put(UInt8(planeWidth), field(Layout.planeWidth))
        encoder.put(digest, field(Layout.digest))
    }

    static func field(_ field: LayoutField, at index: Int) -> LayoutField {
        LayoutField(field.name, index * Layout.byteCount + field.offset, field.byteCount)
    }

    init(
        _ decoder: BlockDecoder, index: Int, header: SlotHeader, geometry: Geometry
    ) throws(FormatError) {
        func field(_ field: LayoutField) -> LayoutField { Self.field(field, at: index) }
        storedOffset = decoder.integer(field(Layout.storedOffset))
        storedByteCount = Int(decoder.integer(field(Layout.storedByteCount), as: UInt32.self))
        rawByteCount = Int(decoder.integer(field(Layout.rawByteCount), as: UInt32.self))
        let codecNumber: UInt8 = decoder.integer(field(Layout.codec))
        guard let codec = Codec(rawValue: codecNumber) else {
            throw .invalidField(
                "chunk \(index) codec", found: UInt64(codecNumber), expected: "0, 1 or 2")
        }
        self.codec = codec
        planeWidth = Int(decoder.integer(field(Layout.planeWidth), as: UInt8.self))
        digest = decoder.digest(field(Layout.digest))
        try check(index: index, header: header, geometry: geometry)
        for reserved in [Layout.reserved18, Layout.reserved40]
        where !decoder.isZero(field(reserved).range) {
            throw .reservedBytesNotZero(offset: field(reserved).offset)
        }
    }

    private func check(
        index: Int, header: SlotHeader, geometry: Geometry
    ) throws(FormatError) {
        let expectedRaw = Self.rawByteCount(
            index: index, payloadByteCount: header.payloadByteCount,
            chunkByteCount: header.chunkByteCount)
        guard rawByteCount == expectedRaw else {
            throw .invalidField(
                "chunk \(index) raw_byte_count", found: UInt64(rawByteCount),
                expected: "\(expectedRaw)")
        }
        let isStoredSizeValid =
            codec == .none
            ? storedByteCount == rawByteCount
            : storedByteCount > 0 && storedByteCount < rawByteCount
        guard isStoredSizeValid else {
            throw .invalidField(
                "chunk \(index) stored_byte_count", found: UInt64(storedByteCount),
                expected: codec == .none ? "\(rawByteCount)" : "1 to \(rawByteCount - 1)")
        }
        guard codec == .planesZstd ? [2, 4, 8].contains(planeWidth) : planeWidth == 1 else {
            throw .invalidField(
                "chunk \(index) plane_width", found: UInt64(planeWidth),
                expected: codec == .planesZstd ? "2, 4 or 8" : "1")
        }
        let (end, overflow) = storedOffset.addingReportingOverflow(UInt64(storedByteCount))
        guard storedOffset % Geometry.block == 0, !overflow, end <= geometry.dataStride else {
            throw .invalidField(
                "chunk \(index) stored_offset", found: storedOffset,
                expected: "a multiple of 4096 that keeps the chunk inside the slot")
        }
    }

    /// The raw size of chunk `index`: full, except for the last one.
    public static func rawByteCount(
        index: Int, payloadByteCount: UInt64, chunkByteCount: Int
    ) -> Int {
        let start = UInt64(index) * UInt64(chunkByteCount)
        return Int(min(UInt64(chunkByteCount), payloadByteCount - start))
    }
}

/// The chunk table of a slot: one entry per chunk, in payload order.
public struct ChunkTable: Hashable, Sendable {
    public var entries: [ChunkEntry]

    public init(entries: [ChunkEntry]) { self.entries = entries }

    /// The table's bytes padded with zeros to 4 KiB, and the digest of the entries alone.
    public func encoded() -> (bytes: [UInt8], digest: Digest) {
        let byteCount = entries.count * ChunkEntry.Layout.byteCount
        var encoder = BlockEncoder(
            byteCount: Int(UInt64(byteCount).roundedUp(to: Geometry.block)))
        for (index, entry) in entries.enumerated() { entry.encode(into: &encoder, at: index) }
        let digest = Digest(of: encoder.bytes, 0..<byteCount)
        return (encoder.bytes, digest)
    }

    /// Decodes and checks the table that `header` describes.
    ///
    /// - Throws: `checksumMismatch` when the bytes are not those the header was sealed with;
    ///   `invalidField` when they are, but an entry is out of range or two chunks overlap.
    public init(
        decoding bytes: [UInt8], header: SlotHeader, geometry: Geometry
    ) throws(FormatError) {
        let byteCount = header.tableByteCount
        guard bytes.count >= byteCount else {
            throw .truncated(found: UInt64(bytes.count), expected: UInt64(byteCount))
        }
        let digest = Digest(of: bytes, 0..<byteCount)
        guard digest == header.chunkTableDigest else {
            throw .checksumMismatch(found: digest, expected: header.chunkTableDigest)
        }
        let decoder = BlockDecoder(bytes)
        entries = try (0..<header.chunkCount).map { index throws(FormatError) in
            try ChunkEntry(decoder, index: index, header: header, geometry: geometry)
        }
        try checkTotals(header)
    }

    /// The readable entries of a table that is damaged, or longer than `bytes`: nil for an entry
    /// that breaks the rules.
    ///
    /// Only its own chunk proves an entry: use the chunk only once the stored bytes match the
    /// entry's digest.
    public static func survivors(
        decoding bytes: [UInt8], header: SlotHeader, geometry: Geometry
    ) -> [ChunkEntry?] {
        let size = ChunkEntry.Layout.byteCount
        let decoder = BlockDecoder(bytes)
        return (0..<header.chunkCount).map { index in
            (index + 1) * size > bytes.count
                ? nil
                : try? ChunkEntry(decoder, index: index, header: header, geometry: geometry)
        }
    }

    private func checkTotals(_ header: SlotHeader) throws(FormatError) {
        let stored = entries.reduce(UInt64(0)) { $0 + UInt64($1.storedByteCount) }
        guard stored == header.storedByteCount else {
            throw .invalidField(
                "stored_byte_count", found: header.storedByteCount, expected: "\(stored)")
        }
        let order = entries.indices.sorted {
            entries[$0].storedOffset < entries[$1].storedOffset
        }
        for (first, second) in zip(order, order.dropFirst()) {
            let end = entries[first].storedOffset + UInt64(entries[first].storedByteCount)
            guard end <= entries[second].storedOffset else {
                throw .invalidField(
                    "chunk \(second) stored_offset", found: entries[second].storedOffset,
                    expected: "at least \(end), where chunk \(first) ends")
            }
        }
    }
}
