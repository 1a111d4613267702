public import CheckpointFormat

/// What recovery makes of a slot. The raw values are stable: tools and JSON print them.
public enum SlotReason: String, Hashable, Sendable, CaseIterable {
    /// The newest durable checkpoint: the newest superblock names it, with this header digest.
    case anchored
    /// An older durable checkpoint that the newest superblock keeps.
    case retained
    /// Complete, and newer than the anchor: the crash came between the two barriers. Usable once
    /// every chunk of it is verified.
    case unanchored
    /// Complete, older than the anchor and no longer retained. Usable while nothing overwrote it.
    case older
    /// Complete and not newer than the anchor, but the superblock names another checkpoint in this
    /// slot: a header write was lost, or the block is a copy from another time.
    case stale
    /// Never used.
    case empty
    /// A checkpoint began here, and its commit record was never written; or it is complete, no
    /// superblock names it, and its writer still has the slot.
    case writing
    /// The header block is all zero.
    case blank
    case headerDamaged = "header-damaged"
    case tableDamaged = "table-damaged"
    /// The header belongs to another file.
    case foreign
    /// The header belongs to another place of this file.
    case misdirected
    /// The medium did not return the header, or the file ends before it.
    case unreadable
    /// Header and table are intact, but a chunk does not match its digest; found by reading it.
    case payloadDamaged = "payload-damaged"

    /// The slot holds a checkpoint that recovery may try.
    public var isUsable: Bool {
        switch self {
        case .anchored, .retained, .unanchored, .older, .stale: true
        case .empty, .writing, .blank, .headerDamaged, .tableDamaged, .foreign, .misdirected,
            .unreadable, .payloadDamaged:
            false
        }
    }
}

/// One copy of the identity block, judged.
public struct IdentityReport: Sendable {
    public let position: Position
    public let offset: UInt64
    public let result: Result<IdentityBlock, FormatError>
    /// The medium did not return the block, or the file ends before it.
    public let isUnreadable: Bool
    /// False for a whole copy that says something else than the chosen one.
    public let agreesWithChosen: Bool
}

/// One copy of the superblock, judged.
public struct SuperblockReport: Sendable {
    /// What was found in the slot that a superblock anchors.
    public enum Target: Hashable, Sendable {
        /// The header with the digest that the superblock records.
        case matches
        /// Another header; its sequence, when it could be decoded.
        case differs(found: SequenceNumber?)
        /// The superblock anchors nothing.
        case nothing
    }

    public let position: Position
    public let parity: Int
    public let offset: UInt64
    public let result: Result<Superblock, FormatError>
    /// The checksum of a whole copy.
    public let digest: Digest?
    public let isUnreadable: Bool
    /// nil for a copy that is not whole.
    public let target: Target?

    public var superblock: Superblock? { try? result.get() }
}

/// One slot, judged.
public struct SlotReport: Sendable {
    public let slot: SlotIndex
    public let headerOffset: UInt64
    /// The header, when it could be decoded, in whatever state.
    public let header: SlotHeader?
    /// The checksum of that header.
    public let headerDigest: Digest?
    /// The chunk table of a complete slot, when it matched the header's digest.
    public let table: ChunkTable?
    public let reason: SlotReason
    /// What was wrong with the header or the table.
    public let detail: FormatError?
}

/// A checkpoint that recovery may try.
public struct Candidate: Hashable, Sendable {
    public enum Kind: String, Hashable, Sendable, CaseIterable {
        case anchored, unanchored, retained, older
    }

    public let slot: SlotIndex
    public let header: SlotHeader
    /// The header's checksum: what a superblock that anchors it records.
    public let headerDigest: Digest
    public let table: ChunkTable
    public let kind: Kind
    /// Byte offset of the header block in the file.
    public let headerOffset: UInt64
    /// Byte offset of the slot's data area in the file.
    public let dataOffset: UInt64

    public var sequence: SequenceNumber { header.sequence }
    public var step: UInt64 { header.step }
    public var isAnchored: Bool { kind == .anchored }

    public init(
        slot: SlotIndex, header: SlotHeader, headerDigest: Digest, table: ChunkTable, kind: Kind,
        geometry: Geometry
    ) {
        self.slot = slot
        self.header = header
        self.headerDigest = headerDigest
        self.table = table
        self.kind = kind
        headerOffset = geometry.headerOffset(slot)
        dataOffset = geometry.slotDataOffset(slot)
    }
}

extension Anchor {
    /// What a superblock records of a checkpoint that it anchors.
    public init(_ candidate: Candidate) {
        self.init(
            slot: candidate.slot, sequence: candidate.sequence, step: candidate.step,
            headerDigest: candidate.headerDigest)
    }
}

/// Where a file ends, as its identity block has it.
public enum FileEnd: Hashable, Sendable {
    /// Nothing is missing.
    case whole
    /// Behind the data of the last slot: every slot is there, and copies of the superblocks or of
    /// the identity block are not.
    case lost
    /// Before that: what slots hold may be gone.
    case truncated

    init(_ fileByteCount: UInt64, _ geometry: Geometry) {
        self =
            fileByteCount >= geometry.fileByteCount
            ? .whole : fileByteCount >= geometry.slotsEndOffset ? .lost : .truncated
    }
}

/// What the metadata of a file says, and what recovery will try in which order.
public struct RecoveryDecision: Sendable {
    /// The chosen identity: the head's, or the mirror when the head is damaged.
    public let identity: IdentityBlock
    public let identityFindings: [IdentityReport]
    public let superblockFindings: [SuperblockReport]
    /// The newest intact superblock; nil when there is none and the slot headers stand alone.
    public let superblock: Superblock?
    /// The checksum of `superblock`: the parent digest of the next one.
    public let superblockDigest: Digest?
    /// Two whole copies of one generation say different things: there were two writers.
    public let isFork: Bool
    /// Every slot, by index.
    public let slots: [SlotReport]
    /// In the order in which recovery tries them.
    public let candidates: [Candidate]
    /// The highest sequence seen on the medium, in whatever state: the next one lies above it.
    public let highestSequence: SequenceNumber
    /// The highest generation of a whole superblock; 0 when there is none.
    public let highestGeneration: Generation
    public let end: FileEnd
    /// The file's size as found.
    public let fileByteCount: UInt64

    /// The file is so short that slots may be gone: nothing is loaded from it.
    public var isTruncated: Bool { end == .truncated }

    /// Only copies behind the slots are missing: everything can be loaded, and nothing is written
    /// before `pcfsck -y` has put them there again.
    public var hasLostEnd: Bool { end == .lost }

    /// Why nothing may be written to a file that lost its end; nil for another one.
    ///
    /// A superblock behind the end would make the file longer, with zeros between: it would look
    /// whole, and its mirror would not be.
    public var lostEndError: CheckpointError? {
        guard hasLostEnd else { return nil }
        return CheckpointError(
            .corrupt,
            "the end of the file is missing: it has \(fileByteCount) bytes, expected "
                + "\(identity.geometry.fileByteCount); every slot is there and can be loaded, but "
                + "nothing is written before pcfsck -y has restored the end",
            byteOffset: fileByteCount)
    }

    /// Those that are complete and that their writer still has: durable in a moment.
    public var inHand: [Candidate] {
        slots.compactMap { report in
            guard report.reason == .writing, let header = report.header, header.state == .complete,
                let digest = report.headerDigest, let table = report.table
            else { return nil }
            return Candidate(
                slot: report.slot, header: header, headerDigest: digest, table: table,
                kind: .unanchored, geometry: identity.geometry)
        }
    }

    /// Whether a checkpoint may have been acknowledged: the newest intact superblock names one, or
    /// none is left that could tell. Otherwise what does not verify is what a crash left of a
    /// first checkpoint that was never finished, and nothing is lost with it.
    public var mayHoldDurable: Bool {
        superblock.map { $0.anchor != nil } ?? slots.contains { $0.reason != .empty }
    }
}
