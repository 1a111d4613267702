internal import CheckpointFormat
internal import CheckpointStorage
internal import CheckpointWriter
internal import StorageFaults

/// What one seed did.
package struct SimulationReport: Sendable {
    /// Which invariant was broken, and how; nil when none was.
    package var violation: String?
    package var runCount = 0
    package var turnCount = 0
    package var faultCount = 0
    package var stateCount = 0
    package var savedCount = 0
    package var durableCount = 0
    /// Equal for equal runs.
    package var trace: UInt64 = 0

    package static func + (left: Self, right: Self) -> Self {
        SimulationReport(
            violation: left.violation ?? right.violation,
            runCount: left.runCount + right.runCount,
            turnCount: left.turnCount + right.turnCount,
            faultCount: left.faultCount + right.faultCount,
            stateCount: left.stateCount + right.stateCount,
            savedCount: left.savedCount + right.savedCount,
            durableCount: left.durableCount + right.durableCount, trace: left.trace ^ right.trace)
    }

    package init(
        violation: String? = nil, runCount: Int = 0, turnCount: Int = 0, faultCount: Int = 0,
        stateCount: Int = 0, savedCount: Int = 0, durableCount: Int = 0, trace: UInt64 = 0
    ) {
        self.violation = violation
        self.runCount = runCount
        self.turnCount = turnCount
        self.faultCount = faultCount
        self.stateCount = stateCount
        self.savedCount = savedCount
        self.durableCount = durableCount
        self.trace = trace
    }
}

/// A file, and up to three runs of a real writer over it, each ended by a close, a kill or a power
/// cut at any moment. Its shape, its threads' order, its faults and its cuts follow from a seed.
package struct Simulation {
    /// What the writers of all runs share.
    struct Shape {
        let inFlight: Int
        let retain: Int
        var options: WriterOptions
        let plantedBug: PlantedBug?
        let deviceMistake: DeviceMistake?

        init(
            _ random: inout SplitMix64, _ plantedBug: PlantedBug?, _ deviceMistake: DeviceMistake?
        ) {
            self.plantedBug = plantedBug
            self.deviceMistake = deviceMistake
            inFlight = .random(in: 1...3, using: &random)
            retain = .random(in: 1...2, using: &random)
            options = SmallFile.options()
            options.codec =
                [.none, .none, .none, .zstd].randomElement(using: &random) ?? .none
            options.trustsAnchor = Bool.random(using: &random)
            options.snapshotWorkerCount = .random(in: 1...2, using: &random)
            options.writerWorkerCount = .random(in: 1...3, using: &random)
            options.writeQueueDepth = .random(in: 1...4, using: &random)
            options.poolByteCount = UInt64(
                Int.random(in: 1...6, using: &random) * SmallFile.chunkByteCount)
            // Now and then no patience with readers at all.
            options.urgentPatienceNanoseconds = [0, 5_000_000].randomElement(using: &random) ?? 0
            options.busyPolicy =
                [
                    .wait(timeoutNanoseconds: nil), .wait(timeoutNanoseconds: 1_000_000), .skip,
                    .fail,
                ]
                .randomElement(using: &random) ?? .skip
        }
    }

    /// Where a run begins.
    struct Start {
        /// What is on the medium.
        var contents: [UInt8]
        /// What only the page cache has: a killed process leaves that to the next one.
        var cached: [Recording.Write] = []
        /// The sequences that a caller was told are durable, oldest first.
        var acknowledged: [UInt64] = []
        /// Bytes that changed, or went astray, without an error, since the file was made. One of
        /// them may cost the newest checkpoint but not the one before, where that is retained.
        var silentFaultCount = 0
        /// What loads in spite of one changed byte, where an opening promises that it goes on to do
        /// so until something newer is durable.
        var loadable: UInt64?
        /// A writer could not read the newest checkpoint, and went on from an older one.
        var hasGoneBack = false
    }

    /// Runs one seed to its end, or to the first violation.
    package static func run(
        seed: UInt64, plantedBug: PlantedBug? = nil, deviceMistake: DeviceMistake? = nil
    ) -> SimulationReport {
        let scheduler = SimulatedScheduler(seed: seed, name: "replay: simulate --seed \(seed)")
        return scheduler.during {
            var random = SplitMix64(seed: seed)
            var report = writerRuns(&random, Shape(&random, plantedBug, deviceMistake), scheduler)
            report.turnCount = scheduler.turnCount
            report.trace = scheduler.trace
            return report
        }
    }

    private static func writerRuns(
        _ random: inout SplitMix64, _ shape: Shape, _ scheduler: SimulatedScheduler
    ) -> SimulationReport {
        var report = SimulationReport()
        guard let file = try? SmallFile.file(inFlight: shape.inFlight, retain: shape.retain) else {
            preconditionFailure("the geometry of a small file is valid")
        }
        var start = Start(contents: file)
        let promises = Promises()
        for number in 1...Int.random(in: 1...3, using: &random) {
            var run = WriterRun(shape, start, promises, scheduler, seed: random.next())
            run.run()
            report = report + run.report
            report.runCount = number
            guard report.violation == nil else { return report }
            var cuts = Cuts(run, seed: random.next())
            start = cuts.check(retain: shape.retain)
            report.stateCount += cuts.stateCount
            report.violation = cuts.violation
            guard report.violation == nil else { return report }
        }
        return report
    }
}
