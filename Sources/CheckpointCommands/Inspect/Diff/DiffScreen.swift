internal import CheckpointFormat

/// What `pcinspect diff` shows.
struct DiffScreen {
    private static let metadataLimit = 40

    private let report: DiffReport
    private let top: Int

    init(_ report: DiffReport, top: Int) {
        self.report = report
        self.top = top
    }

    func lines(width: Int?) -> [StyledText] {
        var lines: [StyledText] = [
            "\("first", .dim)   \(report.first.title)", "\("second", .dim)  \(report.second.title)",
        ]
        lines += verdict(width: width)
        if !report.changes.isEmpty { lines += [""] + tensors(width: width) }
        lines += section(
            "metadata", report.metadata, limit: Self.metadataLimit, width: width)
        lines += section("facts", report.facts, limit: Self.metadataLimit, width: width)
        return lines
    }

    private func verdict(width: Int?) -> [StyledText] {
        if report.isIdentical {
            let digest = report.first.header.logicalDigest
            return ["\("the same", .green): both payloads have digest \(digest)"]
        }
        var counts = [Quantity.plural(report.count(.changed), "tensor") + " changed"]
        for kind in [TensorChange.Kind.added, .removed, .reshaped, .retyped]
        where report.count(kind) > 0 {
            counts.append("\(report.count(kind)) \(kind.rawValue)")
        }
        counts.append("\(Quantity.count(UInt64(report.sameCount))) the same")
        if !report.metadata.isEmpty { counts.append("metadata differs") }
        let text = counts.joined(separator: ", ")
        return [
            report.isDifferent
                ? "\("different", .yellow): \(text)" : "\("the same", .green): \(text)"
        ]
    }

    private func tensors(width: Int?) -> [StyledText] {
        var table = TableLayout([
            .flexible("tensor"), .left("dtype"), .right("changed"), .right(""),
            .right("max diff"), .right("rel. L2"), .left(""),
        ])
        let listed = report.listed(top: top)
        for change in listed { table.add(row(change)) }
        var lines = table.lines(width: width)
        for change in listed {
            for damage in change.damage {
                lines += TextWrap.lines("\(change.name): \(damage)", indent: 2, width: width)
            }
        }
        let hidden = report.changes.count - listed.count
        if hidden > 0 {
            lines.append("  … and \(Quantity.plural(hidden, "tensor")) more; --top 0 lists all")
        }
        return lines
    }

    private func row(_ change: TensorChange) -> [StyledText] {
        let type = change.second?.elementType ?? change.first?.elementType
        let start: [StyledText] = [
            "\(change.name)", StyledText(type.map { $0.name } ?? "", .cyan),
        ]
        let note = note(change)
        guard let difference = change.difference else {
            return start + ["—", "", "—", "—", note]
        }
        return start + [
            "\(Quantity.short(difference.changedCount))",
            "\(Quantity.percent(difference.changedCount, of: difference.elementCount))",
            "\(Quantity.significant(difference.largest))",
            "\(difference.relativeNorm.map { Quantity.significant($0) } ?? "from 0")", note,
        ]
    }

    private func note(_ change: TensorChange) -> StyledText {
        func shape(_ tensor: ComparedTensor?) -> String {
            let text = tensor?.shape.map(String.init).joined(separator: "×") ?? ""
            return text.isEmpty ? "scalar" : text
        }
        if !change.damage.isEmpty { return StyledText("damaged", .red) }
        switch change.kind {
        case .added: return StyledText("added", .green)
        case .removed: return StyledText("removed", .red)
        case .retyped:
            let was = change.first.map { $0.elementType.name } ?? ""
            return StyledText("was \(was)", .yellow)
        case .reshaped: return StyledText("was \(shape(change.first))", .yellow)
        case .changed, .same:
            let count = change.difference?.changedNotFiniteCount ?? 0
            return count > 0 ? StyledText("\(Quantity.short(count)) NaN, Inf", .red) : ""
        }
    }

    private func section(
        _ title: String, _ changes: [MetadataChange], limit: Int, width: Int?
    ) -> [StyledText] {
        if changes.isEmpty { return [] }
        var table = TableLayout([.left(""), .flexible("")])
        for change in changes.prefix(limit) {
            let room = width.map { max(8, ($0 - 30) / 2) }
            func text(_ value: String?) -> StyledText {
                guard let value else { return StyledText("∅", .dim) }
                let text = StyledText(value)
                return room.map { text.shortened(to: $0) } ?? text
            }
            let name = StyledText(change.name, .dim)
            table.add([
                width.map { name.shortened(to: max(16, $0 / 3)) } ?? name,
                "\(text(change.first)) → \(text(change.second))",
            ])
        }
        var lines: [StyledText] = ["", "\(title, .bold)"] + table.lines(width: width)
        if changes.count > limit {
            lines.append("  … and \(Quantity.plural(changes.count - limit, "difference")) more")
        }
        return lines
    }
}
