/// What a running job measured of its own saves.
package struct MeasuredSaving: Equatable, Sendable {
    /// t: one step with nothing in flight.
    package var stepSeconds: Double
    /// What one save costs the training: blocked, and steps that were slowed down.
    package var costSeconds: Double
    /// From `save` until durable, with the checkpoints in flight that there were: Tw(N).
    package var durableSeconds: Double
    /// N.
    package var inFlightCount: Int

    package init(
        stepSeconds: Double, costSeconds: Double, durableSeconds: Double, inFlightCount: Int
    ) {
        self.stepSeconds = stepSeconds
        self.costSeconds = costSeconds
        self.durableSeconds = durableSeconds
        self.inFlightCount = inFlightCount
    }

    func check() throws(TuningError) {
        try TuningError.check(stepSeconds, "a step", in: TuningLimits.measuredStepSeconds)
        try TuningError.check(costSeconds, "the cost of a save", in: TuningLimits.costSeconds)
        try TuningError.check(
            durableSeconds, "the time until durable", in: TuningLimits.durableSeconds)
        try TuningError.check(inFlightCount, "in flight", in: TuningLimits.inFlightCount)
    }
}

extension MeasuredSaving: IntervalCosts {
    /// Clock readings are a little off, and so are sums of them.
    static let tolerance = 1e-6

    /// The whole cost as blocked time: the cycle of a save has the same length wherever it waits.
    /// Tw(N) holds the wait for a busy device already, so that D has no term of its own.
    private var cost: CheckpointCost {
        CheckpointCost(
            blockedSeconds: costSeconds, writeSeconds: max(0, durableSeconds - costSeconds),
            deviceSeconds: 0, inFlightCount: inFlightCount)
    }

    private func trainingSeconds(_ intervalSteps: Int) -> Double {
        Double(intervalSteps) * stepSeconds
    }

    func cycle(intervalSteps: Int) -> CheckpointCycle {
        CheckpointCycle(intervalSeconds: trainingSeconds(intervalSteps), cost: cost)
    }

    /// k·t + cost ≥ Tw(N)/N. It is the bound of the paper, f ≥ Tw / (N·q·t), where q is 1 and the
    /// overhead that saving has.
    func isSustained(intervalSteps: Int) -> Bool {
        CheckpointQueue(aloneSeconds: cost.commitSeconds, busiestSeconds: cost.deviceSeconds)
            .isSustained(
                trainingSeconds: trainingSeconds(intervalSteps) * (1 + Self.tolerance),
                blockedSeconds: costSeconds, inFlightCount: inFlightCount)
    }
}

/// What a running job wants of its interval.
package struct IntervalRequest: Equatable, Sendable {
    /// How much longer the loop may take, as a share.
    package var budget: Double
    /// M: between the failures that hit the job; nil when it is unknown.
    package var meanTimeBetweenFailuresSeconds: Double?
    /// From a failure until training continues.
    package var restartSeconds = 0.0
    package var minimumSteps = TuningLimits.intervalSteps.lowerBound
    package var maximumSteps = TuningLimits.intervalSteps.upperBound

    package init(budget: Double) { self.budget = budget }

    func check() throws(TuningError) {
        try TuningError.check(budget, "the budget", in: TuningLimits.budget)
        if let mean = meanTimeBetweenFailuresSeconds {
            try TuningError.check(
                mean, "the mean time between failures",
                in: TuningLimits.meanTimeBetweenFailuresSeconds)
        }
        try TuningError.check(restartSeconds, "a restart", in: TuningLimits.restartSeconds)
        try TuningError.check(minimumSteps, "min_steps", in: TuningLimits.intervalSteps)
        try TuningError.check(maximumSteps, "max_steps", in: TuningLimits.intervalSteps)
        guard minimumSteps <= maximumSteps else {
            throw TuningError(
                .outOfRange,
                "min_steps is \(minimumSteps), expected at most max_steps, \(maximumSteps)")
        }
    }
}

/// The interval that a running job should use, by what it measured.
///
/// It is the shortest one that keeps to the budget and lets no checkpoint wait for a slot. With a
/// mean time between failures, it is the one with the best goodput among those and longer ones.
package struct MeasuredInterval: Equatable, Sendable {
    package let steps: Int
    package let bound: IntervalBound
    /// How much longer the loop takes. At a limit it can be above the budget.
    package let overhead: Double
    /// The useful share of the time; nil without a mean time between failures.
    package let goodput: Double?
    /// What a failure takes in the mean: half an interval, and the wait for durable.
    package let lostSeconds: Double

    /// - Throws: `outOfRange`.
    package init(_ saving: MeasuredSaving, _ request: IntervalRequest) throws(TuningError) {
        try saving.check()
        try request.check()
        let search = IntervalSearch(
            costs: saving, budget: request.budget * (1 + MeasuredSaving.tolerance))
        let wanted = Self.wanted(search, request)
        // Where no interval keeps to the budget, the longest one comes nearest to it.
        let steps = min(max(wanted ?? .max, request.minimumSteps), request.maximumSteps)
        let cycle = saving.cycle(intervalSteps: steps)
        self.steps = steps
        bound = steps == wanted ? search.bound(steps) : .limit
        overhead = cycle.overhead
        goodput = request.meanTimeBetweenFailuresSeconds.map {
            cycle.goodput(
                meanTimeBetweenFailuresSeconds: $0, restartSeconds: request.restartSeconds)
        }
        lostSeconds = cycle.lostSeconds
    }

    private static func wanted(
        _ search: IntervalSearch<MeasuredSaving>, _ request: IntervalRequest
    ) -> Int? {
        guard let mean = request.meanTimeBetweenFailuresSeconds else {
            return search.leastSteps()
        }
        return search.bestSteps(
            meanTimeBetweenFailuresSeconds: mean, restartSeconds: request.restartSeconds)
    }
}
