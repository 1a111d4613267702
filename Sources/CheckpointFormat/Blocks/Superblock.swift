/// A retained checkpoint besides the newest: its slot may not be reused.
public struct RetainedSlot: Hashable, Sendable {
    public var slot: SlotIndex
    public var sequence: SequenceNumber
    public init(slot: SlotIndex, sequence: SequenceNumber) {
        self.slot = slot
        self.sequence = sequence
    }
}

/// How the writer reached the medium; kept for forensics.
///
/// A number that this version does not know means unknown, and is kept: a superblock that is
/// decoded and encoded again has the same bytes.
public struct StorageKind: RawRepresentable, Hashable, Sendable, CaseIterable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    public static let unknown = StorageKind(rawValue: 0)
    public static let direct = StorageKind(rawValue: 1)
    public static let buffered = StorageKind(rawValue: 2)
    public static let ring = StorageKind(rawValue: 3)
    public static let persistentMemory = StorageKind(rawValue: 4)
    public static let memory = StorageKind(rawValue: 5)

    public static let allCases = [unknown, direct, buffered, ring, persistentMemory, memory]

    /// The name that tools and statistics show.
    public var name: String {
        switch self {
        case .direct: "direct"
        case .buffered: "buffered"
        case .ring: "io_uring"
        case .persistentMemory: "persistent_memory"
        case .memory: "memory"
        default: "unknown"
        }
    }
}

/// The checkpoint that a superblock names.
public struct Anchor: Hashable, Sendable {
    public var slot: SlotIndex
    public var sequence: SequenceNumber
    public var step: UInt64
    public var headerDigest: Digest
    public init(slot: SlotIndex, sequence: SequenceNumber, step: UInt64, headerDigest: Digest) {
        self.slot = slot
        self.sequence = sequence
        self.step = step
        self.headerDigest = headerDigest
    }
}

/// The mutable anchor of the file: names the newest durable checkpoint.
///
/// Generation g is written to the positions of parity g mod 2 at both ends, so that a torn write
/// damages only itself and generation g−1 stays intact. The record is in the first 512 bytes of
/// its block.
public struct Superblock: Hashable, Sendable {
    public static let magic = Array("PCKSUPER".utf8)
    public static let recordByteCount = 512
    public static let retainedCapacity = 16

    public enum Layout {
        public static let magic = LayoutField("magic", 0, 8)
        public static let fileUUID = LayoutField("file_uuid", 8, 16)
        public static let generation = LayoutField("generation", 24, 8)
        public static let sequence = LayoutField("sequence", 32, 8)
        public static let step = LayoutField("step", 40, 8)
        public static let slotIndex = LayoutField("slot_index", 48, 4)
        public static let flags = LayoutField("flags", 52, 4)
        public static let slotHeaderDigest = LayoutField("slot_header_digest", 56, 16)
        public static let parentDigest = LayoutField("parent_digest", 72, 16)
        public static let watermarkStep = LayoutField("watermark_step", 88, 8)
        public static let commitTime = LayoutField("commit_time", 96, 8)
        public static let writerBootID = LayoutField("writer_boot_id", 104, 16)
        public static let writerPID = LayoutField("writer_pid", 120, 4)
        public static let storageKind = LayoutField("storage_kind", 124, 4)
        public static let unsafeShutdownCount = LayoutField("unsafe_shutdown_count", 128, 8)
        public static let retainedCount = LayoutField("retained_count", 136, 4)
        public static let reserved140 = LayoutField("reserved_140", 140, 4)
        public static let retainedSlots = LayoutField("retained_slots", 144, 256)
        public static let sequenceLimit = LayoutField("sequence_limit", 400, 8)
        public static let attempt = LayoutField("attempt", 408, 8)
        public static let watermarkAttempt = LayoutField("watermark_attempt", 416, 8)
        public static let reserved424 = LayoutField("reserved_424", 424, 72)
        public static let checksum = LayoutField("checksum", 496, 16)

        public static let all = [
            magic, fileUUID, generation, sequence, step, slotIndex, flags, slotHeaderDigest,
            parentDigest, watermarkStep, commitTime, writerBootID, writerPID, storageKind,
            unsafeShutdownCount, retainedCount, reserved140, retainedSlots, sequenceLimit,
            attempt, watermarkAttempt, reserved424, checksum,
        ]
    }

    /// One entry of `retained_slots`.
    public enum RetainedLayout {
        public static let slotIndex = LayoutField("slot_index", 0, 4)
        public static let reserved4 = LayoutField("reserved_4", 4, 4)
        public static let sequence = LayoutField("sequence", 8, 8)
        public static let all = [slotIndex, reserved4, sequence]
        public static let byteCount = 16
    }

    static let cleanCloseFlag: UInt32 = 1
    /// The watermark's "none".
    static let noStep = UInt64.max

    public var fileUUID: Identifier128
    public var generation: Generation
    /// The newest durable checkpoint; nil in a file that has none yet.
    public var anchor: Anchor?
    /// The writer closed the file with nothing in flight.
    public var isCleanClose: Bool
    /// The checksum of the previous generation; zero for generation 1.
    public var parentDigest: Digest
    /// The newest checkpoint that is known to be durable on all ranks; nil when none is.
    public var watermark: GroupCheckpointName?
    /// Nanoseconds since 1970-01-01 UTC.
    public var commitTime: UInt64
    public var writerBootID: Identifier128
    public var writerPID: UInt32
    public var storageKind: StorageKind
    /// The persistent-memory device's count of unsafe shutdowns; 0 on other media.
    public var unsafeShutdownCount: UInt64
    /// Older checkpoints whose slots are kept, newest first.
    public var retained: [RetainedSlot]
    /// Every sequence that was ever used is below it, also those that left no trace on the medium;
    /// 0 when the writer did not record it.
    public var sequenceLimit: UInt64
    /// The attempt of the group that the writer takes part in; 0 without a group.
    public var attempt: UInt64

    public init(
        fileUUID: Identifier128, generation: Generation, anchor: Anchor?,
        isCleanClose: Bool = false, parentDigest: Digest = .zero,
        watermark: GroupCheckpointName? = nil, commitTime: UInt64 = 0,
        writerBootID: Identifier128 = .zero, writerPID: UInt32 = 0,
        storageKind: StorageKind = .unknown, unsafeShutdownCount: UInt64 = 0,
        retained: [RetainedSlot] = [], sequenceLimit: UInt64 = 0, attempt: UInt64 = 0
    ) {
        precondition(retained.count <= Self.retainedCapacity, "too many retained slots")
        self.fileUUID = fileUUID
        self.generation = generation
        self.anchor = anchor
        self.isCleanClose = isCleanClose
        self.parentDigest = parentDigest
        self.watermark = watermark
        self.commitTime = commitTime
        self.writerBootID = writerBootID
        self.writerPID = writerPID
        self.storageKind = storageKind
        self.unsafeShutdownCount = unsafeShutdownCount
        self.retained = retained
        self.sequenceLimit = sequenceLimit
        self.attempt = attempt
    }

    /// Whether its writer keeps what is in `slot`.
    public func names(_ slot: SlotIndex) -> Bool {
        anchor?.slot == slot || retained.contains { $0.slot == slot }
    }

    /// The 4096 bytes of the block, and the checksum, which is the superblock's digest.
    public func encoded() -> (bytes: [UInt8], digest: Digest) {
        var encoder = BlockEncoder(byteCount: Limits.blockByteCount)
        encoder.put(Self.magic, Layout.magic)
        encoder.put(fileUUID.bytes, Layout.fileUUID)
        encoder.put(generation.rawValue, Layout.generation)
        encoder.put(anchor?.sequence.rawValue ?? 0, Layout.sequence)
        encoder.put(anchor?.step ?? 0, Layout.step)
        encoder.put((anchor?.slot ?? .none).rawValue, Layout.slotIndex)
        encoder.put(isCleanClose ? Self.cleanCloseFlag : 0, Layout.flags)
        encoder.put(anchor?.headerDigest ?? .zero, Layout.slotHeaderDigest)
        encoder.put(parentDigest, Layout.parentDigest)
        encoder.put(watermark?.step ?? Self.noStep, Layout.watermarkStep)
        encoder.put(commitTime, Layout.commitTime)
        encoder.put(writerBootID.bytes, Layout.writerBootID)
        encoder.put(writerPID, Layout.writerPID)
        encoder.put(storageKind.rawValue, Layout.storageKind)
        encoder.put(unsafeShutdownCount, Layout.unsafeShutdownCount)
        encoder.put(UInt32(retained.count), Layout.retainedCount)
        for (index, entry) in retained.enumerated() {
            encoder.put(entry.slot.rawValue, Self.entryField(RetainedLayout.slotIndex, index))
            encoder.put(entry.sequence.rawValue, Self.entryField(RetainedLayout.sequence, index))
        }
        encoder.put(sequenceLimit, Layout.sequenceLimit)
        encoder.put(attempt, Layout.attempt)
        encoder.put(watermark?.attempt ?? 0, Layout.watermarkAttempt)
        let digest = encoder.seal(Layout.checksum)
        return (encoder.bytes, digest)
    }

    private static func entryField(_ field: LayoutField, _ index: Int) -> LayoutField {
        let base = Layout.retainedSlots.offset + index * RetainedLayout.byteCount
        return LayoutField(field.name, base + field.offset, field.byteCount)
    }

    /// The digest of the record at the start of `bytes` (at least 512): in an intact superblock,
    /// the checksum that is stored in it.
    public static func digest(of bytes: [UInt8]) -> Digest {
        Digest(of: bytes, 0..<Layout.checksum.offset)
    }

    /// Decodes the record at the start of `bytes` (at least 512) and checks it against the file.
    public init(
        decoding bytes: [UInt8], fileUUID expectedUUID: Identifier128, slotCount: Int
    ) throws(FormatError) {
        guard bytes.count >= Self.recordByteCount else {
            throw .truncated(
                found: UInt64(bytes.count), expected: UInt64(Self.recordByteCount))
        }
        let decoder = BlockDecoder(Array(bytes[..<Self.recordByteCount]))
        try decoder.checkSeal(magic: Self.magic, Layout.magic, Layout.checksum)
        fileUUID = Identifier128(bytes: decoder.content(Layout.fileUUID))
        guard fileUUID == expectedUUID else {
            throw .foreignFile(found: fileUUID, expected: expectedUUID)
        }
        generation = Generation(rawValue: decoder.integer(Layout.generation))
        guard generation.rawValue >= 1 else {
            throw .invalidField("generation", found: 0, expected: "at least 1")
        }
        anchor = try Self.decodeAnchor(decoder, slotCount: slotCount)
        let flags: UInt32 = decoder.integer(Layout.flags)
        guard flags & ~Self.cleanCloseFlag == 0 else {
            throw .invalidField("flags", found: UInt64(flags), expected: "0 or 1")
        }
        isCleanClose = flags & Self.cleanCloseFlag != 0
        parentDigest = decoder.digest(Layout.parentDigest)
        watermark = try Self.decodeWatermark(decoder)
        commitTime = decoder.integer(Layout.commitTime)
        writerBootID = Identifier128(bytes: decoder.content(Layout.writerBootID))
        writerPID = decoder.integer(Layout.writerPID)
        storageKind = StorageKind(rawValue: decoder.integer(Layout.storageKind))
        unsafeShutdownCount = decoder.integer(Layout.unsafeShutdownCount)
        retained = try Self.decodeRetained(decoder, slotCount: slotCount, anchor: anchor)
        sequenceLimit = decoder.integer(Layout.sequenceLimit)
        let newest = anchor?.sequence.rawValue ?? 0
        guard sequenceLimit == 0 || sequenceLimit > newest else {
            throw .invalidField(
                "sequence_limit", found: sequenceLimit, expected: "0, or above \(newest)")
        }
        attempt = decoder.integer(Layout.attempt)
        guard attempt <= Limits.attemptMaximum else {
            throw .invalidField(
                "attempt", found: attempt, expected: "at most \(Limits.attemptMaximum)")
        }
        try decoder.checkReserved(Layout.all)
    }

    private static func decodeWatermark(
        _ decoder: BlockDecoder
    ) throws(FormatError) -> GroupCheckpointName? {
        let step: UInt64 = decoder.integer(Layout.watermarkStep)
        let attempt: UInt64 = decoder.integer(Layout.watermarkAttempt)
        guard step == noStep else { return GroupCheckpointName(attempt: attempt, step: step) }
        guard attempt == 0 else {
            throw .invalidField(
                "watermark_attempt", found: attempt, expected: "0 without a watermark")
        }
        return nil
    }

    private static func decodeAnchor(
        _ decoder: BlockDecoder, slotCount: Int
    ) throws(FormatError) -> Anchor? {
        let slot = SlotIndex(rawValue: decoder.integer(Layout.slotIndex))
        let sequence = SequenceNumber(rawValue: decoder.integer(Layout.sequence))
        let step: UInt64 = decoder.integer(Layout.step)
        if sequence == .none {
            guard slot == .none else {
                throw .invalidField(
                    "slot_index", found: UInt64(slot.rawValue), expected: "none, as sequence is 0")
            }
            guard step == 0 else {
                throw .invalidField("step", found: step, expected: "0, as sequence is 0")
            }
            return nil
        }
        guard step <= Limits.stepMaximum else {
            throw .invalidField("step", found: step, expected: "at most \(Limits.stepMaximum)")
        }
        guard slot.rawValue < UInt32(slotCount) else {
            throw .invalidField(
                "slot_index", found: UInt64(slot.rawValue), expected: "below \(slotCount)")
        }
        return Anchor(
            slot: slot, sequence: sequence, step: step,
            headerDigest: decoder.digest(Layout.slotHeaderDigest))
    }

    private static func decodeRetained(
        _ decoder: BlockDecoder, slotCount: Int, anchor: Anchor?
    ) throws(FormatError) -> [RetainedSlot] {
        let count: UInt32 = decoder.integer(Layout.retainedCount)
        guard count <= UInt32(Self.retainedCapacity) else {
            throw .invalidField(
                "retained_count", found: UInt64(count), expected: "0 to \(Self.retainedCapacity)")
        }
        var retained: [RetainedSlot] = []
        var newer = anchor?.sequence ?? .none
        for index in 0..<Int(count) {
            let slot = SlotIndex(
                rawValue: decoder.integer(Self.entryField(RetainedLayout.slotIndex, index)))
            let sequence = SequenceNumber(
                rawValue: decoder.integer(Self.entryField(RetainedLayout.sequence, index)))
            let isRepeated = slot == anchor?.slot || retained.contains { $0.slot == slot }
            guard slot.rawValue < UInt32(slotCount), !isRepeated else {
                throw .invalidField(
                    "retained_slots[\(index)].slot_index", found: UInt64(slot.rawValue),
                    expected: "a slot below \(slotCount) that is not named twice")
            }
            guard sequence > .none, sequence < newer else {
                throw .invalidField(
                    "retained_slots[\(index)].sequence", found: sequence.rawValue,
                    expected: "1 or more and below \(newer)")
            }
            let reserved = Self.entryField(RetainedLayout.reserved4, index)
            guard decoder.isZero(reserved.range) else {
                throw .reservedBytesNotZero(offset: reserved.offset)
            }
            newer = sequence
            retained.append(RetainedSlot(slot: slot, sequence: sequence))
        }
        let end = Layout.retainedSlots.offset + retained.count * RetainedLayout.byteCount
        guard decoder.isZero(end..<Layout.retainedSlots.range.upperBound) else {
            throw .reservedBytesNotZero(offset: end)
        }
        return retained
    }
}
