/// Several ways to save, compared on the same traces.
package struct PolicyStudy: Sendable {
    /// A way to save, and how its interval is chosen.
    package struct Candidate: Equatable, Sendable {
        package let policy: Policy
        /// nil: nothing is ever saved.
        package let rule: IntervalRule?

        package init(policy: Policy, rule: IntervalRule?) {
            self.policy = policy
            self.rule = rule
        }
    }

    package let candidates: [Candidate]
    package let stepSeconds: Double

    package init(candidates: [Candidate], stepSeconds: Double) {
        self.candidates = candidates
        self.stepSeconds = stepSeconds
    }

    /// The intervals of all candidates for these replays, and the mean time between the hits of
    /// the job, which is nil when nothing ever hits it.
    ///
    /// Several replays of one kind are taken together; each has the weight of its length.
    ///
    /// - Parameter goesOn: called before each replay with the number of candidates that are done;
    ///   false ends the search, and what it returns then means nothing.
    package func intervals(
        _ replays: [Replay], goesOn: (Int) -> Bool = { _ in true }
    ) throws(ReplayError) -> (seconds: [Double], meanTimeBetweenHitsSeconds: Double?) {
        var (running, hitCount, longest) = (0.0, 0, stepSeconds)
        for replay in replays {
            // How often the job is hit depends hardly on the policy, but one that never saves
            // never grows.
            let saving = candidates.last { $0.policy.cost != nil } ?? candidates.first
            guard let policy = saving?.policy else { break }
            let result = try replay.run(policy, intervalSeconds: stepSeconds)
            running += result.runningSeconds
            hitCount += result.hitCount
            longest = max(longest, replay.timeline.endSeconds)
        }
        let mean = hitCount > 0 ? running / Double(hitCount) : nil
        var intervals: [Double] = []
        for candidate in candidates {
            let choice = IntervalChoice(candidate.policy, stepSeconds: stepSeconds)
            guard let rule = candidate.rule else {
                intervals.append(stepSeconds)
                continue
            }
            if let seconds = choice.seconds(
                rule, meanTimeBetweenHitsSeconds: mean ?? longest)
            {
                intervals.append(min(seconds, TraceLimits.seconds))
                continue
            }
            let tuned = try choice.tuned(longestSeconds: longest) {
                (seconds) throws(ReplayError) -> Double in
                var sum = 0.0
                for replay in replays where goesOn(intervals.count) {
                    sum += try replay.run(candidate.policy, intervalSeconds: seconds).total.goodput
                }
                return sum
            }
            intervals.append(min(tuned, TraceLimits.seconds))
        }
        return (intervals, mean)
    }

    /// What becomes of the job with each candidate.
    package func results(
        _ replay: Replay, intervals: [Double]
    ) throws(ReplayError) -> [ReplayResult] {
        var results: [ReplayResult] = []
        for (candidate, seconds) in zip(candidates, intervals) {
            results.append(try replay.run(candidate.policy, intervalSeconds: seconds))
        }
        return results
    }
}
