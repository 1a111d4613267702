internal import CheckpointFormat
internal import CheckpointRecovery

/// What may be written of a file, newest first: the candidates of a search, and among them slots
/// whose chunk table is damaged, which no search finds.
final class SalvageSources {
    private let inspection: Inspection
    private let known: [SalvageSource]
    private let isWanted: (Candidate) -> Bool
    private var damagedTables: [SalvageSource]
    private var done: Set<Digest> = []
    private var search: Load?
    /// Found by the search, and older than a damaged table that goes first.
    private var waiting: SelectedCheckpoint?
    /// Whether the last one was found by the search.
    private var isFromSearch = false

    init(_ inspection: Inspection, where isWanted: @escaping (Candidate) -> Bool = { _ in true }) {
        self.inspection = inspection
        self.isWanted = isWanted
        known = SalvageSource.all(in: inspection)
        damagedTables = known.filter { $0.isTableDamaged && isWanted($0.candidate) }
    }

    var isEmpty: Bool { known.isEmpty }

    func knows(_ slot: SlotIndex) -> Bool { known.contains { $0.candidate.slot == slot } }

    func count(ofStep step: UInt64) -> Int { known.count { $0.candidate.step == step } }

    /// What the search passed over.
    var rejections: [Load.Rejection] {
        (search?.rejections ?? []).filter { $0.error.code != .busy }
    }

    /// The next one, pinned; nil at the end.
    ///
    /// - Throws: `busy` when nothing was found, because a writer has every candidate.
    func next(proof: Proof = .waived) throws(CheckpointError) -> (
        SalvageSource, SelectedCheckpoint
    )? {
        var found = waiting
        waiting = nil
        if found == nil { found = try nextCandidate(proof) }
        if let damaged = damagedTables.first,
            damaged.candidate.sequence > found?.candidate.sequence ?? .none
        {
            damagedTables.removeFirst()
            waiting = found
            isFromSearch = false
            let reader = CheckpointReader(
                storage: inspection.storage, decision: inspection.decision)
            do throws(CheckpointError) {
                return (damaged, try reader.select(damaged.candidate, proof: .waived))
            } catch {
                // A writer has taken the slot: its table was never damaged.
                if error.code != .busy { throw error }
                return try next(proof: proof)
            }
        }
        guard let found else { return nil }
        isFromSearch = true
        done.insert(found.candidate.headerDigest)
        return (SalvageSource(found.candidate), found)
    }

    private func nextCandidate(_ proof: Proof) throws(CheckpointError) -> SelectedCheckpoint? {
        let search =
            self.search
            ?? inspection.search(proof: proof) { [unowned self] candidate in
                isWanted(candidate) && !done.contains(candidate.headerDigest)
            }
        self.search = search
        do throws(CheckpointError) {
            return try search.next()
        } catch {
            switch error.code {
            case .noCheckpoint, .corrupt, .inputOutput: return nil
            case .busy where !done.isEmpty: return nil
            default: throw error
            }
        }
    }

    /// Says that the last one cannot be used; `busy` makes the search start over.
    func reject(_ error: CheckpointError) throws(CheckpointError) {
        guard [.corrupt, .inputOutput, .busy].contains(error.code) else { throw error }
        if error.code == .busy && isFromSearch { try search?.reject(error) }
    }
}
