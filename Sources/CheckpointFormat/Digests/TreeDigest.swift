/// The digest of something large: of a chunk's stored bytes, and of a whole payload.
///
/// The bytes are cut into leaves of 64 KiB, the last one shorter. The tree digest is XXH3-128
/// over the leaves' digests in order, each in its 16-byte disk form, followed by the byte count
/// as a little-endian u64.
///
/// A chunk holds a whole number of leaves. Workers therefore digest the chunks of a payload in
/// any order, and a chunk that is stored as it is serves both digests with one pass over memory.
public struct TreeDigest: Sendable {
    /// As far as they are known: a header may claim more bytes than there are.
    private var leaves: [Digest] = []
    private let byteCount: UInt64

    public init(byteCount: UInt64) { self.byteCount = byteCount }

    /// Stores the leaf digests of the bytes that begin at `offset`, a multiple of 65536.
    public mutating func setLeaves(_ digests: [Digest], at offset: UInt64) {
        let first = Int(offset / UInt64(Limits.leafByteCount))
        let missing = first + digests.count - leaves.count
        if !digests.isEmpty, missing > 0 {
            leaves.append(contentsOf: repeatElement(.zero, count: missing))
        }
        for (index, digest) in digests.enumerated() { leaves[first + index] = digest }
    }

    public func finish() -> Digest { Self.combine(leaves, byteCount: byteCount) }

    /// The digest of bytes whose leaves are known.
    public static func combine(_ leaves: [Digest], byteCount: UInt64) -> Digest {
        var encoder = BlockEncoder(byteCount: leaves.count * Digest.byteCount + 8)
        for (index, leaf) in leaves.enumerated() {
            encoder.put(leaf, LayoutField("leaf", index * Digest.byteCount, Digest.byteCount))
        }
        encoder.put(byteCount, LayoutField("length", leaves.count * Digest.byteCount, 8))
        return Digest(of: encoder.bytes)
    }

    /// The digests of the leaves of `bytes`.
    public static func leaves(of bytes: RawSpan) -> [Digest] {
        stride(from: 0, to: bytes.byteCount, by: Limits.leafByteCount).map { offset in
            let end = min(offset + Limits.leafByteCount, bytes.byteCount)
            return Digest(of: bytes.extracting(offset..<end))
        }
    }

    /// The tree digest of `bytes`.
    public static func of(_ bytes: RawSpan) -> Digest {
        combine(leaves(of: bytes), byteCount: UInt64(bytes.byteCount))
    }
}
