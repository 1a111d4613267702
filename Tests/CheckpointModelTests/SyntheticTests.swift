import Testing

@testable import CheckpointModel

/// Traces that a seed makes, and the statistics over them.
@Suite struct SyntheticTests {
    private let year = 365 * 86_400.0

    private func synthetic(_ change: (inout SyntheticTrace) -> Void = { _ in }) -> SyntheticTrace {
        var trace = SyntheticTrace(
            nodeCount: 400, durationSeconds: year, meanTimeBetweenFailuresSeconds: year / 4,
            repairMedianSeconds: 73_440, repairMeanSeconds: 475_200)
        change(&trace)
        return trace
    }

    @Test func aSeedMakesTheSameTraceAgain() throws {
        let trace = synthetic()
        #expect(try trace.trace(seed: 3) == trace.trace(seed: 3))
        #expect(try trace.trace(seed: 3) != trace.trace(seed: 4))
        #expect(try trace.trace(seed: 3) != trace.trace(seed: 3, replication: 1))
    }

    /// The number of failures is that of the rate, whatever the law.
    @Test(arguments: [nil, 0.7, 1, 3] as [Double?]) func theRateIsAsAskedFor(
        shape: Double?
    ) throws {
        let trace = synthetic {
            if let shape { $0.law = .weibull(shape: shape) }
            $0.repairMedianSeconds = 0
            $0.repairMeanSeconds = 0
        }
        var count = 0
        for replication in 0..<10 {
            count += try trace.trace(seed: 1, replication: replication).failures.count
        }
        #expect(FormulaTests.isNear(Double(count), 16_000, within: 0.03), "\(count)")
    }

    @Test func burstsKeepTheMeanRateAndCluster() throws {
        func counts(_ trace: SyntheticTrace) throws -> (mean: Double, ratio: Double) {
            var days: [Int] = []
            for replication in 0..<40 {
                let failures = try trace.trace(seed: 9, replication: replication).failures
                var perDay = [Int](repeating: 0, count: 365)
                for failure in failures { perDay[Int(failure.startSeconds / 86_400)] += 1 }
                days += perDay
            }
            let mean = Double(days.reduce(0, +)) / Double(days.count)
            let square = days.reduce(0.0) { $0 + (Double($1) - mean) * (Double($1) - mean) }
            return (mean, square / Double(days.count) / mean)
        }
        let usual = try counts(synthetic { $0.repairMeanSeconds = $0.repairMedianSeconds })
        let bursts = try counts(
            synthetic {
                $0.repairMeanSeconds = $0.repairMedianSeconds
                $0.burstShare = 0.1
                $0.burstFactor = 20
            })
        #expect(FormulaTests.isNear(bursts.mean, usual.mean, within: 0.1))
        #expect(usual.ratio < 1.2, "variance over mean of a Poisson process is 1")
        #expect(bursts.ratio > 3)
    }

    @Test func neighboursFailTogether() throws {
        let trace = synthetic {
            $0.groupNodeCount = 8
            $0.groupProbability = 1
        }
        let failures = try trace.trace(seed: 2).failures
        let first = try #require(failures.first)
        let together = failures.filter { $0.startSeconds == first.startSeconds }
        #expect(together.count == 8)
        #expect(Set(together.map { $0.node / 8 }).count == 1)
    }

    @Test func repairsHaveTheirMedianAndMean() {
        var random = SeededRandom(seed: 4)
        let repairs = (0..<200_000).map { _ in random.logNormal(median: 2, mean: 5) }.sorted()
        #expect(FormulaTests.isNear(repairs[100_000], 2, within: 0.02))
        let mean = repairs.reduce(0, +) / 200_000
        #expect(FormulaTests.isNear(mean, 5, within: 0.03))
        #expect(random.logNormal(median: 3, mean: 1) == 3)
    }

    @Test func whatMakesNoSenseIsRefused() {
        let changes: [(inout SyntheticTrace) -> Void] = [
            { $0.nodeCount = 0 }, { $0.nodeCount = 2_000_000 }, { $0.durationSeconds = .nan },
            { $0.durationSeconds = 1e300 }, { $0.meanTimeBetweenFailuresSeconds = 0 },
            { $0.meanTimeBetweenFailuresSeconds = 1 }, { $0.repairMeanSeconds = -1 },
            { $0.repairMeanSeconds = 1 }, { $0.law = .weibull(shape: 0) }, { $0.burstShare = 1 },
            { $0.burstFactor = .infinity }, { $0.groupNodeCount = 401 },
            { $0.groupProbability = 2 },
            {
                $0.burstShare = 0.5
                $0.burstSeconds = 1
            },
        ]
        for change in changes {
            let trace = synthetic(change)
            #expect(throws: TraceError.self) { try trace.trace(seed: 1) }
        }
    }

    // MARK: Statistics

    @Test func quantilesAreLinear() {
        #expect(Estimate.quantile(0.5, ofSorted: [1, 2, 10, 11]) == 6)
        #expect(Estimate.quantile(0, ofSorted: [1, 2]) == 1)
        #expect(Estimate.quantile(1, ofSorted: [1, 2]) == 2)
        #expect(Estimate.quantile(0.5, ofSorted: []).isNaN)
        let estimate = Estimate(value: 1, replicates: (0...1000).map(Double.init))
        #expect(abs(estimate.low - 25) < 1e-9 && abs(estimate.high - 975) < 1e-9)
    }

    /// Of 200 series of independent parts, about 95 % have the true mean in their interval.
    @Test func theIntervalCoversTheMean() throws {
        var random = SeededRandom(seed: 8)
        var coveredCount = 0
        for seed in 0..<200 {
            let parts = (0..<100).map { _ in random.normal() }
            let bootstrap = try #require(BlockBootstrap(parts: [[parts]], seed: UInt64(seed)))
            let replicates = (0..<300).map { bootstrap.replicate($0)[0] }
            let estimate = Estimate(value: bootstrap.means[0], replicates: replicates)
            if estimate.low <= 0, estimate.high >= 0 { coveredCount += 1 }
        }
        #expect((175...198).contains(coveredCount), "\(coveredCount)")
    }

    /// Two policies see the same resampled time: a constant difference stays exactly that.
    @Test func policiesArePaired() throws {
        var random = SeededRandom(seed: 8)
        let traces = (0..<3).map { _ in
            let parts = (0..<50).map { _ in random.uniform() }
            return [parts, parts.map { $0 + 0.125 }]
        }
        let bootstrap = try #require(BlockBootstrap(parts: traces, seed: 1))
        for index in 0..<100 {
            let means = bootstrap.replicate(index)
            #expect(abs(means[1] - means[0] - 0.125) < 1e-12)
            #expect(means == bootstrap.replicate(index))
        }
        #expect(bootstrap.replicate(0) != bootstrap.replicate(1))
    }

    /// Parts that depend on each other make the interval wider, which single parts would hide.
    @Test func stretchesKeepDependence() throws {
        let single = (0..<1000).map { Double(($0 / 10) % 2) }
        let bootstrap = try #require(BlockBootstrap(parts: [[single]], seed: 1))
        let replicates = (0..<500).map { bootstrap.replicate($0)[0] }
        let estimate = Estimate(value: 0.5, replicates: replicates)
        #expect(BlockBootstrap.stretchCount(of: 1000) == 10)
        #expect(estimate.high - estimate.low > 0.1, "0.06 without stretches")
    }

    @Test func whatDoesNotFitTogetherIsRefused() {
        #expect(BlockBootstrap(parts: [], seed: 1) == nil)
        #expect(BlockBootstrap(parts: [[]], seed: 1) == nil)
        #expect(BlockBootstrap(parts: [[[]]], seed: 1) == nil)
        #expect(BlockBootstrap(parts: [[[1], [1, 2]]], seed: 1) == nil)
        #expect(BlockBootstrap(parts: [[[1]], [[1], [1]]], seed: 1) == nil)
    }
}
