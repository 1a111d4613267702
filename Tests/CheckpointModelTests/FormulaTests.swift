import Testing

@testable import CheckpointModel

/// The formulas at points where their values are known.
@Suite struct FormulaTests {
    /// Whether `value` is within `share` of `expected`.
    static func isNear(_ value: Double?, _ expected: Double, within share: Double = 1e-9) -> Bool {
        guard let value else { return false }
        return abs(value - expected) <= share * abs(expected)
    }

    @Test func youngAndDaly() {
        let (delta, mean) = (100.0, 20_000.0)
        let young = YoungDaly.youngSeconds(
            blockedSeconds: delta, meanTimeBetweenFailuresSeconds: mean)
        #expect(Self.isNear(young, 2000))
        let first = YoungDaly.dalyFirstOrderSeconds(
            blockedSeconds: delta, meanTimeBetweenFailuresSeconds: mean, restartSeconds: 4200)
        #expect(Self.isNear(first, 2200))
        // 2000 · (1 + 0.05/3 + 0.0025/9) − 100
        let higher = YoungDaly.dalyHigherOrderSeconds(
            blockedSeconds: delta, meanTimeBetweenFailuresSeconds: mean)
        #expect(Self.isNear(higher, 1933.888_888_889, within: 1e-9))
        let rare = YoungDaly.dalyHigherOrderSeconds(
            blockedSeconds: 300, meanTimeBetweenFailuresSeconds: 100)
        #expect(rare == 100, "a checkpoint that takes longer than 2·M")
    }

    /// Daly's higher order is close to the exact optimum, which is where the derivative of the
    /// exact goodput is zero: (1 − τ/M)·e^((τ+δ)/M) = 1.
    @Test(arguments: [1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.3]) func dalyIsNearTheExactOptimum(
        ratio: Double
    ) throws {
        let daly = try #require(
            YoungDaly.dalyHigherOrderSeconds(
                blockedSeconds: ratio, meanTimeBetweenFailuresSeconds: 1))
        func goodput(_ interval: Double) -> Double {
            YoungDaly.goodput(
                intervalSeconds: interval, blockedSeconds: ratio, restartSeconds: 0,
                meanTimeBetweenFailuresSeconds: 1) ?? 0
        }
        var (low, high) = (daly / 2, daly * 2)
        for _ in 0..<200 {
            let (left, right) = ((2 * low + high) / 3, (low + 2 * high) / 3)
            if goodput(left) < goodput(right) { low = left } else { high = right }
        }
        #expect(Self.isNear(daly, (low + high) / 2, within: 0.01))
    }

    @Test func checkFreq() {
        func steps(_ blocked: Double, _ commit: Double) -> Int? {
            CheckFreq.intervalSteps(
                blockedSeconds: blocked, commitSeconds: commit, stepSeconds: 0.5, budget: 0.02)
        }
        #expect(steps(0.1, 1) == 10, "the budget: 0.1 s are 2 % of 10 steps")
        #expect(steps(0.1, 40) == 80, "the write: one checkpoint at a time")
        #expect(steps(0, 0) == 1)
        #expect(steps(-1, 0) == nil && steps(.nan, 1) == nil && steps(1e300, 1) == nil)
    }

    @Test func gemini() {
        #expect(
            Gemini.meanWastedSeconds(
                checkpointSeconds: 3, intervalSeconds: 10, retrievalSeconds: 2) == 10)
        #expect(
            Gemini.meanWastedSeconds(
                checkpointSeconds: 30, intervalSeconds: 10, retrievalSeconds: 2) == 47)
        #expect(
            Gemini.meanWastedSeconds(
                checkpointSeconds: .nan, intervalSeconds: 1, retrievalSeconds: 1) == nil)
        func survival(_ lost: Int, of count: Int, copies: Int = 2) -> Double {
            Gemini.survivalProbability(
                machineCount: count, lostCount: lost, replicaCount: copies)
        }
        #expect(survival(0, of: 16) == 1 && survival(1, of: 16) == 1)
        // 16 machines in 8 pairs: of the 120 pairs that may be lost, 8 are a group.
        #expect(Self.isNear(survival(2, of: 16), 1 - 8.0 / 120))
        #expect(survival(16, of: 16) == 0 && survival(15, of: 16) == 0)
        #expect(Self.isNear(survival(3, of: 9, copies: 3), 1 - 3.0 / 84))
        #expect(survival(1, of: 1, copies: 2) == 0, "nobody else has it")
        #expect(survival(5, of: 0) == 0 && survival(2, of: 4, copies: 0) == 0)
    }

    @Test func paperBound() {
        func steps(_ write: Double, _ count: Int) -> Int? {
            PaperBound.intervalSteps(
                writeSeconds: write, inFlightCount: count, slowdown: 1.05, stepSeconds: 0.2)
        }
        #expect(steps(4.2, 2) == 10 && steps(4.2, 1) == 20 && steps(4.3, 2) == 11)
        #expect(steps(0, 1) == 1 && steps(1, 0) == nil && steps(.infinity, 1) == nil)
    }

    @Test(arguments: [0, -1, .nan, .infinity, -.infinity] as [Double])
    func aNumberThatMakesNoSenseGivesNone(value: Double) {
        #expect(
            YoungDaly.youngSeconds(blockedSeconds: value, meanTimeBetweenFailuresSeconds: 1)
                == nil)
        #expect(
            YoungDaly.dalyHigherOrderSeconds(
                blockedSeconds: 1, meanTimeBetweenFailuresSeconds: value) == nil)
        #expect(
            YoungDaly.goodput(
                intervalSeconds: 1, blockedSeconds: 1, restartSeconds: 0,
                meanTimeBetweenFailuresSeconds: value) == nil || value == .infinity)
    }
}
