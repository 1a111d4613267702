import Testing

@testable import CheckpointFormat

@Suite struct BlockTests {
    // MARK: Round trips

    @Test func identityRoundTrip() throws {
        let identity = try Samples.identity()
        #expect(try IdentityBlock(decoding: identity.encoded()) == identity)
        #expect(identity.encoded().count == 4096)
    }

    @Test func superblockRoundTrip() throws {
        for superblock in [
            Samples.superblock(),
            Superblock(
                fileUUID: Samples.uuid, generation: Generation(rawValue: 1), anchor: nil),
        ] {
            let decoded = try Superblock(
                decoding: superblock.encoded().bytes, fileUUID: Samples.uuid, slotCount: 5)
            #expect(decoded == superblock)
        }
    }

    @Test func headerRoundTrip() throws {
        let identity = try Samples.identity()
        for state in SlotState.allCases where state != .empty {
            var header = try Samples.header()
            header.state = state
            let decoded = try SlotHeader(
                decoding: header.encoded().bytes, slot: header.slot, identity: identity)
            #expect(decoded == header)
        }
        let empty = SlotHeader(
            emptySlot: SlotIndex(4), fileUUID: Samples.uuid, geometry: identity.geometry)
        let decoded = try SlotHeader(
            decoding: empty.encoded().bytes, slot: SlotIndex(4), identity: identity)
        #expect(decoded == empty)
    }

    @Test func tableRoundTrip() throws {
        let table = Samples.table()
        let decoded = try ChunkTable(
            decoding: table.encoded().bytes, header: Samples.header(),
            geometry: Samples.geometry())
        #expect(decoded == table)
    }

    // MARK: Every byte

    static let values: [UInt8] = [0x00, 0x01, 0x7F, 0x80, 0xFF]

    /// Changes every byte of `bytes` to several values and returns the changes that `decode` let
    /// pass.
    static func accepted(
        _ bytes: [UInt8], _ range: Range<Int>, _ decode: ([UInt8]) throws -> Void
    ) -> [String] {
        var accepted: [String] = []
        for index in range {
            for value in values + [bytes[index] ^ 1, bytes[index] ^ 0x80]
            where value != bytes[index] {
                var changed = bytes
                changed[index] = value
                if (try? decode(changed)) != nil { accepted.append("byte \(index) = \(value)") }
            }
        }
        return accepted
    }

    @Test func everyByteOfTheIdentityCounts() throws {
        let bytes = try Samples.identity().encoded()
        #expect(Self.accepted(bytes, 0..<4096) { _ = try IdentityBlock(decoding: $0) } == [])
    }

    @Test func everyByteOfTheSuperblockRecordCounts() throws {
        let bytes = Samples.superblock().encoded().bytes
        let accepted = Self.accepted(bytes, 0..<512) {
            _ = try Superblock(decoding: $0, fileUUID: Samples.uuid, slotCount: 5)
        }
        #expect(accepted == [])
    }

    @Test func everyByteOfTheHeaderCounts() throws {
        let identity = try Samples.identity()
        let header = try Samples.header()
        let accepted = Self.accepted(header.encoded().bytes, 0..<4096) {
            _ = try SlotHeader(decoding: $0, slot: header.slot, identity: identity)
        }
        #expect(accepted == [])
    }

    @Test func everyByteOfTheTableCounts() throws {
        let (header, geometry) = (try Samples.header(), try Samples.geometry())
        let accepted = Self.accepted(Samples.table().encoded().bytes, 0..<144) {
            _ = try ChunkTable(decoding: $0, header: header, geometry: geometry)
        }
        #expect(accepted == [])
    }

    @Test func aCompressedChunkMayHaveOneByte() throws {
        var table = Samples.table()
        table.entries[1].storedByteCount = 1
        var header = try Samples.header()
        header.storedByteCount = table.entries.reduce(0) { $0 + UInt64($1.storedByteCount) }
        let (bytes, digest) = table.encoded()
        header.chunkTableDigest = digest
        let geometry = try Samples.geometry()
        #expect(
            try ChunkTable(decoding: bytes, header: header, geometry: geometry) == table)
    }

    @Test func whatLiesBehindATextIsNamedByItsOffset() throws {
        var bytes = try Samples.identity().encoded()
        let (field, text) = (IdentityBlock.Layout.fingerprint, "gpt-småll/8".utf8.count)
        bytes[field.offset + text + 7] = 1
        let sealed = Samples.resealed(bytes, IdentityBlock.Layout.checksum)
        #expect(throws: FormatError.reservedBytesNotZero(offset: field.offset + text)) {
            try IdentityBlock(decoding: sealed)
        }
    }

    /// A damaged table still names the chunks whose entries keep the rules.
    @Test func whatIsLeftOfADamagedTable() throws {
        let (header, geometry) = (try Samples.header(), try Samples.geometry())
        let (bytes, entries) = (Samples.table().encoded().bytes, Samples.table().entries)
        func survivors(_ bytes: [UInt8]) -> [ChunkEntry?] {
            ChunkTable.survivors(decoding: bytes, header: header, geometry: geometry)
        }
        #expect(survivors(bytes) == entries)
        var damaged = bytes
        damaged[ChunkEntry.field(ChunkEntry.Layout.codec, at: 1).offset] = 9
        #expect(survivors(damaged) == [entries[0], nil, entries[2]])
        // The digest of a chunk says nothing about its entry.
        damaged = bytes
        damaged[ChunkEntry.field(ChunkEntry.Layout.digest, at: 0).offset] ^= 1
        #expect(survivors(damaged).map { $0 != nil } == [true, true, true])
        #expect(survivors(Array(bytes[..<144])) == entries)
        #expect(survivors(Array(bytes[..<143])) == [entries[0], entries[1], nil])
        #expect(survivors([]) == [nil, nil, nil])
    }

    // MARK: What a correct checksum does not excuse

    @Test func reservedBytesAreCheckedBehindTheChecksum() throws {
        let identity = try Samples.identity()
        for field in IdentityBlock.Layout.all where field.isReserved {
            var bytes = identity.encoded()
            bytes[field.range.upperBound - 1] = 1
            let sealed = Samples.resealed(bytes, IdentityBlock.Layout.checksum)
            #expect(throws: FormatError.reservedBytesNotZero(offset: field.offset)) {
                try IdentityBlock(decoding: sealed)
            }
        }
        for field in Superblock.Layout.all where field.isReserved {
            var bytes = Samples.superblock().encoded().bytes
            bytes[field.offset] = 1
            let sealed = Samples.resealed(bytes, Superblock.Layout.checksum)
            #expect(throws: FormatError.reservedBytesNotZero(offset: field.offset)) {
                try Superblock(decoding: sealed, fileUUID: Samples.uuid, slotCount: 5)
            }
        }
        let header = try Samples.header()
        for field in SlotHeader.Layout.all where field.isReserved {
            var bytes = header.encoded().bytes
            bytes[field.offset] = 1
            let sealed = Samples.resealed(bytes, SlotHeader.Layout.checksum)
            #expect(throws: FormatError.reservedBytesNotZero(offset: field.offset)) {
                try SlotHeader(decoding: sealed, slot: header.slot, identity: identity)
            }
        }
    }

    static let hostileIdentities: [(LayoutField, UInt64)] = [
        (IdentityBlock.Layout.slotCount, UInt64(6)), (IdentityBlock.Layout.slotCount, 0),
        (IdentityBlock.Layout.inFlightCount, 0), (IdentityBlock.Layout.inFlightCount, 65),
        (IdentityBlock.Layout.retainCount, 0), (IdentityBlock.Layout.retainCount, 0xFFFF_FFFF),
        (IdentityBlock.Layout.chunkByteCount, 0), (IdentityBlock.Layout.chunkByteCount, 65_537),
        (IdentityBlock.Layout.chunkByteCount, 0xFFFF_0000),
        (IdentityBlock.Layout.chunkCapacity, 4), (IdentityBlock.Layout.metadataOffset, 0),
        (IdentityBlock.Layout.metadataStride, 4096), (IdentityBlock.Layout.dataOffset, 0),
        (IdentityBlock.Layout.dataStride, UInt64.max),
        (IdentityBlock.Layout.slotByteCount, 0), (IdentityBlock.Layout.slotByteCount, 4097),
        (IdentityBlock.Layout.slotByteCount, UInt64.max - 4095),
        (IdentityBlock.Layout.slotByteCount, 303_103),
        (IdentityBlock.Layout.fileByteCount, 0), (IdentityBlock.Layout.fileByteCount, 4096),
        (IdentityBlock.Layout.fileByteCount, UInt64.max),
        (IdentityBlock.Layout.fileByteCount, (1 << 53) + 4096),
        (IdentityBlock.Layout.fileByteCount, (1 << 53) - 1),
        (IdentityBlock.Layout.blockByteCount, 512), (IdentityBlock.Layout.rank, 8),
        (IdentityBlock.Layout.worldSize, 0),
        (IdentityBlock.Layout.fingerprintByteCount, 255),
        (IdentityBlock.Layout.fingerprintByteCount, 3),
        (IdentityBlock.Layout.featuresIncompatible, 1 << 63),
        (IdentityBlock.Layout.versionMajor, 2), (IdentityBlock.Layout.versionMajor, 0),
    ]

    @Test(arguments: hostileIdentities)
    func hostileIdentityIsRefused(field: LayoutField, value: UInt64) throws {
        var bytes = try Samples.identity().encoded()
        Samples.put(value, field, &bytes)
        let sealed = Samples.resealed(bytes, IdentityBlock.Layout.checksum)
        #expect(throws: FormatError.self) { try IdentityBlock(decoding: sealed) }
    }

    @Test func theLargestFileIsAccepted() throws {
        var bytes = try Samples.identity().encoded()
        Samples.put(UInt64(1) << 53, IdentityBlock.Layout.fileByteCount, &bytes)
        let sealed = Samples.resealed(bytes, IdentityBlock.Layout.checksum)
        #expect(try IdentityBlock(decoding: sealed).geometry.fileByteCount == 1 << 53)
    }

    static let hostileSuperblocks: [(LayoutField, UInt64)] = [
        (Superblock.Layout.generation, UInt64(0)), (Superblock.Layout.slotIndex, 5),
        (Superblock.Layout.slotIndex, 0xFFFF_FFFF), (Superblock.Layout.slotIndex, 0),
        (Superblock.Layout.sequence, 0), (Superblock.Layout.sequence, 76),
        (Superblock.Layout.step, UInt64.max), (Superblock.Layout.flags, 2),
        (Superblock.Layout.retainedCount, 17), (Superblock.Layout.retainedCount, 0xFFFF_FFFF),
        (Superblock.Layout.retainedCount, 3), (Superblock.Layout.retainedCount, 1),
        (Superblock.Layout.fileUUID, 1),
        (LayoutField("retained_slots[0].slot_index", 144, 4), 5),
        (LayoutField("retained_slots[0].slot_index", 144, 4), 4),
        (LayoutField("retained_slots[0].reserved_4", 148, 4), 1),
        (LayoutField("retained_slots[0].sequence", 152, 8), 77),
        (LayoutField("retained_slots[1].sequence", 168, 8), 0),
    ]

    @Test(arguments: hostileSuperblocks)
    func hostileSuperblockIsRefused(field: LayoutField, value: UInt64) throws {
        var bytes = Samples.superblock().encoded().bytes
        Samples.put(value, field, &bytes)
        let sealed = Samples.resealed(bytes, Superblock.Layout.checksum)
        #expect(throws: FormatError.self) {
            try Superblock(decoding: sealed, fileUUID: Samples.uuid, slotCount: 5)
        }
    }

    static let hostileHeaders: [(LayoutField, UInt64)] = [
        (SlotHeader.Layout.fileUUID, UInt64(1)), (SlotHeader.Layout.ownOffset, 0),
        (SlotHeader.Layout.slotIndex, 1), (SlotHeader.Layout.state, 3),
        (SlotHeader.Layout.state, 0), (SlotHeader.Layout.sequence, 0),
        (SlotHeader.Layout.step, 1 << 63), (SlotHeader.Layout.payloadByteCount, 65_536),
        (SlotHeader.Layout.payloadByteCount, UInt64.max),
        (SlotHeader.Layout.storedByteCount, 132_073), (SlotHeader.Layout.chunkByteCount, 0),
        (SlotHeader.Layout.chunkByteCount, 65_537), (SlotHeader.Layout.chunkByteCount, 1),
        (SlotHeader.Layout.chunkByteCount, 0xFFFF_0000),
        (SlotHeader.Layout.chunkCount, 2), (SlotHeader.Layout.chunkCount, 0xFFFF_FFFF),
        (SlotHeader.Layout.codec, 3), (SlotHeader.Layout.codec, 256),
        (SlotHeader.Layout.payloadKind, 0), (SlotHeader.Layout.payloadKind, 3),
        (SlotHeader.Layout.payloadKind, 2),
        (SlotHeader.Layout.manifestByteCount, 132_073),
        (SlotHeader.Layout.userMetadataByteCount, 2049),
        (SlotHeader.Layout.userMetadataByteCount, 2),
        (LayoutField("user_metadata", 152, 1), 0xFF),
    ]

    @Test(arguments: hostileHeaders)
    func hostileHeaderIsRefused(field: LayoutField, value: UInt64) throws {
        let header = try Samples.header()
        let identity = try Samples.identity()
        var bytes = header.encoded().bytes
        Samples.put(value, field, &bytes)
        let sealed = Samples.resealed(bytes, SlotHeader.Layout.checksum)
        #expect(throws: FormatError.self) {
            try SlotHeader(decoding: sealed, slot: header.slot, identity: identity)
        }
    }

    /// Chunk, field, value, and the field that the error names.
    static let hostileEntries: [(Int, LayoutField, UInt64, String)] = [
        (0, ChunkEntry.Layout.storedOffset, UInt64(1), "chunk 0 stored_offset"),
        (0, ChunkEntry.Layout.storedOffset, UInt64.max - 4095, "chunk 0 stored_offset"),
        (0, ChunkEntry.Layout.storedOffset, 65_536, "chunk 1 stored_offset"),
        (1, ChunkEntry.Layout.storedOffset, 0, "chunk 1 stored_offset"),
        (1, ChunkEntry.Layout.storedOffset, 303_104, "chunk 1 stored_offset"),
        (0, ChunkEntry.Layout.storedByteCount, 65_535, "chunk 0 stored_byte_count"),
        (1, ChunkEntry.Layout.storedByteCount, 65_536, "chunk 1 stored_byte_count"),
        (1, ChunkEntry.Layout.storedByteCount, 0, "chunk 1 stored_byte_count"),
        (1, ChunkEntry.Layout.storedByteCount, 5001, "stored_byte_count"),
        (2, ChunkEntry.Layout.rawByteCount, 65_536, "chunk 2 raw_byte_count"),
        (0, ChunkEntry.Layout.rawByteCount, 0, "chunk 0 raw_byte_count"),
        (0, ChunkEntry.Layout.codec, 3, "chunk 0 codec"),
        (0, ChunkEntry.Layout.planeWidth, 4, "chunk 0 plane_width"),
        (2, ChunkEntry.Layout.planeWidth, 3, "chunk 2 plane_width"),
        (2, ChunkEntry.Layout.planeWidth, 1, "chunk 2 plane_width"),
        (1, ChunkEntry.Layout.reserved18, 1, ""), (2, ChunkEntry.Layout.reserved40, 1, ""),
    ]

    /// What the error says that a chunk's field should hold.
    static let expectations: [Int: [String: String]] = [
        0: ["stored_byte_count": "65536", "plane_width": "1"],
        2: ["raw_byte_count": "1000", "plane_width": "2, 4 or 8"],
    ]

    @Test(arguments: hostileEntries)
    func hostileTableIsRefused(
        index: Int, field: LayoutField, value: UInt64, name: String
    ) throws {
        var bytes = Samples.table().encoded().bytes
        let place = ChunkEntry.field(field, at: index)
        Samples.put(value, place, &bytes)
        var header = try Samples.header()
        header.chunkTableDigest = Digest(of: bytes, 0..<header.tableByteCount)
        let geometry = try Samples.geometry()
        let error = #expect(throws: FormatError.self) {
            try ChunkTable(decoding: bytes, header: header, geometry: geometry)
        }
        switch error {
        case .invalidField(let found, _, let expected):
            #expect(found == name)
            #expect(
                Self.expectations[index, default: [:]][field.name, default: expected] == expected)
        case .reservedBytesNotZero(let offset): #expect(name == "" && offset == place.offset)
        default: Issue.record("\(name) is wrong, but the error is \(String(describing: error))")
        }
    }

    static let hostileEmptySuperblocks: [(LayoutField, UInt64, FormatError)] = [
        (
            Superblock.Layout.slotIndex, 0,
            .invalidField("slot_index", found: 0, expected: "none, as sequence is 0")
        ),
        (
            Superblock.Layout.step, 1,
            .invalidField("step", found: 1, expected: "0, as sequence is 0")
        ),
        (
            Superblock.Layout.watermarkAttempt, 1,
            .invalidField("watermark_attempt", found: 1, expected: "0 without a watermark")
        ),
    ]

    @Test(arguments: hostileEmptySuperblocks)
    func aSuperblockWithoutACheckpointNamesNothing(
        field: LayoutField, value: UInt64, error: FormatError
    ) {
        let empty = Superblock(
            fileUUID: Samples.uuid, generation: Generation(rawValue: 1), anchor: nil)
        var bytes = empty.encoded().bytes
        Samples.put(value, field, &bytes)
        let sealed = Samples.resealed(bytes, Superblock.Layout.checksum)
        #expect(throws: error) {
            try Superblock(decoding: sealed, fileUUID: Samples.uuid, slotCount: 5)
        }
    }

    @Test func generationsBeginWithOne() {
        var bytes = Samples.superblock().encoded().bytes
        Samples.put(UInt64(0), Superblock.Layout.generation, &bytes)
        let sealed = Samples.resealed(bytes, Superblock.Layout.checksum)
        #expect(
            throws: FormatError.invalidField("generation", found: 0, expected: "at least 1")
        ) { try Superblock(decoding: sealed, fileUUID: Samples.uuid, slotCount: 5) }
    }

    @Test func everySequenceLiesBelowTheLimit() throws {
        var superblock = Samples.superblock()
        for limit in [0, 78, UInt64.max] {
            superblock.sequenceLimit = limit
            let decoded = try Superblock(
                decoding: superblock.encoded().bytes, fileUUID: Samples.uuid, slotCount: 5)
            #expect(decoded.sequenceLimit == limit)
        }
        let empty = Superblock(
            fileUUID: Samples.uuid, generation: Generation(rawValue: 1), anchor: nil,
            sequenceLimit: 1)
        #expect(
            try Superblock(
                decoding: empty.encoded().bytes, fileUUID: Samples.uuid, slotCount: 5) == empty)
        for limit: UInt64 in [1, 77] {
            superblock.sequenceLimit = limit
            #expect(
                throws: FormatError.invalidField(
                    "sequence_limit", found: limit, expected: "0, or above 77")
            ) {
                try Superblock(
                    decoding: superblock.encoded().bytes, fileUUID: Samples.uuid, slotCount: 5)
            }
        }
    }

    @Test func anIdentityIsMadeWithinItsRanges() throws {
        func identity(
            rank: UInt32, of worldSize: UInt32, fingerprintByteCount: Int
        ) throws -> IdentityBlock {
            try IdentityBlock(
                fileUUID: Samples.uuid, geometry: Samples.geometry(), createdTime: 1, rank: rank,
                worldSize: worldSize, creator: "pccheck tests",
                fingerprint: String(repeating: "x", count: fingerprintByteCount))
        }
        let longest = try identity(rank: 7, of: 8, fingerprintByteCount: 254)
        #expect(try IdentityBlock(decoding: longest.encoded()) == longest)
        #expect(
            throws: FormatError.invalidField(
                "fingerprint_byte_count", found: 255, expected: "0 to 254")
        ) { try identity(rank: 0, of: 1, fingerprintByteCount: 255) }
        for (rank, worldSize): (UInt32, UInt32) in [(8, 8), (0, 0)] {
            #expect(
                throws: FormatError.invalidField(
                    "rank", found: UInt64(rank), expected: "below the world size \(worldSize)")
            ) { try identity(rank: rank, of: worldSize, fingerprintByteCount: 0) }
        }
    }

    // MARK: Saying what is wrong

    @Test func aBlockThatEndsTooSoonIsNamed() throws {
        let identity = try Samples.identity()
        let header = try Samples.header()
        #expect(throws: FormatError.truncated(found: 4095, expected: 4096)) {
            try SlotHeader(
                decoding: header.encoded().bytes.dropLast(), slot: header.slot,
                identity: identity)
        }
        let superblock = Samples.superblock().encoded().bytes
        _ = try Superblock(
            decoding: Array(superblock[..<512]), fileUUID: Samples.uuid, slotCount: 5)
        #expect(throws: FormatError.truncated(found: 511, expected: 512)) {
            try Superblock(
                decoding: Array(superblock[..<511]), fileUUID: Samples.uuid, slotCount: 5)
        }
        let table = Samples.table().encoded().bytes
        _ = try ChunkTable(
            decoding: Array(table[..<144]), header: header, geometry: identity.geometry)
        #expect(throws: FormatError.truncated(found: 143, expected: 144)) {
            try ChunkTable(
                decoding: Array(table[..<143]), header: header, geometry: identity.geometry)
        }
    }

    @Test func everyKindOfStorageHasItsName() {
        #expect(
            StorageKind.allCases.map(\.name) == [
                "unknown", "direct", "buffered", "io_uring", "persistent_memory", "memory",
            ])
    }

    @Test func damageIsNamed() throws {
        let good = try Samples.identity().encoded()
        #expect(throws: FormatError.blank) {
            try IdentityBlock(decoding: [UInt8](repeating: 0, count: 4096))
        }
        #expect(throws: FormatError.truncated(found: 4095, expected: 4096)) {
            try IdentityBlock(decoding: Array(good.dropLast()))
        }
        #expect(throws: FormatError.wrongMagic(found: Array("import t".utf8))) {
            try IdentityBlock(
                decoding: Array("import torch".utf8) + [UInt8](repeating: 32, count: 4096))
        }
        for (magic, name) in [("PCKSUPER", "superblock"), ("PCKSLOTH", "slot header")] {
            #expect(throws: FormatError.strayBlock(name)) {
                try IdentityBlock(decoding: Array(magic.utf8) + good.dropFirst(8))
            }
        }
        var newer = good
        Samples.put(UInt16(9), IdentityBlock.Layout.versionMajor, &newer)
        #expect(throws: FormatError.unsupportedVersion(major: 9, minor: 0)) {
            try IdentityBlock(
                decoding: Samples.resealed(newer, IdentityBlock.Layout.checksum))
        }
        var minor = good
        Samples.put(UInt16(9), IdentityBlock.Layout.versionMinor, &minor)
        let accepted = try IdentityBlock(
            decoding: Samples.resealed(minor, IdentityBlock.Layout.checksum))
        #expect(accepted.version.minor == 9)
    }

    @Test func textModeTransferIsNamed() throws {
        let good = try Samples.identity().encoded()
        let withoutReturns = good.enumerated().filter { index, byte in
            !(byte == 13 && good[index + 1] == 10)
        }.map(\.element)
        let withReturns = good.flatMap { $0 == 10 ? [13, 10] : [$0] }
        let sevenBit = good.map { $0 & 0x7F }
        for damaged in [withoutReturns + [0, 0], withReturns, sevenBit] {
            #expect(throws: FormatError.textModeDamage) { try IdentityBlock(decoding: damaged) }
        }
    }

    @Test func unknownFeaturesFollowThePolicy() throws {
        var identity = try Samples.identity()
        identity.features = FeatureMasks(compatible: 4, readOnlyCompatible: 2)
        let decoded = try IdentityBlock(decoding: identity.encoded())
        #expect(decoded.features.unknownCompatible == 4)
        #expect(decoded.features.unknownReadOnlyCompatible == 2)
        identity.features = FeatureMasks(incompatible: 1)
        #expect(throws: FormatError.unknownIncompatibleFeatures(1)) {
            try IdentityBlock(decoding: identity.encoded())
        }
    }

    @Test func misplacedHeadersAreNamed() throws {
        let header = try Samples.header(SlotIndex(1))
        let identity = try Samples.identity()
        let geometry = identity.geometry
        #expect(
            throws: FormatError.misdirected(
                foundOffset: geometry.headerOffset(SlotIndex(1)),
                expectedOffset: geometry.headerOffset(SlotIndex(3)))
        ) {
            try SlotHeader(
                decoding: header.encoded().bytes, slot: SlotIndex(3), identity: identity)
        }
    }
}
