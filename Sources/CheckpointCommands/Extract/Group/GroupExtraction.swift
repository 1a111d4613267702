internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointGroup
internal import CheckpointRecovery

/// One run of pcextract on a folder with the files of ranks: which group checkpoint, and what is
/// said of it.
struct GroupExtraction {
    /// How often it decides again because a writer took a slot, which each time is a newer
    /// checkpoint's doing.
    private static let attemptCount = 16

    private let command: ExtractCommand
    private let target: ExtractionTarget?

    /// - Throws: `invalidArgument` for options that make no sense for a folder.
    init(_ command: ExtractCommand) throws(CheckpointError) {
        self.command = command
        try Self.refuseOptions(command)
        guard let output = command.output else {
            target = nil
            return
        }
        for file in try RankFolder(path: command.file).files {
            _ = try OutputPath.kind(output, source: file)
        }
        let target = try ExtractionTarget(output, source: command.file)
        guard target.path != nil else {
            throw CheckpointError(
                .invalidArgument,
                "\(target.name): the parts of ranks are put together at offsets, which a stream "
                    + "does not have; name a file with -o")
        }
        self.target = target
    }

    private static func refuseOptions(_ command: ExtractCommand) throws(CheckpointError) {
        func refuse(_ text: String) throws(CheckpointError) {
            throw CheckpointError(.invalidArgument, "\(command.file) is a folder: \(text)")
        }
        if command.choice.slot != nil {
            try refuse("a slot is of one file; name the step with --step, or a file of a rank")
        }
        if command.all {
            try refuse("--all is about one file; name a step with --step")
        }
        if command.salvage {
            try refuse(
                "--salvage is about one file; name the file of a rank, or pccheck rescue the folder"
            )
        }
        if let output = command.output, RankFileName(path: output) != nil {
            try refuse("\(output) has the name of a rank's file; choose another name")
        }
    }

    func run() throws(CheckpointError) -> ExitStatus {
        var passed: [GroupRejection] = []
        for _ in 1..<Self.attemptCount {
            do throws(CheckpointError) {
                return try attempt(&passed)
            } catch {
                guard error.code == .busy else { throw error }
            }
        }
        return try attempt(&passed)
    }

    private func attempt(
        _ passed: inout [GroupRejection]
    ) throws(CheckpointError) -> ExitStatus {
        let inspection = try FolderInspection(path: command.file)
        var tried: [GroupCheckpointName] = []
        var fallingFrom: GroupCheckpointName?
        while true {
            let choice = GroupChoice(inspection, without: tried, step: command.choice.step)
            if let lost = choice.lost, add(lost, to: &passed) { fallingFrom = lost.name }
            let checkpoint = try choice.checkpoint
            if let name = fallingFrom {
                Output.diagnostics.line(
                    "\(Self.label) falling back to \(checkpoint.name) from \(name)")
                fallingFrom = nil
            }
            do throws(CheckpointError) {
                return try use(checkpoint, inspection, passed)
            } catch {
                guard !choice.isPinned, error.code == .corrupt || error.code == .inputOutput else {
                    throw error
                }
                tried.append(checkpoint.name)
                let rejection = GroupRejection(name: checkpoint.name, message: error.message)
                if add(rejection, to: &passed) { fallingFrom = checkpoint.name }
            }
        }
    }

    private func use(
        _ checkpoint: GroupDecision.Checkpoint, _ inspection: FolderInspection,
        _ passed: [GroupRejection]
    ) throws(CheckpointError) -> ExitStatus {
        let passing: ExitStatus = passed.isEmpty ? .clean : .uncorrected
        guard let target else {
            return try list(inspection, checkpoint).union(passing)
        }
        report(try extract(checkpoint, to: target), passed, inspection)
        return passing
    }

    private func extract(
        _ checkpoint: GroupDecision.Checkpoint, to target: ExtractionTarget
    ) throws(CheckpointError) -> GroupExtractionResult {
        let opened = try OpenedGroupCheckpoint(checkpoint)
        let joined = try JoinedState(opened)
        let request = command.request(path: target.path ?? target.name)
        let plan = try OutputPlan(
            request,
            OutputPlan.Source(
                name: checkpoint.jsonName, payloadByteCount: 0, manifest: joined.manifest,
                tensors: try request.choice.selectSome(from: joined.manifest), isWhole: false))
        let copy = GroupCopy(checkpoint: opened, joined: joined)
        try target.writeFiles(plan) { file, title, sink throws(CheckpointError) in
            try copy.write(file, title: title, to: sink)
        }
        return GroupExtractionResult(checkpoint, request, plan, remarks: joined.remarks)
    }

    // MARK: What is said

    private static let label = StyledText("pcextract:", .yellow)

    /// Standard error reports each rejection once.
    ///
    /// - Returns: whether it is a new one.
    private func add(_ rejection: GroupRejection, to passed: inout [GroupRejection]) -> Bool {
        if passed.contains(where: { $0.name == rejection.name }) { return false }
        passed.append(rejection)
        Output.diagnostics.line("\(Self.label) \(rejection.message)")
        return true
    }

    private func report(
        _ result: GroupExtractionResult, _ passed: [GroupRejection], _ inspection: FolderInspection
    ) {
        if command.json {
            Output.standard.document(
                "pcextract",
                [
                    "action": .string("extract"),
                    "path": .string(command.file),
                    "output": .text(command.output),
                    "decision": inspection.decision.json,
                    "checkpoint": result.json,
                    "rejected": .array(passed.map(\.json)),
                ])
        } else if !command.quiet {
            result.lines(name: target?.name ?? "").forEach(Output.diagnostics.line)
        }
    }

    /// The checkpoints, and the tensors of `checkpoint`.
    private func list(
        _ inspection: FolderInspection, _ checkpoint: GroupDecision.Checkpoint
    ) throws(CheckpointError) -> ExitStatus {
        let joined = try JoinedState(OpenedGroupCheckpoint(checkpoint))
        let tensors = command.filter.select(from: joined.manifest)
        if command.json {
            JSONValue.document(
                tool: "pcextract",
                [
                    "action": .string("list"),
                    "path": .string(command.file),
                    "decision": inspection.decision.json,
                    "checkpoint": .object(checkpoint.jsonName),
                ]
            ).write(
                to: .standard, listing: "tensors", tensors.lazy.map { .object($0.jsonMembers) })
            return inspection.status
        }
        var table = TableLayout([
            .right("step"), .right("attempt"), .right("ranks"), .left("on all ranks"),
        ])
        for checkpoint in inspection.decision.checkpoints {
            table.add([
                "\(checkpoint.name.step)", "\(checkpoint.name.attempt)", "\(checkpoint.worldSize)",
                StyledText(checkpoint.isComplete ? "yes" : "no, \(checkpoint.missingText)"),
            ])
        }
        let output = Output.standard
        output.line("\("checkpoints", .bold), in the order in which they are tried")
        output.show(table.lines(width:))
        output.line()
        TensorScreen.forEachLine(
            "\("\(checkpoint.name)", .bold) on \(Quantity.plural(checkpoint.parts.count, "rank"))",
            tensors, metadata: [], width: output.columnCount
        ) { output.line($0) }
        return inspection.status
    }
}
