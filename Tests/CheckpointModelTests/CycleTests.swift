import Testing

@testable import CheckpointModel

/// One interval of training and its checkpoint.
@Suite struct CycleTests {
    /// The shortest interval that blocks nothing is the bound of the paper, with q = 1, where the
    /// device is no limit: Tw/N.
    @Test(arguments: [1, 2, 3, 4, 8]) func thePapersBoundIsASpecialCase(count: Int) throws {
        let cost = CheckpointCost(
            blockedSeconds: 0, writeSeconds: 60, deviceSeconds: 0, inFlightCount: count)
        let steps = try #require(
            PaperBound.intervalSteps(
                writeSeconds: 60, inFlightCount: count, slowdown: 1, stepSeconds: 1))
        let enough = CheckpointCycle(intervalSeconds: Double(steps), cost: cost)
        #expect(enough.efficiency == 1)
        let less = CheckpointCycle(intervalSeconds: Double(steps) - 1, cost: cost)
        #expect(less.efficiency < 1)
    }

    /// More in flight does not make a busy device faster: it only adds to the wait.
    @Test func aBusyDeviceIsTheLimit() {
        func cycle(_ count: Int) -> CheckpointCycle {
            CheckpointCycle(
                intervalSeconds: 10,
                cost: CheckpointCost(
                    blockedSeconds: 1, writeSeconds: 30, deviceSeconds: 30,
                    inFlightCount: count))
        }
        #expect(cycle(1).spanSeconds == 31, "one after the other, with the copy")
        #expect(cycle(2).spanSeconds == 30 && cycle(8).spanSeconds == 30)
        #expect(cycle(8).commitSeconds > cycle(2).commitSeconds)
    }

    @Test func whileOneIsInFlightStepsAreSlower() {
        let cost = CheckpointCost(
            blockedSeconds: 0, writeSeconds: 22, deviceSeconds: 0, inFlightCount: 9,
            slowdown: 0.1)
        // 22 s in flight are 20 s of work.
        #expect(abs(CheckpointCycle(intervalSeconds: 100, cost: cost).spanSeconds - 102) < 1e-9)
        // Always in flight: all of it is slower.
        #expect(abs(CheckpointCycle(intervalSeconds: 10, cost: cost).spanSeconds - 11) < 1e-9)
    }

    /// What is durable is never ahead of what was done, and never further behind than an interval
    /// and the commit.
    @Test(arguments: [1, 2, 5]) func durableFollowsWork(count: Int) {
        let cost = CheckpointCost(
            blockedSeconds: 3, writeSeconds: 17, deviceSeconds: 6, inFlightCount: count,
            slowdown: 0.2)
        for interval in [2.0, 5, 10, 40] {
            let cycle = CheckpointCycle(intervalSeconds: interval, cost: cost)
            #expect(cycle.commitSeconds >= cycle.spanSeconds - cycle.trainingSeconds)
            for index in 0..<5000 {
                let elapsed = Double(index) * 0.1
                let work = cycle.work(after: elapsed)
                let durable = cycle.durableCount(after: elapsed) * interval
                #expect(durable <= work + 1e-9)
                let lost = work - durable
                #expect(lost <= interval + cycle.commitSeconds + 1e-9)
            }
        }
    }

    @Test func nodesOfASet() {
        var nodes = NodeSet(nodeCount: 5, areThere: true)
        var random = SeededRandom(seed: 3)
        nodes.take(upTo: 3)
        nodes.beginRun()
        #expect(nodes.usedCount == 3 && nodes.idleCount == 2)
        #expect(nodes.leave(1) == (true, true))
        #expect(nodes.leave(1) == (false, false), "it is away already")
        #expect(nodes.leave(4) == (false, false), "it was idle")
        nodes.take(upTo: 3)
        #expect(nodes.usedCount == 3 && nodes.idleCount == 0)
        #expect(nodes.leave(3) == (true, false), "it never had the state")
        nodes.addAny(9)
        #expect(nodes.idleCount == 3 && nodes.usedCount == 2)
        var seen: Set<Int> = []
        for _ in 0..<200 { if let node = nodes.anyNode(&random) { seen.insert(node) } }
        #expect(seen == [0, 1, 2, 3, 4])
        for node in 0..<5 { _ = nodes.leave(node) }
        #expect(nodes.anyNode(&random) == nil)
    }
}

/// Costs from rates, intervals from rules, and several policies on one trace.
@Suite struct StudyTests {
    private var machine: MachineCosts {
        MachineCosts(
            stateByteCount: 1e10, stepSeconds: 2, writeBytesPerSecond: 1e9,
            soloWriteBytesPerSecond: 5e8, copyBytesPerSecond: 1e10, readBytesPerSecond: 2e9,
            networkBytesPerSecond: 5e9, slowdown: 0, detectSeconds: 10, rescheduleSeconds: 20)
    }

    @Test func costsFollowFromRates() throws {
        try machine.check()
        let pccheck = machine.pccheck(inFlightCount: 4)
        #expect(pccheck.name == "PCcheck N=4")
        let cost = try #require(pccheck.cost)
        #expect(cost.blockedSeconds == 1 && cost.writeSeconds == 20 && cost.deviceSeconds == 10)
        #expect(pccheck.restart.readSeconds == 5)
        // Two in flight keep the storage busy, which one alone does not.
        #expect(cost.leastSpanSeconds == 10)
        #expect(machine.oneInFlight.cost?.leastSpanSeconds == 21)
        #expect(machine.blocking.cost?.blockedSeconds == 20)
        #expect(machine.peerMemory.cost?.commitSeconds == 2)
        #expect(machine.nothing.cost == nil && machine.nothing.restart.readSeconds == 0)
        let measured = MachineCosts.measured(pccheck, blockedSeconds: 3, writeSeconds: 4)
        #expect(
            measured.cost
                == CheckpointCost(
                    blockedSeconds: 3, writeSeconds: 4, deviceSeconds: 4, inFlightCount: 4))
    }

    @Test func whatMakesNoSenseIsRefused() {
        let changes: [(inout MachineCosts) -> Void] = [
            { $0.writeBytesPerSecond = 0 }, { $0.copyBytesPerSecond = .nan },
            { $0.stateByteCount = -1 }, { $0.stateByteCount = 1e30 }, { $0.stepSeconds = 0 },
            { $0.slowdown = -0.1 }, { $0.replicaCount = 0 }, { $0.detectSeconds = .infinity },
        ]
        for change in changes {
            var other = machine
            change(&other)
            #expect(throws: ReplayError.self) { try other.check() }
        }
    }

    @Test func intervalsAreWholeStepsThatBlockNothing() {
        let choice = IntervalChoice(machine.oneInFlight, stepSeconds: 2)
        func seconds(_ rule: IntervalRule, mean: Double = 1e4) -> Double? {
            choice.seconds(rule, meanTimeBetweenHitsSeconds: mean)
        }
        #expect(seconds(.fixed(seconds: 7.9)) == 8 && seconds(.fixed(seconds: 0.1)) == 2)
        #expect(seconds(.young) == 142, "√(2·1·10⁴) is 141.4")
        #expect(seconds(.young, mean: 10) == 20, "21 s between two of which 1 s is the copy")
        #expect(seconds(.daly) == 140 && seconds(.tuned) == nil)
        let nothing = IntervalChoice(machine.nothing, stepSeconds: 2)
        #expect(nothing.seconds(.young, meanTimeBetweenHitsSeconds: 1) == nil)
    }

    @Test func aStudyComparesPolicies() throws {
        let timeline = try ReplayTests.failures(
            (1..<100).map { (0, Double($0) * 10_007, Double($0) * 10_007) }, nodes: 1, end: 1e6)
        let replay = try Replay(timeline, job: .fixed(nodeCount: 1))
        let study = PolicyStudy(
            candidates: [
                PolicyStudy.Candidate(policy: machine.nothing, rule: nil),
                PolicyStudy.Candidate(policy: machine.blocking, rule: .young),
                PolicyStudy.Candidate(policy: machine.blocking, rule: .tuned),
                PolicyStudy.Candidate(
                    policy: machine.pccheck(inFlightCount: 2), rule: .fixed(seconds: 100)),
            ], stepSeconds: 2)
        let (intervals, mean) = try study.intervals([replay])
        #expect(FormulaTests.isNear(mean, 1e4, within: 0.02))
        #expect(FormulaTests.isNear(intervals[1], (2 * 20 * 1e4).squareRoot(), within: 0.02))
        #expect(intervals[3] == 100)
        let goodputs = try study.results(replay, intervals: intervals).map(\.total.goodput)
        #expect(goodputs[0] < 0.02 && goodputs[2] >= goodputs[1] && goodputs[3] > goodputs[2])
    }
}
