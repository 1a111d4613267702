/// What a recommendation may cost.
package struct TuningRequest: Equatable, Sendable {
    /// How much longer the loop may take, as a share.
    package var budget: Double
    /// Of one machine.
    package var diskByteCount = 1e18
    package var memoryByteCount = 1e18
    package var inFlightCount = 64
    /// 1 for the back end `direct`; the depth of the queue for io_uring.
    package var writesPerWorker = 1
    /// What is not searched for.
    package var fixed = FixedChoices()
    /// How much of the replicates the intervals cover.
    package var confidence = 0.95
    package var replicateCount = 200
    package var seed: UInt64 = 1

    package init(budget: Double) { self.budget = budget }

    /// What settings have to fit.
    var limitText: String {
        let limits = [(diskByteCount, "disk"), (memoryByteCount, "memory")]
            .filter { $0.0 < 1e18 }.map { "\(UInt64($0.0)) bytes of \($0.1)" }
        return limits.isEmpty ? "the limits" : limits.joined(separator: " and ")
    }

    package func check() throws(TuningError) {
        try TuningError.check(budget, "the budget", in: TuningLimits.budget)
        try TuningError.check(diskByteCount, "the disk", in: 0...1e18)
        try TuningError.check(memoryByteCount, "the memory for checkpoints", in: 0...1e18)
        try TuningError.check(inFlightCount, "in flight", in: TuningLimits.inFlightCount)
        try TuningError.check(
            writesPerWorker, "the writes of a worker", in: TuningLimits.writesPerWorker)
        try TuningError.check(confidence, "the confidence", in: 0.5...0.999)
        try TuningError.check(replicateCount, "the replicates", in: 20...100_000)
        try fixed.check()
        if let fixed = fixed.inFlightCount, fixed > inFlightCount {
            throw TuningError(
                .outOfRange,
                "\(fixed) in flight are fixed, and at most \(inFlightCount) are allowed")
        }
    }
}

/// Choices that were made already: the rest is recommended. With all of them, what is found is the
/// prediction for one setting.
package struct FixedChoices: Equatable, Sendable {
    package var inFlightCount: Int?
    package var chunkByteCount: Int?
    package var writerWorkerCount: Int?
    package var poolByteCount: Double?
    package var codec: MachineCodec?
    /// Taken whatever it costs, and whether or not the machine sustains it.
    package var intervalSteps: Int?

    package init() {}

    func check() throws(TuningError) {
        if let inFlightCount {
            try TuningError.check(inFlightCount, "in flight", in: TuningLimits.inFlightCount)
        }
        if let intervalSteps {
            try TuningError.check(
                intervalSteps, "the interval in steps", in: TuningLimits.intervalSteps)
        }
    }
}
