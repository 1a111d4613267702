/// Looks for the setting and the interval with the best goodput within a request.
struct SettingSearch {
    struct Choice {
        let line: CheckpointLine
        let prediction: MachinePrediction
    }

    /// A setting that loses so little more than the best one is as good, when it costs less.
    private static let tolerance = 0.01
    private static let workerCounts = [1, 2, 3, 4, 6, 8, 12, 16]
    private static let chunkChoiceCount = 6

    let model: MachineModel
    let request: TuningRequest

    /// - Throws: `noRoom`, `budgetTooSmall`, or why the machine can do no setting at all.
    func best() throws(TuningError) -> Choice {
        var choices: [Choice] = []
        // Of the smallest setting, which needs least.
        var failure: TuningError?
        for setting in settings() {
            do throws(TuningError) {
                let found = try choicesOfEachCount(try model.line(setting))
                if found.isEmpty { failure = failure ?? noRoom }
                choices += found
            } catch {
                failure = failure ?? error
            }
        }
        let most = choices.map(\.prediction.goodput).max() ?? 0
        let enough = most - Self.tolerance * (1 - most)
        let good = choices.filter { $0.prediction.goodput >= enough }
        guard let cheapest = good.min(by: Self.isCheaper) else {
            throw failure ?? noRoom
        }
        return cheapest
    }

    private var noRoom: TuningError {
        TuningError(.noRoom, "no setting fits \(request.limitText)")
    }

    private func settings() -> [MachineSetting] {
        let most = max(4, model.profile.processorCount)
        let workers =
            request.fixed.writerWorkerCount.map { [$0] }
            ?? Self.workerCounts.filter { $0 <= most }
        let codecs =
            request.fixed.codec.map { [$0] } ?? [.none] + model.profile.codecs.map(\.codec)
        var settings: [MachineSetting] = []
        for chunk in request.fixed.chunkByteCount.map({ [$0] }) ?? chunks() {
            for workers in workers {
                for pool in pools(chunk: chunk, workers: workers) {
                    for codec in codecs {
                        var setting = MachineSetting(
                            inFlightCount: 1, chunkByteCount: chunk, writerWorkerCount: workers,
                            poolByteCount: pool, codec: codec)
                        setting.writesPerWorker = request.writesPerWorker
                        settings.append(setting)
                    }
                }
            }
        }
        return settings
    }

    /// The least that works, and parts of a slot.
    private func pools(chunk: Int, workers: Int) -> [Double] {
        if let fixed = request.fixed.poolByteCount { return [fixed] }
        let least = Double(chunk) * Double(workers)
        let slot = (model.job.stateByteCount / Double(chunk)).rounded(.up) * Double(chunk)
        return Set([least] + [0.25, 0.5, 1, 2].map { max(least, slot * $0) }).sorted()
    }

    /// Sizes of writes that were measured, evenly when they are many.
    private func chunks() -> [Int] {
        let sizes = Set(model.profile.device.map(\.writeByteCount)).sorted()
        guard sizes.count > Self.chunkChoiceCount else { return sizes }
        return (0..<Self.chunkChoiceCount).map {
            sizes[$0 * (sizes.count - 1) / (Self.chunkChoiceCount - 1)]
        }
    }

    /// With each N up to the one that keeps the busiest station busy.
    private func choicesOfEachCount(_ line: CheckpointLine) throws(TuningError) -> [Choice] {
        let most = Int(min(line.queue.saturatingCount, Double(request.inFlightCount)))
        let counts = request.fixed.inFlightCount.map { $0...$0 } ?? 1...max(1, most)
        var choices: [Choice] = []
        var failure: TuningError?
        for count in counts {
            let line = line.inFlight(count)
            let size = MachinePrediction(line, intervalSteps: 1)
            guard size.diskByteCount <= request.diskByteCount,
                size.memoryByteCount <= request.memoryByteCount
            else { continue }
            do throws(TuningError) {
                let steps = try steps(line)
                choices.append(
                    Choice(
                        line: line, prediction: MachinePrediction(line, intervalSteps: steps)))
            } catch {
                failure = error
            }
        }
        if choices.isEmpty, let failure { throw failure }
        return choices
    }

    private func steps(_ line: CheckpointLine) throws(TuningError) -> Int {
        if let fixed = request.fixed.intervalSteps { return fixed }
        return try Self.steps(line, budget: request.budget)
    }

    /// - Throws: `budgetTooSmall`.
    static func steps(_ line: CheckpointLine, budget: Double) throws(TuningError) -> Int {
        let steps = IntervalSearch(costs: line, budget: budget).bestSteps(
            meanTimeBetweenFailuresSeconds: line.job.meanTimeBetweenFailuresSeconds,
            restartSeconds: line.job.restartSeconds)
        guard let steps else {
            throw TuningError(
                .budgetTooSmall,
                "no interval up to \(TuningLimits.intervalSteps.upperBound) steps costs only "
                    + "\(budget) of the time")
        }
        return steps
    }

    private static func isCheaper(_ left: Choice, _ right: Choice) -> Bool {
        func order(_ choice: Choice) -> (Int, Double, Int, Int, Double) {
            let setting = choice.line.setting
            return (
                setting.inFlightCount, choice.prediction.memoryByteCount,
                setting.codec == .none ? 0 : 1, setting.writerWorkerCount,
                -choice.prediction.goodput
            )
        }
        return order(left) < order(right)
    }
}
