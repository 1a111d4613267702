@testable import CheckpointModel

/// Machines of round numbers, whose checkpoints can be computed by hand.
enum SampleMachine {
    static let chunkByteCount = 1 << 20
    /// 1000 chunks.
    static let stateByteCount = 1000.0 * Double(chunkByteCount)

    static func same(_ value: Double) -> MeasuredValues {
        MeasuredValues([value, value, value])
    }

    /// 64 processors; copies 1000 chunks in 1 s, and writes them in 10 s.
    static func profile() -> MachineProfile {
        MachineProfile(
            processorCount: 64,
            device: [
                MachineProfile.DevicePoint(
                    writeByteCount: chunkByteCount, queueDepth: 1,
                    bytesPerSecond: same(stateByteCount / 10))
            ],
            flushSeconds: same(0.1), blockSeconds: same(0.1), commitSeconds: same(0.24),
            memoryBytesPerSecond: same(1e13),
            // Four workers copy.
            digestBytesPerSecond: same(stateByteCount / 4), callSeconds: same(0.001))
    }

    static func job(meanTimeBetweenFailuresSeconds: Double = 1e5) -> MachineJob {
        MachineJob(
            stateByteCount: stateByteCount, stepSeconds: 0.7,
            meanTimeBetweenFailuresSeconds: meanTimeBetweenFailuresSeconds)
    }

    static func setting(
        _ inFlightCount: Int = 2, poolChunkCount: Int = 2000, workers: Int = 2,
        codec: MachineCodec = .none
    ) -> MachineSetting {
        MachineSetting(
            inFlightCount: inFlightCount, chunkByteCount: chunkByteCount,
            writerWorkerCount: workers,
            poolByteCount: Double(poolChunkCount * chunkByteCount), codec: codec)
    }

    static func line(
        _ profile: MachineProfile = profile(), _ job: MachineJob = job(),
        _ setting: MachineSetting = setting()
    ) throws -> CheckpointLine {
        try MachineModel(profile: profile, job: job).line(setting)
    }

    /// As measured somewhere: more writes help up to four, small ones reach less, and all varies.
    static func realProfile(deviceRate: Double = 1e9) -> MachineProfile {
        var points: [MachineProfile.DevicePoint] = []
        for (size, part) in [(1 << 18, 0.6), (1 << 20, 0.95), (1 << 22, 1.0)] {
            for (depth, share) in [(1, 0.5), (2, 0.8), (4, 1.0), (8, 1.0)] {
                let rate = deviceRate * part * share
                points.append(
                    MachineProfile.DevicePoint(
                        writeByteCount: size, queueDepth: depth,
                        bytesPerSecond: MeasuredValues([0.8, 0.95, 1, 1.05, 1.1].map { $0 * rate }))
                )
            }
        }
        return MachineProfile(
            processorCount: 8, device: points,
            flushSeconds: MeasuredValues([0.002, 0.003, 0.02]),
            blockSeconds: MeasuredValues([0.002, 0.003, 0.02]),
            commitSeconds: MeasuredValues([0.005, 0.007, 0.04]),
            memoryBytesPerSecond: MeasuredValues([35e9, 40e9, 42e9]),
            digestBytesPerSecond: MeasuredValues([9e9, 10e9, 10e9]),
            callSeconds: MeasuredValues([2e-4, 3e-4, 4e-4]),
            codecs: [
                MachineProfile.CodecPoint(
                    codec: .planesZstd, bytesPerSecond: MeasuredValues([4e8, 5e8, 5e8]),
                    compressionRatio: 1.4)
            ])
    }
}
