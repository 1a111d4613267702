import Foundation
import Testing

@testable import CheckpointModel

/// The interval of a running job, against formulas that are known where they hold.
@Suite struct MeasuredIntervalTests {
    private func found(
        step: Double = 0.1, cost: Double, durable: Double, inFlight: Int = 2,
        budget: Double = 0.02, mean: Double? = nil,
        _ change: (inout IntervalRequest) -> Void = { _ in }
    ) throws -> MeasuredInterval {
        var request = IntervalRequest(budget: budget)
        request.meanTimeBetweenFailuresSeconds = mean
        change(&request)
        return try MeasuredInterval(
            MeasuredSaving(
                stepSeconds: step, costSeconds: cost, durableSeconds: durable,
                inFlightCount: inFlight), request)
    }

    /// k = ⌈cost / (p·t)⌉
    @Test(arguments: [0.002, 0.02, 0.3, 1]) func theBudget(budget: Double) throws {
        for cost in [0.0013, 0.07, 0.91] {
            let interval = try found(cost: cost, durable: 0.05, budget: budget)
            let steps = Int((cost / (budget * 0.1)).rounded(.up))
            #expect(interval.steps == steps)
            #expect(interval.bound == (steps == 1 ? .step : .budget))
            #expect(FormulaTests.isNear(interval.overhead, cost / (Double(steps) * 0.1)))
            #expect(interval.goodput == nil)
        }
    }

    /// What readings of a clock add to a whole number of steps is no step.
    @Test func aClockIsALittleOff() throws {
        #expect(try found(cost: 0.07 + 1e-9, durable: 0.05).steps == 35)
        #expect(try found(cost: 0, durable: 3 + 1e-7, inFlight: 1).steps == 30)
    }

    /// Where saving costs nothing, the bound of the paper with q = 1.
    @Test(arguments: [1, 2, 3, 4, 8, 64]) func thePapersBound(inFlight: Int) throws {
        let interval = try found(cost: 0, durable: 61.3, inFlight: inFlight)
        let steps = PaperBound.intervalSteps(
            writeSeconds: 61.3, inFlightCount: inFlight, slowdown: 1, stepSeconds: 0.1)
        #expect(interval.steps == steps && interval.bound == .throughput)
        #expect(interval.overhead == 0)
        #expect(FormulaTests.isNear(interval.lostSeconds, Double(interval.steps) * 0.05 + 61.3))
    }

    /// Where it costs something, q is the overhead that it has; and the interval is never shorter
    /// than with the overhead that is allowed.
    @Test(arguments: [1, 2, 5], [0.02, 0.2, 0.9]) func slowStepsAreTimeToo(
        inFlight: Int, budget: Double
    ) throws {
        for cost in [0.01, 0.4, 3] {
            let interval = try found(
                cost: cost, durable: 20, inFlight: inFlight, budget: budget)
            func steps(_ slowdown: Double) -> Int? {
                PaperBound.intervalSteps(
                    writeSeconds: 20, inFlightCount: inFlight, slowdown: 1 + slowdown,
                    stepSeconds: 0.1)
            }
            #expect(try interval.steps >= #require(steps(budget)))
            guard interval.bound == .throughput else { continue }
            #expect(interval.steps == steps(interval.overhead))
        }
    }

    /// At a shorter interval training waits for a slot: no checkpoint is durable earlier, and less
    /// is done between two of them.
    @Test func waitingGainsNothing() throws {
        let saving = MeasuredSaving(
            stepSeconds: 0.1, costSeconds: 0.1, durableSeconds: 20, inFlightCount: 2)
        let interval = try MeasuredInterval(saving, IntervalRequest(budget: 0.2))
        #expect(interval.steps == 99 && interval.bound == .throughput)
        let longer = saving.cycle(intervalSteps: 99)
        // The shortest one whose wait keeps to the budget.
        let shorter = saving.cycle(intervalSteps: 84)
        #expect(shorter.overhead <= 0.2 && !saving.isSustained(intervalSteps: 84))
        #expect(FormulaTests.isNear(shorter.spanSeconds, longer.spanSeconds))
        #expect(shorter.commitSeconds >= longer.commitSeconds)
        #expect(shorter.workSeconds < longer.workSeconds)
    }

    /// Young's where a save costs little, and Daly's of higher order, also where it takes much
    /// longer until durable: that lag is the same at every interval.
    @Test(arguments: [1, 30.0, 200], [4, 900.0]) func youngAndDaly(
        cost: Double, lag: Double
    ) throws {
        let mean = 2e4
        let interval = try found(
            step: 0.01, cost: cost, durable: cost + lag, inFlight: 64, budget: 1, mean: mean)
        #expect(interval.bound == .failures)
        let seconds = Double(interval.steps) * 0.01
        let daly = try #require(
            YoungDaly.dalyHigherOrderSeconds(
                blockedSeconds: cost, meanTimeBetweenFailuresSeconds: mean))
        #expect(FormulaTests.isNear(seconds, daly, within: 0.002), "\(seconds), Daly \(daly)")
        if cost == 1 {
            let young = try #require(
                YoungDaly.youngSeconds(
                    blockedSeconds: cost, meanTimeBetweenFailuresSeconds: mean))
            #expect(FormulaTests.isNear(seconds, young, within: 0.01))
        }
    }

    /// The goodput is Daly's, with the restart; less what fails during the lag.
    @Test(arguments: [0, 300.0]) func goodputIsDalys(lag: Double) throws {
        let interval = try found(
            cost: 5, durable: 5 + lag, inFlight: 64, budget: 1, mean: 3000
        ) {
            $0.restartSeconds = 70
        }
        let daly = try #require(
            YoungDaly.goodput(
                intervalSeconds: Double(interval.steps) * 0.1, blockedSeconds: 5,
                restartSeconds: 70, meanTimeBetweenFailuresSeconds: 3000))
        #expect(FormulaTests.isNear(interval.goodput, daly * exp(-lag / 3000)))
        #expect(try #require(interval.goodput) < 1 / (1 + interval.overhead))
    }

    /// Failures ask for longer intervals only: what the budget and the slots allow stays.
    @Test func failuresNeverMakeItShorter() throws {
        for mean in [60, 1e4, 1e7] {
            for (cost, durable) in [(0.07, 0.35), (0.001, 30), (2, 90)] {
                let without = try found(cost: cost, durable: durable)
                let with = try found(cost: cost, durable: durable, mean: mean)
                #expect(with.steps >= without.steps)
                if with.bound != .failures { #expect(with.steps == without.steps) }
                #expect(with.overhead <= 0.020_001)
            }
        }
        #expect(try found(cost: 0.07, durable: 0.35, mean: 1e7).bound == .failures)
        #expect(try found(cost: 0.07, durable: 0.35, mean: 60).bound == .budget)
        #expect(try found(cost: 0.001, durable: 30, mean: 60).bound == .throughput)
    }

    /// No other interval that is allowed has a better goodput.
    @Test(arguments: [60.0, 3000, 1e6]) func noOtherIsBetter(mean: Double) throws {
        let saving = MeasuredSaving(
            stepSeconds: 0.3, costSeconds: 0.2, durableSeconds: 4, inFlightCount: 2)
        var request = IntervalRequest(budget: 0.05)
        request.meanTimeBetweenFailuresSeconds = mean
        let best = try #require(try MeasuredInterval(saving, request).goodput)
        for steps in 1...20_000 {
            let cycle = saving.cycle(intervalSteps: steps)
            guard saving.isSustained(intervalSteps: steps), cycle.overhead <= 0.05 else {
                continue
            }
            let goodput = cycle.goodput(
                meanTimeBetweenFailuresSeconds: mean, restartSeconds: 0)
            #expect(goodput <= best)
        }
    }

    @Test func limits() throws {
        let least = try found(cost: 0.07, durable: 0.35) { $0.minimumSteps = 50 }
        #expect(least.steps == 50 && least.bound == .limit && least.overhead < 0.02)
        let most = try found(cost: 0.07, durable: 0.35) { $0.maximumSteps = 7 }
        #expect(most.steps == 7 && most.bound == .limit)
        #expect(FormulaTests.isNear(most.overhead, 0.1))
        let exact = try found(cost: 0.07, durable: 0.35) {
            ($0.minimumSteps, $0.maximumSteps) = (35, 35)
        }
        #expect(exact.steps == 35 && exact.bound == .budget)
        // Too short for the slots: the wait for them is part of the overhead.
        let short = try found(cost: 0, durable: 3, inFlight: 1) { $0.maximumSteps = 10 }
        #expect(short.bound == .limit && FormulaTests.isNear(short.overhead, 2))
        // No interval at all keeps to the budget.
        let none = try found(step: 1e-9, cost: 10, durable: 10)
        #expect(none.steps == 1_000_000_000 && none.bound == .limit && none.overhead > 0.02)
    }

    @Test func aNumberThatMakesNoSenseIsRefused() throws {
        func message(
            _ change: (inout MeasuredSaving, inout IntervalRequest) -> Void
        ) -> String? {
            var saving = MeasuredSaving(
                stepSeconds: 0.1, costSeconds: 0.07, durableSeconds: 0.35, inFlightCount: 2)
            var request = IntervalRequest(budget: 0.02)
            change(&saving, &request)
            do throws(TuningError) {
                _ = try MeasuredInterval(saving, request)
                return nil
            } catch {
                return error.code == .outOfRange ? error.message : "\(error.code)"
            }
        }
        #expect(message { _, _ in } == nil)
        for value in [Double.nan, -1, .infinity, -.infinity] {
            let all = [
                ("a step", message { saving, _ in saving.stepSeconds = value }),
                ("the cost of a save", message { saving, _ in saving.costSeconds = value }),
                ("the time until durable", message { saving, _ in saving.durableSeconds = value }),
                ("the budget", message { _, request in request.budget = value }),
                (
                    "the mean time between failures",
                    message { $1.meanTimeBetweenFailuresSeconds = value }
                ), ("a restart", message { _, request in request.restartSeconds = value }),
            ]
            for (what, found) in all {
                #expect(found?.hasPrefix("\(what) is \(value), expected ") == true)
            }
        }
        #expect(message { saving, _ in saving.stepSeconds = 0 } != nil)
        #expect(message { saving, _ in saving.durableSeconds = 0 } != nil)
        #expect(
            message { saving, _ in saving.inFlightCount = 0 } == "in flight is 0, expected 1 to 64")
        #expect(message { _, request in request.budget = 0 } != nil)
        #expect(message { _, request in request.meanTimeBetweenFailuresSeconds = 0 } != nil)
        #expect(message { _, request in request.minimumSteps = 0 } != nil)
        #expect(message { _, request in request.maximumSteps = -1 } != nil)
        #expect(
            message { _, request in (request.minimumSteps, request.maximumSteps) = (5, 4) }
                == "min_steps is 5, expected at most max_steps, 4")
    }

    /// Numbers at the ends of what is accepted: finite figures, and never a trap.
    @Test func theEndsOfTheRanges() throws {
        let ends: [Double] = [0, 1]
        func pick(_ range: ClosedRange<Double>, _ end: Double) -> Double {
            end == 0 ? range.lowerBound : range.upperBound
        }
        for bits in 0..<64 {
            func end(_ bit: Int) -> Double { ends[bits >> bit & 1] }
            let interval = try found(
                step: pick(TuningLimits.measuredStepSeconds, end(0)),
                cost: pick(TuningLimits.costSeconds, end(1)),
                durable: pick(TuningLimits.durableSeconds, end(2)),
                inFlight: end(3) == 0 ? 1 : TuningLimits.inFlightCount.upperBound,
                budget: pick(TuningLimits.budget, end(4)),
                mean: pick(TuningLimits.meanTimeBetweenFailuresSeconds, end(5))
            ) { $0.restartSeconds = TuningLimits.restartSeconds.upperBound }
            let figures = [
                interval.overhead, interval.lostSeconds, try #require(interval.goodput),
            ]
            #expect(figures.allSatisfy { $0.isFinite && $0 >= -1e-9 }, "\(bits): \(figures)")
        }
    }
}
