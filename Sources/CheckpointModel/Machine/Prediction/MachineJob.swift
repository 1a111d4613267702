/// What is saved, and what runs meanwhile.
package struct MachineJob: Equatable, Sendable {
    /// m: bytes that one rank saves.
    package var stateByteCount: Double
    /// t: one step of training, without checkpoints.
    package var stepSeconds: Double
    /// Of all machines.
    package var rankCount = 1
    /// Ranks that share one machine: its device, its memory and its processors.
    package var ranksPerMachine = 1
    /// Durable checkpoints that stay.
    package var retainCount = 1
    /// Processors of one machine that training keeps busy.
    package var busyProcessorCount = 0.0
    /// What training reads from and writes to the memory of one machine.
    package var memoryBytesPerSecond = 0.0
    /// What else uses the device, such as a data loader.
    package var otherDeviceBytesPerSecond = 0.0
    /// The part of a step after `save` in which the state does not change, so that the copy
    /// blocks nothing.
    package var overlapShare = 0.0
    /// How much longer a step takes while a checkpoint is in flight, when that was measured.
    package var slowdown: Double?
    /// M: between the failures that hit the job.
    package var meanTimeBetweenFailuresSeconds: Double
    /// Other values of M, when it is known how sure it is.
    package var failureReplicates: [Double] = []
    /// From a failure until training continues, with reading.
    package var restartSeconds = 0.0

    package init(
        stateByteCount: Double, stepSeconds: Double, meanTimeBetweenFailuresSeconds: Double
    ) {
        self.stateByteCount = stateByteCount
        self.stepSeconds = stepSeconds
        self.meanTimeBetweenFailuresSeconds = meanTimeBetweenFailuresSeconds
    }

    /// The same job with the failures of a replicate.
    func replicate(_ index: Int) -> MachineJob {
        guard !failureReplicates.isEmpty else { return self }
        var job = self
        job.meanTimeBetweenFailuresSeconds = failureReplicates[index % failureReplicates.count]
        return job
    }

    /// Machines that have a share in one checkpoint.
    package var machineCount: Int { (rankCount - 1) / max(1, ranksPerMachine) + 1 }

    /// Ranks of the fullest machine.
    var ranksOnMachine: Double { Double(min(rankCount, ranksPerMachine)) }

    /// - Throws: when a number makes no sense on any machine.
    package func check() throws(TuningError) {
        try TuningError.check(stateByteCount, "the state", in: TuningLimits.stateByteCount)
        try TuningError.check(stepSeconds, "a step", in: TuningLimits.stepSeconds)
        try TuningError.check(rankCount, "the number of ranks", in: TuningLimits.rankCount)
        try TuningError.check(
            ranksPerMachine, "the ranks of a machine", in: TuningLimits.ranksPerMachine)
        try TuningError.check(
            retainCount, "the retained checkpoints", in: TuningLimits.retainCount)
        try TuningError.check(
            otherDeviceBytesPerSecond, "the other load of the device",
            in: TuningLimits.otherBytesPerSecond)
        try TuningError.check(overlapShare, "the share of a step that overlaps", in: 0...1)
        try TuningError.check(slowdown ?? 0, "the slowdown", in: TuningLimits.slowdown)
        try TuningError.check(
            meanTimeBetweenFailuresSeconds, "the mean time between failures",
            in: TuningLimits.meanTimeBetweenFailuresSeconds)
        try TuningError.check(restartSeconds, "a restart", in: TuningLimits.restartSeconds)
    }

    /// - Throws: also when the job alone asks more of the machine than it has.
    package func check(_ profile: MachineProfile) throws(TuningError) {
        try check()
        try TuningError.check(
            busyProcessorCount, "the busy processors", in: 0...Double(profile.processorCount))
        try TuningError.check(
            memoryBytesPerSecond, "training's use of memory",
            in: 0...profile.memoryBytesPerSecond.slowestRate(of: machineCount))
    }
}

/// What a user of PCcheck chooses, without the interval.
package struct MachineSetting: Equatable, Sendable {
    /// N.
    package var inFlightCount: Int
    package var chunkByteCount: Int
    package var writerWorkerCount: Int
    /// Of one rank.
    package var poolByteCount: Double
    package var codec: MachineCodec
    /// 1 for the back end `direct`; the depth of the queue for io_uring.
    package var writesPerWorker = 1

    package init(
        inFlightCount: Int, chunkByteCount: Int, writerWorkerCount: Int, poolByteCount: Double,
        codec: MachineCodec = .none
    ) {
        self.inFlightCount = inFlightCount
        self.chunkByteCount = chunkByteCount
        self.writerWorkerCount = writerWorkerCount
        self.poolByteCount = poolByteCount
        self.codec = codec
    }

    package func check() throws(TuningError) {
        try TuningError.check(inFlightCount, "in flight", in: TuningLimits.inFlightCount)
        try TuningError.checkChunk(chunkByteCount, "a chunk")
        try TuningError.check(
            writerWorkerCount, "the writer workers", in: TuningLimits.workerCount)
        try TuningError.check(
            writesPerWorker, "the writes of a worker", in: TuningLimits.writesPerWorker)
        try TuningError.check(poolByteCount, "the pool", in: 0...1e16)
        let least = Double(chunkByteCount) * Double(writerWorkerCount)
        guard poolByteCount >= least else {
            throw TuningError(
                .poolTooSmall,
                "the pool has \(Int(poolByteCount)) bytes, expected at least \(Int(least)): one "
                    + "chunk for each writer worker")
        }
    }
}
