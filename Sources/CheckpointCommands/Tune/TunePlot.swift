internal import CheckpointFormat
internal import CheckpointModel

#if canImport(Glibc)
    internal import Glibc
#endif

/// What `pccheck tune --plot` draws: how the recommendation lies among its neighbours.
struct TunePlot {
    private static let width = 960
    private static let panelHeight = 210.0
    private static let panelPitch = 330.0
    private static let curvePointCount = 160
    /// Intervals that are this many times shorter or longer are drawn too.
    private static let reach = 12.0

    let profile: MachineProfile
    let report: TuneReport

    private var found: Recommendation { report.found }
    private var chosenSteps: Int { found.prediction.intervalSteps }

    /// - Throws: when the machine cannot do the setting, which the recommendation excludes.
    var document: PlotDocument {
        get throws(CheckpointError) {
            let curve = try curve()
            let panels = [writePanel, overheadPanel(curve), goodputPanel(curve)]
            return PlotDocument(
                title: "What pccheck tune recommends", subtitle: subtitle,
                description: description, width: Self.width,
                height: Int(PlotDocument.headHeight + 3 * Self.panelPitch),
                body: panels.map(\.svg))
        }
    }

    // MARK: Words

    private var subtitle: String {
        let (setting, job) = (found.setting, report.job)
        let chunk = Quantity.bytes(UInt64(setting.chunkByteCount))
        return "state \(Quantity.bytes(UInt64(saturating: job.stateByteCount))) · "
            + "step \(Quantity.significant(job.stepSeconds)) s · "
            + "a failure every \(hours(job.meanTimeBetweenFailuresSeconds)) · "
            + "\(Quantity.plural(setting.writerWorkerCount, "writer worker")) · chunk \(chunk) · "
            + "pool \(Quantity.bytes(UInt64(saturating: setting.poolByteCount))) · "
            + "codec \(setting.codec.rawValue)"
    }

    private var description: String {
        let (certainty, steps) = (found.certainty, found.certainty.intervalSteps)
        return "\(found.setting.inFlightCount) in flight, a checkpoint every "
            + "\(Quantity.plural(chosenSteps, "step")). "
            + "Overhead \(percent(certainty.overhead.value)) of a budget of "
            + "\(percent(report.request.budget)), goodput \(percent(certainty.goodput.value)), "
            + "one checkpoint alone \(Quantity.significant(found.queue.aloneSeconds)) s. "
            + "In \(confidence) of the draws the best interval is between "
            + "\(Figure.decimal(steps.low, 0)) and \(Figure.decimal(steps.high, 0)) steps."
    }

    private func hours(_ seconds: Double) -> String {
        "\(Quantity.significant(seconds / 3600, digitCount: 3)) h"
    }

    private func percent(_ share: Double) -> String { "\(Figure.decimal(share * 100, 2)) %" }

    private var confidence: String {
        "\(Quantity.significant(report.request.confidence * 100)) %"
    }

    // MARK: Tw against N

    private func xPixels() -> (start: Double, end: Double) { (96, Double(Self.width) - 36) }

    /// Upright: the value grows towards the top.
    private func yPixels(_ row: Double) -> (start: Double, end: Double) {
        let top = PlotDocument.headHeight + row * Self.panelPitch + 54
        return (top + Self.panelHeight, top)
    }

    private var writePanel: PlotPanel {
        let (queue, chosen) = (found.queue, found.setting.inFlightCount)
        let limit = Double(TuningLimits.inFlightCount.upperBound)
        let knee = max(min(queue.saturatingCount, limit), Double(chosen))
        let most = min(limit, max(4, knee + max(2, (knee / 2).rounded())))
        let counts = Array(1...Int(most))
        let highest = queue.writeSeconds(inFlightCount: Int(most)) * 1.08
        var panel = PlotPanel(
            "write", title: "Time of one checkpoint against the checkpoints in flight",
            x: Axis(
                "N: checkpoints in flight", .linear, 0.5...most + 0.5, pixels: xPixels(),
                isWhole: true),
            y: Axis("Tw(N), seconds", .linear, 0...highest, pixels: yPixels(0)))
        let bound = Figure.decimal(queue.most, 1)
        panel.addKey(
            .dot, "point",
            queue.most < most ? "Tw(N), in a pool for \(bound)" : "Tw(N)")
        panel.addKey(.line, "alone", "alone: Tw(1) = \(Quantity.significant(queue.aloneSeconds)) s")
        panel.addKey(.line, "busy", "busy: N · D, one after another")
        panel.addKey(.dot, "chosen", "chosen: N = \(chosen)")
        panel.addLine("alone", [(0.5, queue.aloneSeconds), (most + 0.5, queue.aloneSeconds)])
        // As far as it is inside of the panel.
        let end = min(most + 0.5, highest / queue.busiestSeconds)
        panel.addLine("busy", [0.5, end].map { ($0, $0 * queue.busiestSeconds) })
        panel.addLine(
            "curve", counts.map { (Double($0), queue.writeSeconds(inFlightCount: $0)) })
        for count in counts {
            let seconds = queue.writeSeconds(inFlightCount: count)
            let title = "N = \(count): \(Quantity.significant(seconds)) s"
            panel.addDot("point", (Double(count), seconds), radius: 3, title: title)
            if count == chosen {
                panel.addDot("chosen", (Double(count), seconds), radius: 6, title: title)
            }
        }
        return panel
    }

    // MARK: Against the interval

    private struct Point {
        let prediction: MachinePrediction
        let isSustained: Bool

        var steps: Double { Double(prediction.intervalSteps) }
    }

    private var stepRange: ClosedRange<Double> {
        let best = found.certainty.intervalSteps
        let low = min(Double(chosenSteps), best.low) / Self.reach
        let high = max(Double(chosenSteps), best.high) * Self.reach
        return max(
            1, low.rounded(.down))...min(
                high.rounded(.up), Double(TuningLimits.intervalSteps.upperBound))
    }

    /// Intervals evenly apart on the logarithmic axis, with the chosen one.
    private func curve() throws(CheckpointError) -> [Point] {
        let line: CheckpointLine
        do throws(TuningError) {
            line = try MachineModel(profile: profile, job: report.job).line(found.setting)
        } catch {
            throw CheckpointError(.invalidArgument, error.message)
        }
        let range = stepRange
        let count = Double(Self.curvePointCount)
        let steps = (0...Self.curvePointCount).map { index in
            Int(range.lowerBound * pow(range.upperBound / range.lowerBound, Double(index) / count))
        }
        return Set(steps + [chosenSteps]).sorted().map { steps in
            Point(
                prediction: MachinePrediction(line, intervalSteps: steps),
                isSustained: line.isSustained(intervalSteps: steps))
        }
    }

    private func intervalPanel(_ name: String, _ title: String, y: Axis) -> PlotPanel {
        PlotPanel(
            name, title: title,
            x: Axis(
                "interval, steps (logarithmic)", .logarithmic, stepRange, pixels: xPixels()),
            y: y)
    }

    /// The part that no machine sustains is drawn as such.
    private func add(
        _ points: [Point], to panel: inout PlotPanel, _ value: (MachinePrediction) -> Double
    ) {
        let first = points.firstIndex(where: \.isSustained) ?? points.endIndex
        let places = points.map { ($0.steps, value($0.prediction)) }
        panel.addKey(.line, "curve", "predicted")
        if first > 0 {
            panel.addKey(.line, "waits", "too short: training waits for a slot")
            panel.addLine("waits", Array(places[..<min(first + 1, places.count)]))
        }
        panel.addLine("curve", Array(places[first...]))
    }

    private func addChosen(to panel: inout PlotPanel, _ estimate: Estimate) {
        let steps = Double(chosenSteps)
        panel.addKey(.dot, "chosen", "chosen: \(Quantity.plural(chosenSteps, "step"))")
        panel.addLine("whisker", [(steps, estimate.low * 100), (steps, estimate.high * 100)])
        panel.addDot(
            "chosen", (steps, estimate.value * 100), radius: 6,
            title: "\(Quantity.plural(chosenSteps, "step")): \(percent(estimate.value)) "
                + "(\(percent(estimate.low)) to \(percent(estimate.high)))")
    }

    private func overheadPanel(_ points: [Point]) -> PlotPanel {
        let (budget, overhead) = (report.request.budget, found.certainty.overhead)
        let highest = 100 * max(2 * budget, 1.3 * overhead.high)
        var panel = intervalPanel(
            "overhead", "Overhead against the interval",
            y: Axis("overhead, % of training", .linear, 0...highest, pixels: yPixels(1)))
        add(points, to: &panel) { $0.overhead * 100 }
        panel.addKey(.line, "budget", "budget: \(percent(budget))")
        let ends = [stepRange.lowerBound, stepRange.upperBound]
        panel.addLine("budget", ends.map { ($0, budget * 100) })
        addChosen(to: &panel, overhead)
        return panel
    }

    private func goodputPanel(_ points: [Point]) -> PlotPanel {
        let (goodput, steps) = (found.certainty.goodput, found.certainty.intervalSteps)
        let values = points.map(\.prediction.goodput)
        let highest = max(values.max() ?? 1, goodput.high)
        // What is far below the best would make the rest flat.
        let lowest = max(values.min() ?? 0, highest - 4 * (1 - min(highest, 0.9999)), 0)
        let room = max((highest - min(lowest, goodput.low)) * 0.1, 1e-5)
        let range = 100 * max(0, min(lowest, goodput.low) - room)...100 * min(1, highest + room)
        var panel = intervalPanel(
            "goodput", "Goodput against the interval",
            y: Axis("goodput, % of the time", .linear, range, pixels: yPixels(2)))
        panel.addKey(
            .area, "band", "best interval in \(confidence) of the draws")
        panel.addBand(
            "band", steps.low...max(steps.low, steps.high),
            title: "\(Figure.decimal(steps.low, 0)) to \(Figure.decimal(steps.high, 0)) steps")
        add(points, to: &panel) { $0.goodput * 100 }
        addChosen(to: &panel, goodput)
        return panel
    }
}
