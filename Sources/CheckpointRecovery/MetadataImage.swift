public import CheckpointFormat
public import CheckpointStorage

/// Which end of the file a mirrored block lies at.
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
        /// The chunk table, at least as long as the header says; nil also when there is none.
        public var table: [UInt8]?
        /// What became of a large table, which was decoded when it was read and whose bytes were
        /// not kept: `table` is nil then.
        var decodedTable: Result<ChunkTable, FormatError>?
        public init(slot: SlotIndex, header: [UInt8]?, table: [UInt8]?) {
            self.slot = slot
            self.header = header
            self.table = table
        }
    }

    /// The medium's size as found, which is less than the geometry's when it was truncated.
    public var fileByteCount: UInt64
    public var identityBlocks: [IdentityCopy]
    /// Empty when no identity block could be decoded: then nobody knows where they lie.
    public var superblocks: [SuperblockCopy]
    /// One per slot, in order; empty when no identity block could be decoded.
    public var slots: [SlotBlocks]
    /// Reads of blocks inside the file that the medium refused.
    public var readFailures: [StorageError]

    public init(
        fileByteCount: UInt64, identityBlocks: [IdentityCopy], superblocks: [SuperblockCopy] = [],
        slots: [SlotBlocks] = [], readFailures: [StorageError] = []
    ) {
        self.fileByteCount = fileByteCount
        self.identityBlocks = identityBlocks
        self.superblocks = superblocks
        self.slots = slots
        self.readFailures = readFailures
    }
}
