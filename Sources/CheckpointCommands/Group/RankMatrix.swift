internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointGroup
internal import CheckpointRecovery

/// The ranks of one world against its checkpoints, the newest first.
///
/// Ranks with the same content share a row, so that thousands of ranks make a few rows.
struct RankMatrix {
    private static let rowCountMaximum = 24
    private static let rangeCountMaximum = 5

    private struct Row {
        var ranks: [ClosedRange<UInt32>]
        let cells: [Cell]
        let note: String
    }

    /// What a rank has of a checkpoint.
    private enum Cell: Hashable {
        case part(SlotReason)
        case incomplete(SlotReason)
        case nothing
    }

    private let world: GroupDecision.World
    private let checkpoints: [GroupDecision.Checkpoint]

    init(_ world: GroupDecision.World, _ decision: GroupDecision) {
        self.world = world
        checkpoints = decision.checkpoints.filter { $0.worldSize == world.size }
    }

    func lines(width: Int?) -> [StyledText] {
        let count = Quantity.plural(world.files.count, "file")
        let head: StyledText = "\(Quantity.plural(Int(world.size), "rank"), .bold), \(count)"
        if checkpoints.isEmpty && world.missing.isEmpty { return [head, "  no checkpoint yet"] }
        let rows = rows
        let columns = shownCount(rows, width)
        let hasNotes = rows.contains { !$0.note.isEmpty }
        var table = TableLayout(
            [.left("rank")] + checkpoints.prefix(columns).map { .right(Self.title($0)) }
                + (hasNotes ? [.flexible("")] : []))
        for row in rows.prefix(Self.rowCountMaximum) {
            table.add(
                [StyledText(Self.label(row.ranks))]
                    + row.cells.prefix(columns).map(Self.glyph)
                    + (hasNotes ? [StyledText(row.note, .red)] : []))
        }
        if !checkpoints.isEmpty {
            table.add(
                [StyledText("on all")] + checkpoints.prefix(columns).map(Self.verdict)
                    + (hasNotes ? [StyledText()] : []))
        }
        var lines = [head] + table.lines(width: width)
        if rows.count > Self.rowCountMaximum {
            lines.append(
                """
                  … and \(Quantity.plural(rows.count - Self.rowCountMaximum, "row")) more; --json \
                lists all ranks
                """)
        }
        if columns < checkpoints.count {
            let hidden = checkpoints.count - columns
            lines.append("  … and \(Quantity.plural(hidden, "older checkpoint")); --json lists all")
        }
        return lines
    }

    /// As many of the newest as fit beside the widest label.
    private func shownCount(_ rows: [Row], _ width: Int?) -> Int {
        guard let width else { return checkpoints.count }
        var left = width - 4 - (rows.map { Self.label($0.ranks).utf8.count }.max() ?? 0)
        if rows.contains(where: { !$0.note.isEmpty }) { left -= 25 }
        let count = checkpoints.prefix {
            left -= Self.title($0).utf8.count + 2
            return left >= 0
        }.count
        return max(1, min(count, checkpoints.count))
    }

    private static func title(_ checkpoint: GroupDecision.Checkpoint) -> String {
        "\(checkpoint.name.attempt).\(checkpoint.name.step)"
    }

    // MARK: Rows

    private var rows: [Row] {
        var content = [UInt32: [Cell]](minimumCapacity: world.files.count)
        for file in world.files {
            content[file.rank] = [Cell](repeating: .nothing, count: checkpoints.count)
        }
        for (column, checkpoint) in checkpoints.enumerated() {
            for part in checkpoint.parts { content[part.rank]?[column] = .part(part.reason) }
            for missing in checkpoint.missing {
                guard case .incomplete(let reason, _) = missing.reason else { continue }
                for rank in missing.ranks { content[rank]?[column] = .incomplete(reason) }
            }
        }
        var rows: [Row] = []
        var rowOf: [[Cell]: Int] = [:]
        for file in world.files {
            let cells = content[file.rank] ?? []
            if let row = rowOf[cells] {
                Self.append(file.rank...file.rank, to: &rows[row].ranks)
            } else {
                rowOf[cells] = rows.count
                rows.append(Row(ranks: [file.rank...file.rank], cells: cells, note: ""))
            }
        }
        return (rows + missingRows).sorted { $0.ranks[0].lowerBound < $1.ranks[0].lowerBound }
    }

    private var missingRows: [Row] {
        let nothing = [Cell](repeating: .nothing, count: checkpoints.count)
        var rows: [Row] = []
        var rowOf: [String: Int] = [:]
        for missing in world.missing {
            let note = missing.reason.shortText
            if let row = rowOf[note] {
                Self.append(missing.ranks, to: &rows[row].ranks)
            } else {
                rowOf[note] = rows.count
                rows.append(
                    Row(ranks: [missing.ranks], cells: nothing, note: note))
            }
        }
        return rows
    }

    private static func append(
        _ ranks: ClosedRange<UInt32>, to ranges: inout [ClosedRange<UInt32>]
    ) {
        let last = ranges[ranges.count - 1]
        if UInt64(last.upperBound) + 1 == UInt64(ranks.lowerBound) {
            ranges[ranges.count - 1] = last.lowerBound...ranks.upperBound
        } else {
            ranges.append(ranks)
        }
    }

    /// `0–3, 7` and how many ranks that is, when it is cut.
    private static func label(_ ranges: [ClosedRange<UInt32>]) -> String {
        let shown = ranges.prefix(rangeCountMaximum).map { range in
            range.count == 1 ? "\(range.lowerBound)" : "\(range.lowerBound)-\(range.upperBound)"
        }.joined(separator: ",")
        let hidden = ranges.dropFirst(rangeCountMaximum).reduce(0) { $0 + $1.count }
        return shown + (hidden > 0 ? ",… (\(hidden) more)" : "")
    }

    // MARK: Cells

    private static func glyph(_ cell: Cell) -> StyledText {
        switch cell {
        case .part(.anchored): StyledText("█", .green)
        case .part(.retained): StyledText("▓", .green)
        case .part(.unanchored): StyledText("▒", .yellow)
        case .part: StyledText("▸", .dim)
        case .incomplete(.writing): StyledText("░", .yellow)
        case .incomplete: StyledText("✘", .red)
        case .nothing: StyledText("·", .dim)
        }
    }

    /// Two lines, as a terminal of 80 columns needs.
    static let legend: [StyledText] = [
        """
          \("█", .green) newest  \("▓", .green) kept  \("▒", .yellow) not anchored  \
        \("▸", .dim) no longer kept
        """,
        """
          \("░", .yellow) never completed  \("✘", .red) damaged  \("·", .dim) not there; \
        columns: attempt.step
        """,
    ]

    // MARK: The report page

    /// The table with words instead of glyphs.
    var html: HTMLText {
        let count = Quantity.plural(world.files.count, "file")
        let rows = rows
        let body = rows.prefix(Self.pageRowCountMaximum).map { row -> HTMLText in
            let cells = row.cells.map { cell -> HTMLText in
                let (word, kind) = Self.word(cell)
                return "<td class=\"\(kind)\">\(word)</td>"
            }
            return """
                <tr><td>\(Self.label(row.ranks))</td>\(cells)<td class="bad">\(row.note)</td></tr>
                """
        }
        let heads = checkpoints.map { checkpoint -> HTMLText in
            """
            <th scope="col">step \(checkpoint.name.step), attempt \(checkpoint.name.attempt)</th>
            """
        }
        let verdicts = checkpoints.map { checkpoint -> HTMLText in
            let isComplete = checkpoint.isComplete
            let text =
                isComplete
                ? "complete"
                : "missing on \(Quantity.plural(Self.missingCount(checkpoint), "rank"))"
            return "<td class=\"\(isComplete ? "good" : "warn")\">\(text)</td>"
        }
        let hidden = rows.count - body.count
        let note = hidden > 0 ? ", \(hidden) rows left out" : ""
        return """
            <div class="scroll"><table><caption>\(count)\(note)\
            </caption><thead><tr><th scope="col">ranks</th>\(heads)<th scope="col"></th></tr>\
            </thead><tbody>\(Array(body))<tr><td>all</td>\(verdicts)<td></td></tr></tbody></table>\
            </div>
            """
    }

    private static let pageRowCountMaximum = 1000

    /// A word for a cell, and the class of its style.
    private static func word(_ cell: Cell) -> (String, String) {
        switch cell {
        case .part(.anchored): ("newest", "good")
        case .part(.retained): ("kept", "good")
        case .part(.unanchored): ("not anchored", "warn")
        case .part: ("no longer kept", "dim")
        case .incomplete(.writing): ("never completed", "warn")
        case .incomplete: ("damaged", "bad")
        case .nothing: ("—", "dim")
        }
    }

    private static func missingCount(_ checkpoint: GroupDecision.Checkpoint) -> Int {
        checkpoint.missing.reduce(0) { $0 + $1.count }
    }

    private static func verdict(_ checkpoint: GroupDecision.Checkpoint) -> StyledText {
        if checkpoint.isComplete { return StyledText("✔", .green) }
        return StyledText("-\(missingCount(checkpoint))", .yellow)
    }
}
