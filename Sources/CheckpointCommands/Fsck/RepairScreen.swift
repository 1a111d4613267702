internal import CheckpointCheck

/// What pcfsck and rescue print of repairs.
enum RepairScreen {
    private static let indent = 11

    /// Before anything is written.
    static func plan(_ plan: RepairPlan, _ path: String) -> [StyledText] {
        let count = Quantity.plural(plan.repairs.count, "step")
        let head: StyledText = "\(path, .bold): \(count) to do"
        return [head] + steps(plan.repairs)
    }

    static func steps(_ repairs: [Repair], namesProblems: Bool = true) -> [StyledText] {
        let width = Output.standard.columnCount
        return repairs.flatMap { repair in
            TextWrap.lines(
                namesProblems ? "\(repair)" : repair.action, indent: 2, width: width)
        }
    }

    /// Under the findings of a run that changes nothing: what -p and -y would do.
    static func foreseen(_ run: FsckRun) -> [StyledText] {
        let width = Output.standard.columnCount
        let (safe, full) = (run.report.plan.repairs, run.fullPlan.repairs)
        let more = full.filter { !safe.contains($0) }
        var lines: [StyledText] = []
        if !safe.isEmpty { lines += group(more.isEmpty ? "-p and -y" : "-p", "would", safe) }
        if !more.isEmpty {
            lines += group("-y", safe.isEmpty ? "would" : "would, too,", more)
            if run.report.depth != .full, more.contains(where: { $0.sourceByteOffset == nil }) {
                lines += TextWrap.lines(
                    "what a superblock names is verified in full before", indent: indent,
                    width: width)
            }
        }
        return lines
    }

    private static func group(
        _ option: String, _ verb: String, _ repairs: [Repair]
    ) -> [StyledText] {
        let width = Output.standard.columnCount
        let label = StyledText("plan", .bold).padded(to: 9, isRight: false)
        let head: StyledText = "  \(label)\(option, .bold) \(verb)"
        return [head]
            + repairs.flatMap {
                TextWrap.lines("\($0.action) (\($0.problem.id))", indent: indent, width: width)
            }
    }

    /// After a run that repaired, or tried to.
    static func outcome(_ run: FsckRun) -> [StyledText] {
        let width = Output.standard.columnCount
        var lines: [StyledText] = []
        if !run.repairs.isEmpty {
            let count = Quantity.plural(run.repairs.count, "step")
            lines += ["  \("✔", .green) \(count) done, flushed and read back"]
        }
        if let undoPath = run.undoPath {
            lines += TextWrap.lines(
                "pcfsck --apply-undo \(undoPath) \(run.report.path) undoes it", indent: 4,
                width: nil)
        }
        if let refusal = run.refusal {
            lines += ["  \("✘", .red) \("nothing is repaired", .bold)"]
            lines += TextWrap.lines(refusal, indent: 4, width: width)
        }
        for note in run.notes { lines += TextWrap.lines(note, indent: 4, width: width) }
        for question in run.questions {
            lines += TextWrap.lines(
                "\(question.problem.id) is left: it would be a choice between data. pcfsck -y asks "
                    + "on a terminal; see pccheck rescue, too", indent: 4, width: width)
        }
        return lines
    }
}
