internal import CheckpointFormat
internal import CheckpointRecovery

/// What `pcextract --list` shows: the checkpoints, and the tensors of the chosen one.
struct ExtractListing {
    let inspection: Inspection
    let candidate: Candidate
    /// nil for an opaque payload.
    private let tensors: [SafetensorsManifest.Tensor]?

    init(
        _ inspection: Inspection, _ choice: CheckpointChoice, _ filter: TensorFilter
    ) throws(CheckpointError) {
        self.inspection = inspection
        let selected = try inspection.shown(choice)
        defer { selected.close() }
        candidate = selected.candidate
        guard candidate.header.payloadKind == .safetensors else {
            tensors = nil
            return
        }
        tensors = filter.select(from: try selected.tensorManifest())
    }

    func show(on output: Output) {
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
        output.line("\("checkpoints", .bold), in the order in which they are tried")
        output.show(table.lines(width:))
        output.line()
        if let tensors {
            TensorScreen.forEachLine(
                candidate, tensors, metadata: [], width: output.columnCount
            ) { output.line($0) }
        } else {
            output.line("slot \(candidate.slot) holds opaque bytes; use --format raw")
        }
    }

    func json() -> JSONValue {
        .document(
            tool: "pcextract",
            [
                "action": .string("list"),
                "file": InspectionJSON.file(inspection),
                "checkpoints": .array(inspection.decision.candidates.map(Self.json)),
                "chosen_slot": .count(candidate.slot.rawValue),
                "tensors": tensors.map { .array($0.map { .object($0.jsonMembers) }) } ?? .null,
            ])
    }

    private static func json(_ candidate: Candidate) -> JSONValue {
        candidate.json([
            "kind": .string(candidate.kind.rawValue),
            "payload_byte_count": .integer(candidate.header.payloadByteCount),
            "completed_time_nanoseconds": .integer(candidate.header.completedTime),
        ])
    }

}
