import Testing

@testable import CheckpointModel

/// Replays that can be followed by hand.
@Suite struct ReplayTests {
    static let restart = RestartCost(detectSeconds: 5, rescheduleSeconds: 10, readSeconds: 15)

    static func policy(
        blocked: Double = 10, write: Double = 20, inFlight: Int = 1, slowdown: Double = 0
    ) -> Policy {
        Policy(
            name: "test",
            cost: CheckpointCost(
                blockedSeconds: blocked, writeSeconds: write, inFlightCount: inFlight,
                slowdown: slowdown),
            restart: restart)
    }

    static let none = Policy(name: "none", cost: nil, restart: restart)

    static func availability(_ counts: [(Double, Int)], end: Double) throws -> Timeline {
        Timeline(
            try AvailabilityTrace(
                samples: counts.map {
                    AvailabilityTrace.Sample(timeSeconds: $0.0, nodeCount: $0.1)
                }, endSeconds: end))
    }

    static func failures(
        _ list: [(Int, Double, Double)], nodes: Int, end: Double
    ) throws -> Timeline {
        let trace = try FailureTrace(
            failures: list.map {
                FailureTrace.Failure(node: $0.0, startSeconds: $0.1, endSeconds: $0.2)
            }, nodeCount: nodes, endSeconds: end)
        return Timeline(Trace(name: "test", setting: .llm, content: .failures(trace)))
    }

    private func tally(
        useful: Double, blocked: Double = 0, redone: Double = 0, restart: Double = 0,
        waiting: Double = 0
    ) -> Tally {
        var tally = Tally()
        tally.useful = useful
        tally.blocked = blocked
        tally.redone = redone
        tally.restart = restart
        tally.waiting = waiting
        return tally
    }

    private func expectNear(
        _ found: Tally, _ expected: Tally, _ location: SourceLocation = #_sourceLocation
    ) {
        let parts: [(String, KeyPath<Tally, Double>)] = [
            ("useful", \.useful), ("blocked", \.blocked), ("redone", \.redone),
            ("restart", \.restart), ("waiting", \.waiting),
        ]
        for (name, part) in parts {
            #expect(
                abs(found[keyPath: part] - expected[keyPath: part]) < 1e-6,
                "\(name) is \(found[keyPath: part]), expected \(expected[keyPath: part])",
                sourceLocation: location)
        }
    }

    /// Two nodes; one fails at 1000 s for 500 s. A checkpoint every 100 s blocks for 10 s and is
    /// durable 20 s later.
    @Test func aFailureWithRepairIsWaitedFor() throws {
        let timeline = try Self.failures([(1, 1000, 1500)], nodes: 2, end: 2000)
        let replay = try Replay(timeline, job: .fixed(nodeCount: 2))
        let result = try replay.run(Self.policy(), intervalSeconds: 100)
        // Cycles of 110 s: at 1000 s there are 9 of them and 10 s. Checkpoint 9 was taken at
        // 980 s and is durable at 1010 s, so that checkpoint 8, of 870 s, is the last one. Work is
        // 910 s, of which 110 s are lost in the last 130 s. After the repair a restart without
        // detection takes 25 s, and 475 s are 4 cycles and 35 s.
        expectNear(
            result.total,
            tally(
                useful: 2 * (800 + 435), blocked: 2 * (70 + 20 + 40), redone: 2 * 110,
                restart: 2 * 25, waiting: 2 * 500))
        #expect(result.hitCount == 1 && result.total.total == 4000)
    }

    /// A spare node takes the place of the one that failed.
    @Test func aSpareNodeReplacesAFailedOne() throws {
        let timeline = try Self.failures([(0, 1000, 1500)], nodes: 3, end: 2000)
        let replay = try Replay(timeline, job: .fixed(nodeCount: 2))
        let result = try replay.run(Self.policy(), intervalSeconds: 100)
        // Detection counts now: 30 s, then 970 s are 8 cycles and 90 s.
        expectNear(
            result.total,
            tally(
                useful: 2 * (800 + 890), blocked: 2 * (70 + 20 + 80), redone: 2 * 110,
                restart: 2 * 30))
    }

    @Test func anIdleNodeThatFailsHitsNothing() throws {
        let timeline = try Self.failures([(2, 1000, 1500)], nodes: 3, end: 2000)
        let replay = try Replay(timeline, job: .fixed(nodeCount: 2))
        let result = try replay.run(Self.none, intervalSeconds: 1)
        #expect(result.hitCount == 0)
        expectNear(result.total, tally(useful: 4000))
    }

    @Test func withoutCheckpointsAllIsLost() throws {
        let timeline = try Self.failures([(0, 1000, 1100), (0, 1600, 1600)], nodes: 1, end: 2000)
        let replay = try Replay(timeline, job: .fixed(nodeCount: 1))
        let result = try replay.run(Self.none, intervalSeconds: 1)
        expectNear(
            result.total,
            tally(useful: 2000 - 1630, redone: 1000 + (1600 - 1125), restart: 25 + 30, waiting: 100)
        )
    }

    /// A failure during a restart begins it again, and takes back nothing more.
    @Test func aRestartIsInterrupted() throws {
        let timeline = try Self.failures([(0, 1000, 1000), (0, 1020, 1020)], nodes: 1, end: 2000)
        let replay = try Replay(timeline, job: .fixed(nodeCount: 1))
        let result = try replay.run(Self.policy(), intervalSeconds: 100)
        #expect(result.hitCount == 1 && result.interruptedRestartCount == 1)
        #expect(abs(result.total.restart - 50) < 1e-9 && abs(result.total.redone - 110) < 1e-9)
    }

    /// What comes is no failure: a job of a fixed size does not notice, an elastic one restarts
    /// by plan and loses no work.
    @Test func anAdditionIsNoFailure() throws {
        let timeline = try Self.availability([(0, 2), (1000, 4)], end: 3000)
        let fixed = try Replay(timeline, job: .fixed(nodeCount: 2))
            .run(Self.none, intervalSeconds: 1)
        expectNear(fixed.total, tally(useful: 6000))
        let elastic = try Replay(timeline, job: .elastic(minimum: 1, maximum: 4))
            .run(Self.policy(), intervalSeconds: 100)
        #expect(elastic.hitCount == 0 && elastic.growthCount == 1 && elastic.total.redone == 0)
        // It waits 300 s for more nodes, saves (30 s) and restarts (25 s).
        #expect(abs(elastic.total.restart - 4 * 55) < 1e-9)
        #expect(abs(elastic.total.waiting - 2 * 1300) < 1e-9)
    }

    @Test func anElasticJobContinuesOnFewerNodes() throws {
        let timeline = try Self.availability([(0, 4), (1000, 3), (1500, 0)], end: 2000)
        let replay = try Replay(timeline, job: .elastic(minimum: 2, maximum: 4))
        let result = try replay.run(Self.policy(), intervalSeconds: 100)
        #expect(result.hitCount == 2)
        // 1 of 4 nodes is missing from 1000 s, all of them from 1500 s.
        #expect(abs(result.total.waiting - (500 + 4 * 500)) < 1e-9)
        #expect(abs(result.total.total - 8000) < 1e-9)
        // 800 s as above; then 30 s of restart and 470 s: 4 cycles and 30 s, of which checkpoint 3
        // was durable at 350 s and checkpoint 4, taken at 430 s, at 460 s.
        #expect(abs(result.total.useful - (4 * 800 + 3 * 400)) < 1e-9)
    }

    /// A checkpoint that fits in the notice of a preemption loses nothing but its own time.
    @Test(arguments: [(29.0, 110.0), (30.0, 0)]) func noticeOfAPreemption(
        notice: Double, redone: Double
    ) throws {
        var options = ReplayOptions()
        options.noticeSeconds = notice
        let timeline = try Self.availability([(0, 1), (1000, 0)], end: 2000)
        let replay = try Replay(timeline, job: .fixed(nodeCount: 1), options: options)
        let result = try replay.run(Self.policy(), intervalSeconds: 100)
        #expect(abs(result.total.redone - redone) < 1e-9)
        // A failure comes without notice.
        let failing = try Self.failures([(0, 1000, 2000)], nodes: 1, end: 2000)
        let other = try Replay(failing, job: .fixed(nodeCount: 1), options: options)
            .run(Self.policy(), intervalSeconds: 100)
        #expect(abs(other.total.redone - 110) < 1e-9)
    }

    /// Memory of other nodes survives the loss of one, and not that of all.
    @Test func peerMemory() throws {
        let memory = Policy.PeerMemory(
            replicaCount: 2, storageIntervalSeconds: 300, storageBlockedSeconds: 0,
            storageCommitSeconds: 50, storageReadSeconds: 100)
        let policy = Policy(
            name: "Gemini", cost: CheckpointCost(blockedSeconds: 0, writeSeconds: 1),
            restart: Self.restart, peerMemory: memory)
        let one = try Self.failures([(0, 1000.5, 1000.5)], nodes: 4, end: 2000)
        let survived = try Replay(one, job: .fixed(nodeCount: 4)).run(policy, intervalSeconds: 10)
        #expect(survived.fallbackCount == 0)
        #expect(abs(survived.total.redone - 4 * 10.5) < 1e-6)
        let all = try Self.failures((0..<4).map { ($0, 1000.5, 1000.5) }, nodes: 4, end: 2000)
        let lost = try Replay(all, job: .fixed(nodeCount: 4)).run(policy, intervalSeconds: 10)
        // The checkpoint at 900 s was durable at 950 s.
        #expect(lost.fallbackCount == 1)
        #expect(abs(lost.total.redone - 4 * 100.5) < 1e-6, "\(lost.total.redone)")
        #expect(abs(lost.total.restart - 4 * 115) < 1e-6)
    }

    /// Nothing is lost or counted twice, whatever the trace, the job and the policy.
    @Test(arguments: 0..<40) func theSharesAddUp(seed: UInt64) throws {
        var random = SeededRandom(seed: seed)
        var synthetic = SyntheticTrace(
            nodeCount: 1 + random.index(below: 30), durationSeconds: 1e6,
            meanTimeBetweenFailuresSeconds: 1e5, repairMedianSeconds: 1000,
            repairMeanSeconds: 20_000)
        synthetic.groupNodeCount = 1 + random.index(below: synthetic.nodeCount)
        synthetic.groupProbability = random.uniform()
        synthetic.burstShare = 0.2
        synthetic.burstFactor = 10
        if seed % 2 == 0 { synthetic.law = .weibull(shape: 0.6) }
        let timeline = try synthetic.timeline(seed: seed, replication: 0)
        let most = 1 + random.index(below: synthetic.nodeCount)
        let machine = MachineCosts(
            stateByteCount: 1e10, stepSeconds: 1, writeBytesPerSecond: 5e8,
            soloWriteBytesPerSecond: 3e8, copyBytesPerSecond: 1e10, readBytesPerSecond: 1e9,
            networkBytesPerSecond: 5e9, slowdown: 0.05, detectSeconds: 30, rescheduleSeconds: 60)
        var options = ReplayOptions()
        options.blockCount = 7
        options.noticeSeconds = 120
        for job in [JobSize.fixed(nodeCount: most), .elastic(minimum: 1, maximum: most)] {
            let replay = try Replay(timeline, job: job, options: options)
            for policy in [
                machine.nothing, machine.blocking, machine.oneInFlight, machine.peerMemory,
                machine.pccheck(inFlightCount: 4),
            ] {
                let result = try replay.run(
                    policy, intervalSeconds: 1 + 5000 * random.uniform())
                let total = Double(most) * timeline.endSeconds
                #expect(FormulaTests.isNear(result.total.total, total, within: 1e-9))
                for block in result.blocks {
                    #expect(FormulaTests.isNear(block.total, total / 7, within: 1e-9))
                    let parts = [
                        block.useful, block.blocked, block.redone, block.restart, block.waiting,
                    ]
                    #expect(parts.allSatisfy { $0 >= -1e-6 * total }, "\(policy.name) \(block)")
                }
            }
        }
    }

    @Test func whatMakesNoSenseIsRefused() throws {
        let timeline = try Self.availability([(0, 4), (1000, 3)], end: 2000)
        #expect(throws: ReplayError.self) { try Replay(timeline, job: .fixed(nodeCount: 5)) }
        #expect(throws: ReplayError.self) { try Replay(timeline, job: .fixed(nodeCount: 0)) }
        #expect(throws: ReplayError.self) {
            try Replay(timeline, job: .elastic(minimum: 3, maximum: 2))
        }
        let replay = try Replay(timeline, job: .fixed(nodeCount: 4))
        for interval in [0, -1, .nan, .infinity, 1e-9] as [Double] {
            #expect(throws: ReplayError.self) {
                try replay.run(Self.policy(), intervalSeconds: interval)
            }
        }
        for cost in [-1, .nan, .infinity] as [Double] {
            #expect(throws: ReplayError.self) {
                try replay.run(Self.policy(blocked: cost), intervalSeconds: 1)
            }
        }
    }
}
