internal import CheckpointFormat
internal import CheckpointModel

/// What `pccheck goodput --plot` draws: for each trace the goodput of every way to save, and what
/// took the rest.
struct GoodputPlot {
    private static let width = 1180
    private static let rowHeight = 22.0
    /// Above the rows of a section: its name, its facts, and the legends.
    private static let sectionHead = 78.0
    /// Below them: the axis and its label.
    private static let sectionFoot = 66.0
    private static let labelEnd = 226.0
    private static let goodputPixels = (start: 240.0, end: 580.0)
    private static let figureX = 594.0
    private static let lossPixels = (start: 790.0, end: 1150.0)

    let report: GoodputReport

    /// One table, with its name.
    private struct Section {
        let name: String
        let facts: String
        /// The best first.
        let rows: [GoodputRow]

        var height: Double {
            GoodputPlot.sectionHead + GoodputPlot.rowHeight * Double(rows.count)
                + GoodputPlot.sectionFoot
        }
    }

    private var sections: [Section] {
        func sorted(_ table: GoodputTable) -> [GoodputRow] {
            table.rows.sorted { $0.goodput.value > $1.goodput.value }
        }
        let traces = report.sections.map { section in
            Section(
                name: section.name,
                facts: "\(section.setting.rawValue), \(section.kind.rawValue), "
                    + "\(Figure.decimal(section.durationSeconds / 86_400, 1)) d, up to "
                    + Quantity.plural(section.nodeCount, "node"),
                rows: sorted(section.table))
        }
        let pooled = report.pooled.map { pool in
            Section(
                name: "all of \(pool.setting.rawValue)",
                facts: "the mean of \(pool.traceCount) traces", rows: sorted(pool.table))
        }
        return traces + pooled
    }

    var document: PlotDocument {
        var top = PlotDocument.headHeight
        var body: [HTMLText] = []
        let sections = sections
        for (index, section) in sections.enumerated() {
            body.append(svg(section, index, top: top))
            top += section.height
        }
        let costs = report.command.costs
        let rate = Quantity.rate(bytesPerSecond: Double(costs.writeRate.byteCount))
        return PlotDocument(
            title: "Goodput of each way to save",
            subtitle: "state of a node \(Quantity.bytes(costs.state.byteCount)) · step "
                + "\(Quantity.significant(costs.stepSeconds)) s · storage "
                + "\(rate) for a node · "
                + "\(Quantity.significant(report.command.confidence * 100)) % intervals of "
                + "\(report.command.replications) replications",
            description: sections.map(description).joined(separator: " "), width: Self.width,
            height: Int(top), body: body)
    }

    private func description(_ section: Section) -> String {
        guard let best = section.rows.first else { return "\(section.name): nothing was replayed." }
        return "\(section.name): best is \(Self.name(best)) with \(figure(best))."
    }

    private static func name(_ row: GoodputRow) -> String {
        guard let rule = row.rule else { return row.policy }
        let seconds = row.intervalSeconds.map { " \(Quantity.significant($0)) s" } ?? ""
        return "\(row.policy) · \(rule)\(seconds)"
    }

    private func figure(_ row: GoodputRow) -> String {
        func percent(_ share: Double) -> String { Figure.decimal(share * 100, 2) }
        let goodput = row.goodput
        return "\(percent(goodput.value)) % (\(percent(goodput.low)) to \(percent(goodput.high)))"
    }

    // MARK: One section

    private func svg(_ section: Section, _ index: Int, top: Double) -> HTMLText {
        let rowsTop = top + Self.sectionHead
        let bottom = rowsTop + Self.rowHeight * Double(section.rows.count)
        let goodputAxis = goodputAxis(section)
        let lossAxis = lossAxis(section)
        let rows = section.rows.enumerated().map { row, values in
            svg(values, y: rowsTop + (Double(row) + 0.5) * Self.rowHeight, goodputAxis, lossAxis)
        }
        return """
            <g class="section" id="section-\(index)">\
            \(SVG.text("h", x: PlotDocument.margin, y: top + 22, section.name))\
            \(SVG.text("t", x: PlotDocument.margin, y: top + 42, section.facts))\
            \(PlotLegend(x: Self.goodputPixels.start, y: top + 64, keys: Self.goodputKeys).svg)\
            \(PlotLegend(x: Self.lossPixels.start, y: top + 64, keys: Self.lossKeys).svg)\
            \(frame("goodput", goodputAxis, top: rowsTop, bottom: bottom))\
            \(frame("losses", lossAxis, top: rowsTop, bottom: bottom))\(rows)</g>

            """
    }

    private static let goodputKeys: [(PlotPanel.Key, kind: String, label: String)] = [
        (.dot, "own", "PCcheck"), (.dot, "other", "others"),
        (.line, "whisker", "confidence interval"),
    ]

    private static let lossKeys: [(PlotPanel.Key, kind: String, label: String)] = [
        (.area, "blocked", "blocked"), (.area, "redone", "redone"), (.area, "restart", "restart"),
        (.area, "waiting", "waiting"),
    ]

    /// Of what saves: a job that never does loses so much that the rest would be one point.
    private func scaled(_ section: Section) -> [GoodputRow] {
        let saving = section.rows.filter { $0.rule != nil }
        return saving.isEmpty ? section.rows : saving
    }

    private func goodputAxis(_ section: Section) -> Axis {
        let rows = scaled(section)
        let low = rows.map { min($0.goodput.low, $0.goodput.value) }.min() ?? 0
        let high = rows.map { max($0.goodput.high, $0.goodput.value) }.max() ?? 1
        let room = max((high - low) * 0.06, 1e-4)
        let start = max(0, low - room)
        let hasLess = section.rows.contains { $0.goodput.value < start }
        return Axis(
            "goodput, % of the time\(hasLess ? " (<: below the axis)" : "")", .linear,
            100 * start...100 * min(1, high + room), pixels: Self.goodputPixels)
    }

    private func lossAxis(_ section: Section) -> Axis {
        let end = max(1.02 * (scaled(section).map(\.losses.total).max() ?? 1), 1e-4)
        let hasMore = section.rows.contains { $0.losses.total > end }
        return Axis(
            "lost, % of the time\(hasMore ? " (>: above the axis)" : "")", .linear, 0...100 * end,
            pixels: Self.lossPixels)
    }

    private func frame(_ name: String, _ axis: Axis, top: Double, bottom: Double) -> HTMLText {
        let ticks = axis.ticks.map { tick -> HTMLText in
            let x = axis.position(tick.value)
            return """
                \(SVG.line("grid", [(x, top), (x, bottom)]))\
                \(SVG.text("t m x-tick", x: x, y: bottom + 17, tick.label))
                """
        }
        let middle = (axis.pixels.start + axis.pixels.end) / 2
        return """
            <g class="\(name)">\(ticks)\
            \(SVG.text("t m", x: middle, y: bottom + 36, axis.label))</g>
            """
    }

    // MARK: One row

    private func svg(
        _ row: GoodputRow, y: Double, _ goodputAxis: Axis, _ lossAxis: Axis
    ) -> HTMLText {
        let kind = row.policy.hasPrefix("PCcheck") ? "own" : "other"
        let name = Self.name(row)
        return """
            <g class="row">\(SVG.text("e name", x: Self.labelEnd, y: y + 4, name))\
            \(whisker(row, kind, y: y, goodputAxis))\
            \(SVG.text("t", x: Self.figureX, y: y + 4, figure(row)))\
            \(bars(row, y: y, lossAxis))</g>
            """
    }

    private func whisker(_ row: GoodputRow, _ kind: String, y: Double, _ axis: Axis) -> HTMLText {
        let goodput = row.goodput
        guard goodput.value * 100 >= axis.range.lowerBound else {
            // An arrow to what is left of the axis.
            let x = axis.pixels.start
            return SVG.line("whisker", [(x + 8, y - 4), (x, y), (x + 8, y + 4)])
        }
        let (low, high) = (axis.position(goodput.low * 100), axis.position(goodput.high * 100))
        return """
            \(SVG.line("whisker", [(low, y), (high, y)]))\
            \(SVG.line("whisker", [(low, y - 4), (low, y + 4)]))\
            \(SVG.line("whisker", [(high, y - 4), (high, y + 4)]))\
            \(SVG.dot(kind, x: axis.position(goodput.value * 100), y: y, title: figure(row)))
            """
    }

    private func bars(_ row: GoodputRow, y: Double, _ axis: Axis) -> HTMLText {
        let losses = row.losses
        let parts = [
            ("blocked", losses.blocked), ("redone", losses.redone), ("restart", losses.restart),
            ("waiting", losses.waiting),
        ]
        var start = 0.0
        var html: HTMLText = ""
        for (kind, share) in parts {
            let left = min(axis.position(start * 100), axis.pixels.end)
            start += share
            let right = min(axis.position(start * 100), axis.pixels.end)
            html += SVG.rect(
                kind, x: left, y: y - 7, width: right - left, height: 14,
                title: "\(kind) \(Figure.decimal(share * 100, 2)) %")
        }
        if start * 100 > axis.range.upperBound {
            // An arrow: the bar is longer than the axis.
            let x = axis.pixels.end + 12
            html += SVG.line("whisker", [(x - 8, y - 4), (x, y), (x - 8, y + 4)])
        }
        return html
    }
}
