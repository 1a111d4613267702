internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

/// The default screen of pcinspect.
struct SummaryScreen {
    private static let barColumnCounts = [14, 10, 6, 4]
    /// Slots in one line of the map.
    private static let mapColumnCount = 40
    /// Beyond so many slots, only those that matter most have a row.
    private static let rowCountMaximum = 20

    private let inspection: Inspection
    private var decision: RecoveryDecision { inspection.decision }

    init(_ inspection: Inspection) { self.inspection = inspection }

    func lines(width: Int?) -> [StyledText] {
        [title, ""] + facts(width: width) + [""] + table(width: width) + problems(width: width)
    }

    private var title: StyledText {
        let geometry = inspection.geometry
        let version = decision.identity.version
        return """
            \(inspection.path, .bold)  ·  \(Quantity.plural(geometry.slotCount, "slot")) of \
            \(Quantity.bytes(geometry.slotByteCount))  ·  \
            \(Quantity.bytes(inspection.storage.byteCount))  ·  format \(version.major).\
            \(version.minor)
            """
    }

    private func facts(width: Int?) -> [StyledText] {
        let identity = decision.identity
        var facts = FactTable()
        facts.add("newest", newest)
        if let next = decision.candidates.first, next.kind == .unanchored {
            facts.add(
                "not anchored",
                "step \(next.step) in slot \(next.slot): complete and newer; used once verified")
        }
        for (index, line) in map.enumerated() { facts.add(index == 0 ? "slots" : "", line) }
        facts.add("", counts)
        facts.add("writer", writer)
        for (index, pin) in inspection.pins.enumerated() {
            facts.add(index == 0 ? "readers" : "", "\(pin.description)")
        }
        if let rates { facts.add("rates", rates) }
        facts.add("superblock", superblock)
        if !identity.fingerprint.isEmpty { facts.add("fingerprint", "\(identity.fingerprint)") }
        if identity.worldSize > 1 { facts.add("rank", "\(identity.rank) of \(identity.worldSize)") }
        if identity.runUUID != .zero { facts.add("group", group) }
        facts.add("created", "\(Quantity.date(identity.createdTime)) by \(identity.creator)")
        facts.add("file id", "\(identity.fileUUID)")
        return facts.lines(width: width)
    }

    private var newest: StyledText {
        guard let header = decision.slots.first(where: { $0.reason == .anchored })?.usedHeader
        else {
            return decision.highestSequence == .none
                ? "none: nothing was saved yet" : "none that a superblock names"
        }
        let time = header.completedTime
        let age = time == 0 ? "" : ", completed \(Quantity.age(of: time, now: inspection.now))"
        return "\("step \(header.step)", .green) in slot \(header.slot)\(age)"
    }

    /// What this rank knows of the others; with their files, the folder shows more.
    private var group: StyledText {
        guard let superblock = decision.superblock else { return "unknown" }
        let known = superblock.watermark.map { "\($0)" } ?? "nothing"
        return "attempt \(superblock.attempt); \(known) is known to be durable on all ranks"
    }

    private var writer: StyledText {
        if inspection.isWriterAtWork == true { return "\("at work", .cyan) on this file now" }
        let isKnown = inspection.isWriterAtWork != nil
        guard let superblock = decision.superblock else { return isKnown ? "none" : "unknown" }
        // A writer takes the mark of a clean close away before it writes anything else.
        guard isKnown || superblock.isCleanClose else {
            return """
                \("unknown", .yellow): there are no locks here that show it; process \
                \(superblock.writerPID) has not closed the file
                """
        }
        return superblock.isCleanClose
            ? "none; the file was closed with nothing in flight"
            : "none; \("the last one did not close the file", .yellow) (killed, or lost power)"
    }

    private var superblock: StyledText {
        let copies = decision.superblockFindings
        let whole = copies.filter { $0.superblock != nil }.count
        let count: StyledText =
            whole == copies.count
            ? "\(whole) of \(copies.count) copies intact"
            : "\("\(whole) of \(copies.count) copies intact", .red)"
        guard let superblock = decision.superblock else { return count }
        return "generation \(superblock.generation), \(count)"
    }

    // MARK: The map

    /// One glyph per slot.
    private var map: [StyledText] {
        stride(from: 0, to: decision.slots.count, by: Self.mapColumnCount).map { start in
            let end = min(start + Self.mapColumnCount, decision.slots.count)
            return decision.slots[start..<end].reduce(into: StyledText()) { line, report in
                line.append(glyph(report.reason))
            }
        }
    }

    private func glyph(_ reason: SlotReason) -> StyledText {
        let style = reason.label(isWriterAtWork: inspection.isWriterAtWork).parts.first?.style
        let glyph =
            switch reason {
            case .anchored: "█"
            case .retained: "▓"
            case .unanchored, .writing: "▒"
            case .older: "▸"
            case .empty: "░"
            default: "✘"
            }
        return StyledText(glyph, style)
    }

    /// The legend of the map, with how many there are of each.
    private var counts: StyledText {
        var order: [String] = []
        var found: [String: (glyph: StyledText, count: Int)] = [:]
        for report in decision.slots {
            let name = report.reason.label(isWriterAtWork: inspection.isWriterAtWork).plain
            if found[name] == nil { order.append(name) }
            found[name, default: (glyph(report.reason), 0)].count += 1
        }
        var line = StyledText()
        for name in order {
            guard let (glyph, count) = found[name] else { continue }
            if !line.plain.isEmpty { line.append("  ", nil) }
            line.append("\(glyph) \(count) \(name)")
        }
        return line
    }

    private var rates: StyledText? {
        let rates = SlotRates(decision.slots)
        var parts: [String] = []
        if let rate = rates.storedBytesPerSecond {
            parts.append("newest stored at \(Quantity.rate(bytesPerSecond: rate))")
        }
        if let rate = rates.checkpointsPerHour {
            let count =
                rate < 1000 ? Quantity.significant(rate) : Quantity.short(UInt64(saturating: rate))
            parts.append("\(count) checkpoints/h")
        }
        if let ratio = rates.compressionRatio, ratio != 1 {
            parts.append("compressed \(Quantity.significant(ratio))×")
        }
        return parts.isEmpty ? nil : "\(parts.joined(separator: ", "))"
    }

    // MARK: The table

    /// With bars as wide as the terminal allows.
    private func table(width: Int?) -> [StyledText] {
        let reports = shownReports
        let hidden = decision.slots.count - reports.count
        var lines: [StyledText] = []
        for columnCount in Self.barColumnCounts {
            lines = table(reports, barColumnCount: columnCount)
            guard let width, lines.contains(where: { $0.columnCount > width }) else { break }
        }
        if hidden > 0 {
            lines.append("  … and \(Quantity.plural(hidden, "slot")) more; see pcinspect slots")
        }
        return lines
    }

    /// The slots that have a row, in their order.
    private var shownReports: [SlotReport] {
        let limit = Self.rowCountMaximum
        if decision.slots.count <= limit { return decision.slots }
        func rank(_ report: SlotReport) -> Int {
            switch report.reason {
            case .anchored: 0
            case .unanchored, .writing: 1
            case .retained: 2
            case .older: 4
            case .empty: 5
            default: 3
            }
        }
        let chosen = decision.slots.sorted {
            (rank($0), $1.header?.sequence ?? .none, $0.slot)
                < (rank($1), $0.header?.sequence ?? .none, $1.slot)
        }.prefix(limit)
        return chosen.filter { $0.reason != .empty }.sorted { $0.slot < $1.slot }
    }

    private func table(_ reports: [SlotReport], barColumnCount: Int) -> [StyledText] {
        let isCompressed = decision.slots.contains {
            $0.usedHeader.map { $0.storedByteCount < $0.payloadByteCount } ?? false
        }
        var table = TableLayout(
            [.right("slot"), .left("filled"), .left("state"), .right("step"), .right("seq")]
                + [.right("payload")] + (isCompressed ? [.right("stored")] : [])
                + [.right("rate"), .right("age")])
        for report in reports {
            table.add(row(report, isCompressed: isCompressed, barColumnCount))
        }
        return table.lines(width: nil)
    }

    private func row(
        _ report: SlotReport, isCompressed: Bool, _ barColumnCount: Int
    ) -> [StyledText] {
        let state = report.reason.label(isWriterAtWork: inspection.isWriterAtWork)
        guard let header = report.usedHeader else {
            let bar = Quantity.bar(0, of: 1, width: barColumnCount)
            return ["\(report.slot)", StyledText(bar, .dim), state]
                + [StyledText](repeating: "—", count: isCompressed ? 6 : 5)
        }
        let isWhole = header.state == .complete
        let bar = Quantity.bar(
            isWhole ? header.storedByteCount : header.payloadByteCount,
            of: inspection.geometry.slotByteCount,
            width: barColumnCount, full: isWhole ? "█" : "▒")
        let time = isWhole ? header.completedTime : header.beganTime
        let rate = header.storedBytesPerSecond.map { Quantity.rate(bytesPerSecond: $0) }
        return [
            "\(report.slot)", StyledText(bar, state.parts.first?.style), state,
            "\(header.step)", "\(header.sequence)",
            "\(Quantity.bytes(header.payloadByteCount))",
        ] + (isCompressed ? [isWhole ? "\(Quantity.bytes(header.storedByteCount))" : "—"] : [])
            + ["\(rate ?? "—")", "\(Self.age(time, inspection.now))"]
    }

    /// The column's title says that it is an age.
    private static func age(_ time: UInt64, _ now: UInt64) -> String {
        let age = Quantity.age(of: time, now: now)
        return age.hasSuffix(" ago") ? String(age.dropLast(4)) : age
    }

    private func problems(width: Int?) -> [StyledText] {
        var list = TableLayout([.left(""), .left("")])
        func add(_ text: StyledText) { list.add([StyledText("✘", .red), text]) }
        if decision.isTruncated {
            add(
                """
                the file is truncated: it has \(inspection.storage.byteCount) bytes, expected \
                \(inspection.geometry.fileByteCount)
                """)
        }
        if decision.hasLostEnd {
            add(
                """
                the end of the file is missing: it has \(inspection.storage.byteCount) bytes, \
                expected \(inspection.geometry.fileByteCount); every slot is there
                """)
        }
        for copy in decision.identityFindings where !copy.agreesWithChosen {
            let why = Self.failure(copy.result) ?? "it differs from the other copy"
            add("identity block (\(copy.position.rawValue)) at byte \(copy.offset): \(why)")
        }
        if decision.isFork { add("two superblocks of one generation differ: two writers") }
        for copy in decision.superblockFindings {
            guard let why = Self.failure(copy.result) else { continue }
            add("superblock (\(copy.position.rawValue)) at byte \(copy.offset): \(why)")
        }
        for report in decision.slots where report.reason.isDamage {
            let why = report.detail.map { "\($0)" } ?? "it is \(report.reason.rawValue)"
            add("slot \(report.slot) at byte \(report.headerOffset): \(why)")
        }
        for failure in inspection.image.readFailures { add("\(failure)") }
        if list.rows.isEmpty { return [] }
        return [""] + list.wrappedLines(width: width)
            + ["", "  \("pcfsck \(inspection.path)", .bold) explains this."]
    }

    static func failure<Value>(_ result: Result<Value, FormatError>) -> String? {
        if case .failure(let error) = result { "\(error)" } else { nil }
    }
}
