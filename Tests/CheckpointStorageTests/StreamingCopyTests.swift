import CheckpointFormat
import CheckpointStorage
import Testing

/// Copies past the caches, with and without a digest: every alignment of both sides, around the
/// sizes at which the copy changes its ways.
@Suite struct StreamingCopyTests {
    static let bufferByteCount = 80_000
    static let sizes = [0, 1, 127, 1023, 1024, 1087, 1152, 4095, 4096, 4097, 20_011, 65_536]
    static let alignments = [(0, 0), (1, 0), (0, 1), (3, 61), (63, 64), (17, 31), (64, 127)]

    /// Bytes without a period that a misplaced copy could hide in.
    static let source: AlignedBuffer = {
        let buffer = AlignedBuffer(byteCount: bufferByteCount)
        var word: UInt32 = 1
        let bytes = (0..<bufferByteCount).map { _ in
            word = word &* 1_664_525 &+ 1_013_904_223
            return UInt8(word >> 24)
        }
        buffer.copy(bytes, to: 0)
        return buffer
    }()

    private func check(
        size: Int, from: Int, to: Int,
        _ copy: (UnsafeRawBufferPointer, UnsafeMutableRawBufferPointer) -> Void
    ) {
        let target = AlignedBuffer(byteCount: Self.bufferByteCount)
        target.copy([UInt8](repeating: 0xEE, count: Self.bufferByteCount), to: 0)
        // Safe: both ranges lie in buffers that live through the call.
        unsafe copy(
            UnsafeRawBufferPointer(start: Self.source.baseAddress + from, count: size),
            UnsafeMutableRawBufferPointer(start: target.baseAddress + to, count: size))
        let found = target.array(0..<Self.bufferByteCount)
        #expect(Array(found[to..<to + size]) == Self.source.array(from..<from + size))
        #expect(found[..<to].allSatisfy { $0 == 0xEE })
        #expect(found[(to + size)...].allSatisfy { $0 == 0xEE })
    }

    @Test(arguments: sizes)
    func copiesEveryByteAndNoOther(size: Int) {
        for (from, to) in Self.alignments {
            // Safe: `check` hands out ranges of as many bytes.
            unsafe check(size: size, from: from, to: to) { unsafe $1.stream(from: $0) }
        }
    }

    @Test(arguments: sizes)
    func theDigestIsThatOfTheBytesWhateverTheParts(size: Int) {
        let copier = DigestingCopier()
        for (from, to) in Self.alignments {
            for partByteCount in [size, 4096, 1000, 7] where partByteCount > 0 {
                // Safe: `check` hands out ranges of as many bytes; the parts lie inside.
                unsafe check(size: size, from: from, to: to) { source, target in
                    var done = 0
                    guard let start = target.baseAddress else { return }
                    let whole = unsafe CopyTarget(start: start, byteCount: size)
                    while done < size {
                        let end = min(done + partByteCount, size)
                        unsafe copier.copy(
                            UnsafeRawBufferPointer(rebasing: source[done..<end]), to: whole,
                            at: done)
                        done = end
                    }
                }
                let expected = Self.source.withBytes(from..<from + size) { Digest(of: $0) }
                #expect(copier.takeDigest() == expected)
            }
        }
    }

    /// The digest is of what was written: bytes that change between two looks at them must not
    /// give a checkpoint that never verifies.
    @Test func aSourceThatChangesMeanwhileIsCopiedAsItIsDigested() throws {
        let source = AlignedBuffer(byteCount: 1 << 20)
        let target = AlignedBuffer(byteCount: 1 << 20)
        let isDone = Monitor(false)
        let scribbler = try WorkerThread(name: "scribbler") {
            var value: UInt8 = 0
            while !isDone.withLock({ $0 }) {
                value &+= 1
                // Safe: a race on purpose, on memory that lives through the test.
                for offset in stride(from: 0, to: 1 << 20, by: 509) {
                    unsafe source.baseAddress.storeBytes(
                        of: value, toByteOffset: offset, as: UInt8.self)
                }
            }
        }
        let copier = DigestingCopier()
        for _ in 0..<200 {
            // Safe: both buffers have as many bytes.
            unsafe copier.copy(
                UnsafeRawBufferPointer(start: source.baseAddress, count: 1 << 20),
                to: CopyTarget(start: target.baseAddress, byteCount: 1 << 20), at: 0)
            #expect(copier.takeDigest() == target.withBytes(0..<1 << 20) { Digest(of: $0) })
        }
        isDone.withLock { $0 = true }
        scribbler.join()
    }
}
