internal import CheckpointFormat
internal import CheckpointRecovery

/// What `pcinspect chunks` shows: a map of the chunks, their sizes by codec, and a list.
struct ChunkScreen {
    private static let mapColumnCount = 64
    private static let mapRowCount = 12
    /// Up to so many chunks, all are listed; else the damaged ones.
    private static let listCountMaximum = 40
    private static let damageCountMaximum = 100

    private let candidate: Candidate
    /// nil when nothing was read.
    private let states: [ChunkStatus]?
    private let listsAll: Bool
    private var entries: [ChunkEntry] { candidate.table.entries }

    init(_ candidate: Candidate, _ states: [ChunkStatus]?, listsAll: Bool) {
        self.candidate = candidate
        self.states = states
        self.listsAll = listsAll || candidate.table.entries.count <= Self.listCountMaximum
    }

    func lines(width: Int?) -> [StyledText] {
        if entries.isEmpty { return [title] }
        return [title] + map + [""] + codecs(width: width) + [""] + list(width: width)
    }

    private var title: StyledText {
        let header = candidate.header
        return """
            \("slot \(candidate.slot)", .bold), step \(candidate.step): \
            \(Quantity.plural(header.chunkCount, "chunk")), \
            \(Quantity.bytes(header.storedByteCount)) of \
            \(Quantity.bytes(header.payloadByteCount)) stored
            """
    }

    private func isDamaged(_ index: Int) -> Bool {
        if case .damaged = states?[index] { true } else { false }
    }

    // MARK: Map

    /// One glyph per chunk; per several when there are too many. Damage shows through.
    private var map: [StyledText] {
        let cellCount = Self.mapColumnCount * Self.mapRowCount
        let chunksPerCell = (entries.count + cellCount - 1) / cellCount
        let cells = stride(from: 0, to: entries.count, by: chunksPerCell).map {
            glyph($0..<min($0 + chunksPerCell, entries.count))
        }
        let rows = stride(from: 0, to: cells.count, by: Self.mapColumnCount).map { start in
            let end = min(start + Self.mapColumnCount, cells.count)
            var row = StyledText("  \((start * chunksPerCell).digits(7, filler: " "))  ", .dim)
            // Neighbours of one style are one part, so that a terminal gets few sequences.
            var (run, style) = ("", cells[start].style)
            for cell in cells[start..<end] {
                if cell.style != style {
                    row.append(run, style)
                    (run, style) = ("", cell.style)
                }
                run += cell.glyph
            }
            row.append(run, style)
            return row
        }
        let legend =
            (states == nil
                ? "█ stored as it is  ▓ compressed" : "█ intact  ▓ intact, compressed  ✘ damaged")
            + (chunksPerCell > 1 ? "; \(Quantity.plural(chunksPerCell, "chunk")) per cell" : "")
        return rows + [StyledText("           \(legend)", .dim)]
    }

    private func glyph(_ chunks: Range<Int>) -> (glyph: String, style: StyledText.Style?) {
        if chunks.contains(where: isDamaged) { return ("✘", .red) }
        let isCompressed = chunks.contains { entries[$0].codec != .none }
        return (isCompressed ? "▓" : "█", states == nil ? nil : .green)
    }

    // MARK: Sizes

    private func codecs(width: Int?) -> [StyledText] {
        var table = TableLayout([
            .left("codec"), .right("chunks"), .right("raw"), .right("stored"), .right("ratio"),
        ])
        for codec in Codec.allCases {
            let chunks = entries.filter { $0.codec == codec }
            if chunks.isEmpty { continue }
            let raw = chunks.reduce(UInt64(0)) { $0 + UInt64($1.rawByteCount) }
            let stored = chunks.reduce(UInt64(0)) { $0 + UInt64($1.storedByteCount) }
            table.add([
                "\(codec.label)", "\(chunks.count)", "\(Quantity.bytes(raw))",
                "\(Quantity.bytes(stored))",
                "\(Quantity.significant(Double(raw) / Double(max(stored, 1))))",
            ])
        }
        return table.lines(width: width)
    }

    // MARK: List

    private func list(width: Int?) -> [StyledText] {
        let damaged = entries.indices.filter(isDamaged)
        let shown =
            listsAll ? Array(entries.indices) : Array(damaged.prefix(Self.damageCountMaximum))
        var table = TableLayout([
            .right("chunk"), .right("file byte"), .right("raw"), .right("stored"), .left("codec"),
            .left("digest"), .left(states == nil ? "" : "state"),
        ])
        for index in shown { table.add(row(index, width: width)) }
        var lines = shown.isEmpty ? [] : table.lines(width: width)
        let hidden = entries.count - shown.count
        if hidden > 0 {
            let what =
                states != nil && damaged.count > shown.count ? "damaged ones too" : "not shown"
            lines.append("  \(Quantity.plural(hidden, "chunk")) \(what); --all lists every one")
        }
        return lines
    }

    private func row(_ index: Int, width: Int?) -> [StyledText] {
        let entry = entries[index]
        let state: StyledText =
            switch states?[index] {
            case nil: ""
            case .intact: StyledText("intact", .green)
            case .damaged: StyledText("damaged", .red)
            }
        // The whole digest has 32 digits; people compare the first ones.
        let digest = width == nil ? "\(entry.digest)" : "\(entry.digest)".prefix(12) + "…"
        return [
            "\(index)", "\(candidate.dataOffset + entry.storedOffset)",
            "\(Quantity.bytes(UInt64(entry.rawByteCount)))",
            "\(Quantity.bytes(UInt64(entry.storedByteCount)))",
            entry.codec == .none ? StyledText("none", .dim) : "\(entry.codec.label)",
            "\(digest)", state,
        ]
    }
}
