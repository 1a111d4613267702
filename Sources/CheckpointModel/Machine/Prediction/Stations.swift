/// What each station of the line can do for one rank, in bytes of payload per second.
///
/// It depends on the chunk, the workers and the codec, and not on N or the interval.
struct Stations: Sendable {
    /// The time by which writes may lengthen the copies that somebody waits for.
    private static let writeAllowance = 0.08

    let copyRate: Double
    /// Infinite without a codec.
    let codecRate: Double
    let deviceRate: Double
    /// When everything happens at once.
    let memoryRate: Double
    /// Out of the pool, while nothing is copied.
    let drainRate: Double
    /// While a checkpoint is copied: into the pool, and out of it.
    let stagingRate: Double
    let stagingDrainRate: Double
    /// Out of a pool that is full, while what it has room for is copied into it.
    let crowdedDrainRate: Double
    let commitSeconds: Double
    let callSeconds: Double
    /// Processor time of one machine for a byte of each of its ranks.
    let copySecondsPerByte: Double
    let codecSecondsPerByte: Double
    /// Processors that compression takes from training, at most.
    let codecProcessorLimit: Double
    /// What one machine moves in memory for a byte of each of its ranks.
    let memoryBytesPerByte: Double
    let memoryTotal: Double
    let processorTotal: Double

    init(
        _ profile: MachineProfile, _ curve: DeviceCurve, _ job: MachineJob,
        _ setting: MachineSetting
    ) throws(TuningError) {
        let machines = job.machineCount
        let ranks = job.ranksOnMachine
        let workers = Double(setting.writerWorkerCount)
        let digest = profile.digestBytesPerSecond.slowestRate(of: machines)
        let codec = profile.codecs.first { $0.codec == setting.codec }
        guard setting.codec == .none || codec != nil else {
            throw TuningError(
                .notMeasured, "the profile does not measure \(setting.codec.rawValue)")
        }
        // As WriterOptions.snapshotWorkerCount chooses.
        let copiers = Double(min(4, max(1, profile.processorCount / 4)))
        let compressing = codec == nil ? 0 : ranks * workers
        let share = Self.processorShares(ranks * copiers, compressing, profile, job).normal

        let memory = profile.memoryBytesPerSecond.slowestRate(of: machines)
        let free = max(memory - job.memoryBytesPerSecond, memory / 2) / ranks
        let ratio = codec?.compressionRatio ?? 1
        // A stored byte is read by the device; a codec also reads all and writes what is stored.
        let drainTraffic = codec == nil ? 1 : 1 + 2 / ratio

        let chunk = Double(setting.chunkByteCount)
        let stateChunks = (job.stateByteCount / chunk).rounded(.up)
        let poolChunks = (setting.poolByteCount / chunk).rounded(.down)
        let underWay = min(workers * Double(setting.writesPerWorker), stateChunks, poolChunks)
        let device =
            curve.bytesPerSecond(
                writeByteCount: chunk, queueDepth: ranks * max(1, underWay),
                otherBytesPerSecond: job.otherDeviceBytesPerSecond)
        guard device >= TuningLimits.bytesPerSecond.lowerBound else {
            throw TuningError(
                .deviceBusy,
                "the other load leaves \(device) bytes/s of the device, expected at least "
                    + "\(TuningLimits.bytesPerSecond.lowerBound)")
        }
        let perWorker = codec?.bytesPerSecond.slowestRate(of: machines)
        codecRate =
            perWorker.map { rate in
                Self.rate(ofAll: rate * workers) { reached in
                    // Copies go first, and are done long before their chunks are compressed.
                    let copying = min(copiers, reached / digest)
                    return Self.processorShares(ranks * copying, compressing, profile, job).writer
                }
            } ?? .infinity
        copyRate = min(copiers * digest * share, free / 2)
        let reached = Self.writerShare(
            profile, curve, workers: ranks * workers, copyRate: min(copiers * digest, memory / 2),
            memory: memory, machines: machines)
        deviceRate = device * reached * ratio / ranks
        memoryRate = free / (2 + drainTraffic)
        drainRate = min(codecRate, deviceRate, free / drainTraffic)
        // Writes take what the copy leaves of the memory, and as much of the copy's as they may.
        stagingRate = min(
            copyRate,
            max(copyRate * (1 - Self.writeAllowance), (free - drainTraffic * drainRate) / 2))
        stagingDrainRate = min(drainRate, max(0, free - 2 * stagingRate) / drainTraffic)
        crowdedDrainRate = drainRate * Self.crowdedShare(profile, machines: machines)

        // The first flush of a commit comes after all writes of the checkpoint.
        let moreToFlush =
            profile.flushSeconds.meanLargest(of: machines)
            - profile.blockSeconds.meanLargest(of: machines)
        commitSeconds =
            profile.commitSeconds.meanLargest(of: machines) + max(0, moreToFlush)
        callSeconds = profile.callSeconds.meanLargest(of: machines)
        copySecondsPerByte = ranks / digest
        codecSecondsPerByte = perWorker.map { ranks / $0 } ?? 0
        // Training goes first: beside it, workers that compress take no more than their weight.
        let shares = Self.processorShares(0, compressing, profile, job)
        codecProcessorLimit = compressing * shares.writerByWeight
        memoryBytesPerByte = ranks * (2 + drainTraffic)
        memoryTotal = memory
        processorTotal = Double(profile.processorCount)
    }

    /// The rate r = most · share(r), where the share falls as the rate rises.
    private static func rate(ofAll most: Double, _ share: (Double) -> Double) -> Double {
        var (low, high) = (0.0, most)
        for _ in 0..<50 {
            let middle = (low + high) / 2
            if most * share(middle) > middle { low = middle } else { high = middle }
        }
        return high
    }

    /// The part of what the stations can do that the writer reaches with so many workers.
    private static func writerShare(
        _ profile: MachineProfile, _ curve: DeviceCurve, workers: Double, copyRate: Double,
        memory: Double, machines: Int
    ) -> Double {
        let points = profile.writer.map { point in
            let device = curve.bytesPerSecond(
                writeByteCount: Double(point.chunkByteCount),
                queueDepth: Double(point.writerWorkerCount), otherBytesPerSecond: 0)
            let rate = point.bytesPerSecond.slowestRate(of: machines)
            // Where it seems to reach more, one of the two was disturbed.
            return (
                Double(point.writerWorkerCount), min(1, rate / min(device, copyRate, memory / 3))
            )
        }
        guard !points.isEmpty else { return 1 }
        return DeviceCurve.interpolate(points.sorted { $0.0 < $1.0 }, at: workers)
    }

    /// The part of its rate that the writer keeps while more is copied into a full pool.
    private static func crowdedShare(_ profile: MachineProfile, machines: Int) -> Double {
        let shares = profile.writer.compactMap { point in
            point.crowdedBytesPerSecond.map {
                $0.slowestRate(of: machines) / point.bytesPerSecond.slowestRate(of: machines)
            }
        }
        guard !shares.isEmpty else { return 1 }
        return min(1, shares.reduce(0, +) / Double(shares.count))
    }

    /// Beside training.
    private static func processorShares(
        _ copying: Double, _ compressing: Double, _ profile: MachineProfile, _ job: MachineJob
    ) -> ProcessorShares {
        ProcessorShares(
            processorCount: Double(profile.processorCount),
            normalThreads: copying + job.busyProcessorCount, writerThreads: compressing)
    }

    /// What limits a checkpoint of so many bytes, and how long the busiest station needs for it.
    ///
    /// A commit takes its time, but is no station: one serves all that are written by then.
    func busiest(byteCount: Double) -> (limit: MachineLimit, seconds: Double) {
        let stations: [(MachineLimit, Double)] = [
            (.device, byteCount / deviceRate), (.memory, byteCount / memoryRate),
            (.processor, byteCount / min(copyRate, codecRate)),
        ]
        let busiest = stations.reduce((.device, 0)) { $1.1 > $0.1 ? $1 : $0 }
        return (commitSeconds > busiest.1 ? .flush : busiest.0, busiest.1)
    }

    /// The copy of a checkpoint into a pool of which so much is free.
    ///
    /// - Returns: until all is copied, and what is not written then.
    func staging(byteCount: Double, poolByteCount: Double) -> (seconds: Double, rest: Double) {
        let gain = stagingRate - min(stagingDrainRate, crowdedDrainRate)
        let untilFull = gain > 0 ? poolByteCount / gain : .infinity
        let free = byteCount / stagingRate
        guard untilFull < free else { return (free, byteCount - stagingDrainRate * free) }
        // From then on, a chunk is copied when another one was written.
        let rate = min(crowdedDrainRate, memoryRate)
        let copied = stagingRate * untilFull
        return (untilFull + (byteCount - copied) / rate, min(byteCount, poolByteCount))
    }
}

/// What a checkpoint waits for most.
package enum MachineLimit: String, CaseIterable, Sendable {
    case device
    case memory
    case processor
    case flush
}
