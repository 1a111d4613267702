public import CPCCheck
internal import CheckpointFormat
internal import CheckpointModel

// pcc_choose_interval: how often a job should save, by what it measured.

extension IntervalBound {
    fileprivate var code: Int32 {
        switch self {
        case .budget: PCC_BOUND_BUDGET
        case .throughput: PCC_BOUND_THROUGHPUT
        case .failures: PCC_BOUND_FAILURES
        case .step: PCC_BOUND_STEP
        // Nothing is fixed here.
        case .limit, .fixed: PCC_BOUND_LIMIT
        }
    }
}

extension IntervalRequest {
    fileprivate init(_ given: pcc_interval_options) throws(CheckpointError) {
        self.init(budget: given.budget == 0 ? 0.02 : given.budget)
        meanTimeBetweenFailuresSeconds = given.mtbf_seconds == 0 ? nil : given.mtbf_seconds
        restartSeconds = given.restart_seconds
        minimumSteps = try steps(given.min_steps, default: minimumSteps, "min_steps")
        maximumSteps = try steps(given.max_steps, default: maximumSteps, "max_steps")
    }
}

private func steps(
    _ given: UInt64, default value: Int, _ name: String
) throws(CheckpointError) -> Int {
    guard let steps = Int(exactly: given) else {
        throw invalid(
            "\(name) is \(given), expected 1 to \(TuningLimits.intervalSteps.upperBound)")
    }
    return steps == 0 ? value : steps
}

@c @implementation
public func pcc_choose_interval(
    _ options: UnsafePointer<pcc_interval_options>?,
    _ interval: UnsafeMutablePointer<pcc_interval>?, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        guard let interval = interval else { throw invalid("interval is NULL") }
        let given = try PCCheckC.options(
            options, default: pcc_interval_options(), name: "pcc_interval_options")
        let saving = MeasuredSaving(
            stepSeconds: given.step_seconds, costSeconds: given.cost_seconds,
            durableSeconds: given.durable_seconds,
            inFlightCount: given.in_flight == 0 ? 2 : Int(given.in_flight))
        let request = try IntervalRequest(given)
        let found: MeasuredInterval
        do throws(TuningError) {
            found = try MeasuredInterval(saving, request)
        } catch {
            throw invalid(error.message)
        }
        // Safe: the caller gives one whole struct.
        interval.pointee = pcc_interval(
            steps: UInt64(found.steps), bound: UInt32(found.bound.code), reserved: 0,
            overhead: found.overhead, goodput: found.goodput ?? 0,
            lost_seconds: found.lostSeconds)
    }
}
