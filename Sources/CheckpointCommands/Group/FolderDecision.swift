internal import CheckpointFormat
internal import CheckpointGroup
internal import CheckpointRecovery

/// Where a restart continues, when the ranks have also compared what they claimed: GROUP.md,
/// "Restart", step 3. What a part stores is not read, except for its manifest.
enum FolderDecision {
    /// Reading a manifest waits for the device most of the time.
    private static let threadCount = 8

    /// - Parameter reports: of files at the paths that they name.
    /// - Throws: `cancelled` after a signal.
    static func decide(_ reports: [GroupReport]) throws(CheckpointError) -> GroupDecision {
        var rejected: [GroupDecision.Rejection] = []
        while true {
            let decision = GroupSelection.decide(reports, rejected: rejected)
            guard case .resume(let checkpoint) = decision.outcome,
                try difference(checkpoint) != nil
            else { return decision }
            rejected.append(.init(checkpoint.name, .void))
        }
    }

    private static func difference(
        _ checkpoint: GroupDecision.Checkpoint
    ) throws(CheckpointError) -> String? {
        let progress = ProgressBar(
            "comparing the claims of \(checkpoint.name)", total: UInt64(checkpoint.parts.count),
            .files)
        defer { progress.finish() }
        var claims = RankClaims()
        OrderedWork.run(checkpoint.parts.count, threadCount: threadCount) { index in
            Interruption.isRequested ? nil : record(checkpoint.parts[index], checkpoint.name)
        } consume: { index, record in
            // A claim that cannot be read is no difference: a load reports what is damaged.
            try? claims.add(record, rank: checkpoint.parts[index].rank)
            progress.update(UInt64(index + 1))
        }
        try Interruption.check()
        return claims.difference
    }

    /// What the part keeps of the claims of its rank.
    private static func record(
        _ part: GroupDecision.Part, _ name: GroupCheckpointName
    ) -> String? {
        let selected = try? OpenedGroupCheckpoint.select(part, name)
        return (try? selected?.tensorManifest())?.value(of: RankClaims.metadataKey)
    }
}
