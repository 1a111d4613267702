internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointStorage

/// The table behind several files: what became of each, and what a resume would load.
struct FsckSummary {
    private struct Row {
        let path: String
        let verdict: StyledText
        let resume: StyledText
        let errorCount: Int
        let warningCount: Int
        let verifiedByteCount: UInt64
        let isSound: Bool
    }

    private var rows: [Row] = []
    private let beganTime = SystemClock.monotonicTime
    private let isFull: Bool

    /// - Parameter isFull: payload is verified, so that a rate means something.
    init(isFull: Bool) { self.isFull = isFull }

    var isEmpty: Bool { rows.isEmpty }

    mutating func add(_ run: FsckRun) {
        let report = run.report
        rows.append(
            Row(
                path: report.path, verdict: FsckScreen.word(run),
                resume: report.resume.choice.map { "step \($0.step)" } ?? "nothing",
                errorCount: report.count(.error), warningCount: report.count(.warning),
                verifiedByteCount: report.verifiedByteCount, isSound: report.isClean))
    }

    /// A file that could not be checked; why was said on standard error.
    mutating func addFailure(_ path: String) {
        rows.append(
            Row(
                path: path, verdict: StyledText("not checked", .red), resume: "—", errorCount: 0,
                warningCount: 0, verifiedByteCount: 0, isSound: false))
    }

    func lines(width: Int?) -> [StyledText] {
        var columns: [TableLayout.Column] = [
            .flexible("file"), .left("verdict"), .right("resume loads"), .right("errors"),
            .right("warnings"),
        ]
        if isFull { columns.append(.right("verified")) }
        var table = TableLayout(columns)
        for row in rows {
            var cells: [StyledText] = [
                StyledText(row.path), row.verdict, row.resume,
                StyledText("\(row.errorCount)", row.errorCount > 0 ? .red : nil),
                StyledText("\(row.warningCount)", row.warningCount > 0 ? .yellow : nil),
            ]
            if isFull { cells.append(StyledText(Quantity.bytes(row.verifiedByteCount))) }
            table.add(cells)
        }
        return table.lines(width: width) + [total]
    }

    private var total: StyledText {
        let unsound = rows.count { !$0.isSound }
        var text: StyledText = "  \(Quantity.plural(rows.count, "file")): "
        if unsound == 0 {
            text.append("all clean", .green)
        } else {
            text.append("\(unsound) not clean", .red)
        }
        let byteCount = rows.reduce(UInt64(0)) { $0 + $1.verifiedByteCount }
        let seconds = Double(SystemClock.monotonicTime - beganTime) / 1e9
        if byteCount > 0 {
            let rate = Quantity.bytes(UInt64(Double(byteCount) / max(seconds, 1e-6)))
            text.append("; \(Quantity.bytes(byteCount)) verified at \(rate)/s", nil)
        }
        return text
    }
}
