internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

/// The screen of `pcinspect watch`: 80 columns, at most 23 lines.
struct WatchScreen {
    private static let rowCountMaximum = 10
    private static let chartColumnCount = 48

    private let path: String
    private let watch: Watch
    private let isLive: Bool

    init(_ watch: Watch, path: String, isLive: Bool = true) {
        self.path = path
        self.watch = watch
        self.isLive = isLive
    }

    func lines(width: Int) -> [StyledText] {
        var lines: [StyledText] = [title, ""]
        if let failure = watch.failure {
            lines += TextWrap.lines(failure.message, indent: 2, width: width)
            lines.append("  \("waiting for it", .yellow)")
        } else if let sample = watch.sample {
            lines += facts(sample) + [""] + slots(sample, width: width)
        } else {
            lines.append("  waiting for the file")
        }
        // A line as wide as the terminal would wrap, and the next redraw would start too low.
        let fitted = lines.map { $0.shortened(to: width - 1) }
        return isLive ? fitted + ["", StyledText("  q leaves", .dim)] : fitted
    }

    private var title: StyledText {
        guard let sample = watch.sample, watch.failure == nil else { return "\(path, .bold)" }
        return "\(path, .bold)  ·  \(Quantity.date(sample.time))"
    }

    private func facts(_ sample: WatchSample) -> [StyledText] {
        var facts = FactTable()
        facts.add("writer", writer(sample))
        facts.add("durable", newest(sample))
        facts.add("in flight", inFlight(sample))
        for (index, pin) in sample.pins.enumerated() {
            facts.add(index == 0 ? "readers" : "", "\(pin.description)")
        }
        if let rates = watch.history.rates(now: sample.time) {
            let perMinute = (rates.commitsPerMinute * 10).rounded() / 10
            facts.add(
                "rate",
                """
                \(perMinute) commits/min, \
                \(Quantity.bytes(UInt64(rates.bytesPerSecond)))/s made durable
                """)
        } else {
            facts.add("rate", "not known yet")
        }
        if let usual = watch.history.usualInterval {
            let chart = watch.history.sparkline(columnCount: Self.chartColumnCount)
            facts.add(
                "intervals", "\(chart, .cyan)  usually \(Quantity.duration(nanoseconds: usual))")
        }
        return facts.lines(width: nil)
    }

    private func writer(_ sample: WatchSample) -> StyledText {
        switch sample.writer {
        case .closed: return "none; the file was closed with nothing in flight"
        case .gone: return "\("writer gone", .red): it released the lock without closing the file"
        case .unknown: return "\("unknown", .yellow): there are no locks here that show it"
        case .atWork:
            let process = sample.decision.superblock.map { ", process \($0.writerPID)" } ?? ""
            return watch.isStalled
                ? "\("stalled", .red): nothing became durable in time\(process)"
                : "\("at work", .cyan)\(process)"
        }
    }

    private func newest(_ sample: WatchSample) -> StyledText {
        guard let anchor = sample.anchor else { return "nothing yet" }
        let age = sample.newest.map { Quantity.age(of: $0.completedTime, now: sample.time) }
        return """
            \("step \(anchor.step)", .green) in slot \(anchor.slot)\(age.map { ", \($0)" } ?? "")\
            , generation \(sample.generation)
            """
    }

    private func inFlight(_ sample: WatchSample) -> StyledText {
        let headers = sample.inFlight
        guard let oldest = headers.first else { return "nothing" }
        let since = Quantity.duration(
            nanoseconds: sample.time - min(oldest.beganTime, sample.time))
        return "\(Quantity.plural(headers.count, "checkpoint")), the oldest for \(since)"
    }

    private func slots(_ sample: WatchSample, width: Int) -> [StyledText] {
        var table = TableLayout([
            .right("slot"), .left("state"), .right("step"), .right("sequence"), .right("payload"),
            .right("since"),
        ])
        // Newest first, so that what does not fit is what matters least.
        let reports = sample.decision.slots.sorted {
            ($1.usedHeader?.sequence ?? .none, $0.slot)
                < ($0.usedHeader?.sequence ?? .none, $1.slot)
        }
        for report in reports.prefix(Self.rowCountMaximum) {
            let state = report.reason.label(isWriterAtWork: sample.isWriterAtWork)
            guard let header = report.usedHeader else {
                table.add(["\(report.slot)", state, "—", "—", "—", "—"])
                continue
            }
            let time = header.state == .complete ? header.completedTime : header.beganTime
            table.add([
                "\(report.slot)", state, "\(header.step)", "\(header.sequence)",
                "\(Quantity.bytes(header.payloadByteCount))",
                "\(Quantity.age(of: time, now: sample.time))",
            ])
        }
        let hidden = reports.count - Self.rowCountMaximum
        let more = StyledText("  and \(Quantity.plural(max(hidden, 0), "slot")) more", .dim)
        return table.lines(width: width) + (hidden > 0 ? [more] : [])
    }
}
