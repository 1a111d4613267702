internal import ArgumentParser
internal import CheckpointFormat
internal import CheckpointRecovery

struct InspectChunksCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "chunks",
        abstract: "The chunk table of a checkpoint: the newest, or the one that is chosen.")

    @OptionGroup var options: InspectedFile
    @OptionGroup var choice: CheckpointChoice

    @Flag(help: "Read every chunk and compare it with its digest.")
    var verify = false

    func execute() throws -> ExitStatus {
        let inspection = try Inspection(path: options.file)
        let candidate = try choice.newest(of: inspection)
        let states = verify ? try verified(candidate, inspection) : nil
        if options.json {
            writeJSON(candidate, inspection, states)
        } else {
            let output = Output.standard
            lines(candidate, states, width: output.columnCount).forEach(output.line)
        }
        let isDamaged = states?.contains { $0 != .intact } ?? false
        return isDamaged ? inspection.status.union(.uncorrected) : inspection.status
    }

    private func verified(
        _ candidate: Candidate, _ inspection: Inspection
    ) throws(CheckpointError) -> [ChunkStatus] {
        let reader = CheckpointReader(
            storage: inspection.storage, decision: inspection.decision)
        let selected = try reader.select(candidate)
        defer { selected.close() }
        let progress = ProgressBar(
            "verifying slot \(candidate.slot)", total: candidate.header.storedByteCount)
        defer { progress.finish() }
        var done: UInt64 = 0
        var states: [ChunkStatus] = []
        for (index, entry) in candidate.table.entries.enumerated() {
            try Interruption.check()
            states.append(try selected.chunkStatus(index))
            done += UInt64(entry.storedByteCount)
            progress.update(done)
        }
        return states
    }

    private func lines(
        _ candidate: Candidate, _ states: [ChunkStatus]?, width: Int?
    ) -> [StyledText] {
        var table = TableLayout([
            .right("chunk"), .right("file byte"), .right("raw"), .right("stored"), .left("codec"),
            .left("digest"), .left(states == nil ? "" : "state"),
        ])
        for (index, entry) in candidate.table.entries.enumerated() {
            let state: StyledText =
                switch states?[index] {
                case nil: ""
                case .intact: StyledText("intact", .green)
                case .damaged: StyledText("damaged", .red)
                }
            // The whole digest has 32 digits; people compare the first ones.
            let digest = width == nil ? "\(entry.digest)" : "\(entry.digest)".prefix(12) + "…"
            table.add([
                "\(index)", "\(candidate.dataOffset + entry.storedOffset)",
                "\(Quantity.bytes(UInt64(entry.rawByteCount)))",
                "\(Quantity.bytes(UInt64(entry.storedByteCount)))",
                entry.codec == .none ? StyledText("none", .dim) : "\(entry.codec.label)",
                "\(digest)", state,
            ])
        }
        let header = candidate.header
        let title: StyledText = """
            \("slot \(candidate.slot)", .bold), step \(candidate.step): \
            \(Quantity.plural(header.chunkCount, "chunk")), \
            \(Quantity.bytes(header.storedByteCount)) of \
            \(Quantity.bytes(header.payloadByteCount)) stored
            """
        return [title] + table.lines(width: width)
    }

    private func writeJSON(
        _ candidate: Candidate, _ inspection: Inspection, _ states: [ChunkStatus]?
    ) {
        let chunks = candidate.table.entries.enumerated().map { index, entry -> JSONValue in
            let state: JSONValue =
                switch states?[index] {
                case nil: .null
                case .intact: .string("intact")
                case .damaged: .string("damaged")
                }
            return .dictionary([
                "chunk": .count(index),
                "byte_offset": .integer(candidate.dataOffset + entry.storedOffset),
                "stored_byte_count": .count(entry.storedByteCount),
                "raw_byte_count": .count(entry.rawByteCount),
                "codec": .string(entry.codec.label),
                "plane_width": .count(entry.planeWidth),
                "digest": .text(entry.digest),
                "state": state,
            ])
        }
        Output.standard.write(
            JSONValue.document(
                tool: "pcinspect",
                [
                    "file": InspectionJSON.file(inspection),
                    "slot": .count(Int(candidate.slot.rawValue)),
                    "header": InspectionJSON.header(
                        candidate.header, digest: candidate.headerDigest),
                    "chunks": .array(chunks),
                ]
            ).bytes)
    }
}
