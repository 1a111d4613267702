internal import ArgumentParser
internal import CheckpointFormat
internal import CheckpointRecovery

struct InspectCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "pcinspect",
        abstract: "Show what a checkpoint file holds. Never modifies it and takes no lock.",
        discussion: """
            Without a subcommand: a summary with a map of the slots. Of a folder with the files of \
            ranks, it shows which ranks have which checkpoints, and from which one the job \
            restarts.

            Exit status: 0 sound, 1 diff found differences, 4 damage was seen, 8 the file cannot \
            be read or is no checkpoint file, 16 usage, 32 cancelled.
            """,
        version: Tool.version,
        subcommands: [
            InspectSummaryCommand.self,
            InspectChunksCommand.self,
            InspectDiffCommand.self,
            InspectHexdumpCommand.self,
            InspectMetadumpCommand.self,
            InspectSlotsCommand.self,
            InspectSuperCommand.self,
            InspectTensorsCommand.self,
            InspectWatchCommand.self,
        ],
        defaultSubcommand: InspectSummaryCommand.self)
}

/// The argument and the option that all of pcinspect's subcommands have.
struct InspectedFile: ParsableArguments {
    @Argument(help: "The checkpoint file or block device.", completion: .file())
    var file: String

    @Flag(help: "Print JSON for programs.")
    var json = false
}

/// Which checkpoint of the file a command is about.
struct CheckpointChoice: ParsableArguments {
    @Option(help: .of("index", "Only the checkpoint in this slot."))
    var slot: UInt32?

    @Option(help: .of("step", "Only a checkpoint of this training step."))
    var step: UInt64?

    func validate() throws {
        if slot != nil && step != nil {
            throw ValidationError("give --slot or --step, not both")
        }
    }

    /// A checkpoint was named, so that another one is no substitute.
    var isPinned: Bool { slot != nil || step != nil }

    func accepts(_ candidate: Candidate) -> Bool {
        slot.map { candidate.slot.rawValue == $0 } ?? true
            && step.map { candidate.step == $0 } ?? true
    }

    /// Why there is none, and what there is instead.
    func missing(_ inspection: Inspection) -> CheckpointError {
        let decision = inspection.decision
        let steps = decision.candidates.map { "step \($0.step) in slot \($0.slot)" }
        let known = steps.isEmpty ? "it holds none" : "it holds \(steps.joined(separator: ", "))"
        if let slot {
            guard let report = decision.slots.first(where: { $0.slot.rawValue == slot }) else {
                return CheckpointError(
                    .noCheckpoint,
                    "\(inspection.path): there is no slot \(slot); slots are 0 to "
                        + "\(decision.slots.count - 1)")
            }
            let why = report.detail.map { ": \($0)" } ?? ""
            return CheckpointError(
                .noCheckpoint,
                "\(inspection.path): slot \(slot) holds no checkpoint that can be read; it is "
                    + "\(report.reason.rawValue)\(why); \(known)", slot: report.slot)
        }
        let wanted = step.map { "of step \($0)" } ?? "that can be read"
        return CheckpointError(
            .noCheckpoint, "\(inspection.path): no checkpoint \(wanted); \(known)")
    }
}
