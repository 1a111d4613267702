/// The file that undoes a repair: the old bytes of every block that the repair writes, in the order
/// in which it writes them.
///
/// Layout and rules are in spec/UNDO.md. Pure: bytes in, bytes out.
public struct UndoFile: Hashable, Sendable {
    public static let magic = Array("PCKUNDO\n".utf8)
    public static let version = FormatVersion(major: 1, minor: 0)
    /// A repair writes a few blocks of metadata, never payload.
    public static let recordCount = 1...256

    public enum Layout {
        public static let magic = LayoutField("magic", 0, 8)
        public static let versionMajor = LayoutField("version_major", 8, 2)
        public static let versionMinor = LayoutField("version_minor", 10, 2)
        public static let recordCount = LayoutField("record_count", 12, 4)
        public static let fileUUID = LayoutField("file_uuid", 16, 16)
        public static let fileByteCount = LayoutField("file_byte_count", 32, 8)
        public static let createdTime = LayoutField("created_time", 40, 8)
        public static let highestGeneration = LayoutField("highest_generation", 48, 8)
        public static let recordsDigest = LayoutField("records_digest", 56, 16)
        public static let reserved72 = LayoutField("reserved_72", 72, 4008)
        public static let checksum = LayoutField("checksum", 4080, 16)
        public static let all = [
            magic, versionMajor, versionMinor, recordCount, fileUUID, fileByteCount, createdTime,
            highestGeneration, recordsDigest, reserved72, checksum,
        ]
    }

    /// The block before the old bytes of a record.
    public enum RecordLayout {
        public static let byteOffset = LayoutField("byte_offset", 0, 8)
        public static let newDigest = LayoutField("new_digest", 8, 16)
        public static let reserved24 = LayoutField("reserved_24", 24, 4072)
        public static let all = [byteOffset, newDigest, reserved24]
    }

    /// One block that the repair writes.
    public struct Record: Hashable, Sendable {
        /// Its offset in the file: a multiple of 4096.
        public var byteOffset: UInt64
        /// The digest of the 4096 bytes that the repair writes.
        public var newDigest: Digest
        /// The old 4096 bytes; zero beyond the old end of the file.
        public var oldBytes: [UInt8]

        public init(byteOffset: UInt64, newDigest: Digest, oldBytes: [UInt8]) {
            precondition(oldBytes.count == Limits.blockByteCount, "a record holds one block")
            self.byteOffset = byteOffset
            self.newDigest = newDigest
            self.oldBytes = oldBytes
        }
    }

    /// The UUID of the file that was repaired.
    public var fileUUID: Identifier128
    /// That file's size in bytes before the repair; a repair that restores a lost end changes it.
    public var fileByteCount: UInt64
    /// Nanoseconds since 1970-01-01 UTC.
    public var createdTime: UInt64
    /// The highest generation of the superblocks before the repair and of those that it writes. A
    /// higher one in the file shows that a writer was at work since.
    public var highestGeneration: Generation
    /// In the order in which the repair writes them; no block twice.
    public var records: [Record]

    public init(
        fileUUID: Identifier128, fileByteCount: UInt64, createdTime: UInt64,
        highestGeneration: Generation, records: [Record]
    ) {
        precondition(Self.recordCount.contains(records.count), "1 to 256 records")
        self.fileUUID = fileUUID
        self.fileByteCount = fileByteCount
        self.createdTime = createdTime
        self.highestGeneration = highestGeneration
        self.records = records
    }

    private static let recordByteCount = 2 * Limits.blockByteCount
    /// The size of the largest undo file there can be, in bytes.
    public static let byteCountMaximum =
        Limits.blockByteCount + recordCount.upperBound * recordByteCount

    /// The bytes of the file, a multiple of 4096.
    public func encoded() -> [UInt8] {
        var body: [UInt8] = []
        for record in records {
            var encoder = BlockEncoder(byteCount: Limits.blockByteCount)
            encoder.put(record.byteOffset, RecordLayout.byteOffset)
            encoder.put(record.newDigest, RecordLayout.newDigest)
            body += encoder.bytes + record.oldBytes
        }
        var head = BlockEncoder(byteCount: Limits.blockByteCount)
        head.put(Self.magic, Layout.magic)
        head.put(Self.version.major, Layout.versionMajor)
        head.put(Self.version.minor, Layout.versionMinor)
        head.put(UInt32(records.count), Layout.recordCount)
        head.put(fileUUID.bytes, Layout.fileUUID)
        head.put(fileByteCount, Layout.fileByteCount)
        head.put(createdTime, Layout.createdTime)
        head.put(highestGeneration.rawValue, Layout.highestGeneration)
        head.put(Digest(of: body), Layout.recordsDigest)
        _ = head.seal(Layout.checksum)
        return head.bytes + body
    }

    /// Decodes all of an undo file.
    ///
    /// - Throws: `FormatError`: an undo file that is damaged, cut short or too long is refused,
    ///   because half an undo would leave a file that is neither the old nor the new one.
    public init(decoding bytes: [UInt8]) throws(FormatError) {
        guard bytes.count >= Limits.blockByteCount else {
            throw .truncated(
                found: UInt64(bytes.count), expected: UInt64(Limits.blockByteCount))
        }
        let head = BlockDecoder(Array(bytes[..<Limits.blockByteCount]))
        try head.checkSeal(magic: Self.magic, Layout.magic, Layout.checksum)
        let major: UInt16 = head.integer(Layout.versionMajor)
        guard major == Self.version.major else {
            throw .unsupportedVersion(major: major, minor: head.integer(Layout.versionMinor))
        }
        try head.checkReserved(Layout.all)
        let count: UInt32 = head.integer(Layout.recordCount)
        guard Self.recordCount.contains(Int(count)) else {
            throw .invalidField("record_count", found: UInt64(count), expected: "1 to 256")
        }
        let expected = Limits.blockByteCount + Int(count) * Self.recordByteCount
        guard bytes.count == expected else {
            throw .truncated(found: UInt64(bytes.count), expected: UInt64(expected))
        }
        let found = Digest(of: bytes, Limits.blockByteCount..<bytes.count)
        let recorded = head.digest(Layout.recordsDigest)
        guard found == recorded else {
            throw .checksumMismatch(found: found, expected: recorded)
        }
        fileUUID = Identifier128(bytes: head.content(Layout.fileUUID))
        fileByteCount = head.integer(Layout.fileByteCount)
        createdTime = head.integer(Layout.createdTime)
        highestGeneration = Generation(rawValue: head.integer(Layout.highestGeneration))
        records = []
        for index in 0..<Int(count) {
            let record = try Self.record(index, in: bytes)
            guard !records.contains(where: { $0.byteOffset == record.byteOffset }) else {
                throw .invalidField(
                    "byte_offset", found: record.byteOffset,
                    expected: "a block that no other record names")
            }
            records.append(record)
        }
    }

    private static func record(
        _ index: Int, in bytes: [UInt8]
    ) throws(FormatError) -> Record {
        let block = Limits.blockByteCount
        let start = block + index * recordByteCount
        let decoder = BlockDecoder(Array(bytes[start..<start + block]))
        try decoder.checkReserved(RecordLayout.all)
        let offset: UInt64 = decoder.integer(RecordLayout.byteOffset)
        guard offset % UInt64(block) == 0, offset < Limits.fileByteCountMaximum else {
            throw .invalidField(
                "byte_offset", found: offset,
                expected: "a multiple of \(block) below \(Limits.fileByteCountMaximum)")
        }
        return Record(
            byteOffset: offset, newDigest: decoder.digest(RecordLayout.newDigest),
            oldBytes: Array(bytes[start + block..<start + recordByteCount]))
    }
}
