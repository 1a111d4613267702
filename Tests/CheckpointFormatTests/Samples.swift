@testable import CheckpointFormat

/// Blocks with every field set, for the tests of this target.
enum Samples {
    static let uuid = Identifier128(bytes: (0..<16).map { UInt8($0 * 7 + 1) })

    static func geometry() throws -> Geometry {
        try Geometry(capacity: 300_000, inFlight: 3, retain: 2, chunkByteCount: 65_536)
    }

    static func identity() throws -> IdentityBlock {
        try IdentityBlock(
            fileUUID: uuid, geometry: geometry(), createdTime: 1_700_000_000_000_000_001, rank: 3,
            worldSize: 8, creator: "pccheck tests", fingerprint: "gpt-småll/8",
            runUUID: Identifier128(bytes: (0..<16).map { UInt8(255 - $0) }))
    }

    static func superblock() -> Superblock {
        Superblock(
            fileUUID: uuid, generation: Generation(rawValue: 41),
            anchor: Anchor(
                slot: SlotIndex(2), sequence: SequenceNumber(rawValue: 77), step: 1200,
                headerDigest: Digest(low: 0x0123_4567_89AB_CDEF, high: 0xFEDC_BA98_7654_3210)),
            isCleanClose: true, parentDigest: Digest(low: 5, high: 6),
            watermark: GroupCheckpointName(attempt: 6, step: 1190),
            commitTime: 1_700_000_000_000_000_002, writerBootID: uuid, writerPID: 4321,
            storageKind: .direct, unsafeShutdownCount: 9,
            retained: [
                RetainedSlot(slot: SlotIndex(0), sequence: SequenceNumber(rawValue: 76)),
                RetainedSlot(slot: SlotIndex(4), sequence: SequenceNumber(rawValue: 70)),
            ], attempt: 7)
    }

    static func table() -> ChunkTable {
        ChunkTable(entries: [
            ChunkEntry(
                storedOffset: 0, storedByteCount: 65_536, rawByteCount: 65_536, codec: .none,
                planeWidth: 1, digest: Digest(low: 1, high: 2)),
            ChunkEntry(
                storedOffset: 65_536, storedByteCount: 5000, rawByteCount: 65_536, codec: .zstd,
                planeWidth: 1, digest: Digest(low: 3, high: 4)),
            ChunkEntry(
                storedOffset: 131_072, storedByteCount: 900, rawByteCount: 1000,
                codec: .planesZstd, planeWidth: 4, digest: Digest(low: 5, high: 6)),
        ])
    }

    static func header(_ slot: SlotIndex = SlotIndex(2)) throws -> SlotHeader {
        var header = SlotHeader(
            emptySlot: slot, fileUUID: uuid, geometry: try geometry())
        header.state = .complete
        header.sequence = SequenceNumber(rawValue: 77)
        header.step = 1200
        header.attempt = 7
        header.beganTime = 1_700_000_000_000_000_003
        header.completedTime = 1_700_000_000_000_000_004
        header.payloadByteCount = 132_072
        header.storedByteCount = 71_436
        header.chunkCount = 3
        header.codec = .planesZstd
        header.payloadKind = .safetensors
        header.manifestByteCount = 4096
        header.chunkTableDigest = table().encoded().digest
        header.logicalDigest = Digest(low: 8, high: 9)
        header.userMetadata = "{\"run\": \"é\"}"
        return header
    }

    /// Recomputes the checksum, so that a changed field reaches the checks behind it.
    static func resealed(_ bytes: [UInt8], _ checksum: LayoutField) -> [UInt8] {
        var sealed = bytes
        let digest = Digest(of: bytes, 0..<checksum.offset)
        for index in 0..<8 {
            sealed[checksum.offset + index] = UInt8(truncatingIfNeeded: digest.low >> (8 * index))
            sealed[checksum.offset + 8 + index] = UInt8(
                truncatingIfNeeded: digest.high >> (8 * index))
        }
        return sealed
    }

    static func put<Value: FixedWidthInteger>(
        _ value: Value, _ field: LayoutField, _ bytes: inout [UInt8]
    ) {
        for index in 0..<field.byteCount {
            bytes[field.offset + index] =
                index < Value.bitWidth / 8 ? UInt8(truncatingIfNeeded: value >> (8 * index)) : 0
        }
    }
}
