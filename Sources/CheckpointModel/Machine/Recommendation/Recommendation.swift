/// Which setting and interval a job should use on a machine, and why.
package struct Recommendation: Sendable {
    package let setting: MachineSetting
    package let prediction: MachinePrediction
    package let queue: CheckpointQueue
    /// What a checkpoint waits for most.
    package let limit: MachineLimit
    package let bound: IntervalBound
    /// How sure it is, as far as the spread of the samples shows.
    package let certainty: Certainty
    /// What each change of the machine or the job would make of it.
    package let changes: [Change]

    /// Figures of the setting, with intervals.
    package struct Certainty: Equatable, Sendable {
        package var overhead: Estimate
        package var durableSeconds: Estimate
        package var goodput: Estimate
        /// The interval that would be the best one with this setting.
        package var intervalSteps: Estimate
        /// The share of the replicates in which the machine sustains the interval.
        package var sustainedShare: Double
    }

    /// The recommendation for another machine or job.
    package struct Change: Sendable {
        package enum Cause: String, CaseIterable, Sendable {
            case deviceTwiceAsFast = "device_twice_as_fast"
            case memoryTwiceAsFast = "memory_twice_as_fast"
            case twiceTheProcessors = "twice_the_processors"
            case flushTwiceAsFast = "flush_twice_as_fast"
            case twiceTheBudget = "twice_the_budget"
            case twiceTheState = "twice_the_state"
            case twiceTheFailures = "twice_the_failures"
        }

        package let cause: Cause
        /// nil when nothing can be recommended then.
        package let setting: MachineSetting?
        package let prediction: MachinePrediction?
    }

    /// - Throws: when an input makes no sense, or nothing fits.
    package init(
        profile: MachineProfile, job: MachineJob, request: TuningRequest
    ) throws(TuningError) {
        try request.check()
        let model = try MachineModel(profile: profile, job: job)
        let choice = try SettingSearch(model: model, request: request).best()
        let steps = choice.prediction.intervalSteps
        setting = choice.line.setting
        prediction = choice.prediction
        queue = choice.line.queue
        limit = choice.line.limit
        bound =
            request.fixed.intervalSteps == nil
            ? IntervalSearch(costs: choice.line, budget: request.budget).bound(steps) : .fixed
        certainty = try Self.certainty(model, choice, request)
        changes = Change.Cause.allCases.map { Self.change($0, profile, job, request) }
    }

    /// The bootstrap of Efron: the samples of the profile are drawn again, M is the next of its
    /// replicates, and everything follows from them again.
    private static func certainty(
        _ model: MachineModel, _ choice: SettingSearch.Choice, _ request: TuningRequest
    ) throws(TuningError) -> Certainty {
        var random = SeededRandom(seed: request.seed)
        var predictions: [MachinePrediction] = []
        var steps: [Double] = []
        var sustainedCount = 0
        let (interval, setting) = (choice.prediction.intervalSteps, choice.line.setting)
        for index in 0..<request.replicateCount {
            let other = MachineModel(
                checkedProfile: model.profile.resampled(&random),
                job: model.job.replicate(index))
            let line = try other.line(setting)
            predictions.append(MachinePrediction(line, intervalSteps: interval))
            if line.isSustained(intervalSteps: interval) { sustainedCount += 1 }
            // Where no interval keeps to the budget, the longest one comes nearest to it.
            let best = try? SettingSearch.steps(line, budget: request.budget)
            steps.append(Double(best ?? TuningLimits.intervalSteps.upperBound))
        }
        func estimate(_ value: (MachinePrediction) -> Double) -> Estimate {
            Estimate(
                value: value(choice.prediction), replicates: predictions.map(value),
                confidence: request.confidence)
        }
        return Certainty(
            overhead: estimate(\.overhead), durableSeconds: estimate(\.durableSeconds),
            goodput: estimate(\.goodput),
            intervalSteps: Estimate(
                value: Double(interval), replicates: steps, confidence: request.confidence),
            sustainedShare: Double(sustainedCount) / Double(request.replicateCount))
    }

    private static func change(
        _ cause: Change.Cause, _ profile: MachineProfile, _ job: MachineJob,
        _ request: TuningRequest
    ) -> Change {
        var (profile, job, request) = (profile, job, request)
        switch cause {
        case .deviceTwiceAsFast:
            for index in profile.device.indices {
                profile.device[index].bytesPerSecond =
                    profile.device[index].bytesPerSecond.scaled(by: 2)
            }
            // The writer reaches the same part of it.
            for index in profile.writer.indices {
                profile.writer[index].bytesPerSecond =
                    profile.writer[index].bytesPerSecond.scaled(by: 2)
            }
        case .memoryTwiceAsFast:
            profile.memoryBytesPerSecond = profile.memoryBytesPerSecond.scaled(by: 2)
        case .twiceTheProcessors: profile.processorCount *= 2
        case .flushTwiceAsFast:
            profile = profile.withFlushTwiceAsFast
        case .twiceTheBudget: request.budget *= 2
        case .twiceTheState: job.stateByteCount *= 2
        case .twiceTheFailures: job.meanTimeBetweenFailuresSeconds /= 2
        }
        let model = MachineModel(checkedProfile: profile, job: job)
        let choice = try? SettingSearch(model: model, request: request).best()
        return Change(
            cause: cause, setting: choice?.line.setting, prediction: choice?.prediction)
    }
}
