internal import CheckpointFormat
internal import CheckpointStorage
internal import CheckpointWriter

/// Checkpoints by the writer itself: next to none of them is payload, or nearly all. Its pool holds
/// a whole one, or is crowded.
final class WriterProbe {
    static let byteCount = 128 << 20
    /// Of two slots, and metadata.
    static let fileByteCount = 2 * byteCount + (8 << 20)
    static let chunkByteCount = 4 << 20
    private static let smallByteCount = 64 << 10
    private static let smallPerRound = 2
    private static let largePerRound = 3

    /// Too small for the checkpoint: its last copies wait for writes.
    private static let crowdedPoolByteCount = byteCount / 4
    /// Training lets the machine rest for as long, and the next copy and write begin from there.
    private static let pauseNanoseconds: UInt64 = 50_000_000

    private let isCrowded: Bool
    private let workspace: BenchWorkspace
    private let writer: CheckpointWriter
    private let workerCount: Int
    private let state: BenchState
    private var step: UInt64 = 0

    /// - Parameter state: has `byteCount` bytes or more.
    init(
        directory: String, workerCount: Int, state: BenchState, isCrowded: Bool = false
    ) throws(CheckpointError) {
        self.workerCount = workerCount
        self.state = state
        self.isCrowded = isCrowded
        workspace = BenchWorkspace(directory: directory)
        let path = try workspace.createFile(
            isCrowded ? "crowded" : "writer-\(workerCount)", capacity: UInt64(Self.byteCount),
            inFlight: 1, chunkByteCount: Self.chunkByteCount)
        var options = WriterOptions()
        options.writerWorkerCount = workerCount
        if isCrowded { options.poolByteCount = UInt64(Self.crowdedPoolByteCount) }
        writer = try CheckpointWriter(path: path, options: options)
    }

    func measure(into samples: inout ProbeSamples) throws(CheckpointError) {
        if isCrowded { return try measureCrowded(into: &samples) }
        for _ in 0..<Self.smallPerRound {
            let times = try seconds(of: Self.smallByteCount)
            samples.callSeconds.append(times.call)
            samples.commitSeconds.append(times.rest)
        }
        // After other work the first one is slower than those that follow each other.
        _ = try seconds(of: Self.byteCount)
        for _ in 0..<Self.largePerRound {
            let rest = try seconds(of: Self.byteCount).rest
            samples.writerSeconds[workerCount, default: []].append(rest)
        }
    }

    private func measureCrowded(into samples: inout ProbeSamples) throws(CheckpointError) {
        for _ in 0..<Self.largePerRound {
            SystemClock.sleep(nanoseconds: Self.pauseNanoseconds)
            let written = Double(Self.byteCount - Self.crowdedPoolByteCount)
            let staged = try seconds(of: Self.byteCount).staged
            samples.crowdedBytesPerSecond[workerCount, default: []].append(written / staged)
        }
    }

    /// The call, and from its end until durable; the caller waits for *staged* in between, as
    /// training does before it changes the state.
    private func seconds(
        of byteCount: Int
    ) throws(CheckpointError) -> (call: Double, rest: Double, staged: Double) {
        try Interruption.check()
        step += 1
        let began = SystemClock.monotonicTime
        let ticket = try writer.save(step: step, payload: state.payload(byteCount: byteCount))
        let returned = SystemClock.monotonicTime
        try repeatedly { () throws(CheckpointError) in
            try ticket.waitStaged(timeoutNanoseconds: Self.sliceNanoseconds)
        }
        let outcome = try repeatedly { () throws(CheckpointError) in
            try ticket.wait(timeoutNanoseconds: Self.sliceNanoseconds)
        }
        if case .failed(let error) = outcome { throw error }
        let durable = began + ticket.durableNanoseconds
        return (
            Double(returned - began) / 1e9, Double(durable - min(returned, durable)) / 1e9,
            Double(ticket.stagedNanoseconds) / 1e9
        )
    }

    private static let sliceNanoseconds: UInt64 = 200_000_000

    /// Waits in slices: on a slow device that takes seconds, in which a signal must be heard.
    private func repeatedly<Result>(
        _ wait: () throws(CheckpointError) -> Result
    ) throws(CheckpointError) -> Result {
        while true {
            do throws(CheckpointError) {
                return try wait()
            } catch {
                guard error.code == .timeout else { throw error }
                try Interruption.check()
            }
        }
    }

    func close() throws(CheckpointError) { try writer.close() }
}
