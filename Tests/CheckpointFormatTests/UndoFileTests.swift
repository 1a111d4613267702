import Testing

@testable import CheckpointFormat

@Suite struct UndoFileTests {
    private typealias Layout = UndoFile.Layout
    private typealias RecordLayout = UndoFile.RecordLayout

    /// Undoes two blocks of a file of 41 blocks and a half.
    static let sample = UndoFile(
        fileUUID: Samples.uuid, fileByteCount: 41 * 4096 + 2048, createdTime: 1_700_000_000,
        highestGeneration: Generation(rawValue: 7),
        records: [
            UndoFile.Record(
                byteOffset: 8192, newDigest: Digest(low: 1, high: 2),
                oldBytes: (0..<4096).map { UInt8(truncatingIfNeeded: $0 / 3) }),
            UndoFile.Record(
                byteOffset: 40 * 4096, newDigest: Digest(low: 3, high: 4),
                oldBytes: [UInt8](repeating: 9, count: 4096)),
        ])

    /// The sample with a change, and checksums that fit it.
    private func edited(_ edit: (inout [UInt8]) -> Void) -> [UInt8] {
        var bytes = Self.sample.encoded()
        edit(&bytes)
        let digest = Digest(of: bytes, 4096..<bytes.count)
        Samples.put(digest.low, LayoutField("low", Layout.recordsDigest.offset, 8), &bytes)
        Samples.put(digest.high, LayoutField("high", Layout.recordsDigest.offset + 8, 8), &bytes)
        return Samples.resealed(Array(bytes[..<4096]), Layout.checksum) + bytes[4096...]
    }

    private func expect(
        _ error: FormatError, for bytes: [UInt8],
        _ location: SourceLocation = #_sourceLocation
    ) {
        #expect(throws: error, sourceLocation: location) { try UndoFile(decoding: bytes) }
    }

    @Test func roundTrip() throws {
        let bytes = Self.sample.encoded()
        #expect(bytes.count == 4096 + 2 * 8192)
        #expect(try UndoFile(decoding: bytes) == Self.sample)
        #expect(edited { _ in } == bytes)
    }

    @Test func theLargestHas256Records() throws {
        var largest = Self.sample
        largest.fileByteCount = 256 * 4096
        largest.records = (0..<256).map {
            UndoFile.Record(
                byteOffset: UInt64($0) * 4096, newDigest: .zero,
                oldBytes: [UInt8](repeating: 0, count: 4096))
        }
        #expect(largest.encoded().count == UndoFile.byteCountMaximum)
        #expect(try UndoFile(decoding: largest.encoded()) == largest)
    }

    @Test func everyByteCounts() {
        let bytes = Self.sample.encoded()
        for index in stride(from: 0, to: 4096, by: 1) where (96..<4000).contains(index) == false {
            var changed = bytes
            changed[index] ^= 0x10
            #expect(throws: FormatError.self, "byte \(index)") { try UndoFile(decoding: changed) }
        }
        for index in stride(from: 4096, to: bytes.count, by: 61) {
            var changed = bytes
            changed[index] ^= 0x10
            #expect(throws: FormatError.self, "byte \(index)") { try UndoFile(decoding: changed) }
        }
    }

    @Test(arguments: [0, 1, 4095]) func lessThanABlockIsTruncated(count: Int) {
        expect(
            .truncated(found: UInt64(count), expected: 4096),
            for: Array(Self.sample.encoded()[..<count]))
    }

    @Test func itsLengthIsThatOfItsRecords() {
        let bytes = Self.sample.encoded()
        let whole = UInt64(bytes.count)
        expect(.truncated(found: whole - 1, expected: whole), for: bytes.dropLast())
        expect(.truncated(found: whole + 1, expected: whole), for: bytes + [0])
    }

    @Test func anotherMajorVersionIsNotRead() {
        let newer = edited { Samples.put(UInt16(2), Layout.versionMajor, &$0) }
        expect(.unsupportedVersion(major: 2, minor: 0), for: newer)
        let minor = edited { Samples.put(UInt16(9), Layout.versionMinor, &$0) }
        #expect(throws: Never.self) { try UndoFile(decoding: minor) }
    }

    @Test(arguments: [0, 257] as [UInt32]) func thereAre1To256Records(count: UInt32) {
        let bytes = edited { Samples.put(count, Layout.recordCount, &$0) }
        expect(
            .invalidField("record_count", found: UInt64(count), expected: "1 to 256"), for: bytes)
    }

    @Test func recordsThatDoNotMatchTheirDigestAreRefused() {
        var bytes = Self.sample.encoded()
        bytes[4096 + 5000] ^= 1
        expect(
            .checksumMismatch(
                found: Digest(of: bytes, 4096..<bytes.count),
                expected: Digest(of: Self.sample.encoded(), 4096..<bytes.count)), for: bytes)
    }

    @Test func reservedBytesAreZero() {
        expect(
            .reservedBytesNotZero(offset: 72), for: edited { $0[Layout.reserved72.offset] = 1 })
        expect(.reservedBytesNotZero(offset: 24), for: edited { $0[4096 + 8192 + 24] = 1 })
    }

    /// A repair may restore an end that was lost, so that a record may lie behind the file.
    @Test(arguments: [4097, 1 << 53, UInt64.max - 4095] as [UInt64])
    func aRecordNamesABlock(offset: UInt64) {
        let bytes = edited {
            Samples.put(
                offset, LayoutField("byte_offset", 4096 + RecordLayout.byteOffset.offset, 8), &$0)
        }
        expect(
            .invalidField(
                "byte_offset", found: offset, expected: "a multiple of 4096 below \(1 << 53)"),
            for: bytes)
    }

    @Test func noBlockIsNamedTwice() {
        let bytes = edited {
            Samples.put(UInt64(8192), LayoutField("byte_offset", 4096 + 8192, 8), &$0)
        }
        expect(
            .invalidField(
                "byte_offset", found: 8192, expected: "a block that no other record names"),
            for: bytes)
    }
}
