import CheckpointStorage
import Testing

@Suite struct StreamingCopyTests {
    /// Every alignment of both sides, around the sizes at which the copy changes its ways.
    @Test func copiesEveryByteAndNoOther() {
        let source = AlignedBuffer(byteCount: 40_000)
        source.copy((0..<40_000).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 >> 8) }, to: 0)
        let sizes = [0, 1, 127, 16_383, 16_384, 16_385, 16_511, 16_512, 20_011, 32_768]
        for size in sizes {
            for (from, to) in [(0, 0), (1, 0), (0, 1), (3, 61), (63, 64), (17, 31), (64, 127)] {
                let target = AlignedBuffer(byteCount: 40_000)
                target.copy([UInt8](repeating: 0xEE, count: 40_000), to: 0)
                // Safe: both ranges lie in buffers that live through the closure.
                source.withBytes(from..<from + size) { bytes in
                    unsafe bytes.withUnsafeBytes { unsafe target.copy($0, to: to) }
                }
                let found = target.array(0..<40_000)
                #expect(Array(found[to..<to + size]) == source.array(from..<from + size))
                #expect(found[..<to].allSatisfy { $0 == 0xEE })
                #expect(found[(to + size)...].allSatisfy { $0 == 0xEE })
            }
        }
    }
}
