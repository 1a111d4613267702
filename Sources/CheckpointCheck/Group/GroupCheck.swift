internal import CheckpointFormat
public import CheckpointGroup

/// One thing that pcfsck found in the files of a group together.
public struct GroupFinding: Hashable, Sendable {
    public let problem: Problem
    /// At most the problem's own severity.
    public let severity: Severity
    /// The file that it is about; nil when it is about several, or about one that is missing.
    public let path: String?
    /// What was found, and what was expected.
    public let text: String

    public var id: String { problem.id }

    init(
        _ problem: Problem, severity: Severity? = nil, path: String? = nil, _ text: String
    ) {
        self.problem = problem
        self.severity = min(severity ?? problem.severity, problem.severity)
        self.path = path
        self.text = text
    }
}

/// What is wrong with the files of a group, beyond what each of them shows alone.
public enum GroupCheck {
    /// Beyond so many ranges of ranks, a text only counts them.
    private static let rangeCountMaximum = 4

    public static func findings(_ decision: GroupDecision) -> [GroupFinding] {
        decision.problems.map { finding($0, decision) }
            + decision.worlds.compactMap { missingFiles($0, decision) }
            + [loss(decision), newest(decision)].compactMap { $0 }
    }

    private static func finding(
        _ problem: GroupDecision.Problem, _ decision: GroupDecision
    ) -> GroupFinding {
        let kind =
            switch problem.kind {
            case .unusable: ProblemCatalogue.rankFileUnusable
            case .noGroup: ProblemCatalogue.noGroup
            case .otherRun: ProblemCatalogue.otherRun
            case .otherName: ProblemCatalogue.otherName
            case .twoFiles: ProblemCatalogue.twoFilesOfOneRank
            case .twoWorlds: ProblemCatalogue.twoWorlds
            }
        // What is not used is harmless where a restart has all that it needs.
        let isHarmless = problem.kind == .noGroup && decision.choice != nil
        return GroupFinding(
            kind, severity: isHarmless ? .warning : .error, path: problem.path, problem.message)
    }

    private static func missingFiles(
        _ world: GroupDecision.World, _ decision: GroupDecision
    ) -> GroupFinding? {
        let missing = world.missing.filter { $0.reason == .noFile }
        if missing.isEmpty { return nil }
        return GroupFinding(
            ProblemCatalogue.rankFileMissing, severity: severity(of: world, decision),
            "no file of \(ranks(missing.map(\.ranks))), expected one of each of the "
                + "\(world.size) ranks")
    }

    /// Whether a restart would need the missing files.
    private static func severity(
        of world: GroupDecision.World, _ decision: GroupDecision
    ) -> Severity {
        let newest = decision.checkpoints.first { $0.worldSize == world.size }
        // Without a checkpoint, the files of a new number of ranks are being created.
        guard let newest else { return .info }
        return decision.choice.map { newest.name < $0.name } ?? false ? .warning : .error
    }

    private static func loss(_ decision: GroupDecision) -> GroupFinding? {
        decision.lost.map {
            GroupFinding(ProblemCatalogue.groupCheckpointLost, absence(of: $0, decision))
        }
    }

    private static func newest(_ decision: GroupDecision) -> GroupFinding? {
        guard let newest = decision.newerIncomplete.first, newest.name != decision.lost else {
            return nil
        }
        return GroupFinding(ProblemCatalogue.newestIncomplete, absence(of: newest.name, decision))
    }

    private static func absence(
        of name: GroupCheckpointName, _ decision: GroupDecision
    ) -> String {
        guard let checkpoint = decision.checkpoints.first(where: { $0.name == name }) else {
            return "\(name) is on no rank, expected it on every rank"
        }
        let isThere = checkpoint.parts.count == Int(checkpoint.worldSize)
        let what = isThere ? "cannot be used" : "is not on every rank"
        return "\(name) \(what): \(checkpoint.missingText)"
    }

    /// `rank 3`, `ranks 3, 5 to 7`.
    private static func ranks(_ ranges: [ClosedRange<UInt32>]) -> String {
        let shown = ranges.prefix(rangeCountMaximum).map { range in
            range.lowerBound == range.upperBound
                ? "\(range.lowerBound)" : "\(range.lowerBound) to \(range.upperBound)"
        }
        let hidden = ranges.dropFirst(rangeCountMaximum).reduce(0) { $0 + $1.count }
        let isOne = ranges.count == 1 && ranges[0].count == 1
        return (isOne ? "rank " : "ranks ") + shown.joined(separator: ", ")
            + (hidden > 0 ? " and \(hidden) others" : "")
    }
}

extension GroupDecision.Absence {
    /// Without the details of a file that has a finding of its own.
    package var shortText: String {
        switch self {
        case .unusable: "its file cannot be used"
        case .twoFiles: "two files"
        default: description
        }
    }
}

extension GroupDecision.Checkpoint {
    /// `rank 3: no file; ranks 5 to 7: not in the file`.
    package var missingText: String {
        let limit = 3
        let shown = missing.prefix(limit).map { run in
            let (first, last) = (run.ranks.lowerBound, run.ranks.upperBound)
            return (first == last ? "rank \(first)" : "ranks \(first) to \(last)")
                + ": \(run.reason.shortText)"
        }
        let hidden = missing.dropFirst(limit).reduce(0) { $0 + $1.count }
        return shown.joined(separator: "; ") + (hidden > 0 ? "; and \(hidden) more ranks" : "")
    }
}
