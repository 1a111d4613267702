internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointRecovery

/// The drawings of the report page: inline SVG that needs no style attribute.
struct ReportCharts {
    private static let chartWidth = 1000
    private static let labelWidth = 70
    private static let stateWidth = 132
    private static let rowHeight = 26
    /// Cells of a chunk map; more chunks share cells.
    private static let cellCountMaximum = 1000
    private static let cellsPerRow = 100

    let report: CheckReport

    private var trackWidth: Int { Self.chartWidth - Self.labelWidth - Self.stateWidth }

    private func svg(_ label: String, height: Int, _ body: [HTMLText]) -> HTMLText {
        """
        <div class="scroll"><svg class="wide" role="img" aria-label="\(label)" \
        viewBox="0 0 \(Self.chartWidth) \(height)">\(body)</svg></div>
        """
    }

    /// Each slot as a bar, filled by the bytes that its checkpoint stores.
    func slotMap(_ decision: RecoveryDecision) -> HTMLText {
        let capacity = max(decision.identity.geometry.slotByteCount, 1)
        let rows = zip(decision.slots, report.slots).enumerated().map { row, slot -> HTMLText in
            let (found, check) = slot
            let header = found.usedHeader
            let used = header.map {
                $0.state == .complete ? $0.storedByteCount : $0.payloadByteCount
            }
            let width = width(of: used ?? 0, in: capacity)
            return """
                \(rowLabel("slot \(found.slot)", row))\(bar("track", x: 0, width: trackWidth, row))\
                \(bar(kind(check.reason), x: 0, width: width, row))\(stateLabel(check.reason, row))
                """
        }
        return svg(
            "How full each slot is", height: decision.slots.count * Self.rowHeight, rows)
    }

    /// Each checkpoint as a bar from when it began to when its last chunk was written.
    func timeline(_ decision: RecoveryDecision) -> HTMLText? {
        let spans = zip(decision.slots, report.slots).compactMap { found, check in
            found.usedHeader.flatMap { header -> (SlotHeader, SlotReason)? in
                header.beganTime == 0 ? nil : (header, check.reason)
            }
        }.sorted { $0.0.sequence < $1.0.sequence }
        guard let start = spans.map(\.0.beganTime).min(),
            let end = spans.map({ max($0.0.beganTime, $0.0.completedTime) }).max()
        else { return nil }
        let length = max(end - start, 1)
        let rows = spans.enumerated().map { row, span -> HTMLText in
            let (header, reason) = span
            // A checkpoint that was never completed has no end: it is drawn to the last time.
            let last = header.completedTime == 0 ? end : max(header.completedTime, header.beganTime)
            let x = min(width(of: header.beganTime - start, in: length), trackWidth - 3)
            let barWidth = max(width(of: last - header.beganTime, in: length), 3)
            return """
                \(rowLabel("step \(header.step)", row))\
                \(bar("track", x: 0, width: trackWidth, row))\
                \(bar(kind(reason), x: x, width: min(barWidth, trackWidth - x), row))\
                <text class="t" x="\(Self.labelWidth + trackWidth + 12)" y="\(textY(row))">\
                slot \(header.slot)</text>
                """
        }
        return """
            <p class="scale">\(Quantity.date(start)) to \(Quantity.date(end)), \
            \(Quantity.duration(nanoseconds: length)).</p>\
            \(svg("When each checkpoint was written", height: spans.count * Self.rowHeight, rows))
            """
    }

    /// Every chunk of a checkpoint as a cell, with those that were found damaged marked.
    func chunkMap(_ candidate: Candidate) -> HTMLText {
        let count = candidate.table.entries.count
        let perCell = max(1, (count + Self.cellCountMaximum - 1) / Self.cellCountMaximum)
        let damaged = Set(
            report.findings.filter { $0.slot == candidate.slot }.compactMap(\.chunk)
                .map { $0 / perCell })
        let cellCount = (count + perCell - 1) / perCell
        let cells = (0..<cellCount).map { cell -> HTMLText in
            let (x, y) = (cell % Self.cellsPerRow * 10, cell / Self.cellsPerRow * 12)
            return SVG.rect(
                damaged.contains(cell) ? "broken" : "part", x: x, y: y, width: 8, height: 10)
        }
        let rowCount = max(1, (cellCount + Self.cellsPerRow - 1) / Self.cellsPerRow)
        let label =
            "\(Quantity.plural(count, "chunk")) of step \(candidate.step), "
            + "\(Quantity.plural(damaged.count, "cell")) with damage"
        return """
            <p>Slot \(candidate.slot), step \(candidate.step): \(Quantity.plural(count, "chunk")), \
            \(Quantity.bytes(candidate.header.storedByteCount)) stored of \
            \(Quantity.bytes(candidate.header.payloadByteCount))\
            \(perCell > 1 ? ", \(perCell) chunks to a cell" : "").</p>\
            \(svg(label, height: rowCount * 12, cells))
            """
    }

    private func width(of part: UInt64, in whole: UInt64) -> Int {
        let width = Int(Double(min(part, whole)) / Double(whole) * Double(trackWidth))
        return part > 0 ? max(width, 3) : 0
    }

    private func textY(_ row: Int) -> Int { row * Self.rowHeight + 17 }

    private func bar(_ kind: String, x: Int, width: Int, _ row: Int) -> HTMLText {
        SVG.rect(
            kind, x: Self.labelWidth + x, y: row * Self.rowHeight + 5, width: width, height: 16)
    }

    private func rowLabel(_ text: String, _ row: Int) -> HTMLText {
        SVG.text(x: 0, y: textY(row), PrintableText.shortened(text, to: 11))
    }

    private func stateLabel(_ reason: SlotReason, _ row: Int) -> HTMLText {
        """
        <text class="t" x="\(Self.labelWidth + trackWidth + 12)" y="\(textY(row))">\
        \(reason.label(isWriterAtWork: false).plain)</text>
        """
    }

    private func kind(_ reason: SlotReason) -> String {
        switch reason {
        case .anchored: "full"
        case .retained, .unanchored: "part"
        case .older, .empty: "old"
        case .writing: "torn"
        default: "broken"
        }
    }
}
