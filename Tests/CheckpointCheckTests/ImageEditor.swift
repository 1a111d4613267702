import CheckpointFormat
import CheckpointRecovery
import StorageFaults

/// A valid image under the knife: what damages it, said in terms of what a slot is for.
struct ImageEditor {
    /// What a slot is in the valid image.
    enum Role: Sendable {
        case anchored
        /// The newest and the second newest that nothing keeps.
        case older, oldest
        /// The newest and the second newest that the superblock retains.
        case retained, retained2
    }

    var builder: ImageBuilder
    private let decision: RecoveryDecision

    init(_ bytes: [UInt8]) throws {
        builder = try ImageBuilder(editing: bytes)
        decision = try SlotSelection.decide(
            MetadataImage.read(from: MemoryStorage(contents: bytes)))
    }

    var geometry: Geometry { builder.geometry }

    func slot(_ role: Role) -> SlotIndex {
        func pick(_ kind: Candidate.Kind, _ index: Int) -> SlotIndex {
            decision.candidates.filter { $0.kind == kind }[index].slot
        }
        return switch role {
        case .anchored: pick(.anchored, 0)
        case .older: pick(.older, 0)
        case .oldest: pick(.older, 1)
        case .retained: pick(.retained, 0)
        case .retained2: pick(.retained, 1)
        }
    }

    func headerOffset(_ role: Role) -> UInt64 { geometry.headerOffset(slot(role)) }
    func dataOffset(_ role: Role) -> UInt64 { geometry.slotDataOffset(slot(role)) }

    var newestGeneration: Generation { decision.highestGeneration }

    /// Head and tail offset of the newest superblock, or of the one before it.
    func superblockOffsets(newest: Bool = true) -> [UInt64] {
        geometry.superblockOffsets(parity: newestGeneration.parity + (newest ? 0 : 1))
    }

    /// Changes the newest superblock and seals it again: both copies, or one of them.
    mutating func editSuperblock(
        copies: [Int] = [0, 1], _ change: (inout Superblock) -> Void
    ) throws {
        for copy in copies {
            let offset = superblockOffsets()[copy]
            var superblock = try builder.superblock(at: offset)
            change(&superblock)
            builder.put(superblock.encoded().bytes, at: offset)
        }
    }

    mutating func edit(_ role: Role, _ change: (inout SlotHeader) -> Void) throws {
        try builder.edit(slot(role), change)
    }

    /// Changes the raw bytes of an identity block and seals it again, in the given copies.
    mutating func editIdentity(copies: [Int] = [0, 1], _ change: (inout [UInt8]) -> Void) {
        for copy in copies {
            let offset = geometry.identityOffsets[copy]
            var block = builder.block(at: offset)
            change(&block)
            Sealing.sealBlock(&block, at: 0, checksum: IdentityBlock.Layout.checksum)
            builder.put(block, at: offset)
        }
    }

    /// Replaces the chunk table of a slot and seals its header for it, without any check.
    mutating func replaceTable(_ role: Role, _ table: ChunkTable) throws {
        let slot = slot(role)
        let encoded = table.encoded()
        try builder.edit(slot) { header in
            header.chunkTableDigest = encoded.digest
            header.storedByteCount = table.entries.reduce(0) { $0 + UInt64($1.storedByteCount) }
        }
        builder.put(encoded.bytes, at: geometry.tableOffset(slot))
    }
}
