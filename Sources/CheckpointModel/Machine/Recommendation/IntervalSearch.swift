/// What saving costs at any interval: on a machine of the model, or as a job measured it.
protocol IntervalCosts {
    /// Whether no checkpoint waits for a slot.
    func isSustained(intervalSteps: Int) -> Bool
    /// One interval of training and its checkpoint.
    func cycle(intervalSteps: Int) -> CheckpointCycle
}

/// Looks for the interval among those that keep to a budget and let no checkpoint wait.
struct IntervalSearch<Costs: IntervalCosts> {
    let costs: Costs
    /// How much longer the loop may take, as a share.
    let budget: Double

    private static var most: Int { TuningLimits.intervalSteps.upperBound }

    private func isAllowed(_ steps: Int) -> Bool {
        costs.isSustained(intervalSteps: steps)
            && costs.cycle(intervalSteps: steps).overhead <= budget
    }

    /// The shortest one. What is allowed stays so at longer intervals.
    ///
    /// - Returns: nil when there is none.
    func leastSteps() -> Int? {
        var high = 1
        while !isAllowed(high) {
            guard high < Self.most else { return nil }
            high = min(high * 2, Self.most)
        }
        var low = high / 2
        while high - low > 1 {
            let middle = low + (high - low) / 2
            if isAllowed(middle) { high = middle } else { low = middle }
        }
        return high
    }

    /// The one with the best goodput.
    ///
    /// - Returns: nil when there is none.
    func bestSteps(
        meanTimeBetweenFailuresSeconds mean: Double, restartSeconds: Double
    ) -> Int? {
        guard let least = leastSteps() else { return nil }
        func goodput(_ steps: Int) -> Double {
            costs.cycle(intervalSteps: steps).goodput(
                meanTimeBetweenFailuresSeconds: mean, restartSeconds: restartSeconds)
        }
        // It rises up to one interval and falls behind it.
        var (low, high) = (least, min(Self.most, 2 * least))
        while high < Self.most, goodput(high) > goodput(high / 2) {
            low = max(least, high / 2)
            high = min(Self.most, 2 * high)
        }
        while high - low > 2 {
            let third = (high - low) / 3
            let (left, right) = (low + max(1, third), high - max(1, third))
            if left >= right { break }
            if goodput(left) < goodput(right) { low = left } else { high = right }
        }
        return (low...high).max { goodput($0) < goodput($1) } ?? least
    }

    /// Why an interval that this search found is no shorter.
    func bound(_ steps: Int) -> IntervalBound {
        let shorter = steps - 1
        guard shorter >= 1 else { return .step }
        guard costs.isSustained(intervalSteps: shorter) else { return .throughput }
        return costs.cycle(intervalSteps: shorter).overhead > budget ? .budget : .failures
    }
}

/// What decides an interval.
package enum IntervalBound: String, CaseIterable, Sendable {
    /// A shorter one costs more than the budget.
    case budget
    /// A shorter one makes checkpoints wait for a slot, or for the busiest station.
    case throughput
    /// A shorter one costs more than it saves at the failures.
    case failures
    /// There is none that is shorter than one step.
    case step
    /// The best one is outside the limits that a running job set.
    case limit
    /// It was given.
    case fixed
}
