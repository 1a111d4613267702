public import CheckpointFormat
public import CheckpointStorage

/// The I/O half of recovery: fills a `MetadataImage` with as few reads as it can.
extension MetadataImage {
    /// Up to this size the metadata of all slots is read at once.
    static let regionByteCountMaximum: UInt64 = 4 << 20

    /// Reads all metadata of the medium. Three reads, when the metadata region is at most 4 MiB
    /// and the medium has no fault.
    ///
    /// - Throws: `inputOutput` when neither end of the file could be read at all; a block that
    ///   cannot be read is nil in the image and has an entry in `readFailures`.
    public static func read(from storage: any Storage) throws(CheckpointError) -> MetadataImage {
        var source = BlockSource(storage: storage)
        let block = UInt64(Limits.blockByteCount)
        let head = source.region(at: 0, byteCount: Geometry.headByteCount)
        // The mirror lies in the last whole block, whatever the geometry says.
        let end = storage.byteCount / block * block
        let mirrorOffset = max(end, block) - block
        let tailOffset = max(end, Geometry.tailByteCount) - Geometry.tailByteCount
        let tail = source.region(at: tailOffset, byteCount: Geometry.tailByteCount)
        var image = MetadataImage(
            fileByteCount: storage.byteCount,
            identityBlocks: [
                IdentityCopy(position: .head, offset: 0, bytes: head.block(at: 0)),
                IdentityCopy(
                    position: .tail, offset: mirrorOffset,
                    bytes: mirrorOffset > 0 ? tail.block(at: mirrorOffset) : nil),
            ])
        guard let identity = image.decodableIdentity else {
            if image.identityBlocks.allSatisfy({ $0.bytes == nil }),
                let failure = source.failures.first
            {
                throw CheckpointError(failure)
            }
            image.readFailures = source.failures
            return image
        }
        let geometry = identity.geometry
        if geometry.tailOffset != tailOffset {
            // The file is longer or shorter than it was made: look where the geometry says.
            let mirror = source.region(at: geometry.tailOffset, byteCount: Geometry.tailByteCount)
            image.identityBlocks[1] = IdentityCopy(
                position: .tail, offset: geometry.identityOffsets[1],
                bytes: mirror.block(at: geometry.identityOffsets[1]))
            image.addSuperblocks(geometry, head: head, tail: mirror)
        } else {
            image.addSuperblocks(geometry, head: head, tail: tail)
        }
        image.slots = source.slots(identity)
        for index in image.slots.indices {
            image.slots[index].isInHand = storage.isInHand(image.slots[index].slot)
        }
        if storage.byteCount < geometry.fileByteCount { image.lastBytes = source.lastBytes() }
        image.readFailures = source.failures
        return image
    }

    /// How often reading starts over when a writer moves on under it.
    static let attemptCount = 16

    /// Reads superblock, slots, and superblock again; a writer that moved meanwhile means another
    /// try. A writer that is always faster costs accuracy, not safety: a slot is checked again
    /// once it is pinned.
    public static func readSettled(
        from storage: any Storage
    ) throws(CheckpointError) -> MetadataImage {
        var image = try read(from: storage)
        for _ in 1..<attemptCount {
            guard let geometry = image.decodableIdentity?.geometry else { break }
            let again = superblockBytes(geometry, from: storage)
            if again == image.superblocks.map(\.bytes) { break }
            image = try read(from: storage)
        }
        return image
    }

    /// Reads the superblock copies again, to see whether a writer moved on.
    static func superblockBytes(
        _ geometry: Geometry, from storage: any Storage
    ) -> [[UInt8]?] {
        var source = BlockSource(storage: storage)
        let head = source.region(at: 0, byteCount: Geometry.headByteCount)
        let tail = source.region(at: geometry.tailOffset, byteCount: Geometry.tailByteCount)
        var image = MetadataImage(fileByteCount: storage.byteCount, identityBlocks: [])
        image.addSuperblocks(geometry, head: head, tail: tail)
        return image.superblocks.map(\.bytes)
    }

    /// The identity that recovery will choose: the head's, else the mirror.
    var decodableIdentity: IdentityBlock? {
        identityBlocks.lazy.compactMap { try? $0.authority() }.first
    }

    private mutating func addSuperblocks(
        _ geometry: Geometry, head: BlockRegion, tail: BlockRegion
    ) {
        for parity in [0, 1] {
            let offsets = geometry.superblockOffsets(parity: parity)
            for (position, offset) in zip(Position.allCases, offsets) {
                superblocks.append(
                    SuperblockCopy(
                        position: position, parity: parity, offset: offset,
                        bytes: (position == .head ? head : tail).block(at: offset)))
            }
        }
    }
}

/// Consecutive blocks, each of which may be missing.
struct BlockRegion {
    private let offset: UInt64
    private var blocks: [[UInt8]?]

    init(offset: UInt64, blocks: [[UInt8]?]) {
        self.offset = offset
        self.blocks = blocks
    }

    /// The block at byte `position` of the file; nil when it is missing or outside the region.
    func block(at position: UInt64) -> [UInt8]? {
        guard position >= offset else { return nil }
        let index = (position - offset) / UInt64(Limits.blockByteCount)
        return index < UInt64(blocks.count) ? blocks[Int(index)] : nil
    }
}

/// Reads regions of a medium, clips them at its end, and notes what cannot be read.
struct BlockSource {
    private let storage: any Storage
    private(set) var failures: [StorageError] = []

    init(storage: any Storage) { self.storage = storage }

    /// The whole blocks of [offset, offset + byteCount) that lie inside the file.
    ///
    /// When a read of several blocks fails, each is read alone, so that one bad sector costs one
    /// block.
    mutating func region(at offset: UInt64, byteCount: UInt64) -> BlockRegion {
        let block = UInt64(Limits.blockByteCount)
        let end = storage.byteCount / block * block
        let count = Int(min(byteCount, end - min(end, offset)) / block)
        if let bytes = try? storage.readBlocks(at: offset, count: count * Int(block)) {
            return BlockRegion(
                offset: offset,
                blocks: (0..<count).map { Array(bytes[$0 * Int(block)..<($0 + 1) * Int(block)]) })
        }
        return BlockRegion(
            offset: offset,
            blocks: (0..<count).map { bytes(at: offset + UInt64($0) * block, byteCount: block) })
    }

    /// `byteCount` bytes at `offset`, or nil.
    mutating func bytes(at offset: UInt64, byteCount: UInt64) -> [UInt8]? {
        guard offset + byteCount <= storage.byteCount else { return nil }
        do throws(StorageError) {
            return try storage.readBlocks(at: offset, count: Int(byteCount))
        } catch {
            failures.append(error)
            return nil
        }
    }

    /// What lies behind the last whole block.
    mutating func lastBytes() -> [UInt8] {
        let count = storage.byteCount % Geometry.block
        if count == 0 { return [] }
        do throws(StorageError) {
            return try Array(
                storage.readPaddedBlock(at: storage.byteCount - count).prefix(Int(count)))
        } catch {
            failures.append(error)
            return []
        }
    }

    /// Headers and chunk tables of all slots.
    mutating func slots(_ identity: IdentityBlock) -> [MetadataImage.SlotBlocks] {
        let geometry = identity.geometry
        let byteCount = UInt64(geometry.slotCount) * geometry.metadataStride
        if byteCount <= MetadataImage.regionByteCountMaximum,
            let region = try? storage.readBlocks(
                at: geometry.metadataOffset, count: Int(byteCount))
        {
            return geometry.slots.map { slot in
                let start = Int(geometry.headerOffset(slot) - geometry.metadataOffset)
                let table = start + Limits.blockByteCount
                return MetadataImage.SlotBlocks(
                    slot: slot, header: Array(region[start..<table]),
                    table: Array(region[table..<start + Int(geometry.metadataStride)]))
            }
        }
        return geometry.slots.map { slotBlocks($0, identity) }
    }

    private mutating func slotBlocks(
        _ slot: SlotIndex, _ identity: IdentityBlock
    ) -> MetadataImage.SlotBlocks {
        let geometry = identity.geometry
        let block = UInt64(Limits.blockByteCount)
        let bytes = bytes(at: geometry.headerOffset(slot), byteCount: block)
        var blocks = MetadataImage.SlotBlocks(slot: slot, header: bytes, table: nil)
        // The table's length was checked against the geometry, and is read only where the file has
        // that many bytes.
        guard let bytes,
            let header = try? SlotHeader(decoding: bytes, slot: slot, identity: identity),
            header.state == .complete
        else { return blocks }
        let table = self.bytes(
            at: geometry.tableOffset(slot),
            byteCount: UInt64(header.tableByteCount).roundedUp(to: block))
        // Such tables may be large. A sparse file can claim many that are not on its disk, so
        // none is kept before the next is read, but what a good one says.
        blocks.decodedTable = table.map { bytes in
            Result { () throws(FormatError) in
                try ChunkTable(decoding: bytes, header: header, geometry: geometry)
            }
        }
        return blocks
    }
}
