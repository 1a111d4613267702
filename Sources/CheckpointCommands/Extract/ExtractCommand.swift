internal import ArgumentParser
internal import CheckpointFormat
internal import CheckpointRecovery

struct ExtractCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "pcextract",
        abstract: "Copy a checkpoint out of a file, verifying every byte on the way.",
        usage: """
            pcextract FILE -o OUT [--slot I | --step S] [--format FORMAT]
                      [--tensor GLOB]... [--exclude GLOB]...
                      [--shard-size SIZE] [--flat] [--json] [--quiet]
            pcextract FILE -o DIR --all [...]
            pcextract FILE -o OUT --salvage [--holes skip|zero] [--map FILE]
                      [--manifest-from I] [...]
            pcextract FILE --list [--slot I | --step S] [--tensor GLOB]...
                      [--json]
            pcextract DIR (-o OUT | --list) [--step S] [...]
            """,
        discussion: """
            OUT appears under its name only when it is complete, verified and durable. "-" is \
            standard output; what is written there was verified in full before.

            Without --slot and --step the newest checkpoint is taken. When that is damaged, the \
            next older one is taken instead: standard error reports it, and the exit status is 4 \
            although OUT was written.

            Of a folder with the files of all ranks of a job, OUT gets the whole tensors of the \
            checkpoint from which the job restarts, or of the one with --step that is on all \
            ranks. A tensor that several ranks have, each for itself, is named after its rank: \
            rank-00003/loader.position. --slot, --all, --salvage and standard output are for files.

            Exit status: 0 done, 4 damage was found or something is missing, 8 it failed or there \
            is no such checkpoint, 16 usage, 32 cancelled.
            """,
        version: Tool.version)

    @Argument(
        help: "The checkpoint file, block device, or folder with the files of ranks.",
        completion: .file())
    var file: String

    @Option(
        name: .shortAndLong, help: .of("out", "Where to write; - is standard output."),
        completion: .file())
    var output: String?

    @OptionGroup var choice: CheckpointChoice

    @Flag(help: "Write every checkpoint, each to a file of its own in the directory OUT.")
    var all = false

    @Option(
        help: .of(
            "format",
            "safetensors, raw (the payload's bytes, or the tensors' one after another), npz for "
                + "NumPy, pt for torch.load; default: by the suffix of OUT, else safetensors."))
    var format: OutputFormat?

    @Option(
        name: .customLong("tensor"), parsing: .singleValue,
        help: .of(
            "glob", "Only tensors whose name fits this pattern of * ? [a-z]; may be repeated."))
    var patterns: [String] = []

    @Option(
        name: .customLong("exclude"), parsing: .singleValue,
        help: .of("glob", "No tensor whose name fits this pattern; may be repeated."))
    var exclusions: [String] = []

    @Option(
        help: .of(
            "size",
            "Cut into files of at most this many bytes of tensors, with an index beside them."))
    var shardSize: ByteSize?

    @Flag(help: "pt: the tensors by name, not the state nested as it was saved.")
    var flat = false

    @Flag(help: "Write what is left of a damaged checkpoint, and a map of its holes.")
    var salvage = false

    @Option(
        help: .of(
            "skip|zero",
            "Tensors with holes: skip leaves them out (default), zero fills their holes."))
    var holes: HoleTreatment?

    @Option(
        help: .of("file", "Where the map of the holes goes (default: OUT.holes.json)."),
        completion: .file())
    var map: String?

    @Option(
        help: .of(
            "index",
            "When the names of the tensors are lost, take those of the checkpoint in this slot."))
    var manifestFrom: UInt32?

    @Flag(help: "List the checkpoints of FILE and the tensors of the chosen one; write nothing.")
    var list = false

    @Flag(help: "Print JSON for programs.")
    var json = false

    @Flag(name: .shortAndLong, help: "Say nothing when all goes well.")
    var quiet = false

    var filter: TensorFilter { TensorFilter(patterns: patterns, exclusions: exclusions) }

    func request(path: String) -> OutputPlan.Request {
        OutputPlan.Request(
            format: chosenFormat, path: path, choice: filter, isFlat: flat,
            shardByteCount: shardSize?.byteCount)
    }

    /// A directory's name says nothing of what is written into it.
    var chosenFormat: OutputFormat {
        format ?? (all ? nil : output.flatMap(OutputFormat.init(suffixOf:))) ?? .safetensors
    }

    func validate() throws {
        if list {
            if output != nil { throw ValidationError("--list writes nothing; leave -o out") }
            if all || salvage {
                throw ValidationError("--list shows; leave --all and --salvage out")
            }
            return
        }
        guard let output else {
            throw ValidationError("say where to write with -o OUT, or use --list")
        }
        if all && choice.isPinned {
            throw ValidationError("--all takes every checkpoint; leave --slot and --step out")
        }
        if output == "-" {
            if all { throw ValidationError("--all needs a directory; standard output is none") }
            if json { throw ValidationError("--json goes to standard output, so OUT cannot") }
            if shardSize != nil {
                throw ValidationError("--shard-size makes several files; standard output is one")
            }
            if salvage && map == nil {
                throw ValidationError("say with --map FILE where the map of the holes goes")
            }
        }
        if !salvage && (holes != nil || map != nil || manifestFrom != nil) {
            throw ValidationError("--holes, --map and --manifest-from go with --salvage")
        }
        if all && map != nil { throw ValidationError("with --all each file has a map of its own") }
        if all && manifestFrom != nil {
            throw ValidationError("--manifest-from goes with one checkpoint; leave --all out")
        }
        try validateFormat()
    }

    private func validateFormat() throws {
        if let shardSize {
            guard chosenFormat.hasShards else {
                throw ValidationError("--shard-size goes with --format safetensors or pt")
            }
            guard shardSize.byteCount > 0 else {
                throw ValidationError("--shard-size must be at least 1")
            }
        }
        if flat && chosenFormat != .pt { throw ValidationError("--flat goes with --format pt") }
    }

    func execute() throws -> ExitStatus {
        if RankFolder.isFolder(file) { return try GroupExtraction(self).run() }
        let inspection = try Inspection(path: file)
        if let loss = inspection.decision.lostEndError {
            Output.diagnostics.line("\("pcextract:", .yellow) \(loss.about(file).message)")
        }
        if list {
            let listing = try ExtractListing(inspection, choice, filter)
            if json {
                Output.standard.write(listing.json().bytes)
            } else {
                listing.show(on: .standard)
            }
            return inspection.status
        }
        let extraction = Extraction(command: self, inspection: inspection, output: output ?? "-")
        return all ? try extraction.all() : try extraction.one()
    }
}
