/// Failures with repair that a seed makes.
package struct SyntheticTrace: Equatable, Sendable {
    /// How the time between the failures of one node is distributed.
    package enum Law: Equatable, Sendable {
        case exponential
        /// Below a shape of 1, failures cluster after a repair.
        case weibull(shape: Double)
    }

    package var nodeCount: Int
    package var durationSeconds: Double
    package var law = Law.exponential
    /// Of one node, while it works.
    package var meanTimeBetweenFailuresSeconds: Double
    package var repairMedianSeconds: Double
    package var repairMeanSeconds: Double
    /// Part of the time in which nodes fail `burstFactor` times as often, in stretches of
    /// `burstSeconds`: a bad batch, a heat wave, a driver. The mean rate stays.
    package var burstShare = 0.0
    package var burstFactor = 1.0
    package var burstSeconds = 86_400.0
    /// How many neighbours fail with a node, with the probability `groupProbability`: a rack, a
    /// switch. These failures come on top.
    package var groupNodeCount = 1
    package var groupProbability = 0.0

    package init(
        nodeCount: Int, durationSeconds: Double, meanTimeBetweenFailuresSeconds: Double,
        repairMedianSeconds: Double, repairMeanSeconds: Double
    ) {
        self.nodeCount = nodeCount
        self.durationSeconds = durationSeconds
        self.meanTimeBetweenFailuresSeconds = meanTimeBetweenFailuresSeconds
        self.repairMedianSeconds = repairMedianSeconds
        self.repairMeanSeconds = repairMeanSeconds
    }

    /// - Throws: `TraceError` when a number is out of range, when more failures are expected
    ///   than `TraceLimits` allows, or when none happened.
    package func trace(seed: UInt64, replication: Int = 0) throws(TraceError) -> FailureTrace {
        try FailureTrace(
            failures: try failures(seed: seed, replication: replication), nodeCount: nodeCount,
            endSeconds: durationSeconds)
    }

    /// The same without a list of them: no failure is a result too, when one of many
    /// replications has it.
    package func timeline(seed: UInt64, replication: Int) throws(TraceError) -> Timeline {
        Timeline(
            failures: try failures(seed: seed, replication: replication), nodeCount: nodeCount,
            endSeconds: durationSeconds)
    }

    package func check() throws(TraceError) {
        func check(_ isValid: Bool, _ what: String) throws(TraceError) {
            if !isValid { throw TraceError(.outOfRange, "found \(what)") }
        }
        try check(
            (1...TraceLimits.nodeCount).contains(nodeCount),
            "\(nodeCount) nodes, expected 1 to \(TraceLimits.nodeCount)")
        let range = 1e-3...TraceLimits.seconds
        for (seconds, name) in [
            (durationSeconds, "duration"), (burstSeconds, "length of a burst"),
            (meanTimeBetweenFailuresSeconds, "mean time between failures"),
        ] {
            try check(
                range.contains(seconds),
                "\(seconds) s as the \(name), expected 0.001 s to \(TraceLimits.seconds) s")
        }
        try check(
            (0...TraceLimits.seconds).contains(repairMedianSeconds)
                && (repairMedianSeconds...TraceLimits.seconds).contains(repairMeanSeconds),
            "a median repair of \(repairMedianSeconds) s and a mean one of \(repairMeanSeconds) s, "
                + "expected a mean that is not below the median")
        if case .weibull(let shape) = law {
            try check(
                (0.2...10).contains(shape), "the shape \(shape), expected 0.2 to 10")
        }
        try check(
            (0...0.9).contains(burstShare) && (1...1000).contains(burstFactor),
            "bursts of \(burstFactor) times the rate in \(burstShare) of the time, expected 1 to "
                + "1000 times in 0 to 0.9 of it")
        try check(
            (0...1).contains(groupProbability) && (1...nodeCount).contains(groupNodeCount),
            "\(groupNodeCount) nodes that fail together with the probability "
                + "\(groupProbability), expected 1 to \(nodeCount) and 0 to 1")
        try check(
            burstShare == 0 || durationSeconds / burstSeconds <= 1e6,
            "bursts of \(burstSeconds) s, expected longer ones for \(durationSeconds) s")
        let expected =
            durationSeconds / meanTimeBetweenFailuresSeconds * Double(nodeCount)
            * (1 + groupProbability * Double(groupNodeCount))
        try check(
            expected <= Double(TraceLimits.entryCount) / 4,
            "\(expected) failures to make, expected at most \(TraceLimits.entryCount / 4)")
    }

    private func failures(
        seed: UInt64, replication: Int
    ) throws(TraceError) -> [FailureTrace.Failure] {
        try check()
        var maker = Maker(self, SeededRandom(seed: seed, stream: replication))
        switch law {
        case .exponential: maker.makePoisson()
        case .weibull(let shape): maker.makeRenewals(shape: shape)
        }
        return maker.failures
    }
}

/// Makes the failures of one replication.
private struct Maker {
    let wanted: SyntheticTrace
    var random: SeededRandom
    var failures: [FailureTrace.Failure] = []
    /// When each node is repaired: before that it cannot fail.
    var repairedSeconds: [Double]
    /// Where stretches of usual and of many failures end, in turn, for all nodes alike.
    var stretchEnds: [Double] = []
    var beginsWithBurst = false

    init(_ wanted: SyntheticTrace, _ random: SeededRandom) {
        self.wanted = wanted
        self.random = random
        repairedSeconds = [Double](repeating: 0, count: wanted.nodeCount)
        let share = wanted.burstShare
        guard share > 0, wanted.burstFactor > 1 else { return }
        beginsWithBurst = self.random.uniform() < share
        let usual = wanted.burstSeconds * (1 - share) / share
        while (stretchEnds.last ?? 0) < wanted.durationSeconds {
            let isBurst = (stretchEnds.count % 2 == 0) == beginsWithBurst
            let length = self.random.exponential(mean: isBurst ? wanted.burstSeconds : usual)
            stretchEnds.append((stretchEnds.last ?? 0) + max(length, 1e-3))
        }
    }

    /// How much faster than on average nodes fail at `time`, and until when.
    private func pace(at time: Double) -> (pace: Double, endSeconds: Double) {
        guard !stretchEnds.isEmpty else { return (1, .infinity) }
        var (low, high) = (0, stretchEnds.count)
        while low < high {
            let middle = (low + high) / 2
            if stretchEnds[middle] > time { high = middle } else { low = middle + 1 }
        }
        let isBurst = (low % 2 == 0) == beginsWithBurst
        let mean = 1 + wanted.burstShare * (wanted.burstFactor - 1)
        return (
            (isBurst ? wanted.burstFactor : 1) / mean,
            low < stretchEnds.count ? stretchEnds[low] : .infinity
        )
    }

    /// When a gap that is `gap` long at the mean rate, and begins at `time`, ends.
    private func end(ofGap gap: Double, from time: Double) -> Double {
        var (left, time) = (gap, time)
        while true {
            let (pace, endSeconds) = pace(at: time)
            if left < (endSeconds - time) * pace || time >= wanted.durationSeconds {
                return time + left / pace
            }
            left -= (endSeconds - time) * pace
            time = endSeconds
        }
    }

    /// All nodes as one process: the next failure hits any node, and none when that is down.
    mutating func makePoisson() {
        let mean = wanted.meanTimeBetweenFailuresSeconds / Double(wanted.nodeCount)
        var time = 0.0
        while true {
            time = end(ofGap: random.exponential(mean: mean), from: time)
            guard time < wanted.durationSeconds else { return }
            let node = random.index(below: wanted.nodeCount)
            if time >= repairedSeconds[node] { fail(node, at: time) }
        }
    }

    /// Each node alone: time until a failure, repair, and so on.
    mutating func makeRenewals(shape: Double) {
        let mean = wanted.meanTimeBetweenFailuresSeconds
        for node in 0..<wanted.nodeCount {
            // Time 0 is any moment: not all nodes are new then.
            var time = random.weibullRest(shape: shape, mean: mean)
            while time < wanted.durationSeconds {
                fail(node, at: time)
                let gap = max(1e-3, random.weibull(shape: shape, mean: mean))
                time = end(ofGap: gap, from: repairedSeconds[node])
            }
        }
    }

    private mutating func fail(_ node: Int, at time: Double) {
        repairedSeconds[node] = down(node, at: time)
        guard wanted.groupProbability > 0, random.uniform() < wanted.groupProbability else {
            return
        }
        let first = node / wanted.groupNodeCount * wanted.groupNodeCount
        for neighbour in first..<min(first + wanted.groupNodeCount, wanted.nodeCount)
        where neighbour != node {
            // It may be down already: a timeline joins failures that overlap.
            _ = down(neighbour, at: time)
        }
    }

    /// - Returns: when the node is repaired.
    private mutating func down(_ node: Int, at time: Double) -> Double {
        let repair = random.logNormal(
            median: wanted.repairMedianSeconds, mean: wanted.repairMeanSeconds)
        let end = time + min(repair, TraceLimits.seconds / 4)
        guard failures.count < TraceLimits.entryCount else { return .infinity }
        failures.append(FailureTrace.Failure(node: node, startSeconds: time, endSeconds: end))
        return end
    }
}
