public import CheckpointFormat
public import CheckpointRecovery

/// What the files of a folder are together, and from which checkpoint a restart continues:
/// GROUP.md, "Restart". It is the same for every rank that has the same reports.
public struct GroupDecision: Sendable {
    /// The part of one rank in a group checkpoint.
    public struct Part: Hashable, Sendable {
        public let rank: UInt32
        public let path: String
        public let slot: SlotIndex
        public let sequence: SequenceNumber
        public let reason: SlotReason
    }

    /// A checkpoint of an earlier decision from the same reports, which was tried and not used.
    public struct Rejection: Hashable, Sendable {
        public enum Cause: String, Hashable, Sendable, CaseIterable {
            /// A part of it could not be read, or did not verify.
            case damaged
            /// The ranks did not hold the same, so it was never durable on all ranks.
            case void
        }

        public let name: GroupCheckpointName
        public let cause: Cause

        public init(_ name: GroupCheckpointName, _ cause: Cause) {
            self.name = name
            self.cause = cause
        }
    }

    /// Why a rank has no part in a group checkpoint.
    public enum Absence: Hashable, Sendable, CustomStringConvertible {
        case noFile
        /// The name of the file names the rank, and the file cannot be used.
        case unusable(path: String, message: String)
        case twoFiles(String, String)
        /// A slot of this name exists, and holds no complete checkpoint.
        case incomplete(SlotReason, isLoss: Bool)
        /// No slot has this name; so many slots are damaged, and may have had it.
        case notInFile(damagedSlotCount: Int)
        /// The part is there, and the checkpoint was rejected.
        case rejected(Rejection.Cause, isLoss: Bool)

        /// The rank may have had a durable part, and lost it. A slot in state writing never did.
        var isLoss: Bool {
            switch self {
            case .incomplete(_, let isLoss), .rejected(_, let isLoss): isLoss
            case .notInFile(let count): count > 0
            case .noFile, .unusable, .twoFiles: true
            }
        }

        /// What the file holds is unknown now, and may be known later.
        var isUnreachable: Bool {
            switch self {
            case .noFile, .unusable, .twoFiles: true
            case .incomplete, .notInFile, .rejected: false
            }
        }

        public var description: String {
            switch self {
            case .noFile: "no file"
            case .unusable(let path, let message):
                message.contains(path) ? message : "\(path): \(message)"
            case .twoFiles(let first, let second): "two files: \(first) and \(second)"
            case .incomplete(.writing, _): "never completed: its slot is in state writing"
            case .incomplete(let reason, _): "its slot is \(reason.rawValue)"
            case .rejected(.damaged, _): "it was rejected when its parts were read"
            case .rejected(.void, _): "the ranks did not hold the same"
            case .notInFile(0): "not in the file"
            case .notInFile(1): "not in the file, of which one slot is damaged"
            case .notInFile(let count): "not in the file, of which \(count) slots are damaged"
            }
        }
    }

    /// Consecutive ranks without a part, for one reason.
    public struct Missing: Hashable, Sendable, CustomStringConvertible {
        public let ranks: ClosedRange<UInt32>
        public let reason: Absence

        public var count: Int { Int(ranks.upperBound - ranks.lowerBound) + 1 }
        public var description: String {
            let (first, last) = (ranks.lowerBound, ranks.upperBound)
            return first == last
                ? "rank \(first): \(reason)" : "ranks \(first) to \(last): \(reason)"
        }
    }

    public struct Checkpoint: Hashable, Sendable {
        public let name: GroupCheckpointName
        public let worldSize: UInt32
        /// By rank.
        public let parts: [Part]
        /// By rank; every rank, of a checkpoint that was rejected.
        public let missing: [Missing]

        /// Every rank of its world has its part, and it was not rejected.
        public var isComplete: Bool { missing.isEmpty }

        /// It may have been durable on all ranks: each missing part may be lost. Files exist on
        /// every rank before the first save of an attempt.
        public var mayHaveBeenComplete: Bool { missing.allSatisfy(\.reason.isLoss) }
    }

    /// The files of one number of ranks.
    public struct World: Hashable, Sendable {
        public let size: UInt32
        /// Of those that can be used, by rank.
        public let files: [GroupFileReport]
        /// Ranks without such a file.
        public let missing: [Missing]
    }

    /// Something that makes the files no group, or that makes one of them unusable.
    public struct Problem: Hashable, Sendable {
        public enum Kind: String, Hashable, Sendable, CaseIterable {
            /// It cannot be read, or holds no checkpoint file.
            case unusable
            /// It is a file without a group.
            case noGroup = "no-group"
            case otherRun = "other-run"
            /// Its name names another rank or world than its identity block.
            case otherName = "other-name"
            /// Another file is of the same rank of the same world.
            case twoFiles = "two-files"
            /// Its attempt also has checkpoints of another number of ranks.
            case twoWorlds = "two-worlds"

            /// Histories are mixed: nothing continues before a person has sorted the files.
            public var isMixture: Bool { self != .unusable && self != .noGroup }
        }

        public let kind: Kind
        public let path: String
        /// What was found, what was expected, and what to do.
        public let message: String
    }

    /// What a restart does.
    public enum Outcome: Hashable, Sendable {
        case resume(Checkpoint)
        /// Nothing was ever durable on all ranks: from step 0.
        case begin
        /// The restart fails. This checkpoint was durable on all ranks, or may have been, and is
        /// not complete now; nil: files cannot be used, or do not belong together.
        case refuse(GroupCheckpointName?)
    }

    /// nil when there are no files of a group.
    public let run: Identifier128?
    /// Above every attempt in the reports; nil when the numbers are used up, which no run reaches.
    public let nextAttempt: UInt64?
    /// The newest one of all files.
    public let watermark: GroupCheckpointName?
    /// Newest first: every complete one, and the newest incomplete ones.
    public let checkpoints: [Checkpoint]
    /// Incomplete ones that are not in `checkpoints`.
    public let omittedCount: Int
    /// The largest first.
    public let worlds: [World]
    /// By path.
    public let problems: [Problem]

    /// How many incomplete checkpoints are described. A file holds at most 17, and all ranks save
    /// the same steps, so that only hostile files have more.
    public static let incompleteCountMaximum = 128

    /// The checkpoint that a restart tries first.
    public var choice: Checkpoint? { checkpoints.first(where: \.isComplete) }

    /// Newer than the choice, and not complete.
    public var newerIncomplete: ArraySlice<Checkpoint> { checkpoints.prefix { !$0.isComplete } }

    /// The newest checkpoint that was durable on all ranks, or may have been, when only older ones
    /// are complete now.
    public var lost: GroupCheckpointName? {
        let newest = [watermark, newerIncomplete.first(where: \.mayHaveBeenComplete)?.name]
            .compactMap { $0 }.max()
        return newest.flatMap { newest in
            choice.map { $0.name < newest } ?? true ? newest : nil
        }
    }

    public var outcome: Outcome {
        if problems.contains(where: \.kind.isMixture) { return .refuse(lost) }
        if let choice {
            return away.map { .refuse($0) } ?? .resume(choice)
        }
        return lost == nil && problems.isEmpty ? .begin : .refuse(lost)
    }

    /// The newest checkpoint above the choice that may be complete once a file is back: to continue
    /// from the older one would make it void.
    private var away: GroupCheckpointName? {
        let known = newerIncomplete.first { checkpoint in
            (checkpoint.mayHaveBeenComplete || checkpoint.name == watermark)
                && checkpoint.missing.contains(where: \.reason.isUnreachable)
        }
        if let known { return known.name }
        // Of the watermark no file may have a part.
        guard let lost, !checkpoints.contains(where: { $0.name == lost }) else { return nil }
        return worlds.contains { $0.missing.contains(where: \.reason.isUnreachable) } ? lost : nil
    }
}
