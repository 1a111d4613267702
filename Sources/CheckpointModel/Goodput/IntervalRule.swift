#if canImport(Glibc)
    internal import Glibc
#endif

/// How the training time between two checkpoints is chosen.
package enum IntervalRule: Hashable, Sendable {
    case fixed(seconds: Double)
    /// Young's formula, with the mean time between the hits of the job in the trace.
    case young
    /// Daly's higher order, with the same.
    case daly
    /// The best one on the trace itself, found by replays: what can be known afterwards only.
    case tuned

    package var name: String {
        switch self {
        case .fixed: "fixed"
        case .young: "young"
        case .daly: "daly"
        case .tuned: "tuned"
        }
    }
}

/// The interval that a rule gives for a policy.
package struct IntervalChoice: Sendable {
    package let policy: Policy
    package let stepSeconds: Double

    package init(_ policy: Policy, stepSeconds: Double) {
        self.policy = policy
        self.stepSeconds = stepSeconds
    }

    /// By a formula; nil when the rule needs replays, or nothing is ever saved.
    package func seconds(
        _ rule: IntervalRule, meanTimeBetweenHitsSeconds mean: Double
    ) -> Double? {
        guard let cost = policy.cost else { return nil }
        // What a checkpoint blocks when the interval is long, with the slowdown in flight.
        let blocked =
            cost.blockedSeconds + cost.writeSeconds * cost.slowdown / (1 + cost.slowdown)
        switch rule {
        case .fixed(let seconds): return wholeSteps(seconds)
        case .tuned: return nil
        case .young:
            let seconds = YoungDaly.youngSeconds(
                blockedSeconds: blocked, meanTimeBetweenFailuresSeconds: mean)
            return wholeSteps(max(seconds ?? 0, leastSeconds))
        case .daly:
            let seconds = YoungDaly.dalyHigherOrderSeconds(
                blockedSeconds: blocked, meanTimeBetweenFailuresSeconds: mean)
            return wholeSteps(max(seconds ?? 0, leastSeconds))
        }
    }

    /// The shortest interval at which no checkpoint waits for another one.
    package var leastSeconds: Double {
        guard let cost = policy.cost else { return stepSeconds }
        return max(stepSeconds, cost.leastSpanSeconds - cost.blockedSeconds)
    }

    /// The interval with the best goodput in a replay, among whole steps.
    ///
    /// A coarse scale over all lengths, then two finer ones around the best.
    /// - Parameter goodput: of an interval in seconds.
    package func tuned<Failure: Error>(
        longestSeconds: Double, _ goodput: (Double) throws(Failure) -> Double
    ) throws(Failure) -> Double {
        var low = wholeSteps(leastSeconds)
        var high = wholeSteps(max(longestSeconds, low))
        var best = (seconds: low, goodput: -1.0)
        for pointCount in [25, 9, 9] {
            let ratio = high / low
            var last = -1.0
            for index in 0..<pointCount {
                let share = Double(index) / Double(pointCount - 1)
                let seconds = wholeSteps(low * pow(ratio, share))
                if seconds == last { continue }
                last = seconds
                let value = try goodput(seconds)
                if value > best.goodput { best = (seconds, value) }
            }
            let factor = pow(ratio, 1 / Double(pointCount - 1))
            low = max(wholeSteps(leastSeconds), best.seconds / factor)
            high = best.seconds * factor
        }
        return best.seconds
    }

    func wholeSteps(_ seconds: Double) -> Double {
        max(1, (seconds / stepSeconds).rounded()) * stepSeconds
    }
}
