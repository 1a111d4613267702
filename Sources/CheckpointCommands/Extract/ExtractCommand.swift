internal import ArgumentParser
internal import CheckpointFormat
internal import CheckpointRecovery

struct ExtractCommand: ToolCommand {
    enum Format: String, ExpressibleByArgument, CaseIterable {
        case safetensors, raw
    }

    static let configuration = CommandConfiguration(
        commandName: "pcextract",
        abstract: "Copy a checkpoint out of a file, verifying every byte on the way.",
        usage: """
            pcextract FILE -o OUT [--slot I | --step S] [--format safetensors|raw]
                      [--tensor GLOB]... [--quiet]
            pcextract FILE --list [--slot I | --step S] [--tensor GLOB]...
            """,
        discussion: """
            OUT appears under its name only when it is complete, verified and durable. "-" is \
            standard output; what is written there was verified in full before.

            Without --slot and --step the newest checkpoint is taken. When that is damaged, the \
            next older one is taken instead: standard error says so, and the exit status is 4 \
            although OUT was written.

            Exit status: 0 done, 4 damage was found, 8 it failed or there is no such checkpoint, \
            16 usage, 32 cancelled.
            """,
        version: Tool.version)

    @Argument(help: "The checkpoint file or block device.", completion: .file())
    var file: String

    @Option(
        name: .shortAndLong,
        help: ArgumentHelp("Where to write; - is standard output.", valueName: "out"),
        completion: .file())
    var output: String?

    @OptionGroup var choice: CheckpointChoice

    @Option(
        help: ArgumentHelp(
            "safetensors: a .safetensors file. raw: the payload's bytes, or with --tensor the "
                + "tensors' bytes one after another.",
            valueName: "safetensors|raw"))
    var format = Format.safetensors

    @Option(
        name: .customLong("tensor"), parsing: .singleValue,
        help: ArgumentHelp(
            "Only tensors whose name fits this pattern of * ? [a-z]; may be repeated.",
            valueName: "glob"))
    var patterns: [String] = []

    @Flag(help: "List the checkpoints of FILE and the tensors of the chosen one; write nothing.")
    var list = false

    @Flag(name: .shortAndLong, help: "Say nothing when all goes well.")
    var quiet = false

    func validate() throws {
        if !list && output == nil {
            throw ValidationError("say where to write with -o OUT, or use --list")
        }
        if list && output != nil {
            throw ValidationError("--list writes nothing; leave -o out")
        }
    }

    func execute() throws -> ExitStatus {
        let inspection = try Inspection(path: file)
        if list { return try listContent(inspection) }
        let target = try ExtractionTarget(output ?? "-", source: file)
        var damage = sayWhatIsLost(inspection)
        let (candidate, content) = try newestThatWorks(inspection, isDamaged: &damage) {
            selected throws(CheckpointError) -> ExtractedContent? in
            let content = try ExtractedContent(selected, format: format, patterns: patterns)
            return try target.write(content, from: selected) ? content : nil
        }
        if let content, !quiet { report(candidate, content, target) }
        return damage ? .uncorrected : .clean
    }

    /// Says when the newest durable checkpoint is too damaged to be tried at all.
    private func sayWhatIsLost(_ inspection: Inspection) -> Bool {
        guard !choice.isPinned, !inspection.isWriterAtWork, let loss = inspection.loss,
            let next = inspection.decision.candidates.first
        else { return false }
        let why = loss.report.detail.map { ": \($0)" } ?? ""
        Output.diagnostics.line(
            """
            \("pcextract:", .yellow) step \(loss.anchor.step), the newest durable checkpoint, is \
            lost: slot \(loss.anchor.slot) is \(loss.report.reason.rawValue)\(why); falling back \
            to step \(next.step) in slot \(next.slot)
            """)
        return true
    }

    /// Gives the newest checkpoint that fits to `use`, then the next one when it is damaged and
    /// was not asked for by name.
    private func newestThatWorks<Value>(
        _ first: Inspection, isDamaged: inout Bool,
        _ use: (SelectedCheckpoint) throws(CheckpointError) -> Value
    ) throws(CheckpointError) -> (Candidate, Value) {
        var inspection = first
        var rejected: CheckpointError?
        var retryCount = 0
        var remaining = inspection.decision.candidates.filter(choice.accepts)
        while let candidate = remaining.first {
            remaining.removeFirst()
            let reader = CheckpointReader(
                storage: inspection.storage, decision: inspection.decision)
            do throws(CheckpointError) {
                let selected = try reader.select(candidate)
                defer { selected.close() }
                return (candidate, try use(selected))
            } catch {
                if error.code == .busy, retryCount < 16 {
                    // A writer took the slot: there is something newer by now.
                    retryCount += 1
                    inspection = try Inspection(path: file)
                    remaining = inspection.decision.candidates.filter(choice.accepts)
                    continue
                }
                guard [.corrupt, .inputOutput, .busy].contains(error.code) else { throw error }
                if choice.isPinned { throw error }
                isDamaged = true
                rejected = error
                sayFallingBack(from: candidate, error, to: remaining.first)
            }
        }
        if rejected != nil {
            throw CheckpointError(
                .corrupt, "\(file): every checkpoint is damaged; run pcfsck --verify full \(file)")
        }
        throw choice.missing(inspection)
    }

    private func sayFallingBack(
        from candidate: Candidate, _ error: CheckpointError, to next: Candidate?
    ) {
        let output = Output.diagnostics
        output.line("\("pcextract:", .yellow) \(error.message)")
        if let next {
            output.line(
                """
                \("pcextract:", .yellow) step \(candidate.step) is damaged; falling back to step \
                \(next.step) in slot \(next.slot)
                """)
        }
    }

    private func report(
        _ candidate: Candidate, _ content: ExtractedContent, _ target: ExtractionTarget
    ) {
        let tensors =
            content.tensors.map { " with \(Quantity.plural($0.count, "tensor"))" } ?? ""
        Output.diagnostics.line(
            """
            step \(candidate.step) from slot \(candidate.slot): \
            \(Quantity.bytes(content.byteCount))\(tensors), every digest verified, written to \
            \(target.name)
            """)
    }

    private func listContent(_ inspection: Inspection) throws(CheckpointError) -> ExitStatus {
        let output = Output.standard
        var table = TableLayout([
            .right("step"), .right("slot"), .right("sequence"), .left("kind"), .right("payload"),
            .right("age"),
        ])
        for candidate in inspection.decision.candidates {
            let header = candidate.header
            table.add([
                "\(candidate.step)", "\(candidate.slot)", "\(candidate.sequence)",
                "\(candidate.kind.rawValue)", "\(Quantity.bytes(header.payloadByteCount))",
                "\(Quantity.age(of: header.completedTime, now: inspection.now))",
            ])
        }
        let candidate = try choice.newest(of: inspection)
        output.line("\("checkpoints", .bold), in the order in which they are tried")
        table.lines(width: output.columnCount).forEach(output.line)
        if candidate.header.payloadKind == .safetensors {
            let reader = CheckpointReader(
                storage: inspection.storage, decision: inspection.decision)
            let selected = try reader.select(candidate)
            defer { selected.close() }
            let manifest = try Manifest.read(selected)
            output.line()
            TensorScreen.lines(
                candidate, Manifest.select(patterns, from: manifest), metadata: [],
                width: output.columnCount
            ).forEach(output.line)
        } else {
            output.line()
            output.line("slot \(candidate.slot) holds opaque bytes; use --format raw")
        }
        return inspection.status
    }
}
