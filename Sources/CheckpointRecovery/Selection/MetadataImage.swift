public import CheckpointFormat
public import CheckpointStorage

/// Which end of the file a mirrored block is at.
public enum Position: String, Hashable, Sendable, CaseIterable {
    case head, tail
}

/// Everything metadata recovery looks at, as raw blocks: bytes in, decision out.
///
/// A block that could not be read, or that lies beyond the end of the file, is nil. What is in
/// the bytes is judged by `SlotSelection` alone, so that every crash state can be written down in
/// a test without a medium.
public struct MetadataImage: Hashable, Sendable {
    /// One of the two copies of the identity block.
    public struct IdentityCopy: Hashable, Sendable {
        public var position: Position
        public var offset: UInt64
        public var bytes: [UInt8]?
        public init(position: Position, offset: UInt64, bytes: [UInt8]?) {
            self.position = position
            self.offset = offset
            self.bytes = bytes
        }
    }

    /// One of the four copies of the superblock.
    public struct SuperblockCopy: Hashable, Sendable {
        public var position: Position
        /// The parity of the generations that belong at this offset.
        public var parity: Int
        public var offset: UInt64
        public var bytes: [UInt8]?
        public init(position: Position, parity: Int, offset: UInt64, bytes: [UInt8]?) {
            self.position = position
            self.parity = parity
            self.offset = offset
            self.bytes = bytes
        }
    }

    /// The metadata of one slot.
    public struct SlotBlocks: Hashable, Sendable {
        public var slot: SlotIndex
        public var header: [UInt8]?
        /// The chunk table, at least as long as the header records; nil also when there is none.
        public var table: [UInt8]?
        /// What became of a large table, which was decoded when it was read and whose bytes were
        /// not kept: `table` is nil then.
        var decodedTable: Result<ChunkTable, FormatError>?
        /// A writer has the slot: `Storage.isInHand`.
        public var isInHand = false
        public init(slot: SlotIndex, header: [UInt8]?, table: [UInt8]?) {
            self.slot = slot
            self.header = header
            self.table = table
        }
    }

    /// The medium's size as found, which is less than the geometry's when it was truncated.
    public var fileByteCount: UInt64
    public var identityBlocks: [IdentityCopy]
    /// Empty when no identity block could be decoded: then their places are unknown.
    public var superblocks: [SuperblockCopy]
    /// One per slot, in order; empty when no identity block could be decoded.
    public var slots: [SlotBlocks]
    /// Reads of blocks inside the file that the medium refused.
    public var readFailures: [StorageError]
    /// What lies behind the last whole block of a file that is shorter than it was made: fewer
    /// bytes than a block has.
    public var lastBytes: [UInt8]

    public init(
        fileByteCount: UInt64, identityBlocks: [IdentityCopy], superblocks: [SuperblockCopy] = [],
        slots: [SlotBlocks] = [], readFailures: [StorageError] = [], lastBytes: [UInt8] = []
    ) {
        self.fileByteCount = fileByteCount
        self.identityBlocks = identityBlocks
        self.superblocks = superblocks
        self.slots = slots
        self.readFailures = readFailures
        self.lastBytes = lastBytes
    }

    /// The image of the same file once it has its size again, with zeros where nothing was: what a
    /// repair of a lost end starts from.
    public func extended(to geometry: Geometry) -> MetadataImage {
        guard fileByteCount < geometry.fileByteCount else { return self }
        var image = self
        func padded(_ bytes: [UInt8]?, at offset: UInt64) -> [UInt8]? {
            if offset + Geometry.block <= fileByteCount { return bytes }
            let part = offset < fileByteCount ? lastBytes : []
            return part + [UInt8](repeating: 0, count: Limits.blockByteCount - part.count)
        }
        for (index, copy) in identityBlocks.enumerated() {
            image.identityBlocks[index].bytes = padded(copy.bytes, at: copy.offset)
        }
        for (index, copy) in superblocks.enumerated() {
            image.superblocks[index].bytes = padded(copy.bytes, at: copy.offset)
        }
        image.fileByteCount = geometry.fileByteCount
        image.lastBytes = []
        return image
    }
}
