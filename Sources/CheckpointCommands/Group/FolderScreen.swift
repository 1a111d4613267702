internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointGroup

/// The screen of `pcinspect DIR`.
struct FolderScreen {
    private static let pathCountMaximum = 6

    private let inspection: FolderInspection
    private var decision: GroupDecision { inspection.decision }

    init(_ inspection: FolderInspection) { self.inspection = inspection }

    func lines(width: Int?) -> [StyledText] {
        let count = Quantity.plural(inspection.files.count, "file")
        var lines: [StyledText] = ["\(inspection.folder.path, .bold)  ·  \(count) of ranks", ""]
        lines += facts(width: width)
        for world in worlds {
            lines.append("")
            lines += RankMatrix(world, decision).lines(width: width)
        }
        if !decision.checkpoints.isEmpty {
            lines += [""] + RankMatrix.legend
        }
        return lines + problems(width: width)
    }

    /// The one with the newest checkpoint first.
    private var worlds: [GroupDecision.World] {
        var newest: [UInt32: GroupCheckpointName] = [:]
        for checkpoint in decision.checkpoints.reversed() {
            newest[checkpoint.worldSize] = checkpoint.name
        }
        let none = GroupCheckpointName(attempt: 0, step: 0)
        return decision.worlds.sorted {
            (newest[$1.size] ?? none, $1.size) < (newest[$0.size] ?? none, $0.size)
        }
    }

    private func facts(width: Int?) -> [StyledText] {
        var facts = FactTable()
        let restart = RestartText(decision)
        facts.add("restart", restart.head)
        for detail in restart.details { facts.add("", StyledText(detail)) }
        let watermark = decision.watermark.map { "\($0), known to be durable on all ranks" }
        facts.add("watermark", "\(watermark ?? "none")")
        facts.add("attempt", attempt)
        facts.add("writers", writers)
        if let run = decision.run { facts.add("run", "\(run)") }
        if let note = inspection.folder.note { facts.add("note", StyledText(note)) }
        return facts.lines(width: width)
    }

    private var attempt: StyledText {
        guard let next = decision.nextAttempt else { return "the numbers are used up" }
        return next == 1 ? "none yet" : "\(next - 1) is the last one"
    }

    private var writers: StyledText {
        let states = inspection.files.map(\.isWriterAtWork)
        let busy = states.count { $0 == true }
        if busy > 0 {
            return "\("at work", .cyan) on \(Quantity.plural(busy, "file")) now"
        }
        return states.contains(nil) && !states.contains(false) ? "unknown" : "none"
    }

    private func problems(width: Int?) -> [StyledText] {
        let paths = inspection.damagedPaths
        let findings = inspection.findings.filter { $0.severity != .info }
        if paths.isEmpty && findings.isEmpty { return [] }
        var list = TableLayout([.left(""), .left("")])
        func add(_ text: String) { list.add([StyledText("✘", .red), StyledText(text)]) }
        for path in paths.prefix(Self.pathCountMaximum) { add("\(path) is damaged") }
        if paths.count > Self.pathCountMaximum {
            add("\(Quantity.plural(paths.count - Self.pathCountMaximum, "more file")) damaged")
        }
        for finding in findings {
            let subject = finding.path.map { "\($0): " } ?? ""
            add("\(subject)\(finding.problem.title): \(finding.text)")
        }
        return [""] + list.wrappedLines(width: width)
            + ["", "  \("pcfsck \(inspection.folder.path)", .bold) explains this."]
    }
}
