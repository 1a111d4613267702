internal import CheckpointFormat
internal import CheckpointRecovery

/// What was written of one checkpoint.
struct ExtractionResult {
    let candidate: Candidate
    let format: OutputFormat
    /// The files, in order, and their sizes.
    let files: [(path: String, byteCount: UInt64)]
    let indexPath: String?
    /// nil for bytes without names.
    let tensorCount: Int?
    let state: OutputPlan.State?
    let remark: String?
    /// nil when nothing was to be salvaged.
    let salvage: (map: HolesMap, path: String)?

    init(
        _ candidate: Candidate, _ request: OutputPlan.Request, _ plan: OutputPlan,
        salvage: (map: HolesMap, path: String)? = nil
    ) {
        self.candidate = candidate
        format = request.format
        files = plan.files.map { ($0.path, $0.contentByteCount + $0.directoryByteCount) }
        indexPath = plan.index?.path
        let hasNames = plan.files.contains { !$0.tensorNames.isEmpty } || request.format != .raw
        tensorCount = hasNames ? plan.files.reduce(0) { $0 + $1.tensorNames.count } : nil
        state = plan.state
        remark = plan.remark
        self.salvage = salvage
    }

    var byteCount: UInt64 { files.reduce(0) { $0 + $1.byteCount } }

    /// Something of the checkpoint is missing, or nothing proves that its parts belong together.
    var isIncomplete: Bool { salvage.map { !$0.map.survey.isWhole } ?? false }

    // MARK: For people

    /// - Parameter name: where it was written to.
    func lines(name: String) -> [StyledText] {
        let tensors = tensorCount.map { " with \(Quantity.plural($0, "tensor"))" } ?? ""
        let count = files.count > 1 ? " in \(files.count) shards" : ""
        let verb = isIncomplete ? "what was verified is in" : "every digest verified, written to"
        return [
            """
            step \(candidate.step) from slot \(candidate.slot): \
            \(Quantity.bytes(byteCount))\(tensors)\(count), \(verb) \(indexPath ?? name)
            """
        ] + details
    }

    /// The columns of the table of all checkpoints.
    static let columns: [TableLayout.Column] = [
        .right("step"), .right("slot"), .right("tensors"), .right("size"), .right("lost"),
        .flexible("written to"),
    ]

    func row(name: String) -> [StyledText] {
        let lost = salvage?.map.lostByteCount ?? 0
        return [
            "\(candidate.step)", "\(candidate.slot)",
            "\(tensorCount.map { Quantity.count(UInt64($0)) } ?? "—")",
            "\(Quantity.bytes(byteCount))",
            lost == 0 ? StyledText("—", .dim) : StyledText(Quantity.bytes(lost), .red),
            "\(indexPath ?? name)",
        ]
    }

    /// What else there is to say.
    var details: [StyledText] {
        var lines: [StyledText] = remark.map { ["\("note:", .yellow) \($0)"] } ?? []
        if let salvage { lines += Self.lines(salvage.map, salvage.path) }
        return lines
    }

    private static func lines(_ map: HolesMap, _ path: String) -> [StyledText] {
        let survey = map.survey
        let header = map.source.candidate.header
        if survey.isWhole { return ["no chunk is damaged; the map is in \(path)"] }
        var lines: [StyledText] = []
        if !survey.holes.isEmpty {
            lines.append(
                """
                \("lost:", .red) \(Quantity.plural(survey.holes.count, "chunk")) of \
                \(header.chunkCount), \(Quantity.bytes(map.lostByteCount)) of \
                \(Quantity.bytes(header.payloadByteCount)); the map is in \(path)
                """)
        }
        switch map.names {
        case .own, .slot: lines += tensorLines(map)
        case .lost: lines.append("the names of the tensors are lost; holes are zeros")
        case .opaque: lines.append("holes are zeros")
        }
        if map.source.isTableDamaged, survey.payloadDigest != .matches {
            lines.append(
                """
                \("note:", .yellow) the chunk table is damaged: each chunk matches its own entry, \
                but nothing proves that all are of this step
                """)
        }
        return lines
    }

    private static func tensorLines(_ map: HolesMap) -> [StyledText] {
        let written = map.tensors.count { $0.isWritten }
        var lines: [StyledText] = [
            """
            tensors: \(map.count(.whole)) intact, \(map.count(.partlyLost)) partly lost, \
            \(map.count(.fullyLost)) lost; \(written) written
            """
        ]
        if map.tensors.contains(where: { $0.state == .partlyLost && !$0.isWritten }) {
            lines.append("--holes zero also writes what is left of those that are partly lost")
        }
        if case .slot(let slot) = map.names {
            lines.append(
                "\("note:", .yellow) names, types and shapes are those of slot \(slot)")
        }
        return lines
    }

    // MARK: For programs

    func json() -> JSONValue {
        candidate.json([
            "kind": .string(candidate.kind.rawValue),
            "is_complete": .bool(!isIncomplete),
            "format": .string(format.rawValue),
            "byte_count": .integer(byteCount),
            "tensor_count": .number(tensorCount.map { UInt64($0) }),
            "files": .array(
                files.map {
                    .dictionary(["path": .string($0.path), "byte_count": .integer($0.byteCount)])
                }),
            "index": .text(indexPath),
            "state": .text(state?.rawValue),
            "remark": .text(remark),
            "salvage": salvage.map { Self.json($0.map, $0.path) } ?? .null,
        ])
    }

    private static func json(_ map: HolesMap, _ path: String) -> JSONValue {
        .dictionary([
            "map": .string(path),
            "payload_digest": .string(map.survey.payloadDigest.rawValue),
            "tensor_names": .string(map.names.text),
            "lost_chunk_count": .count(map.survey.holes.count),
            "lost_byte_count": .integer(map.lostByteCount),
            "surviving_byte_count": .integer(map.survey.survivingByteCount),
            "whole_tensor_count": .count(map.count(.whole)),
            "partly_lost_tensor_count": .count(map.count(.partlyLost)),
            "fully_lost_tensor_count": .count(map.count(.fullyLost)),
        ])
    }
}

/// A checkpoint that was tried and could not be written.
struct ExtractionRejection {
    let slot: SlotIndex
    let step: UInt64?
    /// nil where it is not a candidate's.
    var sequence: SequenceNumber?
    let message: String

    func isOf(_ candidate: Candidate) -> Bool {
        slot == candidate.slot && sequence == candidate.sequence
    }

    func json() -> JSONValue {
        .dictionary([
            "slot": .count(slot.rawValue), "step": .number(step),
            "message": .string(message),
        ])
    }
}

/// The checkpoints that a command passed over. Standard error reports each of them once.
struct PassedOver {
    let tool: String
    private(set) var all: [ExtractionRejection] = []

    init(_ tool: String) { self.tool = tool }

    func say(_ text: String) { Output.diagnostics.line("\("\(tool):", .yellow) \(text)") }

    mutating func add(_ rejection: ExtractionRejection) {
        say(rejection.message)
        all.append(rejection)
    }

    mutating func add(_ candidate: Candidate, _ error: CheckpointError) {
        add(
            ExtractionRejection(
                slot: candidate.slot, step: candidate.step, sequence: candidate.sequence,
                message: error.message))
    }

    /// What a search rejected since the last time, and what it takes instead.
    mutating func add(_ rejections: [Load.Rejection], next: Candidate?) {
        for rejection in rejections
        where !all.contains(where: { $0.isOf(rejection.candidate) }) {
            add(rejection.candidate, rejection.error)
            guard let next else { continue }
            let why = rejection.error.code == .busy ? "taken by a writer" : "damaged"
            say(
                "step \(rejection.candidate.step) is \(why); falling back to step \(next.step) in "
                    + "slot \(next.slot)")
        }
    }
}

extension Inspection {
    /// The newest durable checkpoint, when it is too damaged to be tried at all and `next` is taken
    /// in its place; nil while a writer may be at work on its slot.
    func lostNewest(from next: Candidate?) -> ExtractionRejection? {
        guard isWriterAtWork == false, let loss, let next, next.slot != loss.anchor.slot else {
            return nil
        }
        let why = loss.report.detail.map { ": \($0)" } ?? ""
        return ExtractionRejection(
            slot: loss.anchor.slot, step: loss.anchor.step,
            message: "step \(loss.anchor.step), the newest durable checkpoint, is lost: slot "
                + "\(loss.anchor.slot) is \(loss.report.reason.rawValue)\(why); falling back to "
                + "step \(next.step) in slot \(next.slot)")
    }
}
