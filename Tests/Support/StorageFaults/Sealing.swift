public import CheckpointFormat

/// Gives blocks of an image the digests that fit their bytes, whatever those bytes say: so that
/// what is wrong with them is found by other checks than the checksum.
public enum Sealing {
    /// Stores the digest of everything before the field `checksum` of the block at `offset`.
    public static func sealBlock(
        _ bytes: inout [UInt8], at offset: Int, checksum: LayoutField
    ) {
        let digest = Digest(of: bytes, offset..<offset + checksum.offset)
        put(digest, &bytes, at: offset + checksum.offset)
    }

    /// Seals the header at `header` for the chunk table behind it, as far as that lies in `bytes`.
    public static func sealTable(_ bytes: inout [UInt8], header: Int) {
        typealias Layout = SlotHeader.Layout
        let table = header + Limits.blockByteCount
        let count = integer(bytes, header, Layout.chunkCount) &* UInt64(ChunkEntry.Layout.byteCount)
        if count <= UInt64(max(0, bytes.count - table)) {
            let digest = Digest(of: bytes, table..<table + Int(count))
            put(digest, &bytes, at: header + Layout.chunkTableDigest.offset)
        }
        sealBlock(&bytes, at: header, checksum: Layout.checksum)
    }

    /// Gives the entry of chunk `index` the digest of the bytes that it names, and the entry's
    /// table and header theirs.
    public static func sealChunk(_ bytes: inout [UInt8], _ index: Int, header: Int, data: Int) {
        typealias Layout = ChunkEntry.Layout
        let entry = header + Limits.blockByteCount + index * Layout.byteCount
        guard entry + Layout.byteCount <= bytes.count else { return }
        let offset = integer(bytes, entry, Layout.storedOffset)
        let count = integer(bytes, entry, Layout.storedByteCount)
        let room = UInt64(max(0, bytes.count - data))
        if offset <= room, count <= room - offset {
            let start = data + Int(offset)
            let stored = Array(bytes[start..<start + Int(count)])
            put(ImageBuilder.treeDigest(stored), &bytes, at: entry + Layout.digest.offset)
        }
        sealTable(&bytes, header: header)
    }

    /// Names the header at `header` in the superblock at `offset`, as its anchor's.
    public static func anchor(_ bytes: inout [UInt8], superblock offset: Int, header: Int) {
        let digest = header + SlotHeader.Layout.checksum.offset
        let target = offset + Superblock.Layout.slotHeaderDigest.offset
        bytes.replaceSubrange(
            target..<target + Digest.byteCount, with: bytes[digest..<digest + Digest.byteCount])
        sealBlock(&bytes, at: offset, checksum: Superblock.Layout.checksum)
    }

    /// The little-endian field of the block at `offset`.
    public static func integer(_ bytes: [UInt8], _ offset: Int, _ field: LayoutField) -> UInt64 {
        let start = offset + field.offset
        return bytes[start..<start + field.byteCount].reversed().reduce(0) {
            $0 << 8 | UInt64($1)
        }
    }

    private static func put(_ digest: Digest, _ bytes: inout [UInt8], at offset: Int) {
        for index in 0..<8 {
            bytes[offset + index] = UInt8(truncatingIfNeeded: digest.low >> (8 * index))
            bytes[offset + 8 + index] = UInt8(truncatingIfNeeded: digest.high >> (8 * index))
        }
    }
}
