import Foundation
import Testing

@testable import CheckpointModel

/// Where failures are exponential and one blocking checkpoint is taken at a time, the replay
/// agrees with Young, Daly and the exact goodput.
@Suite struct OptimumTests {
    /// One node that fails and is there again at once, after gaps at the quantiles of the
    /// exponential distribution: so the mean of a few thousand gaps has hardly any noise.
    private func timeline(gapCount: Int, mean: Double) -> Timeline {
        var gaps = (0..<gapCount).map { index in
            -mean * log(1 - (Double(index) + 0.5) / Double(gapCount))
        }
        var random = SeededRandom(seed: 11)
        gaps.shuffle(using: &random)
        var time = 0.0
        let failures = gaps.map { gap in
            time += gap
            return FailureTrace.Failure(node: 0, startSeconds: time, endSeconds: time)
        }
        return Timeline(failures: failures, nodeCount: 1, endSeconds: time + 1)
    }

    private func policy(blocked: Double, restart: Double = 0) -> Policy {
        Policy(
            name: "blocking",
            cost: CheckpointCost(blockedSeconds: blocked, writeSeconds: 0),
            restart: RestartCost(
                detectSeconds: 0, rescheduleSeconds: restart, readSeconds: 0))
    }

    /// The top of the parabola through the goodput over the logarithm of the interval.
    private func optimum(_ replay: Replay, _ policy: Policy, around center: Double) throws -> Double
    {
        let points = try (-10...10).map { index in
            let x = 0.25 * Double(index) / 10
            let result = try replay.run(policy, intervalSeconds: center * exp(x))
            return (x, result.total.goodput)
        }
        // Least squares with x symmetric about 0: only even and odd sums remain.
        let count = Double(points.count)
        let s2 = points.reduce(0) { $0 + $1.0 * $1.0 }
        let s4 = points.reduce(0) { $0 + $1.0 * $1.0 * $1.0 * $1.0 }
        let y0 = points.reduce(0) { $0 + $1.1 }
        let y1 = points.reduce(0) { $0 + $1.0 * $1.1 }
        let y2 = points.reduce(0) { $0 + $1.0 * $1.0 * $1.1 }
        let curvature = (count * y2 - s2 * y0) / (count * s4 - s2 * s2)
        #expect(curvature < 0, "there is an optimum between the ends")
        return center * exp(-y1 / s2 / (2 * curvature))
    }

    /// Young holds where a checkpoint is short; Daly holds there too.
    @Test func theOptimumIsYoungs() throws {
        let (mean, blocked) = (1e6, 100.0)
        let young = try #require(
            YoungDaly.youngSeconds(blockedSeconds: blocked, meanTimeBetweenFailuresSeconds: mean))
        let daly = try #require(
            YoungDaly.dalyHigherOrderSeconds(
                blockedSeconds: blocked, meanTimeBetweenFailuresSeconds: mean))
        let replay = try Replay(
            timeline(gapCount: 20_000, mean: mean), job: .fixed(nodeCount: 1))
        let best = try optimum(replay, policy(blocked: blocked), around: young * 1.05)
        #expect(FormulaTests.isNear(best, young, within: 0.01), "\(best), Young \(young)")
        #expect(FormulaTests.isNear(best, daly, within: 0.01), "\(best), Daly \(daly)")
    }

    /// Where a checkpoint is a larger part of the time between failures, only Daly holds.
    @Test(arguments: [0.005, 0.02, 0.05]) func theOptimumIsDalys(ratio: Double) throws {
        let mean = 1e5
        let daly = try #require(
            YoungDaly.dalyHigherOrderSeconds(
                blockedSeconds: ratio * mean, meanTimeBetweenFailuresSeconds: mean))
        let young = try #require(
            YoungDaly.youngSeconds(
                blockedSeconds: ratio * mean, meanTimeBetweenFailuresSeconds: mean))
        let replay = try Replay(
            timeline(gapCount: 20_000, mean: mean), job: .fixed(nodeCount: 1))
        let best = try optimum(replay, policy(blocked: ratio * mean), around: daly * 0.97)
        #expect(FormulaTests.isNear(best, daly, within: 0.01), "\(best), Daly \(daly)")
        #expect(!FormulaTests.isNear(best, young, within: 0.015), "\(best), Young \(young)")
    }

    /// Random gaps of a seed, and failures during checkpoints and restarts.
    @Test(arguments: [(500.0, 20.0, 60.0), (3000, 200, 900), (8000, 100, 0), (300, 60, 4000)])
    func theGoodputIsTheExactOne(interval: Double, blocked: Double, restart: Double) throws {
        let mean = 10_000.0
        let synthetic = SyntheticTrace(
            nodeCount: 1, durationSeconds: mean * 60_000, meanTimeBetweenFailuresSeconds: mean,
            repairMedianSeconds: 0, repairMeanSeconds: 0)
        let replay = try Replay(
            synthetic.timeline(seed: 5, replication: 0), job: .fixed(nodeCount: 1))
        let result = try replay.run(
            policy(blocked: blocked, restart: restart), intervalSeconds: interval)
        let exact = try #require(
            YoungDaly.goodput(
                intervalSeconds: interval, blockedSeconds: blocked, restartSeconds: restart,
                meanTimeBetweenFailuresSeconds: mean))
        #expect(
            FormulaTests.isNear(result.total.goodput, exact, within: 0.01),
            "\(result.total.goodput), exact \(exact)")
        let measured = try #require(result.meanTimeBetweenHitsSeconds)
        #expect(FormulaTests.isNear(measured, mean, within: 0.02))
    }

    /// The tuned interval of a replay is as good as the exact optimum.
    @Test func tuningFindsTheOptimum() throws {
        let (mean, blocked) = (1e5, 500.0)
        let replay = try Replay(
            timeline(gapCount: 4000, mean: mean), job: .fixed(nodeCount: 1))
        let policy = policy(blocked: blocked)
        let tuned = try IntervalChoice(policy, stepSeconds: 1).tuned(longestSeconds: 1e6) {
            try replay.run(policy, intervalSeconds: $0).total.goodput
        }
        let daly = try #require(
            YoungDaly.dalyHigherOrderSeconds(
                blockedSeconds: blocked, meanTimeBetweenFailuresSeconds: mean))
        #expect(FormulaTests.isNear(tuned, daly, within: 0.1), "\(tuned), Daly \(daly)")
        let best = try replay.run(policy, intervalSeconds: tuned).total.goodput
        let other = try replay.run(policy, intervalSeconds: daly.rounded()).total.goodput
        #expect(best >= other)
    }

    /// A checkpoint in flight is lost with what it holds: a failure costs half an interval and the
    /// time until a checkpoint is durable, as in Gemini's formula, also when several overlap.
    @Test(arguments: [20.0, 60]) func lostWorkIsHalfAnIntervalAndTheCommit(
        interval: Double
    ) throws {
        let cost = CheckpointCost(
            blockedSeconds: 0, writeSeconds: 30, deviceSeconds: 5, inFlightCount: 8)
        let replay = try Replay(
            timeline(gapCount: 20_000, mean: 1e5), job: .fixed(nodeCount: 1))
        let policy = Policy(
            name: "async", cost: cost,
            restart: RestartCost(detectSeconds: 0, rescheduleSeconds: 0, readSeconds: 0))
        let result = try replay.run(policy, intervalSeconds: interval)
        let lost = result.total.redone / Double(result.hitCount)
        #expect(FormulaTests.isNear(lost, interval / 2 + 30, within: 0.01), "\(lost)")
        let gemini = try #require(
            Gemini.meanWastedSeconds(
                checkpointSeconds: 30, intervalSeconds: interval, retrievalSeconds: 0))
        // Gemini's checkpoints do not overlap, so that its interval is 30 s at least.
        #expect(interval < 30 ? gemini > lost : FormulaTests.isNear(lost, gemini, within: 0.01))
    }
}
