internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointGroup

/// Which group checkpoint a command uses: the one that a restart would try, or that of one step.
struct GroupChoice {
    private let path: String
    private let decision: GroupDecision
    private let step: UInt64?
    private let isFirst: Bool

    /// - Parameter tried: checkpoints of the same inspection that could not be read.
    init(_ inspection: FolderInspection, without tried: [GroupCheckpointName], step: UInt64?) {
        path = inspection.folder.path
        // Of damaged and void, the choice is the same: they differ only in whether a job may begin.
        decision = GroupSelection.decide(
            inspection.files.map(\.report), rejected: tried.map { .init($0, .damaged) })
        isFirst = tried.isEmpty
        self.step = step
    }

    /// A checkpoint was named, so that another one is no substitute.
    var isPinned: Bool { step != nil }

    /// Of a step, that of the last attempt.
    ///
    /// - Throws: `noCheckpoint` when there is none, `corrupt` when a restart would fail.
    var checkpoint: GroupDecision.Checkpoint {
        get throws(CheckpointError) {
            if decision.problems.contains(where: \.kind.isMixture) { throw refusal }
            if let step {
                let complete = decision.checkpoints.filter(\.isComplete)
                guard let found = complete.first(where: { $0.name.step == step }) else {
                    throw missing(step, complete)
                }
                return found
            }
            switch decision.outcome {
            case .resume(let checkpoint): return checkpoint
            case .begin:
                throw CheckpointError(
                    .noCheckpoint, "\(path): nothing was durable on all ranks; see pcinspect")
            case .refuse where decision.choice == nil && !isFirst:
                throw CheckpointError(
                    .corrupt,
                    "\(path): no checkpoint that is on all ranks can be read; run pcfsck --verify "
                        + "full \(path)")
            case .refuse: throw refusal
            }
        }
    }

    /// The newest checkpoint that may have been durable on all ranks, and cannot be used, when an
    /// older one is taken in its place.
    var lost: GroupRejection? {
        guard !isPinned, let name = decision.lost else { return nil }
        let found = decision.checkpoints.first { $0.name == name }
        let why = found.map { ": \($0.missingText)" } ?? ""
        return GroupRejection(
            name: name,
            message: "\(name), which was durable on all ranks or may have been, is lost\(why)")
    }

    private var refusal: CheckpointError {
        let problems = decision.problems.filter(\.kind.isMixture).map {
            "\($0.path): \($0.message)"
        }
        let text = (RestartText(decision).details + problems).joined(separator: "; ")
        return CheckpointError(
            .corrupt, "\(path): a restart of this job fails: \(text); pcfsck \(path) explains it")
    }

    private func missing(
        _ step: UInt64, _ complete: [GroupDecision.Checkpoint]
    ) -> CheckpointError {
        let known = complete.map { "\($0.name)" }.joined(separator: ", ")
        let there = decision.checkpoints.first { $0.name.step == step }
        let why = there.map { ": \($0.name) is not (\($0.missingText))" } ?? ""
        return CheckpointError(
            .noCheckpoint,
            "\(path): no checkpoint of step \(step) is on all ranks\(why); "
                + (known.isEmpty ? "none is" : "those that are: \(known)"))
    }
}

/// A group checkpoint that was to be used, and could not.
struct GroupRejection {
    let name: GroupCheckpointName
    let message: String

    var json: JSONValue {
        .dictionary([
            "attempt": .integer(name.attempt), "step": .integer(name.step),
            "message": .string(message),
        ])
    }
}

extension GroupDecision.Checkpoint {
    /// What names it, for programs.
    var jsonName: [JSONValue.Member] {
        [
            .init(key: "step", value: .integer(name.step)),
            .init(key: "attempt", value: .integer(name.attempt)),
            .init(key: "world_size", value: .count(worldSize)),
        ]
    }
}
