internal import CheckpointFormat
internal import CheckpointModel
internal import CheckpointStorage
internal import CheckpointWriter

/// Measures what `MachineProfile` holds, in under a minute.
///
/// Everything is measured once in each round, so that the samples of a quantity are spread over the
/// whole time: what the machine does meanwhile shows in how much they vary.
struct MachineProbe {
    /// Rounds are added until this much time is over, but there are never fewer than a profile
    /// needs.
    private static let enoughSeconds = 25.0
    private static let rounds = 3...8
    /// How long writes of one size and depth are repeated in a round.
    private static let writeSeconds = 0.15
    /// A point whose writes take longer than this says no more than one of less depth.
    private static let longestSeconds = 1.0
    private static let writeByteCounts = [1 << 20, 4 << 20, 16 << 20]
    private static let depths = [1, 2, 3, 4, 8, 16]
    static let fileByteCount = 512 << 20
    private static let stateByteCount = 256 << 20
    private static let blocksPerRound = 8

    let directory: String
    /// What else uses the device, and reads beside everything that is measured.
    let otherBytesPerSecond: Double
    /// Called with the share that is done; throws when the user wants it to end.
    let progress: (Double) throws(CheckpointError) -> Void

    /// What was found, and what a reader should know of it.
    struct Result {
        let profile: MachineProfile
        let notes: [String]
    }

    func run() throws(CheckpointError) -> Result {
        try checkRoom()
        let load = MachineLoad()
        let memory = try MemoryProbe(byteCount: Self.stateByteCount)
        let device = try DeviceProbe(
            directory: directory, fileByteCount: Self.fileByteCount, source: memory.target)
        let reads =
            try otherBytesPerSecond > 0
            ? DeviceLoad(
                directory: directory, bytesPerSecond: otherBytesPerSecond,
                fileByteCount: Self.fileByteCount, source: memory.target) : nil
        let most = WriterOptions().writerWorkerCount
        let writers = try [(1, false), (most, false), (most, true)].map {
            workers, isCrowded throws(CheckpointError) in
            try WriterProbe(
                directory: directory, workerCount: workers, state: memory.state,
                isCrowded: isCrowded)
        }
        var codecs = CodecProbe.all
        var samples = ProbeSamples()
        let began = SystemClock.monotonicTime
        for round in 1...Self.rounds.upperBound {
            try measure(device, isFirst: round == 1, into: &samples)
            try memory.measure(device, into: &samples)
            for writer in writers { try writer.measure(into: &samples) }
            for index in codecs.indices { try codecs[index].measure(memory.state) }
            let elapsed = Double(SystemClock.monotonicTime - began) / 1e9
            let isEnough = round >= Self.rounds.lowerBound && elapsed > Self.enoughSeconds
            try progress(isEnough ? 1 : Double(round) / Double(Self.rounds.upperBound))
            if isEnough { break }
        }
        for writer in writers { try writer.close() }
        return Result(
            profile: samples.profile(
                codecs: codecs.map(\.point), otherBytesPerSecond: otherBytesPerSecond),
            notes: try load.notes + (reads?.notes() ?? []) + samples.notes)
    }

    /// Before anything is written.
    private func checkRoom() throws(CheckpointError) {
        let fileCount = otherBytesPerSecond > 0 ? 2 : 1
        try Machine.checkSpace(
            for: "probe", in: directory,
            disk: UInt64(fileCount * Self.fileByteCount + 3 * WriterProbe.fileByteCount),
            memory: UInt64(4 * Self.stateByteCount), advice: "use a saved --profile")
    }

    private func measure(
        _ device: DeviceProbe, isFirst: Bool, into samples: inout ProbeSamples
    ) throws(CheckpointError) {
        for byteCount in Self.writeByteCounts {
            for depth in Self.depths {
                try Interruption.check()
                let point = ProbeSamples.Point(byteCount: byteCount, depth: depth)
                let isWanted =
                    isFirst
                    ? samples.expectedSeconds(point) <= Self.longestSeconds
                    : samples.device[point] != nil
                guard isWanted else { continue }
                let rate = try device.bytesPerSecond(
                    writeByteCount: byteCount, depth: depth, seconds: Self.writeSeconds)
                samples.device[point, default: []].append(rate)
                samples.flushSeconds.append(try device.flushSeconds())
            }
        }
        for _ in 0..<Self.blocksPerRound {
            samples.blockSeconds.append(try device.blockSeconds())
        }
    }
}

/// What was measured so far.
struct ProbeSamples {
    struct Point: Hashable {
        let byteCount: Int
        let depth: Int
    }

    /// Samples that vary by more than this make a prediction from them rough.
    private static let largestSpread = 0.25

    var device: [Point: [Double]] = [:]
    var flushSeconds: [Double] = []
    var blockSeconds: [Double] = []
    var commitSeconds: [Double] = []
    var callSeconds: [Double] = []
    var memoryBytesPerSecond: [Double] = []
    var digestBytesPerSecond: [Double] = []
    /// By workers: seconds until durable, without the call, of `WriterProbe.byteCount`.
    var writerSeconds: [Int: [Double]] = [:]
    /// By workers, where it was measured.
    var crowdedBytesPerSecond: [Int: [Double]] = [:]

    /// How long the writes of a point take together, at the best rate so far.
    func expectedSeconds(_ point: Point) -> Double {
        let best = device.values.compactMap(\.first).max()
        return best.map { Double(point.byteCount * point.depth) / $0 } ?? 0
    }

    /// - Parameter otherBytesPerSecond: what else used the device.
    func profile(
        codecs: [MachineProfile.CodecPoint], otherBytesPerSecond: Double
    ) -> MachineProfile {
        let points = device.sorted {
            ($0.key.byteCount, $0.key.depth) < ($1.key.byteCount, $1.key.depth)
        }
        return MachineProfile(
            processorCount: Machine.processorCount,
            device: points.map { point, rates in
                MachineProfile.DevicePoint(
                    writeByteCount: point.byteCount, queueDepth: point.depth,
                    otherBytesPerSecond: otherBytesPerSecond,
                    bytesPerSecond: MeasuredValues(rates))
            },
            flushSeconds: MeasuredValues(flushSeconds), blockSeconds: MeasuredValues(blockSeconds),
            commitSeconds: MeasuredValues(commitSeconds),
            memoryBytesPerSecond: MeasuredValues(memoryBytesPerSecond),
            digestBytesPerSecond: MeasuredValues(digestBytesPerSecond),
            callSeconds: MeasuredValues(callSeconds),
            writer: writerPoints, codecs: codecs)
    }

    private var writerPoints: [MachineProfile.WriterPoint] {
        let commit = Samples(commitSeconds).median
        return writerSeconds.sorted { $0.key < $1.key }.map { workers, seconds in
            MachineProfile.WriterPoint(
                chunkByteCount: WriterProbe.chunkByteCount, writerWorkerCount: workers,
                bytesPerSecond: MeasuredValues(
                    // A commit that took longer than usual makes no rate negative.
                    seconds.map { Double(WriterProbe.byteCount) / max($0 - commit, $0 / 2) }),
                crowdedBytesPerSecond: crowdedBytesPerSecond[workers].map { MeasuredValues($0) })
        }
    }

    /// Of each quantity that varied much.
    var notes: [String] {
        let fastest = device.max { Samples($0.value).median < Samples($1.value).median }
        let quantities = [
            ("the rate of the device", fastest?.value ?? []),
            ("the rate of the memory", memoryBytesPerSecond),
        ]
        return quantities.compactMap { name, values in
            let samples = Samples(values)
            let spread = (samples.maximum - samples.minimum) / samples.median
            guard spread > Self.largestSpread else { return nil }
            return "\(name) varied by \(Figure.decimal(100 * spread, 0)) % during the probe; the "
                + "intervals are as wide as that makes them"
        }
    }
}
