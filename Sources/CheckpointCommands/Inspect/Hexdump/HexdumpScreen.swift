internal import CheckpointFormat

/// Bytes as hexdump(1) shows them with -C, with the fields between them when there are any.
struct HexdumpScreen {
    private static let pieceByteCount: UInt64 = 64 << 10

    private let dump: HexdumpRange
    private let isAnnotated: Bool
    /// Offsets of files beyond 4 GiB take more digits, and the gaps make room for them.
    private let isWide: Bool

    init(_ dump: HexdumpRange, isAnnotated: Bool) {
        self.dump = dump
        self.isAnnotated = isAnnotated
        isWide = dump.offset + dump.shownByteCount > UInt64(UInt32.max)
    }

    func write(_ groups: [FieldGroup], to output: Output) throws(CheckpointError) {
        let width = output.columnCount
        title.forEach(output.line)
        let inside = groups.filter { $0.offset != nil }
        for group in groups where group.offset == nil {
            if let title = group.title { output.line("  \(title, .bold)") }
            for field in group.fields { lines(field, width: width).forEach(output.line) }
            output.line()
        }
        if inside.isEmpty { return try writeAll(from: dump.offset, to: output) }
        var end = dump.offset
        for group in inside {
            try Interruption.check()
            if output.isBroken { return }
            if let title = group.title { output.line("  \(title, .bold)") }
            for field in group.fields {
                try writeField(field, at: group.offset ?? 0, width: width, to: output)
            }
            let size = group.fields.map(\.field.range.upperBound).max() ?? 0
            end = (group.offset ?? 0) + UInt64(size)
        }
        // What follows the record, as behind a superblock's 512 bytes.
        if end < dump.offset + dump.shownByteCount {
            output.line("  \("behind the record", .bold): without a meaning")
            try writeAll(from: end, to: output)
        }
        let wrong = groups.reduce(0) { $0 + $1.fields.count(where: \.isWrong) }
        if wrong > 0 { output.line("  \("✘", .red) \(Quantity.plural(wrong, "field")) wrong") }
    }

    private var title: [StyledText] {
        let name = dump.block?.name ?? "byte \(dump.offset)"
        let count = Quantity.count(dump.shownByteCount)
        let place: StyledText =
            dump.block == nil
            ? "\(count) bytes: \(dump.file.region(at: dump.offset))"
            : "\(count) bytes at byte \(dump.offset)"
        var lines: [StyledText] = ["\(name, .bold): \(place)"]
        if isAnnotated && dump.block == nil {
            lines.append("  name a block to see its fields: \(FileBlock.help)")
        }
        return lines
    }

    /// The rest, in pieces, so that memory does not grow with it.
    private func writeAll(from start: UInt64, to output: Output) throws(CheckpointError) {
        let end = dump.offset + dump.shownByteCount
        var rows = RowWriter(isWide: isWide)
        var offset = start
        while offset < end, !output.isBroken {
            try Interruption.check()
            let count = min(Self.pieceByteCount, end - offset)
            let bytes = try dump.file.bytes(at: offset, count: Int(count))
            rows.add(bytes, at: offset).forEach(output.line)
            offset += count
        }
        rows.finish(at: end).forEach(output.line)
    }

    private func writeField(
        _ field: AnnotatedField, at start: UInt64, width: Int?, to output: Output
    ) throws(CheckpointError) {
        let offset = start + UInt64(field.field.offset)
        let end = dump.offset + dump.shownByteCount
        if offset < end {
            let count = min(field.field.byteCount, Int(end - offset))
            var rows = RowWriter(isWide: isWide)
            rows.add(try dump.file.bytes(at: offset, count: count), at: offset)
                .forEach(output.line)
        }
        lines(field, width: width).forEach(output.line)
    }

    /// The name, the value and the verdict; what should be there on a line of its own.
    private func lines(_ field: AnnotatedField, width: Int?) -> [StyledText] {
        let indent = "          "
        let (mark, expected): (StyledText, String?) =
            switch field.verdict {
            case .right: (StyledText("✔", .green), nil)
            case .wrong(let expected): (StyledText("✘", .red), expected)
            case .unchecked: (StyledText("·", .dim), nil)
            }
        let name = StyledText(field.field.name, .cyan)
        let room = width.map { max(20, $0 - indent.count - field.field.name.count - 5) }
        let value = StyledText(field.value, field.isWrong ? .red : nil)
        let fitted = room.map { value.shortened(to: $0) } ?? value
        var lines: [StyledText] = ["\(indent)\(mark) \(name) = \(fitted)"]
        if let expected {
            lines += TextWrap.lines("expected \(expected)", indent: indent.count + 4, width: width)
        }
        if let note = field.note {
            lines += TextWrap.lines(note, indent: indent.count + 4, width: width)
        }
        return lines
    }
}

/// Rows of 16 bytes; equal ones are shown once, and then as an asterisk.
private struct RowWriter {
    let isWide: Bool
    private var last: [UInt8]?
    private var isSqueezing = false

    init(isWide: Bool) { self.isWide = isWide }

    /// `bytes` are at `offset`; the rows begin there.
    mutating func add(_ bytes: [UInt8], at offset: UInt64) -> [StyledText] {
        var lines: [StyledText] = []
        for start in stride(from: 0, to: bytes.count, by: 16) {
            let row = Array(bytes[start..<min(start + 16, bytes.count)])
            if row == last && row.count == 16 {
                if !isSqueezing { lines.append("*") }
                isSqueezing = true
                continue
            }
            isSqueezing = false
            last = row
            lines.append(line(row, at: offset + UInt64(start)))
        }
        return lines
    }

    /// The end, as hexdump(1) shows it.
    func finish(at end: UInt64) -> [StyledText] { [StyledText(offsetText(end), .dim)] }

    private func offsetText(_ offset: UInt64) -> String {
        offset.digits(isWide ? 12 : 8, radix: 16)
    }

    private func line(_ row: [UInt8], at offset: UInt64) -> StyledText {
        let gap = isWide ? " " : "  "
        var digits = ""
        for index in 0..<16 {
            if index == 8 && !isWide { digits += " " }
            digits += index < row.count ? row[index].digits(2, radix: 16) + " " : "   "
        }
        let text = row.map { (0x20...0x7E).contains($0) ? String(UnicodeScalar($0)) : "." }
        return """
            \(offsetText(offset), .dim)\(gap)\(digits)\(isWide ? "" : " ")|\(text.joined())|
            """
    }
}
