import Testing

@testable import CheckpointFormat

@Suite struct ChunkCompressionTests {
    /// A fixed sequence (splitmix64), so that a failure repeats.
    struct Generator: RandomNumberGenerator {
        var state: UInt64
        mutating func next() -> UInt64 {
            state &+= 0x9E37_79B9_7F4A_7C15
            var mixed = state
            mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
            mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
            return mixed ^ (mixed >> 31)
        }
    }

    /// Bytes that look like small floats: the high byte of each element hardly changes.
    static func floatLike(byteCount: Int, width: Int) -> [UInt8] {
        var generator = Generator(state: UInt64(byteCount * 16 + width))
        return (0..<byteCount).map { index in
            index % width == width - 1 ? 0x3C : UInt8(truncatingIfNeeded: generator.next())
        }
    }

    static func encode(
        _ raw: [UInt8], _ codec: Codec, width: Int, level: Int32 = 1
    ) -> [UInt8]? {
        let compressor = ChunkCompressor(level: level, chunkByteCount: raw.count)
        var output = [UInt8](repeating: 0xEE, count: raw.count)
        // Safe: the buffers outlive the call.
        let count = unsafe raw.withUnsafeBytes { source in
            unsafe output.withUnsafeMutableBytes { target in
                unsafe compressor.encode(source, codec: codec, planeWidth: width, into: target)
            }
        }
        return count.map { Array(output[..<$0]) }
    }

    static func decode(
        _ stored: [UInt8], rawByteCount: Int, _ codec: Codec, width: Int
    ) throws(FormatError) -> [UInt8] {
        let entry = ChunkEntry(
            storedOffset: 0, storedByteCount: stored.count, rawByteCount: rawByteCount,
            codec: codec, planeWidth: width, digest: .zero)
        // A guard zone behind the output shows writes past its end.
        var output = [UInt8](repeating: 0xA5, count: rawByteCount + 64)
        var failure: FormatError?
        // Safe: the buffers outlive the call.
        unsafe stored.withUnsafeBytes { source in
            unsafe output.withUnsafeMutableBytes { target in
                let room = unsafe UnsafeMutableRawBufferPointer(rebasing: target[..<rawByteCount])
                do throws(FormatError) {
                    unsafe try ChunkCompression.decode(entry, stored: source, into: room)
                } catch {
                    failure = error
                }
            }
        }
        #expect(output[rawByteCount...].allSatisfy { $0 == 0xA5 }, "wrote past the chunk")
        if let failure { throw failure }
        return Array(output[..<rawByteCount])
    }

    @Test(arguments: [2, 4, 8], [64, 65, 71, 4096, 16_385, 65_536, 1_000_003])
    func planesRoundTrip(width: Int, byteCount: Int) throws {
        let raw = Self.floatLike(byteCount: byteCount, width: width)
        guard let stored = Self.encode(raw, .planesZstd, width: width) else {
            #expect(byteCount < 4096, "a large chunk with a constant plane shrinks")
            return
        }
        #expect(stored.count < raw.count)
        let restored = try Self.decode(
            stored, rawByteCount: byteCount, .planesZstd, width: width)
        #expect(restored == raw)
    }

    @Test(arguments: [2, 4, 8]) func planesFollowTheirFormula(width: Int) {
        let byteCount = 10_000 * width + width - 1
        let raw = Self.floatLike(byteCount: byteCount, width: width)
        var split = [UInt8](repeating: 0, count: byteCount)
        var joined = split
        // Safe: all three arrays have byteCount bytes.
        unsafe raw.withUnsafeBytes { source in
            unsafe split.withUnsafeMutableBytes { target in
                guard let from = source.baseAddress, let to = target.baseAddress else { return }
                unsafe BytePlanes.split(from, to, byteCount: byteCount, width: width)
            }
        }
        let count = byteCount / width
        let isFormulaKept = (0..<count).allSatisfy { index in
            (0..<width).allSatisfy { split[$0 * count + index] == raw[index * width + $0] }
        }
        #expect(isFormulaKept)
        #expect(split[(count * width)...] == raw[(count * width)...])
        unsafe split.withUnsafeBytes { source in
            unsafe joined.withUnsafeMutableBytes { target in
                guard let from = source.baseAddress, let to = target.baseAddress else { return }
                unsafe BytePlanes.join(from, to, byteCount: byteCount, width: width)
            }
        }
        #expect(joined == raw)
    }

    @Test func plainZstdRoundTrip() throws {
        let raw = (0..<100_000).map { UInt8(truncatingIfNeeded: $0 / 7) }
        let stored = try #require(Self.encode(raw, .zstd, width: 1))
        #expect(try Self.decode(stored, rawByteCount: raw.count, .zstd, width: 1) == raw)
    }

    @Test func noiseIsLeftRaw() {
        var generator = Generator(state: 7)
        let noise = (0..<65_536).map { _ in UInt8(truncatingIfNeeded: generator.next()) }
        #expect(Self.encode(noise, .zstd, width: 1) == nil)
        #expect(Self.encode(noise, .planesZstd, width: 4) == nil)
    }

    @Test(arguments: 0...3) func tinyChunksAreLeftRaw(byteCount: Int) {
        let raw = [UInt8](repeating: 0, count: byteCount)
        #expect(Self.encode(raw, .zstd, width: 1) == nil)
    }

    @Test func codecNoneIsNeverEncoded() {
        #expect(Self.encode([UInt8](repeating: 0, count: 4096), .none, width: 1) == nil)
    }

    @Test func rawChunksAreCopied() throws {
        let raw = (0..<5000).map { UInt8(truncatingIfNeeded: $0) }
        #expect(try Self.decode(raw, rawByteCount: raw.count, .none, width: 1) == raw)
    }

    @Test func aCompressorIsReusable() throws {
        let compressor = ChunkCompressor(level: 3, chunkByteCount: 8192)
        for round in 0..<5 {
            let raw = [UInt8](repeating: UInt8(round), count: 8192 - round)
            var output = [UInt8](repeating: 0, count: raw.count)
            // Safe: the buffers outlive the call.
            let count = unsafe raw.withUnsafeBytes { source in
                unsafe output.withUnsafeMutableBytes { target in
                    unsafe compressor.encode(
                        source, codec: .planesZstd, planeWidth: 4, into: target)
                }
            }
            let stored = Array(output[..<(try #require(count))])
            #expect(
                try Self.decode(stored, rawByteCount: raw.count, .planesZstd, width: 4) == raw)
        }
    }

    // MARK: Hostile frames

    static let raw = (0..<50_000).map { UInt8(truncatingIfNeeded: $0 / 3) }

    @Test func wrongContentSizeIsRefused() throws {
        let stored = try #require(Self.encode(Self.raw, .zstd, width: 1))
        for size in [1, 49_999, 50_001, 1 << 20] {
            #expect(throws: FormatError.self) {
                try Self.decode(stored, rawByteCount: size, .zstd, width: 1)
            }
        }
    }

    /// A frame that ends within its header, one that does not say its size, and one that lies.
    @Test func theErrorSaysWhatTheFrameRecords() {
        let magic: [UInt8] = [0x28, 0xB5, 0x2F, 0xFD]
        let emptyBlock: [UInt8] = [0x01, 0, 0]
        for (frame, found) in [
            (magic, "no"), (magic + [0x00, 0x58] + emptyBlock, "no"),
            (
                magic + [0xE0, 0xFD] + [UInt8](repeating: 0xFF, count: 7) + emptyBlock,
                "18446744073709551613"
            ),
        ] {
            #expect(
                throws: FormatError.invalidCompression(
                    "the frame records \(found) content bytes, expected 100")
            ) { try Self.decode(frame, rawByteCount: 100, .zstd, width: 1) }
        }
    }

    @Test func trailingBytesAndSecondFramesAreRefused() throws {
        let stored = try #require(Self.encode(Self.raw, .zstd, width: 1))
        for tail in [[0], [UInt8](repeating: 0, count: 32), stored] {
            #expect(throws: FormatError.self) {
                try Self.decode(stored + tail, rawByteCount: Self.raw.count, .zstd, width: 1)
            }
        }
    }

    @Test func truncatedFramesAreRefused() throws {
        let stored = try #require(Self.encode(Self.raw, .zstd, width: 1))
        for count in 0..<min(stored.count, 200) {
            #expect(throws: FormatError.self) {
                try Self.decode(
                    Array(stored[..<count]), rawByteCount: Self.raw.count, .zstd, width: 1)
            }
        }
    }

    @Test func skippableFramesAreRefused() throws {
        let stored = try #require(Self.encode(Self.raw, .zstd, width: 1))
        let skippable: [UInt8] = [0x50, 0x2A, 0x4D, 0x18, 4, 0, 0, 0, 1, 2, 3, 4]
        #expect(throws: FormatError.self) {
            try Self.decode(
                skippable + stored, rawByteCount: Self.raw.count, .zstd, width: 1)
        }
        #expect(throws: FormatError.self) {
            try Self.decode(skippable, rawByteCount: 0, .zstd, width: 1)
        }
    }

    @Test func framesWithADictionaryAreRefused() throws {
        // Magic; descriptor: single segment, 2-byte content size, 1-byte dictionary ID 7;
        // content size 256 + 44 = 300; one run-length block of 300 bytes, the last one.
        let frame: [UInt8] =
            [0x28, 0xB5, 0x2F, 0xFD, 0x61, 7, 44, 0] + [0x63, 0x09, 0x00, 0xAA]
        #expect(
            throws: FormatError.invalidCompression(
                "the frame needs dictionary 7, expected none")
        ) {
            try Self.decode(frame, rawByteCount: 300, .zstd, width: 1)
        }
        // The same frame without the dictionary is fine, so that the refusal has one cause.
        let plain: [UInt8] = [0x28, 0xB5, 0x2F, 0xFD, 0x60, 44, 0] + [0x63, 0x09, 0x00, 0xAA]
        #expect(
            try Self.decode(plain, rawByteCount: 300, .zstd, width: 1)
                == [UInt8](repeating: 0xAA, count: 300))
    }

    /// Digests are checked before decoding; a decoder must stay inside its buffers nevertheless.
    @Test func mutatedFramesNeverEscape() throws {
        let stored = try #require(Self.encode(Self.raw, .planesZstd, width: 4))
        var generator = Generator(state: 99)
        for index in 0..<min(stored.count, 400) {
            var mutated = stored
            mutated[index] ^= UInt8.random(in: 1...255, using: &generator)
            // Either an error or some bytes of the right count; the guard zone is checked inside.
            let result = try? Self.decode(
                mutated, rawByteCount: Self.raw.count, .planesZstd, width: 4)
            #expect(result == nil || result?.count == Self.raw.count)
        }
    }
}
