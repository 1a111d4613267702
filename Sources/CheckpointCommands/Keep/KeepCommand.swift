internal import ArgumentParser
internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointWriter

struct KeepCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "keep",
        abstract: "Copy one checkpoint to a new checkpoint file, also while a writer is running.",
        usage: "pccheck keep FILE --output OUT [--step S] [--json]",
        discussion: """
            The backup of a file that is being written to. The slot is pinned while it is copied, \
            and every byte is verified on its way. OUT appears under its name when it is complete \
            and durable: a checkpoint file that resumes from this checkpoint, with its step, \
            sequence, times and fingerprint. FILE is only read.

            Without --step the newest checkpoint is taken. When that is damaged, the next older \
            one is taken instead: standard error reports it, and the exit status is 4 although OUT \
            was written. For other formats use pcextract, which reads a live file as well.

            Exit status: 0 done, 4 damage was found, 8 it failed or there is no such checkpoint, \
            16 usage, 32 cancelled.
            """)

    @Argument(help: "The checkpoint file or block device.", completion: .file())
    var file: String

    @Option(
        name: .shortAndLong, help: .of("out", "The file to write; it must not exist."),
        completion: .file())
    var output: String

    @Option(help: .of("s", "Take the newest checkpoint of this step."))
    var step: UInt64?

    @Flag(help: "Print JSON for programs.")
    var json = false

    func validate() throws {
        let foreign = [".safetensors", ".pt", ".npz"].first { output.hasSuffix($0) }
        if let foreign {
            throw ValidationError(
                "keep writes a checkpoint file; pcextract \(file) -o \(output) writes a "
                    + "\(foreign) file")
        }
    }

    func execute() throws -> ExitStatus {
        let inspection = try Inspection(path: file)
        var passed = PassedOver("pccheck")
        if let loss = inspection.decision.lostEndError { passed.say(loss.about(file).message) }
        if step == nil, let lost = inspection.lostNewest(from: inspection.decision.candidates.first)
        {
            passed.add(lost)
        }
        let kept = try copy(inspection, &passed)
        report(kept, passed.all)
        return passed.all.isEmpty ? .clean : .uncorrected
    }

    private func copy(
        _ inspection: Inspection, _ passed: inout PassedOver
    ) throws(CheckpointError) -> Candidate {
        let reader = CheckpointReader(storage: inspection.storage, decision: inspection.decision)
        let load = Load(
            reader, request: step.map { "of step \($0)" } ?? "that fits the request"
        ) { candidate in step == nil || candidate.step == step }
        while true {
            let selected = try load.next()
            passed.add(load.rejections, next: selected.candidate)
            do throws(CheckpointError) {
                try write(selected, inspection.decision.identity)
                selected.close()
                return selected.candidate
            } catch {
                // A full disk, or a name that is taken, says nothing against the checkpoint.
                guard [.corrupt, .busy].contains(error.code) || error.slot != nil else {
                    throw error
                }
                try load.reject(error)
            }
        }
    }

    private func write(
        _ selected: SelectedCheckpoint, _ identity: IdentityBlock
    ) throws(CheckpointError) {
        let progress = ProgressBar("copying to \(output)", total: 0)
        defer { progress.finish() }
        try CheckpointCopy.write(selected, of: identity, to: output) {
            done, total throws(CheckpointError) in
            try Interruption.check()
            progress.update(done, of: total)
        }
    }

    private func report(_ candidate: Candidate, _ rejected: [ExtractionRejection]) {
        if json {
            Output.standard.write(document(candidate, rejected).bytes)
            return
        }
        let line: StyledText = """
            \("✔", .green) \(output, .bold) holds step \(candidate.step) of slot \
            \(candidate.slot): \(Quantity.bytes(candidate.header.payloadByteCount)), every byte \
            verified
            """
        Output.standard.line(line)
    }

    /// spec/schemas/pccheck-keep.json
    private func document(_ candidate: Candidate, _ rejected: [ExtractionRejection]) -> JSONValue {
        .document(
            tool: "pccheck",
            [
                "command": .string("keep"),
                "path": .string(file),
                "output": .string(output),
                "slot": .count(candidate.slot.rawValue),
                "sequence": .integer(candidate.sequence.rawValue),
                "step": .integer(candidate.step),
                "payload_byte_count": .integer(candidate.header.payloadByteCount),
                "rejected": .array(rejected.map { $0.json() }),
            ])
    }
}
