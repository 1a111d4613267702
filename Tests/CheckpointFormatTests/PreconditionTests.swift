import Testing

@testable import CheckpointFormat

/// A broken program traps: what only a mistake in the caller can bring about ends the process,
/// before a byte is written where it does not belong.
@Suite struct PreconditionTests {
    static func encode(
        rawByteCount: Int, roomByteCount: Int, chunkByteCount: Int = 100, planeWidth: Int = 2
    ) {
        let raw = [UInt8](repeating: 0, count: rawByteCount)
        var room = [UInt8](repeating: 0, count: roomByteCount)
        let compressor = ChunkCompressor(level: 1, chunkByteCount: chunkByteCount)
        // Safe: the arrays outlive the call.
        unsafe raw.withUnsafeBytes { source in
            unsafe room.withUnsafeMutableBytes { target in
                _ = unsafe compressor.encode(
                    source, codec: .planesZstd, planeWidth: planeWidth, into: target)
            }
        }
    }

    @Test func encodingNeedsRoomScratchAndAPlaneWidth() async {
        PreconditionTests.encode(rawByteCount: 100, roomByteCount: 100)
        await #expect(processExitsWith: .failure) {
            PreconditionTests.encode(rawByteCount: 100, roomByteCount: 99)
        }
        await #expect(processExitsWith: .failure) {
            PreconditionTests.encode(rawByteCount: 101, roomByteCount: 101)
        }
        await #expect(processExitsWith: .failure) {
            PreconditionTests.encode(rawByteCount: 100, roomByteCount: 100, planeWidth: 3)
        }
    }

    static func decode(
        storedByteCount: Int, rawByteCount: Int, entry: ChunkEntry
    ) {
        let stored = [UInt8](repeating: 0, count: storedByteCount)
        var raw = [UInt8](repeating: 0, count: rawByteCount)
        // Safe: the arrays outlive the call.
        unsafe stored.withUnsafeBytes { source in
            unsafe raw.withUnsafeMutableBytes { target in
                unsafe try? ChunkCompression.decode(entry, stored: source, into: target)
            }
        }
    }

    static func entry(
        _ codec: Codec, storedByteCount: Int, rawByteCount: Int
    ) -> ChunkEntry {
        ChunkEntry(
            storedOffset: 0, storedByteCount: storedByteCount, rawByteCount: rawByteCount,
            codec: codec, planeWidth: 1, digest: .zero)
    }

    @Test func decodingNeedsTheSizesOfTheEntry() async {
        await #expect(processExitsWith: .failure) {
            PreconditionTests.decode(
                storedByteCount: 9, rawByteCount: 20,
                entry: PreconditionTests.entry(.zstd, storedByteCount: 10, rawByteCount: 20))
        }
        await #expect(processExitsWith: .failure) {
            PreconditionTests.decode(
                storedByteCount: 10, rawByteCount: 21,
                entry: PreconditionTests.entry(.zstd, storedByteCount: 10, rawByteCount: 20))
        }
        await #expect(processExitsWith: .failure) {
            PreconditionTests.decode(
                storedByteCount: 10, rawByteCount: 20,
                entry: PreconditionTests.entry(.none, storedByteCount: 10, rawByteCount: 20))
        }
    }

    /// Planes of 3 bytes.
    static func turn(joins: Bool) {
        let source = [UInt8](repeating: 1, count: 12)
        var target = source
        // Safe: both have 12 bytes.
        unsafe source.withUnsafeBytes { from in
            unsafe target.withUnsafeMutableBytes { to in
                guard let from = from.baseAddress, let to = to.baseAddress else { return }
                if joins {
                    unsafe BytePlanes.join(from, to, byteCount: 12, width: 3)
                } else {
                    unsafe BytePlanes.split(from, to, byteCount: 12, width: 3)
                }
            }
        }
    }

    @Test func planesOfOtherWidthsTrap() async {
        await #expect(processExitsWith: .failure) { PreconditionTests.turn(joins: false) }
        await #expect(processExitsWith: .failure) { PreconditionTests.turn(joins: true) }
    }

    static func copy(byteCount: Int, into roomByteCount: Int, at offset: Int) {
        let source = [UInt8](repeating: 1, count: byteCount)
        // Larger than it says, so that a copy which goes wrong harms nobody.
        let room = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 64)
        defer { unsafe room.deallocate() }
        // Safe: both outlive the call.
        unsafe source.withUnsafeBytes {
            unsafe DigestingCopier().copy(
                $0, to: CopyTarget(start: room + 1024, byteCount: roomByteCount), at: offset)
        }
    }

    @Test func copyingStaysInsideItsTarget() async {
        PreconditionTests.copy(byteCount: 64, into: 128, at: 64)
        await #expect(processExitsWith: .failure) {
            PreconditionTests.copy(byteCount: 65, into: 128, at: 64)
        }
        await #expect(processExitsWith: .failure) {
            PreconditionTests.copy(byteCount: 64, into: 128, at: -1)
        }
    }

    @Test func fieldsHaveTheWidthOfTheirValues() async {
        await #expect(processExitsWith: .failure) {
            var encoder = BlockEncoder(byteCount: 16)
            encoder.put(UInt32(1), LayoutField("wide", 0, 8))
        }
        await #expect(processExitsWith: .failure) {
            var encoder = BlockEncoder(byteCount: 16)
            encoder.put([1, 2, 3], LayoutField("narrow", 0, 2))
        }
        await #expect(processExitsWith: .failure) {
            let decoder = BlockDecoder([UInt8](repeating: 0, count: 16))
            _ = decoder.integer(LayoutField("wide", 0, 8), as: UInt32.self)
        }
    }

    @Test func valuesWithoutAPlaceOnTheMediumTrap() async {
        await #expect(processExitsWith: .failure) { _ = Identifier128(bytes: [1, 2, 3]) }
        await #expect(processExitsWith: .failure) { _ = JSONScanner<FormatError>([0x7B], 0..<2) }
        await #expect(processExitsWith: .failure) {
            _ = Superblock(
                fileUUID: .zero, generation: Generation(rawValue: 1), anchor: nil,
                retained: (0..<17).map {
                    RetainedSlot(slot: SlotIndex($0), sequence: SequenceNumber(rawValue: 1))
                })
        }
    }
}
