/// The size of a job.
package enum JobSize: Equatable, Sendable {
    /// It runs on so many nodes, or not at all.
    case fixed(nodeCount: Int)
    /// It runs on any number between these two, as fast as it has nodes.
    case elastic(minimum: Int, maximum: Int)

    package var leastNodeCount: Int {
        switch self {
        case .fixed(let count): count
        case .elastic(let minimum, _): minimum
        }
    }
    package var mostNodeCount: Int {
        switch self {
        case .fixed(let count): count
        case .elastic(_, let maximum): maximum
        }
    }
}

/// What else a replay needs.
package struct ReplayOptions: Equatable, Sendable {
    /// Warning before a preemption. A checkpoint that fits in it is taken then.
    package var noticeSeconds = 0.0
    /// How long an elastic job waits for more nodes before it restarts with those that came.
    package var settleSeconds = 300.0
    /// Parts of the trace that are counted on their own.
    package var blockCount = 1
    package var seed: UInt64 = 1

    package init() {}
}

/// Why a replay was refused: a number that makes no sense.
package struct ReplayError: Error, Equatable, Sendable {
    package var message: String
}

/// Replays a trace against a job that saves by a policy.
///
/// It goes from event to event, not from step to step: between two events the cycle of training
/// and checkpoint repeats, so that what was done and what was durable follow from the time alone.
package struct Replay: Sendable {
    package let timeline: Timeline
    package let job: JobSize
    package let options: ReplayOptions

    /// - Throws: when the job is larger than any moment of the trace allows.
    package init(
        _ timeline: Timeline, job: JobSize, options: ReplayOptions = ReplayOptions()
    ) throws(ReplayError) {
        guard job.leastNodeCount >= 1, job.mostNodeCount >= job.leastNodeCount,
            job.mostNodeCount <= TraceLimits.nodeCount
        else {
            throw ReplayError(
                message: "the job has \(job.leastNodeCount) to \(job.mostNodeCount) nodes; give at "
                    + "least one")
        }
        guard job.leastNodeCount <= timeline.nodeCount else {
            throw ReplayError(
                message: "the job needs \(job.leastNodeCount) nodes, and the trace has "
                    + "\(timeline.nodeCount)")
        }
        guard (1...100_000).contains(options.blockCount),
            (0...TraceLimits.seconds).contains(options.noticeSeconds),
            (0...TraceLimits.seconds).contains(options.settleSeconds)
        else { throw ReplayError(message: "a notice or a number of blocks is out of range") }
        self.timeline = timeline
        self.job = job
        self.options = options
    }

    /// - Parameter intervalSeconds: training between two checkpoints; unused without a cost.
    /// - Throws: when a cost or the interval is negative or not finite.
    package func run(_ policy: Policy, intervalSeconds: Double) throws(ReplayError) -> ReplayResult
    {
        guard policy.restart.isValid, policy.cost?.isValid ?? true,
            policy.cost == nil || (1e-6...TraceLimits.seconds).contains(intervalSeconds),
            policy.peerMemory.map(Self.isValid) ?? true
        else {
            throw ReplayError(
                message: "\(policy.name): a cost or the interval is negative, zero or too large")
        }
        var run = JobRun(self, policy, intervalSeconds: intervalSeconds)
        run.replay()
        return run.result
    }

    private static func isValid(_ memory: Policy.PeerMemory) -> Bool {
        let seconds = 0...TraceLimits.seconds
        return (1...1000).contains(memory.replicaCount)
            && (1e-3...TraceLimits.seconds).contains(memory.storageIntervalSeconds)
            && [
                memory.storageBlockedSeconds, memory.storageCommitSeconds,
                memory.storageReadSeconds,
            ].allSatisfy(seconds.contains)
    }
}
