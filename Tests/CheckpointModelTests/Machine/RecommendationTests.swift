import Foundation
import Testing

@testable import CheckpointModel

@Suite struct RecommendationTests {
    typealias Sample = SampleMachine

    private func job(state: Double = 1e10, mean: Double = 2e4) -> MachineJob {
        var job = MachineJob(
            stateByteCount: state, stepSeconds: 0.5, meanTimeBetweenFailuresSeconds: mean)
        job.restartSeconds = 120
        return job
    }

    /// It keeps to the request, and no setting and interval of a sweep is better by more than the
    /// tolerance.
    @Test(arguments: [1e8, 3e9, 6e10], [2e3, 5e5]) func nothingIsMuchBetter(
        state: Double, mean: Double
    ) throws {
        let profile = Sample.realProfile()
        let job = job(state: state, mean: mean)
        var request = TuningRequest(budget: 0.03)
        request.replicateCount = 20
        let found = try Recommendation(profile: profile, job: job, request: request)
        #expect(found.prediction.overhead <= 0.03)
        let model = try MachineModel(profile: profile, job: job)
        let most = 1 - (1 - found.prediction.goodput) / 1.0101
        for chunk in [1 << 18, 1 << 20, 1 << 22] {
            for workers in [1, 2, 3, 4, 5, 8] {
                for pool in [Double(chunk * workers), state / 3, state * 1.5] {
                    for codec in [MachineCodec.none, .planesZstd] {
                        for count in 1...6 {
                            let line = try? model.line(
                                MachineSetting(
                                    inFlightCount: count, chunkByteCount: chunk,
                                    writerWorkerCount: workers, poolByteCount: pool,
                                    codec: codec))
                            guard let line else { continue }
                            for step in 0..<40 {
                                let steps = Int(pow(1.4, Double(step)))
                                let value = MachinePrediction(line, intervalSteps: steps)
                                guard value.overhead <= 0.03,
                                    line.isSustained(intervalSteps: steps)
                                else { continue }
                                #expect(value.goodput <= most + 1e-12, "\(line.setting), \(steps)")
                            }
                        }
                    }
                }
            }
        }
    }

    /// Blocking checkpoints: the interval is Daly's.
    @Test func theIntervalIsDalys() throws {
        var job = Sample.job(meanTimeBetweenFailuresSeconds: 2e5)
        job.slowdown = 0
        job.stepSeconds = 0.01
        var profile = Sample.profile()
        // All of the time is in the copy.
        profile.device[0].bytesPerSecond = Sample.same(1e14)
        profile.digestBytesPerSecond = Sample.same(Sample.stateByteCount / 400)
        profile.flushSeconds = Sample.same(0)
        profile.blockSeconds = Sample.same(0)
        profile.commitSeconds = Sample.same(0)
        let line = try Sample.line(profile, job, Sample.setting(1))
        let steps = try SettingSearch.steps(line, budget: 1)
        let daly = try #require(
            YoungDaly.dalyHigherOrderSeconds(
                blockedSeconds: line.blockedSeconds(intervalSteps: steps),
                meanTimeBetweenFailuresSeconds: 2e5))
        #expect(FormulaTests.isNear(Double(steps) * 0.01, daly, within: 0.002))
    }

    @Test func whatDecidesTheInterval() throws {
        func bound(mean: Double, budget: Double, step: Double = 0.5) throws -> IntervalBound {
            var job = job(mean: mean)
            job.stepSeconds = step
            var request = TuningRequest(budget: budget)
            request.replicateCount = 20
            return try Recommendation(
                profile: Sample.realProfile(), job: job, request: request
            ).bound
        }
        #expect(try bound(mean: 1e9, budget: 0.5) == .failures)
        #expect(try bound(mean: 1e3, budget: 1e-4) == .budget)
        #expect(try bound(mean: 60, budget: 1) == .throughput)
        #expect(try bound(mean: 1e3, budget: 1, step: 1000) == .step)
    }

    @Test func limitsOfDiskAndMemory() throws {
        var request = TuningRequest(budget: 0.05)
        request.replicateCount = 20
        request.memoryByteCount = 1e8
        let found = try Recommendation(
            profile: Sample.realProfile(), job: job(), request: request)
        #expect(found.prediction.memoryByteCount <= 1e8)
        request.diskByteCount = 2.1e10
        let small = try Recommendation(
            profile: Sample.realProfile(), job: job(), request: request)
        #expect(small.setting.inFlightCount == 1)
        #expect(small.prediction.goodput <= found.prediction.goodput)
        request.diskByteCount = 1.9e10
        func code(_ profile: MachineProfile, _ request: TuningRequest) -> TuningError.Code? {
            do throws(TuningError) {
                _ = try Recommendation(profile: profile, job: job(), request: request)
                return nil
            } catch {
                return error.code
            }
        }
        #expect(code(Sample.realProfile(), request) == .noRoom)
        for value in [Double.nan, -1, 0, .infinity, 2] {
            #expect(code(Sample.realProfile(), TuningRequest(budget: value)) == .outOfRange)
        }
    }

    /// The intervals follow from the spread: none without spread, wider with more.
    @Test func uncertaintyFollowsFromTheSpread() throws {
        func width(_ spread: Double) throws -> (durable: Double, steps: Double) {
            var profile = Sample.realProfile()
            profile.flushSeconds = Sample.same(0.003)
            profile.blockSeconds = Sample.same(1e-4)
            profile.commitSeconds = Sample.same(0.007)
            profile.memoryBytesPerSecond = Sample.same(40e9)
            profile.digestBytesPerSecond = Sample.same(1e10)
            profile.callSeconds = Sample.same(1e-4)
            profile.codecs = []
            for index in profile.device.indices {
                let rate = profile.device[index].bytesPerSecond.samples[2]
                profile.device[index].bytesPerSecond = MeasuredValues(
                    [1 - spread, 1, 1, 1, 1 + spread].map { $0 * rate })
            }
            let certainty = try Recommendation(
                profile: profile, job: job(), request: TuningRequest(budget: 0.03)
            ).certainty
            #expect(certainty.durableSeconds.low <= certainty.durableSeconds.value)
            #expect(certainty.durableSeconds.value <= certainty.durableSeconds.high)
            #expect((0...1).contains(certainty.sustainedShare))
            return (
                certainty.durableSeconds.high - certainty.durableSeconds.low,
                certainty.intervalSteps.high - certainty.intervalSteps.low
            )
        }
        let (none, some, much) = (try width(0), try width(0.1), try width(0.4))
        #expect(none.durable < 1e-9 && none.steps == 0)
        #expect(some.durable > 0.01 && much.durable > 2 * some.durable)
    }

    /// Hits that come in bursts leave more open than as many that come evenly.
    @Test func uncertaintyFollowsFromTheHits() throws {
        func rate(_ gaps: [Double]) throws -> HitRate {
            var (result, time) = (ReplayResult(blocks: []), 0.0)
            for gap in gaps {
                time += gap
                result.hitSeconds.append(time)
            }
            result.runningSeconds = time + 500
            return try #require(HitRate([result], replicateCount: 200, seed: 1))
        }
        let even = try rate([Double](repeating: 1000, count: 40))
        #expect(even.hitCount == 40 && even.meanSeconds == 1012.5)
        #expect(even.replicates.allSatisfy { abs($0 - 1012.5) < 1e-6 })
        let bursts = try rate((0..<40).map { $0 % 20 < 15 ? 100 : 3700 })
        #expect(bursts.meanSeconds == even.meanSeconds)
        #expect(HitRate([ReplayResult(blocks: [])], replicateCount: 20, seed: 1) == nil)
        func width(_ rate: HitRate) throws -> Double {
            var job = job(mean: rate.meanSeconds)
            job.failureReplicates = rate.replicates
            let goodput = try Recommendation(
                profile: Sample.realProfile(), job: job, request: TuningRequest(budget: 0.5)
            ).certainty.goodput
            return goodput.high - goodput.low
        }
        #expect(try width(bursts) > 3 * width(even))
    }

    @Test func whatWouldChangeIt() throws {
        let profile = Sample.realProfile(deviceRate: 2e8)
        let found = try Recommendation(
            profile: profile, job: job(mean: 2000), request: TuningRequest(budget: 0.03))
        #expect(found.limit == .device)
        #expect(found.changes.map(\.cause) == Recommendation.Change.Cause.allCases)
        func goodput(_ cause: Recommendation.Change.Cause) throws -> Double {
            let change = found.changes.first { $0.cause == cause }
            return try #require(change?.prediction).goodput
        }
        let now = found.prediction.goodput
        #expect(try goodput(.deviceTwiceAsFast) > now + 0.005)
        #expect(try goodput(.twiceTheState) < now - 0.005)
        #expect(try goodput(.twiceTheFailures) < now - 0.005)
        // The tolerance of the search is the only way down.
        for cause in [.memoryTwiceAsFast, .twiceTheProcessors, .flushTwiceAsFast, .twiceTheBudget]
            as [Recommendation.Change.Cause]
        {
            #expect(try goodput(cause) >= now - 0.0101 * (1 - now))
        }
    }

    /// Numbers at the ends of what is accepted, and beyond: an answer of finite numbers, or an
    /// error; never a trap.
    @Test(arguments: 0..<150) func aHostileProfileNeverTraps(seed: Int) {
        var random = SeededRandom(seed: UInt64(seed), stream: 1)
        // Without a bad one in most cases, because one is enough for an error.
        let isBad = seed.isMultiple(of: 4)
        func number(_ range: ClosedRange<Double>) -> Double {
            let bad = [Double.nan, .infinity, -1, .leastNonzeroMagnitude, 1e308, -.infinity]
            if isBad, random.uniform() < 0.03 { return bad[random.index(below: bad.count)] }
            let middle = (max(range.lowerBound, 1e-9) * range.upperBound).squareRoot()
            let ends = [range.lowerBound, range.upperBound, middle]
            return ends[random.index(below: 3)]
        }
        func whole(_ range: ClosedRange<Int>) -> Int {
            if isBad, random.uniform() < 0.02 {
                return [0, -1, .min, .max][random.index(below: 4)]
            }
            return random.uniform() < 0.5 ? range.lowerBound : range.upperBound
        }
        func samples(_ range: ClosedRange<Double>) -> MeasuredValues {
            MeasuredValues((0..<3).map { _ in number(range) })
        }
        let rates = TuningLimits.bytesPerSecond
        let profile = MachineProfile(
            processorCount: whole(TuningLimits.processorCount),
            device: (0..<2).map { _ in
                MachineProfile.DevicePoint(
                    writeByteCount: whole(TuningLimits.chunkByteCount),
                    queueDepth: whole(1...65_536), otherBytesPerSecond: number(0...1e14),
                    bytesPerSecond: samples(rates))
            },
            flushSeconds: samples(TuningLimits.shortSeconds),
            blockSeconds: samples(TuningLimits.shortSeconds),
            commitSeconds: samples(TuningLimits.shortSeconds),
            memoryBytesPerSecond: samples(rates), digestBytesPerSecond: samples(rates),
            callSeconds: samples(TuningLimits.shortSeconds),
            codecs: [
                MachineProfile.CodecPoint(
                    codec: .zstd, bytesPerSecond: samples(rates),
                    compressionRatio: number(TuningLimits.compressionRatio))
            ])
        var job = MachineJob(
            stateByteCount: number(TuningLimits.stateByteCount),
            stepSeconds: number(TuningLimits.stepSeconds),
            meanTimeBetweenFailuresSeconds: number(TuningLimits.meanTimeBetweenFailuresSeconds))
        job.rankCount = whole(TuningLimits.rankCount)
        job.ranksPerMachine = whole(TuningLimits.ranksPerMachine)
        job.busyProcessorCount = number(0...1)
        job.memoryBytesPerSecond = number(0...1e3)
        job.overlapShare = number(0...1)
        job.restartSeconds = number(TuningLimits.restartSeconds)
        var request = TuningRequest(budget: number(TuningLimits.budget))
        request.inFlightCount = 3
        request.replicateCount = 20
        guard let found = try? Recommendation(profile: profile, job: job, request: request) else {
            return
        }
        let prediction = found.prediction
        let figures = [
            prediction.overhead, prediction.durableSeconds, prediction.lostSeconds,
            prediction.goodput, prediction.diskByteCount, prediction.memoryByteCount,
            found.certainty.goodput.low, found.certainty.durableSeconds.high,
            found.queue.aloneSeconds, found.queue.busiestSeconds,
        ]
        #expect(figures.allSatisfy { $0.isFinite && $0 >= -1e-9 }, "seed \(seed): \(figures)")
        #expect(prediction.overhead <= request.budget)
        #expect(found.queue.aloneSeconds >= found.queue.busiestSeconds)
    }
}
