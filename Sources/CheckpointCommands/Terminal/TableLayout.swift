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
        var widths = columns.indices.map { column in
            max(
                PrintableText.columnCount(columns[column].title),
                rows.map { $0[column].columnCount }.max() ?? 0)
        }
        let total = indent + widths.reduce(0, +) + Self.gap * (columns.count - 1)
        if let limit, total > limit, let flexible = columns.firstIndex(where: \.isFlexible) {
            widths[flexible] = max(Self.flexibleMinimum, widths[flexible] - (total - limit))
        }
        let header = columns.map { StyledText($0.title, .dim) }
        let content = columns.allSatisfy(\.title.isEmpty) ? rows : [header] + rows
        return content.map { line($0, widths) }
    }

    /// For tables of facts: a last cell that is too long is broken into lines below each other,
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
