/// What a setting costs at an interval.
package struct MachinePrediction: Equatable, Sendable {
    package let intervalSteps: Int
    package let cost: CheckpointCost
    package let cycle: CheckpointCycle
    /// How much longer the loop takes: blocked, and steps that are slower.
    package let overhead: Double
    /// From the end of an interval until its checkpoint is durable.
    package let durableSeconds: Double
    /// What a failure takes in the mean: half an interval, and the wait for durable.
    package let lostSeconds: Double
    /// The useful share of the time.
    package let goodput: Double
    /// Of one machine: N + R slots of each rank.
    package let diskByteCount: Double
    /// Of one machine: the pool of each rank, and what a codec writes to.
    package let memoryByteCount: Double

    /// Of any interval: where it is too short to be sustained, training waits for a slot.
    package init(_ line: CheckpointLine, intervalSteps: Int) {
        let (job, setting) = (line.job, line.setting)
        self.intervalSteps = intervalSteps
        let cycle = line.cycle(intervalSteps: intervalSteps)
        cost = line.cost(intervalSteps: intervalSteps)
        self.cycle = cycle
        overhead = cycle.overhead
        durableSeconds = cycle.commitSeconds
        lostSeconds = cycle.lostSeconds
        goodput = cycle.goodput(
            meanTimeBetweenFailuresSeconds: job.meanTimeBetweenFailuresSeconds,
            restartSeconds: job.restartSeconds)
        let chunk = Double(setting.chunkByteCount)
        let slot = (job.stateByteCount / chunk).rounded(.up) * chunk
        diskByteCount =
            Double(setting.inFlightCount + job.retainCount) * slot * job.ranksOnMachine
        let outputs =
            setting.codec == .none
            ? 0 : Double(setting.writerWorkerCount * setting.writesPerWorker) * chunk
        memoryByteCount = (setting.poolByteCount + outputs) * job.ranksOnMachine
    }
}
