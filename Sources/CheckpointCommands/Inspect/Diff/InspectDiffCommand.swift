internal import ArgumentParser
internal import CheckpointFormat
internal import CheckpointRecovery

struct InspectDiffCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "diff",
        abstract: "Which tensors differ between two checkpoints, and how much.",
        usage: """
            pcinspect diff FILE [--slots I J | --steps S T] [--tensor GLOB]... [--top N] [--json]
            pcinspect diff FILE FILE2 [--slots I J | --steps S T] [--tensor GLOB]... [--json]
            """,
        discussion: """
            With one file: its two newest checkpoints, the older one first, or those that are \
            chosen. With two files: the newest of each, or the one that is chosen in each.

            Exit status: 0 tensors and metadata are the same, 1 they differ, 4 damage was seen \
            (5: both), 8 a file cannot be read or has no such checkpoint, 16 usage, 32 cancelled.
            """)

    @Argument(help: "One checkpoint file, or two.", completion: .file())
    var files: [String]

    @Option(parsing: .upToNextOption, help: .of("index", "The checkpoints in these two slots."))
    var slots: [UInt32] = []

    @Option(
        parsing: .upToNextOption, help: .of("step", "The checkpoints of these two training steps."))
    var steps: [UInt64] = []

    @Option(
        name: .customLong("tensor"), parsing: .singleValue,
        help: .of(
            "glob", "Only tensors whose name fits this pattern of * ? [a-z]; may be repeated."))
    var patterns: [String] = []

    @Option(help: .of("n", "List so many tensors, those that changed most first; 0 lists all."))
    var top: UInt32 = 20

    @Flag(help: "Print JSON for programs.")
    var json = false

    func validate() throws {
        guard (1...2).contains(files.count) else {
            throw ValidationError("give one file or two")
        }
        guard slots.isEmpty || steps.isEmpty else {
            throw ValidationError("give --slots or --steps, not both")
        }
        guard [0, 2].contains(slots.count), [0, 2].contains(steps.count) else {
            throw ValidationError("--slots and --steps take two numbers")
        }
    }

    func execute() throws -> ExitStatus {
        let first = try Inspection(path: files[0])
        let second = files.count == 2 ? try Inspection(path: files[1]) : first
        let chosen = try choose(first, second)
        let report = try DiffReport(
            ComparedCheckpoint(first, chosen.0, patterns: patterns),
            ComparedCheckpoint(second, chosen.1, patterns: patterns))
        if json {
            Output.standard.write(report.json(top: Int(top)).bytes)
        } else {
            Output.standard.show(DiffScreen(report, top: Int(top)).lines(width:))
        }
        return report.status.union(first.status).union(second.status)
    }

    private func choose(
        _ first: Inspection, _ second: Inspection
    ) throws(CheckpointError) -> (SelectedCheckpoint, SelectedCheckpoint) {
        func choice(_ index: Int) -> CheckpointChoice {
            var choice = CheckpointChoice()
            choice.slot = slots.isEmpty ? nil : slots[index]
            choice.step = steps.isEmpty ? nil : steps[index]
            return choice
        }
        if files.count == 2 || !(slots.isEmpty && steps.isEmpty) {
            return (try first.shown(choice(0)), try second.shown(choice(1)))
        }
        let count = first.decision.candidates.count
        guard count >= 2 else {
            throw CheckpointError(
                .noCheckpoint,
                "\(first.path): it holds \(Quantity.plural(count, "checkpoint")), but "
                    + "a comparison takes two; name a second file")
        }
        let one = try first.shown(choice(0))
        // A writer may have put a newer one in its place meanwhile.
        let other = try first.shown(choice(0)) { $0.slot != one.candidate.slot }
        return one.candidate.sequence < other.candidate.sequence ? (one, other) : (other, one)
    }
}
