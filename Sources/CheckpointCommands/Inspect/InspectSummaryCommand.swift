internal import ArgumentParser
internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

struct InspectSummaryCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "summary", abstract: "The slot map, and what a resume would load (default).")

    @OptionGroup var options: InspectedFile

    @Option(
        help: ArgumentHelp(
            "Write a report page to this file instead; - is standard output.",
            valueName: "report.html"), completion: .file())
    var html: String?

    @Option(
        help: ArgumentHelp(
            "With --html: full reads every chunk and compares it with its digest.",
            valueName: "metadata|full"))
    var verify: FsckCommand.Depth?

    func validate() throws {
        if html == nil, verify != nil { throw ValidationError("--verify goes with --html") }
        if html != nil, options.json { throw ValidationError("give --html or --json, not both") }
    }

    func execute() throws -> ExitStatus {
        if let html {
            return try ReportFile.write(
                html, of: options.file, depth: verify == .full ? .full : .metadata)
        }
        let inspection = try Inspection(path: options.file)
        if options.json {
            Output.standard.write(
                JSONValue.document(
                    tool: "pcinspect",
                    [
                        "file": InspectionJSON.file(inspection),
                        "identity": InspectionJSON.identity(inspection),
                        "identity_copies": InspectionJSON.identityCopies(inspection),
                        "superblocks": InspectionJSON.superblocks(inspection),
                        "slots": InspectionJSON.slots(inspection),
                        "candidates": InspectionJSON.candidates(inspection.decision),
                    ]
                ).bytes)
        } else {
            let output = Output.standard
            SummaryScreen(inspection).lines(width: output.columnCount).forEach(output.line)
        }
        return inspection.status
    }
}

/// The default screen of pcinspect.
struct SummaryScreen {
    private static let mapColumnCount = 14

    private let inspection: Inspection
    private var decision: RecoveryDecision { inspection.decision }

    init(_ inspection: Inspection) { self.inspection = inspection }

    func lines(width: Int?) -> [StyledText] {
        [title, ""] + facts + [""] + map(width: width) + problems
    }

    private var title: StyledText {
        let geometry = inspection.geometry
        let version = decision.identity.version
        return """
            \(inspection.path, .bold)  ·  \(Quantity.plural(geometry.slotCount, "slot")) of \
            \(Quantity.bytes(geometry.slotByteCount))  ·  \
            \(Quantity.bytes(inspection.storage.byteCount))  ·  format \(version.major).\
            \(version.minor)
            """
    }

    private var facts: [StyledText] {
        let identity = decision.identity
        var table = TableLayout([.left(""), .left("")])
        func add(_ name: String, _ value: StyledText) {
            table.add([StyledText(name, .dim), value])
        }
        add("newest", newest)
        if let next = decision.candidates.first, next.kind == .unanchored {
            add(
                "not anchored",
                "step \(next.step) in slot \(next.slot): complete and newer; used once verified")
        }
        add("writer", writer)
        add("superblock", superblock)
        if !identity.fingerprint.isEmpty { add("fingerprint", "\(identity.fingerprint)") }
        if identity.worldSize > 1 { add("rank", "\(identity.rank) of \(identity.worldSize)") }
        add("created", "\(Quantity.date(identity.createdTime)) by \(identity.creator)")
        add("file id", "\(identity.fileUUID)")
        return table.lines(width: nil)
    }

    private var newest: StyledText {
        guard let header = decision.slots.first(where: { $0.reason == .anchored })?.usedHeader
        else {
            return decision.highestSequence == .none
                ? "none: nothing was saved yet" : "none that a superblock names"
        }
        let time = header.completedTime
        let age = time == 0 ? "" : ", completed \(Quantity.age(of: time, now: inspection.now))"
        return "\("step \(header.step)", .green) in slot \(header.slot)\(age)"
    }

    private var writer: StyledText {
        if inspection.isWriterAtWork { return "\("at work", .cyan) on this file now" }
        guard let superblock = decision.superblock else { return "none" }
        return superblock.isCleanClose
            ? "none; the file was closed with nothing in flight"
            : "none; \("the last one did not close the file", .yellow) (killed, or lost power)"
    }

    private var superblock: StyledText {
        let copies = decision.superblockFindings
        let whole = copies.filter { $0.superblock != nil }.count
        let count: StyledText =
            whole == copies.count
            ? "\(whole) of \(copies.count) copies whole"
            : "\("\(whole) of \(copies.count) copies whole", .red)"
        guard let superblock = decision.superblock else { return count }
        return "generation \(superblock.generation), \(count)"
    }

    private func map(width: Int?) -> [StyledText] {
        let isCompressed = decision.slots.contains {
            $0.usedHeader.map { $0.storedByteCount < $0.payloadByteCount } ?? false
        }
        var table = TableLayout(
            [.right("slot"), .left("filled"), .left("state"), .right("step"), .right("sequence")]
                + [.right("payload")] + (isCompressed ? [.right("stored")] : [])
                + [.right("age")])
        for report in decision.slots { table.add(row(report, isCompressed: isCompressed)) }
        return table.lines(width: width)
    }

    private func row(_ report: SlotReport, isCompressed: Bool) -> [StyledText] {
        let state = report.reason.label(isWriterAtWork: inspection.isWriterAtWork)
        guard let header = report.usedHeader else {
            let bar = Quantity.bar(0, of: 1, width: Self.mapColumnCount)
            return ["\(report.slot)", StyledText(bar, .dim), state]
                + [StyledText](repeating: "—", count: isCompressed ? 5 : 4)
        }
        let isWhole = header.state == .complete
        let bar = Quantity.bar(
            isWhole ? header.storedByteCount : header.payloadByteCount,
            of: inspection.geometry.slotByteCount,
            width: Self.mapColumnCount, full: isWhole ? "█" : "▒")
        let time = isWhole ? header.completedTime : header.beganTime
        return [
            "\(report.slot)", StyledText(bar, state.parts.first?.style), state,
            "\(header.step)", "\(header.sequence)",
            "\(Quantity.bytes(header.payloadByteCount))",
        ] + (isCompressed ? [isWhole ? "\(Quantity.bytes(header.storedByteCount))" : "—"] : [])
            + ["\(Quantity.age(of: time, now: inspection.now))"]
    }

    private var problems: [StyledText] {
        var lines: [StyledText] = []
        func add(_ text: StyledText) { lines.append("  \("✘", .red) \(text)") }
        if decision.isTruncated {
            add(
                """
                the file is truncated: it has \(inspection.storage.byteCount) bytes, expected \
                \(inspection.geometry.fileByteCount)
                """)
        }
        for copy in decision.identityFindings where !copy.agreesWithChosen {
            let why = Self.failure(copy.result) ?? "it differs from the other copy"
            add("identity block (\(copy.position.rawValue)) at byte \(copy.offset): \(why)")
        }
        if decision.isFork { add("two superblocks of one generation differ: two writers") }
        for copy in decision.superblockFindings {
            guard let why = Self.failure(copy.result) else { continue }
            add("superblock (\(copy.position.rawValue)) at byte \(copy.offset): \(why)")
        }
        for report in decision.slots where report.reason.isDamage {
            let why = report.detail.map { "\($0)" } ?? "it is \(report.reason.rawValue)"
            add("slot \(report.slot) at byte \(report.headerOffset): \(why)")
        }
        for failure in inspection.image.readFailures { add("\(failure)") }
        if lines.isEmpty { return [] }
        return [""] + lines + ["", "  \("pcfsck \(inspection.path)", .bold) says what this means."]
    }

    static func failure<Value>(_ result: Result<Value, FormatError>) -> String? {
        if case .failure(let error) = result { "\(error)" } else { nil }
    }
}
