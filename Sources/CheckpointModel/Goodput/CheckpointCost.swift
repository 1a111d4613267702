#if canImport(Glibc)
    internal import Glibc
#endif

/// What a checkpoint costs the job that takes it. Times are in seconds.
package struct CheckpointCost: Equatable, Sendable {
    /// Training waits that long, until the state was copied.
    package var blockedSeconds: Double
    /// From there until it is durable, when it is the only one in flight.
    package var writeSeconds: Double
    /// The device, or the network, is busy that long for each checkpoint.
    package var deviceSeconds: Double
    /// N: checkpoints that may be in flight at once.
    package var inFlightCount: Int
    /// How many of them can be under way at most, whatever N is: a pool that is full lets no more
    /// begin.
    package var mostUnderWay: Double
    /// How much longer a step takes while one is in flight: 0.02 for 2 %.
    package var slowdown: Double

    package init(
        blockedSeconds: Double, writeSeconds: Double, deviceSeconds: Double? = nil,
        inFlightCount: Int = 1, mostUnderWay: Double = .infinity, slowdown: Double = 0
    ) {
        self.blockedSeconds = blockedSeconds
        self.writeSeconds = writeSeconds
        self.deviceSeconds = deviceSeconds ?? writeSeconds
        self.inFlightCount = inFlightCount
        self.mostUnderWay = mostUnderWay
        self.slowdown = slowdown
    }

    /// From the start of a checkpoint until it is durable, when no other is in flight.
    package var commitSeconds: Double { blockedSeconds + writeSeconds }

    /// Checkpoints under way when as many as possible are.
    package var underWayCount: Double {
        max(1, min(Double(inFlightCount), mostUnderWay))
    }

    /// The least time between the starts of two checkpoints: the device serves one at a time, and
    /// each of N slots is taken for `commitSeconds`.
    package var leastSpanSeconds: Double { max(deviceSeconds, commitSeconds / underWayCount) }

    var isValid: Bool {
        [blockedSeconds, writeSeconds, deviceSeconds].allSatisfy {
            (0...TraceLimits.seconds).contains($0)
        } && (1...1024).contains(inFlightCount) && mostUnderWay >= 1
            && (0...1000).contains(slowdown)
    }
}

/// One interval of training and its checkpoint, again and again, with nothing in between.
package struct CheckpointCycle: Equatable, Sendable {
    /// τ = k·t: training between two checkpoints, at the pace without any.
    package let workSeconds: Double
    /// What that work takes, with the slowdown of checkpoints in flight.
    package let trainingSeconds: Double
    /// All of it: training, the wait for a slot, and the copy.
    package let spanSeconds: Double
    /// From the end of training until the checkpoint is durable, with the wait for a slot.
    package let commitSeconds: Double

    /// - Parameter extraBlockedSeconds: of something else, such as a second tier, per cycle.
    package init(
        intervalSeconds: Double, cost: CheckpointCost, extraBlockedSeconds: Double = 0
    ) {
        workSeconds = intervalSeconds
        let least = cost.leastSpanSeconds
        // While a checkpoint is in flight, work takes 1 + slowdown times as long.
        let slowed = min(
            intervalSeconds * cost.slowdown,
            cost.writeSeconds * cost.slowdown / (1 + cost.slowdown))
        let training = intervalSeconds + slowed + extraBlockedSeconds
        let free = training + cost.blockedSeconds
        if free >= least {
            trainingSeconds = training
            spanSeconds = free
            commitSeconds = cost.commitSeconds
        } else {
            // Every slot is always taken: a checkpoint waits for one, and shares the device.
            trainingSeconds = intervalSeconds * (1 + cost.slowdown) + extraBlockedSeconds
            spanSeconds = max(least, trainingSeconds + cost.blockedSeconds)
            let wait = spanSeconds - trainingSeconds - cost.blockedSeconds
            commitSeconds = wait + cost.underWayCount * least
        }
    }

    /// The share of the time that is work, where nothing fails.
    package var efficiency: Double { workSeconds / spanSeconds }

    /// How much longer the loop takes: blocked, and steps that are slower.
    package var overhead: Double { spanSeconds / workSeconds - 1 }

    /// What a failure takes in the mean: half an interval, and the wait for durable.
    package var lostSeconds: Double { workSeconds / 2 + commitSeconds }

    /// The useful share where failures are a Poisson process: τ·e^(−l/M) / (M·e^(R/M)·(e^(s/M) −
    /// 1)), where s is the span of a cycle, and l the time from the end of a cycle until its
    /// checkpoint is durable.
    ///
    /// Checkpoint j is durable at j·s + l, so that Σ e^(−(j·s + l)/M) of them are before the next
    /// failure, which comes every M·e^(R/M) with restarts that fail too. It is Daly's for l = 0.
    package func goodput(
        meanTimeBetweenFailuresSeconds mean: Double, restartSeconds: Double
    ) -> Double {
        let lag = max(0, commitSeconds - (spanSeconds - trainingSeconds))
        let exponent = -(lag + restartSeconds) / mean
        let share = workSeconds / mean * exp(exponent) / expm1(spanSeconds / mean)
        return share.isFinite ? min(1, max(0, share)) : 0
    }

    /// What was done `elapsed` seconds after the start of the first cycle.
    package func work(after elapsed: Double) -> Double {
        let count = (elapsed / spanSeconds).rounded(.down)
        let rest = max(0, elapsed - count * spanSeconds)
        return count * workSeconds + workSeconds * min(1, rest / trainingSeconds)
    }

    /// How many checkpoints are durable then.
    package func durableCount(after elapsed: Double) -> Double {
        let taken = spanSeconds - trainingSeconds
        return max(0, ((elapsed - commitSeconds + taken) / spanSeconds).rounded(.down))
    }

    /// When training of the interval that checkpoint `count` ends was done.
    func snapshotSeconds(_ count: Double) -> Double {
        count > 0 ? (count - 1) * spanSeconds + trainingSeconds : 0
    }
}

/// What a restart takes, in seconds.
package struct RestartCost: Equatable, Sendable {
    /// Until it is known that a node is gone; not for a restart that was planned.
    package var detectSeconds: Double
    /// Processes, containers, the network, the first step.
    package var rescheduleSeconds: Double
    /// Reading the checkpoint.
    package var readSeconds: Double

    package init(detectSeconds: Double, rescheduleSeconds: Double, readSeconds: Double) {
        self.detectSeconds = detectSeconds
        self.rescheduleSeconds = rescheduleSeconds
        self.readSeconds = readSeconds
    }

    var isValid: Bool {
        [detectSeconds, rescheduleSeconds, readSeconds].allSatisfy {
            (0...TraceLimits.seconds).contains($0)
        }
    }
}

/// How a job saves.
package struct Policy: Equatable, Sendable {
    /// Checkpoints in the memory of other nodes, and rarer ones on storage below them.
    package struct PeerMemory: Equatable, Sendable {
        /// m: copies of each node's state, its own among them.
        package var replicaCount: Int
        /// Training time between two checkpoints on storage.
        package var storageIntervalSeconds: Double
        /// What one of those blocks, and its time until it is durable.
        package var storageBlockedSeconds: Double
        package var storageCommitSeconds: Double
        /// Reading one at a restart.
        package var storageReadSeconds: Double

        package init(
            replicaCount: Int, storageIntervalSeconds: Double, storageBlockedSeconds: Double,
            storageCommitSeconds: Double, storageReadSeconds: Double
        ) {
            self.replicaCount = replicaCount
            self.storageIntervalSeconds = storageIntervalSeconds
            self.storageBlockedSeconds = storageBlockedSeconds
            self.storageCommitSeconds = storageCommitSeconds
            self.storageReadSeconds = storageReadSeconds
        }
    }

    package var name: String
    /// nil: nothing is ever saved.
    package var cost: CheckpointCost?
    package var restart: RestartCost
    package var peerMemory: PeerMemory?

    package init(
        name: String, cost: CheckpointCost?, restart: RestartCost, peerMemory: PeerMemory? = nil
    ) {
        self.name = name
        self.cost = cost
        self.restart = restart
        self.peerMemory = peerMemory
    }
}
