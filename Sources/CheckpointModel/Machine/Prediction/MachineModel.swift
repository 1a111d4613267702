internal import CheckpointFormat

/// Predicts what checkpoints of a job cost on a machine.
package struct MachineModel: Sendable {
    package let profile: MachineProfile
    package let job: MachineJob
    private let curve: DeviceCurve

    /// - Throws: when the profile or the job makes no sense.
    package init(profile: MachineProfile, job: MachineJob) throws(TuningError) {
        try profile.check()
        try job.check(profile)
        self.init(checkedProfile: profile, job: job)
    }

    init(checkedProfile profile: MachineProfile, job: MachineJob) {
        self.profile = profile
        self.job = job
        curve = DeviceCurve(profile.device, machineCount: job.machineCount)
    }

    /// - Throws: when the setting makes no sense, or the machine cannot do it.
    package func line(_ setting: MachineSetting) throws(TuningError) -> CheckpointLine {
        try setting.check()
        let chunkCount = (job.stateByteCount / Double(setting.chunkByteCount)).rounded(.up)
        guard job.stateByteCount <= TuningLimits.stateByteCount.upperBound,
            chunkCount <= Double(Limits.chunkCapacity.upperBound)
        else {
            throw TuningError(
                .outOfRange,
                "the state has \(job.stateByteCount) bytes, expected at most "
                    + "\(TuningLimits.stateByteCount.upperBound), in at most "
                    + "\(Limits.chunkCapacity.upperBound) chunks")
        }
        return CheckpointLine(job, setting, try Stations(profile, curve, job, setting))
    }
}

/// One setting on one machine, at any interval.
package struct CheckpointLine: IntervalCosts, Sendable {
    package let job: MachineJob
    package private(set) var setting: MachineSetting
    /// What a checkpoint waits for most, when as many as possible are taken.
    package let limit: MachineLimit
    package let queue: CheckpointQueue
    /// Until the state is copied, into an empty pool.
    package let stagedSeconds: Double
    /// x: how much longer a step takes while a checkpoint is in flight.
    package let slowdown: Double
    private let stations: Stations

    init(_ job: MachineJob, _ setting: MachineSetting, _ stations: Stations) {
        self.job = job
        self.setting = setting
        self.stations = stations
        let staging = stations.staging(
            byteCount: job.stateByteCount, poolByteCount: setting.poolByteCount)
        // The first chunk is copied before a write begins, and the last one is written after its
        // copy.
        let chunk = min(Double(setting.chunkByteCount), job.stateByteCount)
        let late = chunk * stations.stagingDrainRate / stations.stagingRate
        let rest = max(staging.rest + late, chunk)
        let busiest = stations.busiest(byteCount: job.stateByteCount)
        stagedSeconds = stations.callSeconds + staging.seconds
        limit = busiest.limit
        queue = CheckpointQueue(
            aloneSeconds: stagedSeconds + rest / stations.drainRate + stations.commitSeconds,
            busiestSeconds: busiest.seconds,
            most: 1 + setting.poolByteCount / job.stateByteCount
                + stations.commitSeconds / busiest.seconds)
        slowdown =
            job.slowdown
            ?? Self.slowdown(job, stations, inFlightSeconds: queue.aloneSeconds)
    }

    /// The same with another N, which changes no station.
    func inFlight(_ count: Int) -> CheckpointLine {
        var line = self
        line.setting.inFlightCount = count
        return line
    }

    /// Training asks for processors and memory of which the checkpoint takes a part.
    private static func slowdown(
        _ job: MachineJob, _ stations: Stations, inFlightSeconds: Double
    ) -> Double {
        func lack(wanted: Double, total: Double, taken: Double) -> Double {
            guard wanted > 0, wanted > total - taken else { return 0 }
            return wanted / max(total - taken, wanted / 1000) - 1
        }
        let bytesPerSecond = job.stateByteCount / inFlightSeconds
        return max(
            lack(
                wanted: job.busyProcessorCount, total: stations.processorTotal,
                taken: bytesPerSecond * stations.copySecondsPerByte
                    + min(
                        bytesPerSecond * stations.codecSecondsPerByte,
                        stations.codecProcessorLimit)),
            lack(
                wanted: job.memoryBytesPerSecond, total: stations.memoryTotal,
                taken: bytesPerSecond * stations.memoryBytesPerByte))
    }

    /// δ at an interval: the next step waits for the copy, which waits for room in the pool.
    package func blockedSeconds(intervalSteps: Int) -> Double {
        let room = max(
            min(Double(setting.chunkByteCount), setting.poolByteCount),
            setting.poolByteCount - backlog(intervalSteps: intervalSteps))
        let copy = stations.staging(byteCount: job.stateByteCount, poolByteCount: room).seconds
        return stations.callSeconds + max(0, copy - job.overlapShare * job.stepSeconds)
    }

    /// What the checkpoint before left in the pool, and training was slowed down until now; with
    /// one slot, that one is durable before the next begins.
    private func backlog(intervalSteps: Int) -> Double {
        guard setting.inFlightCount > 1 else { return 0 }
        let (_, rest) = stations.staging(
            byteCount: job.stateByteCount, poolByteCount: setting.poolByteCount)
        let training = Double(intervalSteps) * job.stepSeconds * (1 + slowdown)
        return max(0, rest - stations.drainRate * training)
    }

    /// What the replay of traces takes, at an interval.
    package func cost(intervalSteps: Int) -> CheckpointCost {
        let blocked = blockedSeconds(intervalSteps: intervalSteps)
        let ahead = backlog(intervalSteps: intervalSteps) / stations.drainRate
        return CheckpointCost(
            blockedSeconds: blocked,
            writeSeconds: max(0, queue.aloneSeconds + ahead - blocked),
            deviceSeconds: queue.busiestSeconds, inFlightCount: setting.inFlightCount,
            mostUnderWay: queue.most, slowdown: slowdown)
    }

    package func cycle(intervalSteps: Int) -> CheckpointCycle {
        CheckpointCycle(
            intervalSeconds: Double(intervalSteps) * job.stepSeconds,
            cost: cost(intervalSteps: intervalSteps))
    }

    /// k·t·(1 + x) + δ ≥ max(D, Tw(1)/N): no checkpoint waits for a slot.
    package func isSustained(intervalSteps: Int) -> Bool {
        let training = Double(intervalSteps) * job.stepSeconds * (1 + slowdown)
        return queue.isSustained(
            trainingSeconds: training,
            blockedSeconds: blockedSeconds(intervalSteps: intervalSteps),
            inFlightCount: setting.inFlightCount)
    }

    /// - Throws: when the interval is out of range, or shorter than the machine can sustain.
    package func prediction(intervalSteps: Int) throws(TuningError) -> MachinePrediction {
        try TuningError.check(
            intervalSteps, "the interval in steps", in: TuningLimits.intervalSteps)
        guard isSustained(intervalSteps: intervalSteps) else {
            let span = queue.spanSeconds(inFlightCount: setting.inFlightCount)
            throw TuningError(
                .intervalTooShort,
                "a checkpoint every \(intervalSteps) steps is one every "
                    + "\(Double(intervalSteps) * job.stepSeconds) s, expected \(span) s or more: "
                    + "the \(limit.rawValue) and the slots sustain no more")
        }
        return MachinePrediction(self, intervalSteps: intervalSteps)
    }
}
