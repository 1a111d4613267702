internal import CheckpointFormat
internal import CheckpointRecovery

/// A slot that something may be salvaged from: its header is intact and says that it was completed.
struct SalvageSource {
    /// Its table has an entry for every chunk; those in `missingChunks` stand for nothing.
    let candidate: Candidate
    /// Chunks whose table entry is lost.
    let missingChunks: Set<Int>
    /// The table is not the one that the header was sealed with: each entry vouches for its own
    /// chunk only.
    let isTableDamaged: Bool

    /// What can be salvaged, newest first.
    static func all(in inspection: Inspection) -> [SalvageSource] {
        let decision = inspection.decision
        let usable = decision.candidates.map { SalvageSource($0) }
        let damaged = decision.slots.compactMap { report -> SalvageSource? in
            guard report.reason == .tableDamaged, let header = report.header,
                let digest = report.headerDigest
            else { return nil }
            let bytes = inspection.image.slots.first { $0.slot == report.slot }?.table ?? []
            let entries = ChunkTable.survivors(
                decoding: bytes, header: header, geometry: inspection.geometry)
            return SalvageSource(header, digest, entries, inspection.geometry)
        }
        return (usable + damaged).sorted { $0.candidate.sequence > $1.candidate.sequence }
    }

    /// A candidate, whose table is intact.
    init(_ candidate: Candidate) {
        self.init(candidate: candidate, missingChunks: [], isTableDamaged: false)
    }

    private init(candidate: Candidate, missingChunks: Set<Int>, isTableDamaged: Bool) {
        self.candidate = candidate
        self.missingChunks = missingChunks
        self.isTableDamaged = isTableDamaged
    }

    private init(
        _ header: SlotHeader, _ digest: Digest, _ entries: [ChunkEntry?], _ geometry: Geometry
    ) {
        let nothing = ChunkEntry(
            storedOffset: 0, storedByteCount: 0, rawByteCount: 0, codec: .none, planeWidth: 1,
            digest: .zero)
        missingChunks = Set(entries.indices.filter { entries[$0] == nil })
        candidate = Candidate(
            slot: header.slot, header: header, headerDigest: digest,
            table: ChunkTable(entries: entries.map { $0 ?? nothing }), kind: .older,
            geometry: geometry)
        isTableDamaged = true
    }

    /// Why nothing can be salvaged from a slot that was asked for, or from any.
    static func refusal(_ choice: CheckpointChoice, _ inspection: Inspection) -> CheckpointError {
        let decision = inspection.decision
        let torn = decision.slots.first { report in
            report.reason == .writing
                && (choice.slot.map { report.slot.rawValue == $0 } ?? true)
                && (choice.step.map { report.header?.step == $0 } ?? true)
        }
        guard let torn, choice.isPinned else { return choice.missing(inspection) }
        return CheckpointError(
            .corrupt,
            "\(inspection.path): slot \(torn.slot) is torn: its checkpoint of step "
                + "\(torn.header?.step ?? 0) was never completed, so no digest shows which of its "
                + "bytes are right, and nothing of it is written; take another slot, see "
                + "pcextract --list", slot: torn.slot)
    }
}
