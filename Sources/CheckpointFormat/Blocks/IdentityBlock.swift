/// The immutable facts of a file: written once at creation, at both ends, and never again.
public struct IdentityBlock: Hashable, Sendable {
    /// PNG's trick: a byte with the high bit, CR LF, control-Z and a lone LF, so that a 7-bit or
    /// text-mode transfer damages the magic and is recognised.
    public static let magic: [UInt8] = [0x89, 0x50, 0x43, 0x4B, 0x0D, 0x0A, 0x1A, 0x0A]

    public enum Layout {
        public static let magic = LayoutField("magic", 0, 8)
        public static let versionMajor = LayoutField("version_major", 8, 2)
        public static let versionMinor = LayoutField("version_minor", 10, 2)
        public static let blockByteCount = LayoutField("block_byte_count", 12, 4)
        public static let featuresCompatible = LayoutField("features_compat", 16, 8)
        public static let featuresReadOnly = LayoutField("features_ro_compat", 24, 8)
        public static let featuresIncompatible = LayoutField("features_incompat", 32, 8)
        public static let fileUUID = LayoutField("file_uuid", 40, 16)
        public static let slotCount = LayoutField("slot_count", 56, 4)
        public static let inFlightCount = LayoutField("in_flight_count", 60, 4)
        public static let retainCount = LayoutField("retain_count", 64, 4)
        public static let chunkByteCount = LayoutField("chunk_byte_count", 68, 4)
        public static let chunkCapacity = LayoutField("chunk_capacity", 72, 4)
        public static let reserved76 = LayoutField("reserved_76", 76, 4)
        public static let metadataOffset = LayoutField("metadata_offset", 80, 8)
        public static let metadataStride = LayoutField("metadata_stride", 88, 8)
        public static let dataOffset = LayoutField("data_offset", 96, 8)
        public static let dataStride = LayoutField("data_stride", 104, 8)
        public static let slotByteCount = LayoutField("slot_byte_count", 112, 8)
        public static let fileByteCount = LayoutField("file_byte_count", 120, 8)
        public static let createdTime = LayoutField("created_time", 128, 8)
        public static let rank = LayoutField("rank", 136, 4)
        public static let worldSize = LayoutField("world_size", 140, 4)
        public static let creator = LayoutField("creator", 144, 32)
        public static let fingerprintByteCount = LayoutField("fingerprint_byte_count", 176, 2)
        public static let fingerprint = LayoutField("fingerprint", 178, 254)
        public static let runUUID = LayoutField("run_uuid", 432, 16)
        public static let reserved448 = LayoutField("reserved_448", 448, 3632)
        public static let checksum = LayoutField("checksum", 4080, 16)

        public static let all = [
            magic, versionMajor, versionMinor, blockByteCount, featuresCompatible,
            featuresReadOnly, featuresIncompatible, fileUUID, slotCount, inFlightCount,
            retainCount, chunkByteCount, chunkCapacity, reserved76, metadataOffset,
            metadataStride, dataOffset, dataStride, slotByteCount, fileByteCount, createdTime,
            rank, worldSize, creator, fingerprintByteCount, fingerprint, runUUID, reserved448,
            checksum,
        ]
    }

    public var version: FormatVersion
    public var features: FeatureMasks
    public var fileUUID: Identifier128
    public var geometry: Geometry
    /// Nanoseconds since 1970-01-01 UTC.
    public var createdTime: UInt64
    public var rank: UInt32
    public var worldSize: UInt32
    /// The program that made the file, at most 32 bytes of UTF-8.
    public var creator: String
    /// The user's identity of model and topology, empty when none was given.
    public var fingerprint: String
    /// Shared by all files of a group; zero without a group.
    public var runUUID: Identifier128

    /// The file is one of several that the ranks of a job write: GROUP.md.
    public var isOfGroup: Bool { runUUID != .zero }

    /// How many checkpoints a superblock may name besides its anchor.
    public var retainedMaximum: Int {
        isOfGroup ? Superblock.retainedCapacity : geometry.retainCount - 1
    }

    /// - Throws: `FormatError.invalidField` for a fingerprint over 254 bytes, a rank that is not
    ///   below the world size, or a group with too many slots.
    public init(
        fileUUID: Identifier128, geometry: Geometry, createdTime: UInt64, rank: UInt32 = 0,
        worldSize: UInt32 = 1, creator: String, fingerprint: String = "",
        runUUID: Identifier128 = .zero
    ) throws(FormatError) {
        self.version = .current
        self.features = FeatureMasks()
        self.fileUUID = fileUUID
        self.geometry = geometry
        self.createdTime = createdTime
        self.rank = rank
        self.worldSize = worldSize
        self.creator = Self.clipped(creator)
        self.fingerprint = fingerprint
        self.runUUID = runUUID
        try checkRanges()
    }

    /// The same file with other slots.
    public func resized(to geometry: Geometry) throws(FormatError) -> IdentityBlock {
        var identity = self
        identity.geometry = geometry
        try identity.checkRanges()
        return identity
    }

    /// As many complete characters as fit the field: half of one is no UTF-8.
    private static func clipped(_ creator: String) -> String {
        var text = creator
        while text.utf8.count > Layout.creator.byteCount { text.removeLast() }
        return text
    }

    private func checkRanges() throws(FormatError) {
        guard fingerprint.utf8.count <= Limits.fingerprintByteCount else {
            throw .invalidField(
                "fingerprint_byte_count", found: UInt64(fingerprint.utf8.count),
                expected: "0 to \(Limits.fingerprintByteCount)")
        }
        guard rank < worldSize else {
            throw .invalidField(
                "rank", found: UInt64(rank), expected: "below the world size \(worldSize)")
        }
        guard !isOfGroup || geometry.slotCount <= Limits.groupSlotCount else {
            throw .invalidField(
                "slot_count", found: UInt64(geometry.slotCount),
                expected: "at most \(Limits.groupSlotCount) in a file of a group")
        }
    }

    public func encoded() -> [UInt8] {
        var encoder = BlockEncoder(byteCount: Limits.blockByteCount)
        encoder.put(Self.magic, Layout.magic)
        encoder.put(version.major, Layout.versionMajor)
        encoder.put(version.minor, Layout.versionMinor)
        encoder.put(UInt32(Limits.blockByteCount), Layout.blockByteCount)
        encoder.put(features.compatible, Layout.featuresCompatible)
        encoder.put(features.readOnlyCompatible, Layout.featuresReadOnly)
        encoder.put(features.incompatible, Layout.featuresIncompatible)
        encoder.put(fileUUID.bytes, Layout.fileUUID)
        encoder.put(UInt32(geometry.slotCount), Layout.slotCount)
        encoder.put(UInt32(geometry.inFlightCount), Layout.inFlightCount)
        encoder.put(UInt32(geometry.retainCount), Layout.retainCount)
        encoder.put(UInt32(geometry.chunkByteCount), Layout.chunkByteCount)
        encoder.put(UInt32(geometry.chunkCapacity), Layout.chunkCapacity)
        encoder.put(geometry.metadataOffset, Layout.metadataOffset)
        encoder.put(geometry.metadataStride, Layout.metadataStride)
        encoder.put(geometry.dataOffset, Layout.dataOffset)
        encoder.put(geometry.dataStride, Layout.dataStride)
        encoder.put(geometry.slotByteCount, Layout.slotByteCount)
        encoder.put(geometry.fileByteCount, Layout.fileByteCount)
        encoder.put(createdTime, Layout.createdTime)
        encoder.put(rank, Layout.rank)
        encoder.put(worldSize, Layout.worldSize)
        encoder.put(Array(creator.utf8), Layout.creator)
        encoder.put(UInt16(fingerprint.utf8.count), Layout.fingerprintByteCount)
        encoder.put(Array(fingerprint.utf8), Layout.fingerprint)
        encoder.put(runUUID.bytes, Layout.runUUID)
        _ = encoder.seal(Layout.checksum)
        return encoder.bytes
    }

    /// Decodes a block of 4096 bytes.
    ///
    /// The order of the checks is part of the format: magic, checksum, version, features, values.
    /// Magic, version and checksum keep their places in every future version, so that a newer
    /// file is reported as newer and a damaged one as damaged.
    public init(decoding bytes: [UInt8]) throws(FormatError) {
        guard bytes.count >= Limits.blockByteCount else {
            throw .truncated(
                found: UInt64(bytes.count), expected: UInt64(Limits.blockByteCount))
        }
        let decoder = BlockDecoder(Array(bytes[..<Limits.blockByteCount]))
        try Self.checkMagic(decoder)
        version = FormatVersion(
            major: decoder.integer(Layout.versionMajor),
            minor: decoder.integer(Layout.versionMinor))
        let found = decoder.computedDigest(before: Layout.checksum)
        let expected = decoder.digest(Layout.checksum)
        guard found == expected else {
            throw .checksumMismatch(found: found, expected: expected)
        }
        guard version.major == FormatVersion.current.major else {
            throw .unsupportedVersion(major: version.major, minor: version.minor)
        }
        features = FeatureMasks(
            compatible: decoder.integer(Layout.featuresCompatible),
            readOnlyCompatible: decoder.integer(Layout.featuresReadOnly),
            incompatible: decoder.integer(Layout.featuresIncompatible))
        guard features.unknownIncompatible == 0 else {
            throw .unknownIncompatibleFeatures(features.unknownIncompatible)
        }
        let blockByteCount: UInt32 = decoder.integer(Layout.blockByteCount)
        guard blockByteCount == UInt32(Limits.blockByteCount) else {
            throw .invalidField(
                "block_byte_count", found: UInt64(blockByteCount), expected: "4096")
        }
        geometry = try Geometry(decoder)
        fileUUID = Identifier128(bytes: decoder.content(Layout.fileUUID))
        createdTime = decoder.integer(Layout.createdTime)
        rank = decoder.integer(Layout.rank)
        worldSize = decoder.integer(Layout.worldSize)
        creator = try decoder.paddedText(Layout.creator)
        let count: UInt16 = decoder.integer(Layout.fingerprintByteCount)
        guard Int(count) <= Limits.fingerprintByteCount else {
            throw .invalidField(
                "fingerprint_byte_count", found: UInt64(count),
                expected: "0 to \(Limits.fingerprintByteCount)")
        }
        fingerprint = try decoder.text(Layout.fingerprint, count: Int(count))
        runUUID = Identifier128(bytes: decoder.content(Layout.runUUID))
        try checkRanges()
        try decoder.checkReserved(Layout.all)
    }

    private static func checkMagic(_ decoder: BlockDecoder) throws(FormatError) {
        let found = decoder.content(Layout.magic)
        if found == Self.magic { return }
        if decoder.isZero(0..<Limits.blockByteCount) { throw .blank }
        // What CR LF → LF, LF → CR LF and a stripped high bit leave of the magic.
        let textModeForms: [[UInt8]] = [
            [0x89, 0x50, 0x43, 0x4B, 0x0A, 0x1A, 0x0A],
            [0x89, 0x50, 0x43, 0x4B, 0x0D, 0x0D, 0x0A, 0x1A],
            [0x09, 0x50, 0x43, 0x4B, 0x0D, 0x0A, 0x1A, 0x0A],
        ]
        if textModeForms.contains(where: { found.starts(with: $0) }) { throw .textModeDamage }
        // A file whose other blocks are in its identity's place is a PCcheck file, and damaged.
        if found == Superblock.magic { throw .strayBlock("superblock") }
        if found == SlotHeader.magic { throw .strayBlock("slot header") }
        throw .wrongMagic(found: found)
    }
}
