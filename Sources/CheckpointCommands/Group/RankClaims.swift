internal import CheckpointFormat

/// What the ranks of a group checkpoint claimed of what they hold together: spec/STATE.md, "What
/// ranks claim". The parts of ranks that did not hold the same do not fit together.
struct RankClaims {
    /// The metadata of a part that records them.
    static let metadataKey = "pccheck.group"

    /// Ranks that hold something together: the digest of what each of them claimed.
    private var digests: [[StateNode]: [UInt32: StateNode]] = [:]
    /// The ranks that made claims. One that made none is not compared: it knew that all ranks had
    /// compared this layout before, while another one may not have known yet.
    private var ranks: Set<UInt32> = []

    /// - Parameter record: `pccheck.group` of the part of `rank`; nil where there is none.
    mutating func add(_ record: String?, rank: UInt32) throws(StateDocumentError) {
        guard let record, let claims = try StateNode.parsed(record)["claims"] else { return }
        ranks.insert(rank)
        for claim in claims.items ?? [] {
            guard let pair = claim.items, pair.count == 2, let holders = pair[0].items else {
                throw StateDocumentError("a claim is no pair of ranks and digest")
            }
            digests[holders, default: [:]][rank] = pair[1]
        }
    }

    /// Which ranks did not hold the same; nil when all did, as far as they claimed something.
    var difference: String? {
        for (holders, byRank) in digests {
            let present = ranks.filter { holders.contains(.number("\($0)")) }.sorted()
            let groups = Dictionary(grouping: present) { byRank[$0] }
            if groups.count > 1 {
                let texts = groups.values.sorted { $0[0] < $1[0] }.map { ranks in
                    "\(ranks.count > 1 ? "ranks" : "rank") "
                        + ranks.map(String.init).joined(separator: ", ")
                }
                return "it is void: the ranks did not hold the same when they saved it: "
                    + texts.joined(separator: " held other values than ")
            }
        }
        return nil
    }
}
