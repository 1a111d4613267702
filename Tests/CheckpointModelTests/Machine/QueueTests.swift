import Testing

@testable import CheckpointModel

/// Tw(N), and the formulas of others that follow from it.
@Suite struct QueueTests {
    @Test func aSaturatedDeviceMakesCheckpointsWait() {
        let queue = CheckpointQueue(aloneSeconds: 25, busiestSeconds: 10)
        #expect((1...4).map { queue.writeSeconds(inFlightCount: $0) } == [25, 25, 30, 40])
        #expect((1...4).map { queue.waitSeconds(inFlightCount: $0) } == [0, 0, 5, 15])
        #expect((1...4).map { queue.spanSeconds(inFlightCount: $0) } == [25, 12.5, 10, 10])
        #expect(queue.saturatingCount == 3)
        for count in 1...64 {
            // Little's law.
            let inFlight =
                queue.writeSeconds(inFlightCount: count)
                / queue.spanSeconds(inFlightCount: count)
            #expect(FormulaTests.isNear(inFlight, Double(count)))
        }
        let inconsistent = CheckpointQueue(aloneSeconds: 1, busiestSeconds: 2)
        #expect(inconsistent.aloneSeconds == 2)
    }

    /// f ≥ Tw/(N·q·t) is the bound where the device gives every checkpoint the same rate however
    /// many there are: no station is ever the busiest.
    @Test(arguments: [1, 2, 3, 5, 8, 64], [0, 0.05, 0.5])
    func thePapersBoundIsASpecialCase(count: Int, slowdown: Double) throws {
        let queue = CheckpointQueue(aloneSeconds: 61.3, busiestSeconds: 0)
        #expect(queue.writeSeconds(inFlightCount: count) == 61.3, "Tw is constant")
        let steps = try #require(
            PaperBound.intervalSteps(
                writeSeconds: 61.3, inFlightCount: count, slowdown: 1 + slowdown,
                stepSeconds: 0.07))
        func isSustained(_ steps: Int) -> Bool {
            queue.isSustained(
                trainingSeconds: Double(steps) * 0.07 * (1 + slowdown), blockedSeconds: 0,
                inFlightCount: count)
        }
        #expect(isSustained(steps))
        #expect(!isSustained(steps - 1))
    }

    /// With a busy device, the paper's formula is right with Tw(N), and too short with Tw(1).
    @Test func thePapersBoundWithABusyDevice() throws {
        let queue = CheckpointQueue(aloneSeconds: 25, busiestSeconds: 10)
        func steps(_ seconds: Double) throws -> Int {
            try #require(
                PaperBound.intervalSteps(
                    writeSeconds: seconds, inFlightCount: 4, slowdown: 1, stepSeconds: 0.3))
        }
        func isSustained(_ steps: Int) -> Bool {
            queue.isSustained(
                trainingSeconds: Double(steps) * 0.3, blockedSeconds: 0, inFlightCount: 4)
        }
        let right = try steps(queue.writeSeconds(inFlightCount: 4))
        #expect(isSustained(right) && !isSustained(right - 1))
        #expect(try !isSustained(steps(queue.aloneSeconds)))
    }

    /// With N = 1 the least interval is CheckFreq's: by the budget, or by the write.
    @Test(arguments: [0.0003, 0.004, 0.03, 0.2]) func checkFreqIsOneInFlight(
        budget: Double
    ) throws {
        var job = SampleMachine.job()
        job.slowdown = 0
        let line = try SampleMachine.line(
            SampleMachine.profile(), job, SampleMachine.setting(1))
        let blocked = line.blockedSeconds(intervalSteps: 1000)
        let steps = try #require(
            CheckFreq.intervalSteps(
                blockedSeconds: blocked, commitSeconds: line.queue.aloneSeconds - blocked,
                stepSeconds: job.stepSeconds, budget: budget))
        #expect(IntervalSearch(costs: line, budget: budget).leastSteps() == steps)
    }
}
