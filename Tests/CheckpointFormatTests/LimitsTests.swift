import Testing

@testable import CheckpointFormat

/// Numbers that the format fixes, and values on both sides of each bound.
@Suite struct LimitsTests {
    /// spec/FORMAT.md, section "Limits".
    @Test func limitsAreThoseOfTheSpecification() {
        #expect(Limits.blockByteCount == 4096)
        #expect(Limits.leafByteCount == 65_536)
        #expect(Limits.inFlightCount == 1...64)
        #expect(Limits.retainCount == 1...16)
        #expect(Limits.chunkByteCount == 65_536...268_435_456)
        #expect(Limits.chunkCapacity == 1...16_777_216)
        #expect(Limits.slotByteCount == 4096...70_368_744_177_664)
        #expect(Limits.fileByteCountMaximum == 9_007_199_254_740_992)
        #expect(Limits.sequenceReserve == 256)
        #expect(Limits.fingerprintByteCount == 254)
        #expect(Limits.userMetadataByteCount == 2048)
        #expect(Limits.manifestByteCount == 100_000_000)
        #expect(Limits.tensorCount == 1_048_576)
        #expect(Limits.tensorNameByteCount == 4096)
        #expect(Limits.tensorRank == 64)
        #expect(Limits.stepMaximum == 9_223_372_036_854_775_807)
        #expect(FormatVersion.current == FormatVersion(major: 1, minor: 0))
        let none = FeatureMasks()
        #expect(none.compatible == 0 && none.readOnlyCompatible == 0 && none.incompatible == 0)
    }

    @Test func identifiersHaveTheirOrderAndText() {
        #expect(SlotIndex(1) < SlotIndex(2) && !(SlotIndex(2) < SlotIndex(2)))
        let one = SequenceNumber(rawValue: 1)
        #expect(SequenceNumber.none < one && !(one < one))
        #expect(SequenceNumber.none.rawValue == 0)
        let generation = Generation(rawValue: 6)
        #expect(generation < Generation(rawValue: 7) && !(generation < generation))
        #expect(generation.parity == 0 && Generation(rawValue: 7).parity == 1)
        #expect("\(SlotIndex(3)) \(one) \(generation)" == "3 1 6")
        #expect(Identifier128.zero.bytes == [UInt8](repeating: 0, count: 16))
        let text = "0001020f-1011-1213-1415-80ff18191a1b"
        let bytes: [UInt8] = [0, 1, 2, 15, 16, 17, 18, 19, 20, 21, 128, 255, 24, 25, 26, 27]
        #expect(Identifier128(bytes: bytes).description == text)
    }

    @Test func randomIdentifiersAreOfVersionFour() {
        // So many that each value of a byte is missing in less than one run of a million.
        let drawn = (0..<6000).map { _ in Identifier128.random().bytes }
        #expect(Set(drawn).count == drawn.count)
        for bytes in drawn { #expect(bytes[6] >> 4 == 4 && bytes[8] >> 6 == 2) }
        // Every other bit is drawn, and so is every value of a byte.
        for index in 0..<16 {
            let ones = drawn.reduce(UInt8(0)) { $0 | $1[index] }
            let zeros = drawn.reduce(UInt8(0)) { $0 | ~$1[index] }
            #expect(ones == [6: 0x4F, 8: 0xBF][index, default: 0xFF])
            #expect(zeros == [6: 0xBF, 8: 0x7F][index, default: 0xFF])
        }
        #expect(Set(drawn.map { $0[0] }).count == 256)
        #expect(drawn.contains { $0[6] & 0x0F != $0[7] & 0x0F })
        #expect(drawn.contains { $0[8] & 0x3F != $0[9] & 0x3F })
    }

    @Test func errorsSayWhatWasFound() {
        let magic: [UInt8] = [0x00, 0x0F, 0x10, 0x20, 0x21, 0x7E, 0x7F, 0xFF]
        #expect(
            FormatError.wrongMagic(found: magic).description
                == "the magic is \\x00\\x0f\\x10\\x20!~\\x7f\\xff, expected that of a PCcheck "
                + "structure")
        #expect(
            FormatError.unknownIncompatibleFeatures(0x1F).description.contains("features 0x1f"))
        let digest = Digest(low: 0xAB, high: 1)
        #expect(digest.description == "000000000000000100000000000000ab")
        #expect(Digest(low: .max, high: 0).description.hasPrefix("0000000000000000ffff"))
        #expect(Digest.zero == Digest(low: 0, high: 0))
    }

    @Test func anErrorNamesItsFileOnce() {
        let error = CheckpointError(.corrupt, "slot 1 is damaged")
        #expect(error.slot == nil && error.byteOffset == nil && error.osErrorNumber == 0)
        let named = error.about("run.pcc")
        #expect(named.message == "run.pcc: slot 1 is damaged")
        #expect(named.about("run.pcc") == named)
    }

    static let codes: [(FormatError, CheckpointError.Code)] = [
        (.unsupportedVersion(major: 2, minor: 0), .unsupported),
        (.unknownIncompatibleFeatures(1), .unsupported),
        (.wrongMagic(found: []), .notACheckpointFile), (.textModeDamage, .notACheckpointFile),
        (.truncated(found: 0, expected: 1), .notACheckpointFile), (.blank, .corrupt),
        (.strayBlock("superblock"), .corrupt),
        (.checksumMismatch(found: .zero, expected: .zero), .corrupt),
    ]

    @Test(arguments: codes) func formatErrorsHaveTheirCodes(
        error: FormatError, code: CheckpointError.Code
    ) {
        let found = CheckpointError(error, in: "identity block", slot: SlotIndex(1), at: 4096)
        #expect(found.code == code)
        #expect(found.message == "identity block at byte 4096: \(error)")
        #expect(found.slot == SlotIndex(1) && found.byteOffset == 4096)
    }

    // MARK: What lies on a bound is accepted

    @Test func headersOnTheirBoundsAreAccepted() throws {
        let identity = try Samples.identity()
        let slotByteCount = identity.geometry.slotByteCount
        var header = try Samples.header()
        header.payloadByteCount = slotByteCount
        header.storedByteCount = slotByteCount
        header.manifestByteCount = slotByteCount
        header.chunkCount = identity.geometry.chunkCapacity
        header.step = Limits.stepMaximum
        header.userMetadata = String(repeating: "u", count: 2048)
        let decoded = try SlotHeader(
            decoding: header.encoded().bytes, slot: header.slot, identity: identity)
        #expect(decoded == header)
        for chunkByteCount in [65_536, 268_435_456] {
            header.chunkByteCount = chunkByteCount
            header.payloadByteCount = 1
            header.storedByteCount = 1
            header.manifestByteCount = 0
            header.chunkCount = 1
            #expect(
                try SlotHeader(
                    decoding: header.encoded().bytes, slot: header.slot, identity: identity)
                    == header)
        }
    }

    /// Chunks of a quarter of the file's chunk size: more of them than its tables hold.
    @Test func aHeaderWithMoreChunksThanTheTableHoldsIsRefused() throws {
        let geometry = try Geometry(
            capacity: 1 << 20, inFlight: 1, retain: 1, chunkByteCount: 262_144)
        let identity = try IdentityBlock(
            fileUUID: Samples.uuid, geometry: geometry, createdTime: 1, creator: "tests")
        var header = SlotHeader(
            emptySlot: SlotIndex(0), fileUUID: Samples.uuid, geometry: geometry)
        header.state = .complete
        header.sequence = SequenceNumber(rawValue: 1)
        header.chunkByteCount = 65_536
        for chunkCount in [4, 5] {
            header.chunkCount = chunkCount
            header.payloadByteCount = UInt64(chunkCount) << 16
            let result = Result { () throws(FormatError) in
                try SlotHeader(
                    decoding: header.encoded().bytes, slot: SlotIndex(0), identity: identity)
            }
            let refusal = FormatError.invalidField(
                "chunk_count", found: 5, expected: "5, and at most 4")
            #expect(result == (chunkCount == 4 ? .success(header) : .failure(refusal)))
        }
    }

    @Test func anOpaquePayloadHasNoManifest() throws {
        let identity = try Samples.identity()
        var header = try Samples.header()
        header.payloadKind = .opaque
        header.manifestByteCount = 1
        #expect(
            throws: FormatError.invalidField(
                "manifest_byte_count", found: 1, expected: "0, as the payload is opaque")
        ) {
            try SlotHeader(
                decoding: header.encoded().bytes, slot: header.slot, identity: identity)
        }
    }

    @Test func aNewSlotIsEmpty() throws {
        let geometry = try Samples.geometry()
        let header = SlotHeader(
            emptySlot: SlotIndex(1), fileUUID: Samples.uuid, geometry: geometry)
        let bytes = header.encoded().bytes
        typealias Layout = SlotHeader.Layout
        let filled = [
            Layout.magic, Layout.fileUUID, Layout.ownOffset, Layout.slotIndex,
            Layout.chunkByteCount, Layout.payloadKind, Layout.checksum,
        ]
        for field in Layout.all where !filled.contains(field) {
            #expect(bytes[field.range].allSatisfy { $0 == 0 }, "\(field.name)")
        }
        #expect(header.payloadKind == .opaque && header.chunkByteCount == 65_536)
    }

    @Test func anIdentityThatSaysLittleIsOfOneRank() throws {
        let identity = try IdentityBlock(
            fileUUID: Samples.uuid, geometry: Samples.geometry(), createdTime: 1, creator: "t")
        #expect(identity.rank == 0 && identity.worldSize == 1 && identity.fingerprint == "")
    }

    @Test func aSuperblockThatSaysLittleIsMostlyZero() {
        let superblock = Superblock(
            fileUUID: Samples.uuid, generation: Generation(rawValue: 1), anchor: nil)
        let bytes = superblock.encoded().bytes
        typealias Layout = Superblock.Layout
        for field in [Layout.slotIndex, Layout.watermarkStep] {
            #expect(bytes[field.range].allSatisfy { $0 == 0xFF }, "\(field.name)")
        }
        let filled = [
            Layout.magic, Layout.fileUUID, Layout.generation, Layout.slotIndex,
            Layout.watermarkStep, Layout.checksum,
        ]
        for field in Layout.all where !filled.contains(field) {
            #expect(bytes[field.range].allSatisfy { $0 == 0 }, "\(field.name)")
        }
    }

    @Test func superblocksOnTheirBoundsAreAccepted() throws {
        var superblock = Samples.superblock()
        superblock.anchor = Anchor(
            slot: SlotIndex(79), sequence: SequenceNumber(rawValue: 100),
            step: Limits.stepMaximum, headerDigest: .zero)
        superblock.retained = (1...16).map {
            RetainedSlot(
                slot: SlotIndex(79 - $0), sequence: SequenceNumber(rawValue: 17 - UInt64($0)))
        }
        let decoded = try Superblock(
            decoding: superblock.encoded().bytes, fileUUID: Samples.uuid, slotCount: 80)
        #expect(decoded == superblock)
        superblock.generation = Generation(rawValue: 1)
        superblock.anchor?.step = 0
        superblock.watermark = GroupCheckpointName(attempt: .max, step: 0)
        superblock.attempt = Limits.attemptMaximum
        #expect(
            try Superblock(
                decoding: superblock.encoded().bytes, fileUUID: Samples.uuid, slotCount: 80)
                == superblock)
    }

    /// A chunk may end where its slot does, and no block later.
    @Test func theLastChunkMayFillItsSlot() throws {
        let geometry = try Samples.geometry()
        for (offset, isInside) in [(237_568, true), (241_664, false)] as [(UInt64, Bool)] {
            var table = Samples.table()
            table.entries[0].storedOffset = offset
            var header = try Samples.header()
            header.chunkTableDigest = table.encoded().digest
            let result = Result { () throws(FormatError) in
                try ChunkTable(
                    decoding: table.encoded().bytes, header: header, geometry: geometry)
            }
            #expect(
                result
                    == (isInside
                        ? .success(table)
                        : .failure(
                            .invalidField(
                                "chunk 0 stored_offset", found: offset,
                                expected: "a multiple of 4096 that keeps the chunk inside the slot"
                            ))))
        }
    }

    @Test func tablesArePaddedToABlock() throws {
        let entry = Samples.table().entries[0]
        for (count, byteCount) in [(0, 0), (1, 4096), (85, 4096), (86, 8192), (256, 12_288)] {
            let table = ChunkTable(entries: [ChunkEntry](repeating: entry, count: count))
            #expect(table.encoded().bytes.count == byteCount)
        }
    }
}
