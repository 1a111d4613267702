internal import CheckpointFormat

/// Lays out rows in columns.
struct TableLayout {
    struct Column {
        var title: String
        var isRight = false
        /// Cut this column when the table is wider than the terminal.
        var isFlexible = false

        static func left(_ title: String) -> Column { Column(title: title) }
        static func right(_ title: String) -> Column { Column(title: title, isRight: true) }
        static func flexible(_ title: String) -> Column {
            Column(title: title, isFlexible: true)
        }
    }

    private static let gap = 2
    private static let flexibleMinimum = 16

    var columns: [Column]
    var rows: [[StyledText]] = []
    var indent = 2

    init(_ columns: [Column]) { self.columns = columns }

    mutating func add(_ cells: [StyledText]) {
        precondition(cells.count == columns.count, "one cell per column")
        rows.append(cells)
    }

    /// The header line and one line per row; no wider than `width` when that is given.
    func lines(width limit: Int?) -> [StyledText] {
        var lines: [StyledText] = []
        forEachLine(of: rows, width: limit) { lines.append($0) }
        return lines
    }

    /// The lines for rows that may be too many to hold: a lazy collection makes each of them
    /// twice, first for the widths of the columns.
    func forEachLine(
        of rows: some Collection<[StyledText]>, width limit: Int?, _ body: (StyledText) -> Void
    ) {
        var widths = columns.map { PrintableText.columnCount($0.title) }
        for row in rows {
            for column in columns.indices {
                widths[column] = max(widths[column], row[column].columnCount)
            }
        }
        let total = indent + widths.reduce(0, +) + Self.gap * (columns.count - 1)
        if let limit, total > limit, let flexible = columns.firstIndex(where: \.isFlexible) {
            widths[flexible] = max(Self.flexibleMinimum, widths[flexible] - (total - limit))
        }
        if !columns.allSatisfy(\.title.isEmpty) {
            body(line(columns.map { StyledText($0.title, .dim) }, widths))
        }
        for row in rows { body(line(row, widths)) }
    }

    /// For tables of facts: a last cell that is too long is wrapped into lines below each other,
    /// in the style of its first part.
    func wrappedLines(width limit: Int?) -> [StyledText] {
        let lines = lines(width: nil)
        guard let limit, let last = columns.indices.last else { return lines }
        let start = columns[..<last].indices.reduce(indent) { start, column in
            start + Self.gap + (rows.map { $0[column].columnCount }.max() ?? 0)
        }
        return zip(rows, lines).flatMap { row, line -> [StyledText] in
            guard line.columnCount > limit, limit > start + 20 else { return [line] }
            let words = TextWrap.lines(row[last].plain, indent: 0, width: limit - start)
            return words.enumerated().map { index, part in
                var head = StyledText(String(repeating: " ", count: start))
                if index == 0 {
                    head = self.line(Array(row[..<last]) + [StyledText()], rowWidths)
                }
                head.append(part.plain, row[last].parts.first?.style)
                return head
            }
        }
    }

    private var rowWidths: [Int] {
        columns.indices.map { column in rows.map { $0[column].columnCount }.max() ?? 0 }
    }

    private func line(_ cells: [StyledText], _ widths: [Int]) -> StyledText {
        var line = StyledText(String(repeating: " ", count: indent))
        for (index, cell) in cells.enumerated() {
            let fitted = columns[index].isFlexible ? cell.shortened(to: widths[index]) : cell
            let isLast = index == cells.count - 1
            line.append(
                isLast && !columns[index].isRight
                    ? fitted : fitted.padded(to: widths[index], isRight: columns[index].isRight))
            if !isLast { line.append(String(repeating: " ", count: Self.gap), nil) }
        }
        return line
    }
}
