/// The digest of an uncompressed payload, whatever chunk size and codec it is stored with.
///
/// The payload is cut into leaves of 64 KiB, the last one shorter. The logical digest is XXH3-128
/// over the leaves' digests in order, each in its 16-byte disk form, followed by the payload's
/// byte count as a little-endian u64. A chunk is a whole number of leaves, so that workers digest
/// chunks in parallel and in any order.
public struct LogicalDigest: Sendable {
    private var leaves: [Digest]
    private let payloadByteCount: UInt64

    public init(payloadByteCount: UInt64) {
        self.payloadByteCount = payloadByteCount
        let leaf = UInt64(Limits.leafByteCount)
        leaves = [Digest](repeating: .zero, count: Int((payloadByteCount + leaf - 1) / leaf))
    }

    /// Stores the leaf digests of the bytes that begin at `offset`, a multiple of 65536.
    public mutating func setLeaves(_ digests: [Digest], at offset: UInt64) {
        let first = Int(offset / UInt64(Limits.leafByteCount))
        for (index, digest) in digests.enumerated() { leaves[first + index] = digest }
    }

    public func finish() -> Digest {
        var encoder = BlockEncoder(byteCount: leaves.count * Digest.byteCount + 8)
        for (index, leaf) in leaves.enumerated() {
            encoder.put(leaf, LayoutField("leaf", index * Digest.byteCount, Digest.byteCount))
        }
        encoder.put(
            payloadByteCount, LayoutField("length", leaves.count * Digest.byteCount, 8))
        return Digest(of: encoder.bytes)
    }

    /// The digests of the leaves of `bytes`.
    public static func leaves(of bytes: RawSpan) -> [Digest] {
        leavesAndDigest(of: bytes, wantsDigest: false).leaves
    }

    /// The digests of the leaves of `bytes` and of all of them, in one pass over memory: each
    /// leaf is still in the cache when the second hash reads it.
    public static func leavesAndDigest(of bytes: RawSpan) -> (leaves: [Digest], digest: Digest) {
        leavesAndDigest(of: bytes, wantsDigest: true)
    }

    private static func leavesAndDigest(
        of bytes: RawSpan, wantsDigest: Bool
    ) -> (leaves: [Digest], digest: Digest) {
        var leaves: [Digest] = []
        leaves.reserveCapacity(bytes.byteCount / Limits.leafByteCount + 1)
        var whole = StreamingDigest()
        var offset = 0
        while offset < bytes.byteCount {
            let end = min(offset + Limits.leafByteCount, bytes.byteCount)
            let leaf = bytes.extracting(offset..<end)
            leaves.append(Digest(of: leaf))
            if wantsDigest { whole.update(leaf) }
            offset = end
        }
        return (leaves, whole.finish())
    }
}
