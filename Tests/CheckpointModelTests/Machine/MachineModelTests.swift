import Foundation
import Testing

@testable import CheckpointModel

/// One setting on machines of round numbers.
@Suite struct MachineModelTests {
    typealias Sample = SampleMachine
    private let commit = 0.24
    private let call = 0.001
    /// The copy of the first chunk.
    private let first = 0.001

    @Test func theDeviceIsTheLimit() throws {
        let line = try Sample.line()
        #expect(line.limit == .device)
        #expect(FormulaTests.isNear(line.stagedSeconds, call + 1))
        #expect(FormulaTests.isNear(line.queue.busiestSeconds, 10))
        // Writes begin behind the first chunk; the rest of the copy costs no time of its own.
        #expect(FormulaTests.isNear(line.queue.aloneSeconds, call + first + 10 + commit))
        #expect(line.slowdown == 0)
    }

    /// A device that is faster than the copy still writes the last chunk after it.
    @Test func theLastChunkComesAfterTheCopy() throws {
        var profile = Sample.profile()
        profile.device[0].bytesPerSecond = Sample.same(Sample.stateByteCount * 10)
        let line = try Sample.line(profile)
        #expect(line.limit == .processor)
        #expect(FormulaTests.isNear(line.queue.aloneSeconds, call + 1 + 0.0001 + commit))
    }

    /// Writes under way are those of the workers, and of chunks that fit the pool and the state.
    @Test func moreWorkersKeepMoreWritesUnderWay() throws {
        var profile = Sample.profile()
        profile.device.append(profile.device[0])
        profile.device[1].queueDepth = 5
        profile.device[1].bytesPerSecond = Sample.same(Sample.stateByteCount / 2)
        func busiest(_ workers: Int, writes: Int = 1) throws -> Double {
            var setting = Sample.setting(poolChunkCount: 4, workers: workers)
            setting.writesPerWorker = writes
            return try Sample.line(profile, Sample.job(), setting).queue.busiestSeconds
        }
        #expect(FormulaTests.isNear(try busiest(1), 10))
        #expect(FormulaTests.isNear(try busiest(3), 1 / 0.3))
        #expect(FormulaTests.isNear(try busiest(1, writes: 3), 1 / 0.3))
        #expect(FormulaTests.isNear(try busiest(1, writes: 64), 2.5), "four fit the pool")
    }

    /// A pool of 9 chunks is full after 10 chunks were copied and 1 was written.
    @Test func theCopyWaitsForRoomInThePool() throws {
        let line = try Sample.line(
            Sample.profile(), Sample.job(), Sample.setting(poolChunkCount: 9))
        #expect(FormulaTests.isNear(line.stagedSeconds, call + 0.01 + 9.9))
        #expect(FormulaTests.isNear(line.queue.aloneSeconds, call + first + 10 + commit))
        let free = try Sample.line().blockedSeconds(intervalSteps: 1000)
        #expect(line.blockedSeconds(intervalSteps: 1000) > 9 * free)
    }

    /// What the checkpoint before left in the pool is no room for the next one.
    @Test func aShortIntervalFindsThePoolFull() throws {
        let line = try Sample.line(
            Sample.profile(), Sample.job(), Sample.setting(poolChunkCount: 1000))
        // 900 chunks are left, of which 70 are written in a step.
        // 170 chunks of room are full after 170/900 s, and 170/0.9 are copied by then.
        let copy = 170.0 / 900 + (1000 - 170 / 0.9) / 100
        #expect(FormulaTests.isNear(line.blockedSeconds(intervalSteps: 1), call + copy))
        #expect(FormulaTests.isNear(line.blockedSeconds(intervalSteps: 100), call + 1))
        var last = Double.infinity
        for steps in 1...40 {
            let blocked = line.blockedSeconds(intervalSteps: steps)
            #expect(blocked <= last)
            last = blocked
        }
    }

    @Test func theHookHidesTheCopy() throws {
        var job = Sample.job()
        job.overlapShare = 0.5
        let line = try Sample.line(Sample.profile(), job)
        #expect(FormulaTests.isNear(line.blockedSeconds(intervalSteps: 1000), call + 1 - 0.35))
        job.overlapShare = 1
        job.stepSeconds = 2
        let hidden = try Sample.line(Sample.profile(), job)
        #expect(hidden.blockedSeconds(intervalSteps: 1000) == call)
    }

    @Test func memoryIsTheLimit() throws {
        var profile = Sample.profile()
        profile.device[0].bytesPerSecond = Sample.same(Sample.stateByteCount * 10)
        // A copy alone moves all twice: 2 s. With the write it moves three times: 3 s.
        profile.memoryBytesPerSecond = Sample.same(Sample.stateByteCount)
        let line = try Sample.line(profile)
        #expect(line.limit == .memory)
        #expect(FormulaTests.isNear(line.queue.busiestSeconds, 3))
        #expect(FormulaTests.isNear(line.stagedSeconds, call + 2 / 0.92), "writes lose it 8 %")
        // Beside the copy, 0.08 of the memory is left to writes.
        let late = first * 0.08 / 0.46
        #expect(FormulaTests.isNear(line.queue.aloneSeconds, call + late + 3 + commit))

        var job = Sample.job()
        job.memoryBytesPerSecond = 0.25 * Sample.stateByteCount
        let shared = try Sample.line(profile, job)
        #expect(FormulaTests.isNear(shared.queue.busiestSeconds, 4), "training has its quarter")
        job.memoryBytesPerSecond = Sample.stateByteCount
        let halved = try Sample.line(profile, job)
        #expect(FormulaTests.isNear(halved.queue.busiestSeconds, 6), "half of it at least")
        // In flight for a little over 6 s, it moves 3 states: training has the rest.
        let taken = 3 / halved.queue.aloneSeconds
        #expect(FormulaTests.isNear(halved.slowdown, 1 / (1 - taken) - 1))
    }

    @Test func theProcessorIsTheLimit() throws {
        var profile = Sample.profile()
        profile.codecs = [
            MachineProfile.CodecPoint(
                codec: .zstd, bytesPerSecond: Sample.same(Sample.stateByteCount / 40),
                compressionRatio: 2)
        ]
        let setting = Sample.setting(codec: .zstd)
        let line = try Sample.line(profile, Sample.job(), setting)
        #expect(line.limit == .processor)
        #expect(FormulaTests.isNear(line.queue.busiestSeconds, 20), "two workers, 40 s each")
        let wide = try Sample.line(
            profile, Sample.job(), Sample.setting(workers: 16, codec: .zstd))
        #expect(wide.limit == .device)
        #expect(FormulaTests.isNear(wide.queue.busiestSeconds, 5), "half is stored")

        // 2 threads of less weight compress beside 64 of training. Copies take a tenth of the
        // processor time that compression takes.
        var job = Sample.job()
        job.busyProcessorCount = 64
        profile.processorCount = 64
        let busy = try Sample.line(profile, job, setting)
        let weight = ProcessorShares.writerWeight
        let share = 20 / busy.queue.busiestSeconds
        #expect(FormulaTests.isNear(share, weight * 64 / (64 + 0.2 * share + 2 * weight)))
        // It takes 4 processor seconds to copy; and 40 to compress, which wait for training.
        let compressing = 2 * weight * 64 / (64 + 2 * weight)
        let taken = 4 / busy.queue.aloneSeconds + min(40 / busy.queue.aloneSeconds, compressing)
        #expect(FormulaTests.isNear(busy.slowdown, 64 / (64 - taken) - 1))
        // One processor is free: compression takes that, and training loses nothing.
        job.busyProcessorCount = 63
        let free = try Sample.line(profile, job, setting)
        #expect(FormulaTests.isNear(free.queue.busiestSeconds, 44), "40 to compress, 4 to copy")
        #expect(free.slowdown == 0)
        job.busyProcessorCount = 64
        job.slowdown = 0.22
        #expect(try Sample.line(profile, job, setting).slowdown == 0.22, "as it was measured")
        #expect(throws: TuningError.self) { try Sample.line(Sample.profile(), job, setting) }
    }

    @Test func theFlushIsTheLimit() throws {
        var profile = Sample.profile()
        profile.flushSeconds = Sample.same(30)
        let line = try Sample.line(profile)
        #expect(line.limit == .flush)
        // One of 0.1 s is in the commit.
        #expect(FormulaTests.isNear(line.queue.aloneSeconds, call + first + 10 + 0.24 + 29.9))
        #expect(FormulaTests.isNear(line.queue.busiestSeconds, 10), "it serves several at once")
        #expect(line.queue.saturatingCount == 5)
    }

    /// The next checkpoint begins when this one is copied: what is not in the pool by then was
    /// written.
    @Test func thePoolBoundsWhatIsUnderWay() throws {
        let small = try Sample.line(
            Sample.profile(), Sample.job(), Sample.setting(8, poolChunkCount: 500))
        #expect(FormulaTests.isNear(small.queue.most, 1.5 + 0.024))
        #expect(FormulaTests.isNear(small.queue.writeSeconds(inFlightCount: 8), 15.24))
        #expect(small.queue.saturatingCount == 2)
        // Training for one step leaves 43 chunks less of the 500 in the pool.
        let left = (500 - 70) / 100.0
        #expect(
            FormulaTests.isNear(
                small.cost(intervalSteps: 1).commitSeconds, call + first + 10 + commit + left))
        #expect(
            FormulaTests.isNear(
                small.cost(intervalSteps: 1000).commitSeconds, call + first + 10 + commit))
        let one = try Sample.line(
            Sample.profile(), Sample.job(), Sample.setting(1, poolChunkCount: 500))
        #expect(
            FormulaTests.isNear(
                one.cost(intervalSteps: 1).commitSeconds, call + first + 10 + commit))
    }

    /// The writer reaches half of what the device can do with one worker, and all with three.
    @Test func theWriterReachesAPart() throws {
        var profile = Sample.profile()
        profile.writer = [(3, 12.0), (1, 5.0)].map { workers, rate in
            MachineProfile.WriterPoint(
                chunkByteCount: Sample.chunkByteCount, writerWorkerCount: workers,
                bytesPerSecond: Sample.same(Sample.stateByteCount / 100 * rate))
        }
        func busiest(_ workers: Int) throws -> Double {
            try Sample.line(profile, Sample.job(), Sample.setting(workers: workers))
                .queue.busiestSeconds
        }
        #expect(FormulaTests.isNear(try busiest(1), 20))
        #expect(FormulaTests.isNear(try busiest(2), 10 / 0.75))
        #expect(FormulaTests.isNear(try busiest(3), 10), "never more than the device")
        #expect(FormulaTests.isNear(try busiest(16), 10))
        // Where the copy is the limit, the writer is measured against that.
        profile.device[0].bytesPerSecond = Sample.same(Sample.stateByteCount * 10)
        profile.writer[1].bytesPerSecond = Sample.same(Sample.stateByteCount / 2)
        #expect(FormulaTests.isNear(try busiest(1), 1), "the device stays faster than the copy")
    }

    /// Half of the state is in the pool, and the copy waits until the rest has left it, which is
    /// slower while more comes in.
    @Test func aCrowdedPoolEmptiesMoreSlowly() throws {
        var profile = Sample.profile()
        func staged(pool: Int) throws -> Double {
            try Sample.line(profile, Sample.job(), Sample.setting(1, poolChunkCount: pool))
                .stagedSeconds
        }
        #expect(FormulaTests.isNear(try staged(pool: 500), call + 5))
        let rate = Sample.stateByteCount / 10
        profile.writer = [
            MachineProfile.WriterPoint(
                chunkByteCount: Sample.chunkByteCount, writerWorkerCount: 2,
                bytesPerSecond: Sample.same(rate), crowdedBytesPerSecond: Sample.same(rate / 2))
        ]
        #expect(FormulaTests.isNear(try staged(pool: 500), call + 10))
        #expect(FormulaTests.isNear(try staged(pool: 2000), call + 1), "it never fills")
        profile.writer[0].crowdedBytesPerSecond = Sample.same(rate * 3)
        #expect(FormulaTests.isNear(try staged(pool: 500), call + 5), "never faster than alone")
    }

    /// Ranks of a machine share it; the slowest of the machines is the one that counts.
    @Test func manyRanks() throws {
        var profile = Sample.profile()
        profile.device[0].bytesPerSecond = MeasuredValues(
            [20, 10, 5].map { Sample.stateByteCount / $0 })
        var job = Sample.job()
        func busiest() throws -> Double { try Sample.line(profile, job).queue.busiestSeconds }
        #expect(FormulaTests.isNear(try busiest(), 35.0 / 3))
        (job.rankCount, job.ranksPerMachine) = (2, 2)
        #expect(FormulaTests.isNear(try busiest(), 70.0 / 3), "two on one device")
        job.ranksPerMachine = 1
        #expect(FormulaTests.isNear(try busiest(), (5 + 3 * 10 + 5 * 20) / 9.0))
        job.rankCount = 100_000
        #expect(FormulaTests.isNear(try busiest(), 20))
        (job.rankCount, job.ranksPerMachine) = (3, 2)
        #expect(job.machineCount == 2)
        let prediction = try Sample.line(profile, job).prediction(intervalSteps: 1000)
        #expect(prediction.diskByteCount == 2 * 3 * Sample.stateByteCount, "N + R = 3, two ranks")
        #expect(prediction.memoryByteCount == 2 * 2 * Sample.stateByteCount)
    }

    /// Without a lag this is Daly's, with one it is what a replay of exponential failures finds.
    @Test func goodput() throws {
        let blocking = CheckpointCycle(
            intervalSeconds: 1000, cost: CheckpointCost(blockedSeconds: 40, writeSeconds: 0))
        let daly = YoungDaly.goodput(
            intervalSeconds: 1000, blockedSeconds: 40, restartSeconds: 70,
            meanTimeBetweenFailuresSeconds: 9000)
        #expect(
            FormulaTests.isNear(
                blocking.goodput(meanTimeBetweenFailuresSeconds: 9000, restartSeconds: 70),
                try #require(daly)))
    }

    @Test(arguments: [1, 2, 4], [12.0, 30, 300]) func aReplayFindsTheSameGoodput(
        count: Int, interval: Double
    ) throws {
        let cost = CheckpointCost(
            blockedSeconds: 2, writeSeconds: 40, deviceSeconds: 9, inFlightCount: count,
            slowdown: 0.05)
        let mean = 3000.0
        var random = SeededRandom(seed: 5)
        var time = 0.0
        let failures = (0..<60_000).map { _ in
            time += random.exponential(mean: mean)
            return FailureTrace.Failure(node: 0, startSeconds: time, endSeconds: time)
        }
        let replay = try Replay(
            Timeline(failures: failures, nodeCount: 1, endSeconds: time + 1),
            job: .fixed(nodeCount: 1))
        let policy = Policy(
            name: "N", cost: cost,
            restart: RestartCost(detectSeconds: 0, rescheduleSeconds: 50, readSeconds: 0))
        let found = try replay.run(policy, intervalSeconds: interval).total.goodput
        let goodput = CheckpointCycle(intervalSeconds: interval, cost: cost).goodput(
            meanTimeBetweenFailuresSeconds: mean, restartSeconds: 50)
        #expect(FormulaTests.isNear(goodput, found, within: 0.01), "\(goodput), replay \(found)")
    }

    /// One more in flight never makes goodput less, unless the busiest station is the limit.
    @Test(arguments: [1e7, 1e8, 1e9, 1e10, 1e11]) func moreInFlightIsNotWorse(
        stateByteCount: Double
    ) throws {
        for failures in [50.0, 1e3, 1e6] {
            var job = Sample.job(meanTimeBetweenFailuresSeconds: failures)
            job.stateByteCount = stateByteCount
            job.slowdown = 0.1
            // Slow flushes: several in flight are worth it.
            for flush in [0.001, 0.1, 10] {
                var profile = Sample.profile()
                profile.flushSeconds = Sample.same(flush)
                let model = try MachineModel(profile: profile, job: job)
                let lines = try (1...12).map { try model.line(Sample.setting($0)) }
                for steps in [1, 2, 3, 5, 9, 17, 40, 200, 3000] {
                    let found = lines.map { MachinePrediction($0, intervalSteps: steps) }
                    for (index, line) in lines.enumerated().dropFirst() {
                        let (before, after) = (found[index - 1], found[index])
                        #expect(after.overhead <= before.overhead * (1 + 1e-9) + 1e-12)
                        let span = line.queue.spanSeconds(inFlightCount: index + 1)
                        let isSaturated =
                            span == line.queue.busiestSeconds
                            && after.cycle.spanSeconds <= span * (1 + 1e-9)
                        let isLess = after.goodput < before.goodput * (1 - 1e-9)
                        #expect(isSaturated || !isLess, "N \(index + 1), \(steps) steps")
                    }
                }
            }
        }
    }

    /// On a saturated device, more in flight only wait, and a failure takes more.
    @Test func moreInFlightIsWorseOnASaturatedDevice() throws {
        func prediction(_ count: Int) throws -> MachinePrediction {
            MachinePrediction(
                try Sample.line(
                    Sample.profile(), Sample.job(meanTimeBetweenFailuresSeconds: 300),
                    Sample.setting(count, poolChunkCount: 8000)), intervalSteps: 1)
        }
        let (two, eight) = (try prediction(2), try prediction(8))
        #expect(eight.overhead == two.overhead)
        #expect(eight.durableSeconds > 3 * two.durableSeconds)
        #expect(eight.goodput < two.goodput)
    }

    /// Steps that are slower take longer: the device needs fewer of them.
    @Test func slowStepsSustainAShorterInterval() throws {
        var job = Sample.job()
        job.stepSeconds = 1
        func least(_ slowdown: Double) throws -> Int? {
            job.slowdown = slowdown
            let line = try Sample.line(Sample.profile(), job)
            return IntervalSearch(costs: line, budget: .infinity).leastSteps()
        }
        // 10 s of the device, of which the copy and the call take 1.001 s.
        #expect(try least(0) == 9)
        #expect(try least(0.5) == 6)
    }

    @Test func whatIsImpossibleIsRefused() throws {
        func code(_ body: () throws -> Void) -> TuningError.Code? {
            do {
                try body()
                return nil
            } catch {
                return (error as? TuningError)?.code
            }
        }
        let line = try Sample.line()
        // 10 s of the device are 15 steps of 0.7 s, without the copy: 1 s, or more in a full pool.
        #expect(code { _ = try line.prediction(intervalSteps: 3) } == .intervalTooShort)
        #expect(code { _ = try line.prediction(intervalSteps: 15) } == nil)
        for steps in [0, -1, .max, .min] {
            #expect(code { _ = try line.prediction(intervalSteps: steps) } == .outOfRange)
        }
        func setting(_ change: (inout MachineSetting) -> Void) -> TuningError.Code? {
            var setting = Sample.setting()
            change(&setting)
            return code { _ = try Sample.line(Sample.profile(), Sample.job(), setting) }
        }
        #expect(setting { $0.poolByteCount = Double(Sample.chunkByteCount) } == .poolTooSmall)
        #expect(setting { $0.poolByteCount = .nan } == .outOfRange)
        #expect(setting { $0.inFlightCount = 0 } == .outOfRange)
        #expect(setting { $0.inFlightCount = 65 } == .outOfRange)
        #expect(setting { $0.chunkByteCount = .max } == .outOfRange)
        #expect(setting { $0.chunkByteCount = 1 << 16 } == nil)
        #expect(setting { $0.chunkByteCount = 1 << 16 | 1 } == .outOfRange)
        #expect(setting { $0.writerWorkerCount = -1 } == .outOfRange)
        #expect(setting { $0.codec = .zstd } == .notMeasured)
        func job(_ change: (inout MachineJob) -> Void) -> TuningError.Code? {
            var job = Sample.job()
            change(&job)
            return code { _ = try Sample.line(Sample.profile(), job) }
        }
        #expect(job { $0.otherDeviceBytesPerSecond = 1e12 } == .deviceBusy)
        #expect(job { $0.memoryBytesPerSecond = 2e13 } == .outOfRange)
        #expect(job { $0.busyProcessorCount = 65 } == .outOfRange)
        #expect(job { $0.ranksPerMachine = 0 } == .outOfRange)
        for value in [Double.nan, -1, .infinity, 1e300] {
            #expect(job { $0.stateByteCount = value } == .outOfRange)
            #expect(job { $0.stepSeconds = value } == .outOfRange)
            #expect(job { $0.meanTimeBetweenFailuresSeconds = value } == .outOfRange)
            #expect(job { $0.restartSeconds = value } == .outOfRange)
            #expect(job { $0.overlapShare = value } == .outOfRange)
            #expect(job { $0.slowdown = value } == .outOfRange)
            #expect(job { $0.otherDeviceBytesPerSecond = value } == .outOfRange)
        }
    }
}
