internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointGroup

/// From where a job continues, on which numbers of ranks, and why not from something newer.
struct RestartText {
    /// Newer checkpoints that are explained one by one.
    private static let newerCountMaximum = 4

    let head: StyledText
    /// A sentence each.
    let details: [String]

    init(_ decision: GroupDecision) {
        var details: [String] = []
        switch decision.outcome {
        case .resume(let checkpoint):
            head = "continues from \("\(checkpoint.name)", .green)"
            details.append(Self.ranks(checkpoint.worldSize))
        case .begin:
            head = "starts from the beginning: nothing was durable on all ranks"
        case .refuse(let name):
            head = StyledText("fails", .red)
            if decision.problems.contains(where: \.kind.isMixture) {
                self.details = ["files do not belong together"]
                return
            }
            details += Self.refusal(name, decision)
        }
        let newer = decision.newerIncomplete
        for checkpoint in newer.prefix(Self.newerCountMaximum) {
            details.append("not \(checkpoint.name): \(checkpoint.missingText)")
        }
        let hidden = max(0, newer.count - Self.newerCountMaximum) + decision.omittedCount
        if hidden > 0 {
            details.append(
                "nor \(Quantity.plural(hidden, "other checkpoint")) that some ranks lack")
        }
        self.details = details
    }

    private static func refusal(
        _ name: GroupCheckpointName?, _ decision: GroupDecision
    ) -> [String] {
        guard let name else { return ["files cannot be used, and no checkpoint is complete"] }
        let was = "\(name) was durable on all ranks, or may have been"
        guard let choice = decision.choice else {
            return ["\(was), and no checkpoint is complete"]
        }
        return [
            "\(was), and a file that it needs may come back",
            "to continue from \(choice.name) all the same, name this step",
        ]
    }

    private static func ranks(_ worldSize: UInt32) -> String {
        worldSize == 1
            ? "on 1 rank, from its own file; on more ranks, all of them read this file"
            : "on \(worldSize) ranks, each from its own file; on another number of ranks, from all "
                + "\(worldSize) files"
    }
}
