internal import CheckpointFormat
internal import CheckpointStorage
internal import CheckpointWriter

/// Measures, one part at a time; each part has a file of its own. Everything that is compared runs
/// in turn within one round, so that a slow minute of the device hits both sides.
struct BenchRunner {
    let settings: BenchSettings
    /// Called with what is about to run; throws when the user wants it to end.
    let progress: (String) throws(CheckpointError) -> Void

    /// How one save went.
    struct SaveTimes {
        /// Milliseconds until `save` returned.
        let call: Double
        /// Seconds until the checkpoint was durable.
        let durable: Double
    }

    /// One checkpoint, waited for.
    func save(
        _ payload: CheckpointPayload, _ step: UInt64, _ writer: CheckpointWriter
    ) throws(CheckpointError) -> SaveTimes {
        try Interruption.check()
        let began = SystemClock.monotonicTime
        let ticket = try writer.save(step: step, payload: payload)
        let call = SystemClock.monotonicTime - began
        if case .failed(let error) = try ticket.wait() { throw error }
        return SaveTimes(
            call: Double(call) / 1e6, durable: Double(ticket.durableNanoseconds) / 1e9)
    }

    /// Milliseconds until one checkpoint that the caller waits for is staged; then it becomes
    /// durable, out of the measurement.
    func stagedMilliseconds(
        _ payload: CheckpointPayload, _ step: UInt64, _ writer: CheckpointWriter
    ) throws(CheckpointError) -> Double {
        try Interruption.check()
        let ticket = try writer.save(step: step, payload: payload)
        try ticket.waitStaged()
        if case .failed(let error) = try ticket.wait() { throw error }
        return Double(ticket.stagedNanoseconds) / 1e6
    }

    /// Runs `work`, which moves `byteCount` bytes and returns the seconds that count, and adds what
    /// it took.
    func measure(
        _ byteCount: Double, _ rate: inout Samples, _ cpuSecondsPerGiB: inout Samples,
        _ work: () throws(CheckpointError) -> Double
    ) throws(CheckpointError) {
        let before = ThisProcess.cpuTime
        let elapsed = try work()
        let cpu = Double(ThisProcess.cpuTime - before) / 1e9
        rate.add(byteCount / elapsed / 1e6)
        cpuSecondsPerGiB.add(cpu * Double(1 << 30) / byteCount)
    }

    /// Small checkpoints are saved several times a round: one alone is over before it says much.
    func savesPerRound(_ byteCount: UInt64) -> Int { byteCount < 256 << 20 ? 20 : 1 }

    var hasFio: Bool { settings.fio != .none && Fio.isInstalled }

    /// Checks that there is room for checkpoint files of `byteCount` times `slotCount`, a plain
    /// file, and so much memory beside the state and the pool.
    func checkSpace(
        for part: String, byteCount: UInt64, slotCount: Int, plainByteCount: UInt64 = 0,
        otherMemoryByteCount: UInt64 = 0, directory: String? = nil, option: String = "--size"
    ) throws(CheckpointError) {
        let slack: UInt64 = 64 << 20
        try Machine.checkSpace(
            for: "\(part) benchmark", in: directory ?? settings.directory,
            disk: UInt64(slotCount) * byteCount + plainByteCount + slack,
            memory: byteCount + settings.poolByteCount(byteCount) + otherMemoryByteCount + slack,
            advice: "choose a smaller \(option)")
    }
}
