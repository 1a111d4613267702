internal import CheckpointFormat
internal import CheckpointModel

/// How often the traces of a file hit the job that `pccheck tune` is asked about.
struct TraceFailures {
    let path: String
    let options: TraceOptions
    let job: MachineJob
    let request: TuningRequest

    /// Which nodes a job has that is smaller than the trace is a matter of chance.
    private static let placementCount = 32

    /// Each machine of the job is a node of the trace.
    ///
    /// - Parameter notes: what a reader should know of it is appended.
    func rate(_ notes: inout [String]) throws(CheckpointError) -> HitRate {
        let traces = try TraceFile.traces(path, options)
        let timelines = traces.map(Timeline.init)
        let fitting = timelines.filter { $0.largestNodeCount >= job.machineCount }
        let most = timelines.map(\.largestNodeCount).max() ?? 0
        guard !fitting.isEmpty else {
            throw CheckpointError(
                .invalidArgument,
                "\(path): the job has \(Quantity.plural(job.machineCount, "machine")), and the "
                    + "trace at most \(Quantity.plural(most, "node"))")
        }
        var results: [ReplayResult] = []
        for timeline in fitting {
            for placement in 0..<Self.placementCount {
                try Interruption.check()
                results.append(try replayed(timeline, request.seed &+ UInt64(placement)))
            }
        }
        let rate = HitRate(
            results, placementCount: Self.placementCount, replicateCount: request.replicateCount,
            seed: request.seed)
        guard let rate else {
            throw CheckpointError(
                .invalidArgument,
                "\(path): a job of \(Quantity.plural(job.machineCount, "machine")) is never hit "
                    + "in this trace; give --mtbf-seconds")
        }
        if fitting.count < timelines.count {
            notes.append(
                "\(timelines.count - fitting.count) of \(timelines.count) traces have fewer nodes "
                    + "than the job has machines, and are left out")
        }
        if rate.hitCount < HitRate.fewCount {
            notes.append(
                "the trace has \(Figure.decimal(rate.hitCount, 1)) hits of the job; fewer than "
                    + "\(Figure.decimal(HitRate.fewCount, 0)) show too little of how much the "
                    + "times between them vary, so the intervals are too narrow")
        }
        return rate
    }

    private func replayed(
        _ timeline: Timeline, _ seed: UInt64
    ) throws(CheckpointError) -> ReplayResult {
        let size = try JobSize.of(
            timeline, isElastic: nil, nodeCount: job.machineCount, minimum: 1, path)
        var options = ReplayOptions()
        options.seed = seed
        do throws(ReplayError) {
            return try Replay(timeline.renumbered(seed: seed), job: size, options: options)
                .run(policy, intervalSeconds: job.stepSeconds)
        } catch {
            throw CheckpointError(.invalidArgument, "\(path): \(error.message)")
        }
    }

    /// What saving costs hardly changes how often a job is hit.
    private var policy: Policy {
        Policy(
            name: "the job", cost: CheckpointCost(blockedSeconds: 0, writeSeconds: 0),
            restart: RestartCost(
                detectSeconds: 0, rescheduleSeconds: job.restartSeconds, readSeconds: 0))
    }
}
