/// The state of a slot, which its header records.
public enum SlotState: UInt32, Sendable, CaseIterable {
    /// Never used.
    case empty = 0
    /// Taken by a checkpoint whose commit record has not been written.
    case writing = 1
    /// All chunks and the chunk table were written before this header.
    case complete = 2
}

/// The kind of a slot's payload.
public enum PayloadKind: UInt32, Sendable, CaseIterable {
    /// The exact image of a `.safetensors` file.
    case safetensors = 1
    /// Bytes that only the application understands.
    case opaque = 2
}

/// The commit record of a slot: one 4 KiB block, written once all chunks are written.
public struct SlotHeader: Hashable, Sendable {
    public static let magic = Array("PCKSLOTH".utf8)

    public enum Layout {
        public static let magic = LayoutField("magic", 0, 8)
        public static let fileUUID = LayoutField("file_uuid", 8, 16)
        public static let ownOffset = LayoutField("own_offset", 24, 8)
        public static let slotIndex = LayoutField("slot_index", 32, 4)
        public static let state = LayoutField("state", 36, 4)
        public static let sequence = LayoutField("sequence", 40, 8)
        public static let step = LayoutField("step", 48, 8)
        public static let beganTime = LayoutField("began_time", 56, 8)
        public static let completedTime = LayoutField("completed_time", 64, 8)
        public static let payloadByteCount = LayoutField("payload_byte_count", 72, 8)
        public static let storedByteCount = LayoutField("stored_byte_count", 80, 8)
        public static let chunkByteCount = LayoutField("chunk_byte_count", 88, 4)
        public static let chunkCount = LayoutField("chunk_count", 92, 4)
        public static let codec = LayoutField("codec", 96, 4)
        public static let payloadKind = LayoutField("payload_kind", 100, 4)
        public static let manifestByteCount = LayoutField("manifest_byte_count", 104, 8)
        public static let chunkTableDigest = LayoutField("chunk_table_digest", 112, 16)
        public static let logicalDigest = LayoutField("logical_digest", 128, 16)
        public static let userMetadataByteCount = LayoutField("user_metadata_byte_count", 144, 4)
        public static let reserved148 = LayoutField("reserved_148", 148, 4)
        public static let userMetadata = LayoutField("user_metadata", 152, 2048)
        public static let attempt = LayoutField("attempt", 2200, 8)
        public static let reserved2208 = LayoutField("reserved_2208", 2208, 1872)
        public static let checksum = LayoutField("checksum", 4080, 16)

        public static let all = [
            magic, fileUUID, ownOffset, slotIndex, state, sequence, step, beganTime,
            completedTime, payloadByteCount, storedByteCount, chunkByteCount, chunkCount, codec,
            payloadKind, manifestByteCount, chunkTableDigest, logicalDigest,
            userMetadataByteCount, reserved148, userMetadata, attempt, reserved2208, checksum,
        ]
    }

    public var fileUUID: Identifier128
    public var ownOffset: UInt64
    public var slot: SlotIndex
    public var state: SlotState
    public var sequence: SequenceNumber
    public var step: UInt64
    /// Nanoseconds since 1970-01-01 UTC at which the checkpoint began.
    public var beganTime: UInt64
    /// The same for its last chunk; 0 while writing.
    public var completedTime: UInt64
    /// Bytes of the uncompressed payload.
    public var payloadByteCount: UInt64
    /// Sum of the stored lengths of all chunks.
    public var storedByteCount: UInt64
    public var chunkByteCount: Int
    public var chunkCount: Int
    public var codec: Codec
    public var payloadKind: PayloadKind
    /// Bytes of the payload before the tensor data; 0 for an opaque payload.
    public var manifestByteCount: UInt64
    public var chunkTableDigest: Digest
    /// Digest of the uncompressed payload, independent of chunk size and codec.
    public var logicalDigest: Digest
    /// At most 2048 bytes of UTF-8 chosen by the user.
    public var userMetadata: String
    /// The attempt of the group that saved it; 0 without a group.
    public var attempt: UInt64

    /// Its name in the group.
    public var groupName: GroupCheckpointName { GroupCheckpointName(attempt: attempt, step: step) }

    /// The header of a slot that was never used.
    public init(emptySlot slot: SlotIndex, fileUUID: Identifier128, geometry: Geometry) {
        self.fileUUID = fileUUID
        self.ownOffset = geometry.headerOffset(slot)
        self.slot = slot
        self.state = .empty
        self.sequence = .none
        self.step = 0
        self.beganTime = 0
        self.completedTime = 0
        self.payloadByteCount = 0
        self.storedByteCount = 0
        self.chunkByteCount = geometry.chunkByteCount
        self.chunkCount = 0
        self.codec = .none
        self.payloadKind = .opaque
        self.manifestByteCount = 0
        self.chunkTableDigest = .zero
        self.logicalDigest = .zero
        self.userMetadata = ""
        self.attempt = 0
    }

    /// The 4096 bytes of the block, and the checksum, which is what a superblock records.
    public func encoded() -> (bytes: [UInt8], digest: Digest) {
        var encoder = BlockEncoder(byteCount: Limits.blockByteCount)
        encoder.put(Self.magic, Layout.magic)
        encoder.put(fileUUID.bytes, Layout.fileUUID)
        encoder.put(ownOffset, Layout.ownOffset)
        encoder.put(slot.rawValue, Layout.slotIndex)
        encoder.put(state.rawValue, Layout.state)
        encoder.put(sequence.rawValue, Layout.sequence)
        encoder.put(step, Layout.step)
        encoder.put(beganTime, Layout.beganTime)
        encoder.put(completedTime, Layout.completedTime)
        encoder.put(payloadByteCount, Layout.payloadByteCount)
        encoder.put(storedByteCount, Layout.storedByteCount)
        encoder.put(UInt32(chunkByteCount), Layout.chunkByteCount)
        encoder.put(UInt32(chunkCount), Layout.chunkCount)
        encoder.put(UInt32(codec.rawValue), Layout.codec)
        encoder.put(payloadKind.rawValue, Layout.payloadKind)
        encoder.put(manifestByteCount, Layout.manifestByteCount)
        encoder.put(chunkTableDigest, Layout.chunkTableDigest)
        encoder.put(logicalDigest, Layout.logicalDigest)
        encoder.put(UInt32(userMetadata.utf8.count), Layout.userMetadataByteCount)
        encoder.put(Array(userMetadata.utf8), Layout.userMetadata)
        encoder.put(attempt, Layout.attempt)
        let digest = encoder.seal(Layout.checksum)
        return (encoder.bytes, digest)
    }

    /// Decodes the header block of `slot` and checks it against the file's identity.
    ///
    /// - Returns: through `digest`, the block's checksum, to be compared with the superblock's.
    public init(
        decoding bytes: [UInt8], slot expectedSlot: SlotIndex, identity: IdentityBlock
    ) throws(FormatError) {
        guard bytes.count >= Limits.blockByteCount else {
            throw .truncated(
                found: UInt64(bytes.count), expected: UInt64(Limits.blockByteCount))
        }
        let decoder = BlockDecoder(Array(bytes[..<Limits.blockByteCount]))
        try decoder.checkSeal(magic: Self.magic, Layout.magic, Layout.checksum)
        let geometry = identity.geometry
        fileUUID = Identifier128(bytes: decoder.content(Layout.fileUUID))
        ownOffset = decoder.integer(Layout.ownOffset)
        slot = SlotIndex(rawValue: decoder.integer(Layout.slotIndex))
        guard fileUUID == identity.fileUUID else {
            throw .foreignFile(found: fileUUID, expected: identity.fileUUID)
        }
        guard ownOffset == geometry.headerOffset(expectedSlot) else {
            throw .misdirected(
                foundOffset: ownOffset, expectedOffset: geometry.headerOffset(expectedSlot))
        }
        guard slot == expectedSlot else { throw .wrongSlot(found: slot, expected: expectedSlot) }
        state = try Self.decodeEnum(decoder, Layout.state)
        sequence = SequenceNumber(rawValue: decoder.integer(Layout.sequence))
        step = decoder.integer(Layout.step)
        beganTime = decoder.integer(Layout.beganTime)
        completedTime = decoder.integer(Layout.completedTime)
        payloadByteCount = decoder.integer(Layout.payloadByteCount)
        storedByteCount = decoder.integer(Layout.storedByteCount)
        chunkByteCount = Int(decoder.integer(Layout.chunkByteCount, as: UInt32.self))
        chunkCount = Int(decoder.integer(Layout.chunkCount, as: UInt32.self))
        let codecNumber: UInt32 = decoder.integer(Layout.codec)
        guard let codec = UInt8(exactly: codecNumber).flatMap(Codec.init(rawValue:)) else {
            throw .invalidField("codec", found: UInt64(codecNumber), expected: "a known codec")
        }
        self.codec = codec
        payloadKind = try Self.decodeEnum(decoder, Layout.payloadKind)
        manifestByteCount = decoder.integer(Layout.manifestByteCount)
        chunkTableDigest = decoder.digest(Layout.chunkTableDigest)
        logicalDigest = decoder.digest(Layout.logicalDigest)
        let metadataByteCount: UInt32 = decoder.integer(Layout.userMetadataByteCount)
        guard Int(metadataByteCount) <= Limits.userMetadataByteCount else {
            throw .invalidField(
                "user_metadata_byte_count", found: UInt64(metadataByteCount),
                expected: "0 to \(Limits.userMetadataByteCount)")
        }
        userMetadata = try decoder.text(Layout.userMetadata, count: Int(metadataByteCount))
        attempt = decoder.integer(Layout.attempt)
        try checkSizes(geometry)
        try decoder.checkReserved(Layout.all)
    }

    private static func decodeEnum<Value: RawRepresentable<UInt32>>(
        _ decoder: BlockDecoder, _ field: LayoutField
    ) throws(FormatError) -> Value {
        let raw: UInt32 = decoder.integer(field)
        guard let value = Value(rawValue: raw) else {
            throw .invalidField(field.name, found: UInt64(raw), expected: "a known value")
        }
        return value
    }

    private func checkSizes(_ geometry: Geometry) throws(FormatError) {
        if (sequence == .none) != (state == .empty) {
            throw .invalidField(
                "sequence", found: sequence.rawValue, expected: "0 exactly in an empty slot")
        }
        guard payloadByteCount <= geometry.slotByteCount else {
            throw .invalidField(
                "payload_byte_count", found: payloadByteCount,
                expected: "at most the slot's \(geometry.slotByteCount)")
        }
        guard Limits.chunkByteCount.contains(chunkByteCount),
            chunkByteCount % Limits.leafByteCount == 0
        else {
            throw .invalidField(
                "chunk_byte_count", found: UInt64(chunkByteCount),
                expected: "a multiple of 65536 up to \(Limits.chunkByteCount.upperBound)")
        }
        let size = UInt64(chunkByteCount)
        let expectedCount = payloadByteCount.roundedUp(to: size) / size
        guard UInt64(chunkCount) == expectedCount, chunkCount <= geometry.chunkCapacity else {
            throw .invalidField(
                "chunk_count", found: UInt64(chunkCount),
                expected: "\(expectedCount), and at most \(geometry.chunkCapacity)")
        }
        let manifestLimit = payloadKind == .opaque ? 0 : payloadByteCount
        guard manifestByteCount <= manifestLimit else {
            throw .invalidField(
                "manifest_byte_count", found: manifestByteCount,
                expected: payloadKind == .opaque
                    ? "0, as the payload is opaque" : "at most the payload's \(payloadByteCount)")
        }
        guard step <= Limits.stepMaximum else {
            throw .invalidField("step", found: step, expected: "at most \(Limits.stepMaximum)")
        }
        guard attempt <= Limits.attemptMaximum else {
            throw .invalidField(
                "attempt", found: attempt, expected: "at most \(Limits.attemptMaximum)")
        }
        guard storedByteCount <= payloadByteCount else {
            throw .invalidField(
                "stored_byte_count", found: storedByteCount,
                expected: "at most the payload's \(payloadByteCount)")
        }
    }

    /// Bytes that the chunk table's entries take, without padding.
    public var tableByteCount: Int { chunkCount * ChunkEntry.Layout.byteCount }
}
