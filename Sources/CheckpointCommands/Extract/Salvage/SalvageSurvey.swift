internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

/// What is left of a checkpoint: every chunk was read, and so its holes are known.
struct SalvageSurvey: Sendable {
    /// A chunk that is lost, and why.
    struct Hole: Sendable {
        let chunk: Int
        /// In the payload.
        let range: Range<UInt64>
        /// Where its bytes are in the checkpoint file; nil when the table does not say.
        let fileOffset: UInt64?
        let reason: Reason
        let detail: String
    }

    enum Reason: String, Sendable {
        case digest, codec, unreadable
        case noTableEntry = "no_table_entry"
    }

    /// What the digest of the whole payload says of the chunks together.
    enum PayloadDigest: String, Sendable {
        /// Every chunk is there, and together they are what was saved.
        case matches
        /// Every chunk matches its own digest, but they are not of one checkpoint.
        case differs
        /// It cannot be computed, because of holes.
        case unknown
    }

    let holes: [Hole]
    let payloadDigest: PayloadDigest
    let survivingByteCount: UInt64

    var damagedChunks: Set<Int> { Set(holes.map(\.chunk)) }
    var isWhole: Bool { holes.isEmpty && payloadDigest == .matches }

    /// Reads every chunk that the table names.
    init(_ source: SalvageSource, _ selected: SelectedCheckpoint) throws(CheckpointError) {
        let header = selected.candidate.header
        let entries = selected.candidate.table.entries
        struct State {
            var holes: [Hole] = []
            var digest: TreeDigest
            var byteCount: UInt64 = 0
        }
        let state = Monitor(State(digest: TreeDigest(byteCount: header.payloadByteCount)))
        let bar = ProgressBar("surveying step \(header.step)", total: header.payloadByteCount)
        defer { bar.finish() }
        let present = entries.indices.filter { !source.missingChunks.contains($0) }
        try selected.forEachChunk(present) { chunk, bytes throws(CheckpointError) in
            try Interruption.check()
            let leaves = TreeDigest.leaves(of: bytes)
            let done = state.withLock { state in
                state.digest.setLeaves(leaves, at: chunk.payloadOffset)
                state.byteCount += UInt64(bytes.byteCount)
                return state.byteCount
            }
            bar.update(done)
        } damaged: { damage throws(CheckpointError) in
            try Interruption.check()
            let reason: Reason =
                switch damage.cause {
                case .digest: .digest
                case .codec: .codec
                case .unreadable: .unreadable
                }
            let hole = Hole(
                chunk: damage.index, range: Self.range(damage.index, header),
                fileOffset: damage.byteOffset, reason: reason, detail: damage.description)
            state.withLock { $0.holes.append(hole) }
        }
        let missing = source.missingChunks.map { chunk in
            Hole(
                chunk: chunk, range: Self.range(chunk, header), fileOffset: nil,
                reason: .noTableEntry, detail: "the chunk table has no intact entry for it")
        }
        let found = state.withLock { $0 }
        holes = (found.holes + missing).sorted { $0.chunk < $1.chunk }
        survivingByteCount = found.byteCount
        payloadDigest =
            !holes.isEmpty
            ? .unknown : found.digest.finish() == header.logicalDigest ? .matches : .differs
    }

    private static func range(_ chunk: Int, _ header: SlotHeader) -> Range<UInt64> {
        let start = UInt64(chunk) * UInt64(header.chunkByteCount)
        return start..<min(start + UInt64(header.chunkByteCount), header.payloadByteCount)
    }

    /// The parts of `range` of the payload that are lost, joined where they touch.
    func lost(in range: Range<UInt64>) -> [Range<UInt64>] {
        var parts: [Range<UInt64>] = []
        for hole in holes.overlapping(range, by: \.range) {
            let part = hole.range.clamped(to: range)
            if let last = parts.last, last.upperBound == part.lowerBound {
                parts[parts.count - 1] = last.lowerBound..<part.upperBound
            } else if !part.isEmpty {
                parts.append(part)
            }
        }
        return parts
    }
}
