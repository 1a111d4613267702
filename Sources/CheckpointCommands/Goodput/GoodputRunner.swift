internal import CheckpointFormat
internal import CheckpointModel
internal import CheckpointStorage

/// Runs replays and resamples them, on all processors.
struct GoodputRunner {
    let study: PolicyStudy
    let job: GoodputCommand.JobOptions
    let replicationCount: Int
    let confidence: Double
    let seed: UInt64

    /// Parts of a trace that are resampled.
    private static let partCount = 120
    /// Replicates that a thread makes in one go.
    private static let batchCount = 50
    /// Synthetic traces from which intervals are chosen: they are replayed for every interval.
    private static let tuningTraceCount = 4

    // MARK: One trace

    func section(
        _ trace: Trace, machineNodeCount: Int?
    ) throws(CheckpointError) -> GoodputSection {
        try Interruption.check()
        let timeline = Timeline(trace).renumbered(seed: seed)
        var options = options
        options.blockCount = Self.partCount
        let replay = try replay(timeline, size(timeline, of: trace.name), options, trace.name)
        let (intervals, mean) = try intervals([replay], trace.name)
        let results = try named(trace.name) { () throws(ReplayError) in
            try study.results(replay, intervals: intervals)
        }
        let parts = results.map { $0.blocks.map(\.goodput) }
        let replicates = try resample([parts], trace.name)
        var count: GoodputSection.PaperCount?
        var kind = GoodputSection.Kind.failures
        switch trace.content {
        case .availability(let trace):
            count = machineNodeCount.map { unit in
                GoodputSection.PaperCount(
                    machineNodeCount: unit, count: AvailabilityCount(trace, unit: unit))
            }
            kind = .availability
        case .preemption: kind = .preemption
        case .failures: break
        }
        return GoodputSection(
            name: trace.name, setting: trace.setting, kind: kind,
            nodeCount: timeline.largestNodeCount, durationSeconds: timeline.endSeconds,
            job: replay.job, departureCount: timeline.departureCount,
            meanTimeBetweenHitsSeconds: mean, count: count,
            table: GoodputTable(
                study.candidates, intervals: intervals, values: results.map(\.total.goodput),
                losses: results.map { GoodputRow.Losses($0.total) }, replicates: replicates,
                confidence: confidence),
            parts: parts)
    }

    /// The traces of each setting together, where there is more than one.
    func pooled(_ sections: [GoodputSection]) throws(CheckpointError) -> [PooledGoodput] {
        var pooled: [PooledGoodput] = []
        for setting in Trace.Setting.allCases {
            let members = sections.filter { $0.setting == setting }
            guard members.count > 1 else { continue }
            let parts = members.map(\.parts)
            let replicates = try resample(parts, setting.rawValue)
            let means = BlockBootstrap(parts: parts, seed: seed)?.means ?? []
            let losses = study.candidates.indices.map { index in
                GoodputRow.Losses.mean(members.map { $0.table.rows[index].losses })
            }
            pooled.append(
                PooledGoodput(
                    setting: setting, traceCount: members.count,
                    table: GoodputTable(
                        study.candidates, intervals: nil, values: means, losses: losses,
                        replicates: replicates, confidence: confidence)))
        }
        return pooled
    }

    /// Replicates of the goodput of all candidates.
    private func resample(
        _ parts: [[[Double]]], _ name: String
    ) throws(CheckpointError) -> [[Double]] {
        guard let bootstrap = BlockBootstrap(parts: parts, seed: seed) else {
            throw CheckpointError(.invalidArgument, "\(name): there is nothing to resample")
        }
        return try batches("resampling \(name)") { range in range.map { bootstrap.replicate($0) } }
    }

    // MARK: Synthetic traces

    /// What one synthetic trace gave: of each candidate its goodput and its losses.
    private struct Replication: Sendable {
        var tallies: [Tally]
    }

    func section(_ synthetic: SyntheticTrace) throws(CheckpointError) -> GoodputSection {
        let name = "synthetic"
        var replays: [Replay] = []
        for index in 0..<Self.tuningTraceCount {
            // They are not among those that are counted.
            let timeline = try timeline(synthetic, replicationCount + index)
            replays.append(
                try replay(timeline, size(timeline, of: name), self.options, name))
        }
        let (intervals, mean) = try intervals(replays, name)
        let (study, options, seed, size) = (self.study, self.options, self.seed, replays[0].job)
        let replications = try batches("replaying synthetic traces") { range in
            range.map { index -> Replication? in
                guard
                    let timeline = try? synthetic.timeline(seed: seed, replication: index),
                    let replay = try? Replay(timeline, job: size, options: options),
                    let results = try? study.results(replay, intervals: intervals)
                else { return nil }
                return Replication(tallies: results.map(\.total))
            }
        }.compactMap { $0 }
        guard replications.count == replicationCount else {
            throw CheckpointError(.invalidArgument, "\(name): a replay was refused")
        }
        let candidates = study.candidates.indices
        let losses = candidates.map { index in
            GoodputRow.Losses.mean(
                replications.map { GoodputRow.Losses($0.tallies[index]) })
        }
        let goodputs = replications.map { $0.tallies.map(\.goodput) }
        let values = candidates.map { index in
            goodputs.reduce(0) { $0 + $1[index] } / Double(goodputs.count)
        }
        return GoodputSection(
            name: name, setting: .synthetic, kind: .failures, nodeCount: synthetic.nodeCount,
            durationSeconds: synthetic.durationSeconds, job: size, departureCount: nil,
            meanTimeBetweenHitsSeconds: mean, count: nil,
            table: GoodputTable(
                study.candidates, intervals: intervals, values: values, losses: losses,
                replicates: goodputs, confidence: confidence),
            parts: [])
    }

    private func timeline(
        _ synthetic: SyntheticTrace, _ replication: Int
    ) throws(CheckpointError) -> Timeline {
        do throws(TraceError) {
            return try synthetic.timeline(seed: seed, replication: replication)
        } catch {
            throw CheckpointError(.invalidArgument, "synthetic: \(error.message)")
        }
    }

    // MARK: What both need

    private var options: ReplayOptions {
        var options = ReplayOptions()
        options.noticeSeconds = job.noticeSeconds
        options.settleSeconds = job.settleSeconds
        options.seed = seed
        return options
    }

    private func intervals(
        _ replays: [Replay], _ name: String
    ) throws(CheckpointError) -> (seconds: [Double], meanTimeBetweenHitsSeconds: Double?) {
        let progress = ProgressBar(
            "choosing intervals for \(name)", total: UInt64(study.candidates.count), .policies)
        defer { progress.finish() }
        let found = try named(name) { () throws(ReplayError) in
            try study.intervals(replays) { doneCount in
                progress.update(UInt64(doneCount))
                return !Interruption.isRequested
            }
        }
        try Interruption.check()
        return found
    }

    private func size(
        _ timeline: Timeline, of name: String
    ) throws(CheckpointError) -> JobSize {
        try JobSize.of(
            timeline, isElastic: job.job.map { $0 == .elastic }, nodeCount: job.nodes,
            minimum: job.minimumNodes, name)
    }

    private func replay(
        _ timeline: Timeline, _ size: JobSize, _ options: ReplayOptions, _ name: String
    ) throws(CheckpointError) -> Replay {
        try named(name) { () throws(ReplayError) in
            try Replay(timeline, job: size, options: options)
        }
    }

    private func named<Value>(
        _ name: String, _ body: () throws(ReplayError) -> Value
    ) throws(CheckpointError) -> Value {
        do throws(ReplayError) {
            return try body()
        } catch {
            throw CheckpointError(.invalidArgument, "\(name): \(error.message)")
        }
    }

    /// What `work` returns for all replications, in order.
    private func batches<Value: Sendable>(
        _ title: String, _ work: @escaping @Sendable (Range<Int>) -> [Value]
    ) throws(CheckpointError) -> [Value] {
        let count = replicationCount
        let progress = ProgressBar(title, total: UInt64(count), .replications)
        defer { progress.finish() }
        var values: [Value] = []
        values.reserveCapacity(count)
        OrderedWork.run(
            (count + Self.batchCount - 1) / Self.batchCount,
            threadCount: ThisProcess.processorCount
        ) { batch -> [Value] in
            if Interruption.isRequested { return [] }
            let start = batch * Self.batchCount
            return work(start..<min(start + Self.batchCount, count))
        } consume: { _, part in
            values += part
            progress.update(UInt64(values.count))
        }
        try Interruption.check()
        return values
    }
}
