internal import ArgumentParser
internal import CheckpointFormat
internal import CheckpointWriter

struct ResizeCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "resize",
        abstract: "Give a file another capacity or other slots, and keep its checkpoints.",
        usage: """
            pccheck resize FILE [--capacity SIZE] [--in-flight N] [--retain R]
                           [--dry-run] [--json]
            """,
        discussion: """
            A new file grows beside FILE. The checkpoints are copied into it and verified there; \
            then it takes the name. Until then FILE stays as it was, also when this is killed or \
            the disk is full. The newest intact checkpoint is always kept. A damaged one is \
            dropped, and the exit status is 4 although FILE was resized; --dry-run shows that \
            before, and pcextract --salvage gets what is left of it out of the old file.

            What is not given stays. SIZE is a number of bytes with an optional suffix: K M G T \
            and KiB MiB GiB TiB are powers of 1024, KB MB GB TB powers of 1000.

            Exit status: 0 done, 4 damage was found, 8 it failed, 16 usage, 32 cancelled.
            """)

    @Argument(help: "The checkpoint file.", completion: .file())
    var file: String

    @Option(help: .of("size", "The largest checkpoint that fits."))
    var capacity: ByteSize?

    @Option(help: .of("n", "Checkpoints in flight at once, 1 to 64."))
    var inFlight: Int?

    @Option(help: .of("r", "Durable checkpoints to keep, 1 to 16."))
    var retain: Int?

    @Flag(help: "Verify and print what would be done; write nothing.")
    var dryRun = false

    @Flag(help: "Print JSON for programs.")
    var json = false

    func validate() throws {
        if capacity == nil, inFlight == nil, retain == nil {
            throw ValidationError("give at least one of --capacity, --in-flight and --retain")
        }
    }

    func execute() throws -> ExitStatus {
        let shape = CheckpointFile.Shape(
            capacity: capacity?.byteCount, inFlight: inFlight, retain: retain)
        let progress = ProgressBar("resizing \(file)", total: 0)
        defer { progress.finish() }
        let report = try CheckpointFile.resize(path: file, to: shape, isDryRun: dryRun) {
            done, total throws(CheckpointError) in
            try Interruption.check()
            progress.update(done, of: total)
        }
        progress.finish()
        if json {
            Output.standard.write(document(report).bytes)
        } else {
            lines(report).forEach(Output.standard.line)
        }
        return report.isDamaged ? .uncorrected : .clean
    }

    private func lines(_ report: CheckpointFile.ResizeReport) -> [StyledText] {
        var lines: [StyledText] = ["\(file, .bold): \(size(report.before))"]
        guard report.isChange else {
            return lines + ["  that is what was asked for; nothing was changed"]
        }
        lines.append("  \(dryRun ? "would become" : "now") \(size(report.after))")
        for checkpoint in report.kept { lines.append("  keeps step \(checkpoint.step)") }
        for checkpoint in report.dropped {
            lines += TextWrap.lines(
                "drops step \(checkpoint.step): \(checkpoint.reason)", indent: 2,
                width: Output.standard.columnCount)
        }
        return lines + (dryRun ? ["nothing was written: this was a dry run"] : [])
    }

    private func size(_ geometry: Geometry) -> String {
        "\(geometry.inFlightCount) in flight + \(geometry.retainCount) retained slots of "
            + "\(Quantity.bytes(geometry.slotByteCount)), "
            + "\(Quantity.bytes(geometry.fileByteCount)) in all"
    }

    /// spec/schemas/pccheck-resize.json
    private func document(_ report: CheckpointFile.ResizeReport) -> JSONValue {
        .document(
            tool: "pccheck",
            [
                "command": .string("resize"),
                "path": .string(file),
                "is_dry_run": .bool(dryRun),
                "is_change": .bool(report.isChange),
                "before": shape(report.before),
                "after": shape(report.after),
                "kept": .array(report.kept.map { .dictionary(members($0)) }),
                "dropped": .array(
                    report.dropped.map {
                        .object(
                            members($0).map { JSONValue.Member(key: $0, value: $1) } + [
                                JSONValue.Member(key: "reason", value: .string($0.reason))
                            ])
                    }),
            ])
    }

    private func shape(_ geometry: Geometry) -> JSONValue {
        .dictionary([
            "in_flight": .count(geometry.inFlightCount),
            "retain": .count(geometry.retainCount),
            "capacity_byte_count": .integer(geometry.slotByteCount),
            "file_byte_count": .integer(geometry.fileByteCount),
        ])
    }

    private func members(
        _ checkpoint: CheckpointFile.ResizeReport.Checkpoint
    ) -> KeyValuePairs<String, JSONValue> {
        [
            "step": .integer(checkpoint.step),
            "sequence": .integer(checkpoint.sequence.rawValue),
            "payload_byte_count": .integer(checkpoint.payloadByteCount),
        ]
    }
}
