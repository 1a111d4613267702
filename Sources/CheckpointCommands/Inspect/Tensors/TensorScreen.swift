internal import CheckpointFormat
internal import CheckpointRecovery

///  filtering a checkpoint's manifest.
enum Manifest {
    /// The tensors that fit any of the patterns; all when there is none.
    static func select(
        _ patterns: [String], from manifest: SafetensorsManifest
    ) -> [SafetensorsManifest.Tensor] {
        if patterns.isEmpty { return manifest.tensors }
        let globs = patterns.map(Glob.init)
        return manifest.tensors.filter { tensor in globs.contains { $0.matches(tensor.name) } }
    }
}

/// The list of tensors that pcinspect and pcextract show.
enum TensorScreen {
    /// Line by line: a manifest may name a million tensors.
    static func forEachLine(
        _ candidate: Candidate, _ tensors: [SafetensorsManifest.Tensor],
        metadata: [(key: String, value: String)], width: Int?, _ body: (StyledText) -> Void
    ) {
        forEachLine(
            "\("slot \(candidate.slot)", .bold), step \(candidate.step)", tensors,
            metadata: metadata, width: width, body)
    }

    /// - Parameter title: what the tensors are of.
    static func forEachLine(
        _ title: StyledText, _ tensors: [SafetensorsManifest.Tensor],
        metadata: [(key: String, value: String)], width: Int?, _ body: (StyledText) -> Void
    ) {
        let byteCount = tensors.reduce(UInt64(0)) { $0 + UInt64($1.dataRange.count) }
        body(
            """
            \(title): \(Quantity.plural(tensors.count, "tensor")), \(Quantity.bytes(byteCount))
            """)
        let table = TableLayout([
            .flexible("tensor"), .left("dtype"), .right("shape"), .right("size"),
        ])
        let rows = tensors.lazy.map { tensor -> [StyledText] in
            let shape = tensor.shape.map(String.init).joined(separator: " × ")
            return [
                "\(tensor.name)", StyledText(tensor.elementType.name, .cyan),
                "\(shape.isEmpty ? "scalar" : shape)",
                "\(Quantity.bytes(UInt64(tensor.dataRange.count)))",
            ]
        }
        table.forEachLine(of: rows, width: width, body)
        if !metadata.isEmpty {
            var table = TableLayout([.left("metadata"), .flexible("value")])
            for entry in metadata { table.add(["\(entry.key)", "\(entry.value)"]) }
            body("")
            table.forEachLine(of: table.rows, width: width, body)
        }
    }
}

extension SafetensorsManifest.Tensor {
    /// The manifest was checked: the product is that of the data's size.
    var elementCount: UInt64 { shape.reduce(1, *) }
}

/// What `tensors --stats` shows.
struct StatisticsScreen {
    private let tensors: [SafetensorsManifest.Tensor]
    private let results: [TensorScan.Result]
    /// Damaged tensors are shown with what is left of them.
    private let isSalvage: Bool

    init(
        _ tensors: [SafetensorsManifest.Tensor], _ results: [TensorScan.Result], isSalvage: Bool
    ) {
        self.tensors = tensors
        self.results = results
        self.isSalvage = isSalvage
    }

    func lines(_ candidate: Candidate, width: Int?) -> [StyledText] {
        let byteCount = tensors.reduce(UInt64(0)) { $0 + UInt64($1.dataRange.count) }
        var lines: [StyledText] = [
            """
            \("slot \(candidate.slot)", .bold), step \(candidate.step): \
            \(Quantity.plural(tensors.count, "tensor")), \(Quantity.bytes(byteCount)) read and \
            verified
            """
        ]
        let beside = table(width: width, hasNotes: true)
        if let width, beside.contains(where: { $0.columnCount > width }) {
            lines += table(width: width, hasNotes: false)
            for (tensor, result) in zip(tensors, results) {
                let note = note(result)
                if note.isEmpty { continue }
                lines += TextWrap.lines("\(tensor.name): \(note)", indent: 2, width: width)
            }
        } else {
            lines += beside
        }
        let damaged = zip(tensors, results).filter { !$1.damagedChunks.isEmpty }
        for (tensor, result) in damaged {
            lines += TextWrap.lines(
                "\(tensor.name): \(result.damage ?? ""); \(missing(tensor, result))",
                indent: 2, width: width)
        }
        if !damaged.isEmpty && !isSalvage {
            lines.append("  --salvage shows what is left of damaged tensors.")
        }
        return lines
    }

    private func table(width: Int?, hasNotes: Bool) -> [StyledText] {
        // A narrow screen has room for three digits.
        let digitCount = width.map { $0 < 100 } ?? false ? 3 : 4
        var table = TableLayout(
            [
                .flexible("tensor"), .left("dtype"), .right("min"), .right("max"),
                .right("mean"), .right("std"), .right("zero"),
            ] + (hasNotes ? [.left("")] : []))
        for (tensor, result) in zip(tensors, results) {
            let row = row(tensor, result, digitCount: digitCount)
            table.add(row + (hasNotes ? [StyledText(note(result), .red)] : []))
        }
        return table.lines(width: width)
    }

    /// What a reader should look at.
    private func note(_ result: TensorScan.Result) -> String {
        let statistics = result.statistics
        var notes: [String] = result.damagedChunks.isEmpty ? [] : ["damaged"]
        if statistics.notANumberCount > 0 {
            notes.append("\(Quantity.short(statistics.notANumberCount)) NaN")
        }
        if statistics.infinityCount > 0 {
            notes.append("\(Quantity.short(statistics.infinityCount)) Inf")
        }
        return notes.joined(separator: " ")
    }

    private func missing(
        _ tensor: SafetensorsManifest.Tensor, _ result: TensorScan.Result
    ) -> String {
        let lost = tensor.elementCount - result.statistics.elementCount
        return "\(Quantity.count(lost)) of \(Quantity.count(tensor.elementCount)) elements lost in "
            + Quantity.plural(result.damagedChunks.count, "chunk")
    }

    private func row(
        _ tensor: SafetensorsManifest.Tensor, _ result: TensorScan.Result, digitCount: Int
    ) -> [StyledText] {
        let start: [StyledText] = [
            "\(tensor.name)", StyledText(tensor.elementType.name, .cyan),
        ]
        let statistics = result.statistics
        guard statistics.elementCount > 0, result.damagedChunks.isEmpty || isSalvage else {
            return start + [StyledText](repeating: "—", count: 5)
        }
        func text(_ value: TensorStatistics.Extreme?) -> StyledText {
            switch value {
            case nil: "—"
            case .integer(let integer) where abs(integer) < 1_000_000: "\(integer)"
            case .integer(let integer):
                "\(Quantity.significant(Double(integer), digitCount: digitCount))"
            case .real(let real): "\(Quantity.significant(real, digitCount: digitCount))"
            }
        }
        return start + [
            text(statistics.least), text(statistics.largest),
            text(statistics.finiteCount == 0 ? nil : .real(statistics.mean)),
            text(statistics.standardDeviation.map { .real($0) }),
            "\(Quantity.percent(statistics.zeroCount, of: statistics.elementCount))",
        ]
    }
}
