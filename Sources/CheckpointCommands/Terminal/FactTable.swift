/// Facts below each other: dim names, and values that are wrapped on a narrow terminal.
struct FactTable {
    private var table = TableLayout([.left(""), .left("")])

    mutating func add(_ name: String, _ value: StyledText) {
        table.add([StyledText(name, .dim), value])
    }

    func lines(width: Int?) -> [StyledText] { table.wrappedLines(width: width) }
}
