public import CheckpointFormat
internal import CheckpointStorage

/// How a checkpoint ended.
public enum CheckpointOutcome: Sendable, Hashable {
    /// Flushed and anchored: it survives a power cut.
    case durable
    /// A newer checkpoint became durable first, so this one was released.
    case superseded(by: SequenceNumber)
    /// Nothing was saved: every slot was in flight.
    case skipped
    case failed(CheckpointError)
}

/// The caller's view of one checkpoint in flight. It always ends in an outcome.
public final class CheckpointTicket: Sendable {
    public let step: UInt64
    /// `.none` for a skipped checkpoint.
    public let sequence: SequenceNumber

    private struct State {
        var isStaged = false
        var isEarlyCopied: Bool
        var outcome: CheckpointOutcome?
        var stagedNanoseconds: UInt64 = 0
        var durableNanoseconds: UInt64 = 0
    }

    private let beganTime = SystemClock.monotonicTime
    private let state: Monitor<State>
    private let urgency: StagingUrgency

    init(step: UInt64, sequence: SequenceNumber, urgency: StagingUrgency, hasEarly: Bool = false) {
        state = Monitor(State(isEarlyCopied: !hasEarly))
        self.urgency = urgency
        self.step = step
        self.sequence = sequence
    }

    /// Every chunk with bytes of early regions was copied.
    func markEarlyCopied() {
        state.withLock { $0.isEarlyCopied = true }
        state.wakeAll()
    }

    func markStaged() {
        state.withLock { state in
            if state.isStaged { return }
            state.isStaged = true
            state.stagedNanoseconds = SystemClock.monotonicTime - beganTime
        }
        state.wakeAll()
    }

    /// Ends the ticket; the caller's memory is no longer read.
    func resolve(_ outcome: CheckpointOutcome) {
        state.withLock { state in
            precondition(state.outcome == nil, "a ticket ends once")
            state.isStaged = true
            state.isEarlyCopied = true
            state.outcome = outcome
            if outcome == .durable {
                state.durableNanoseconds = SystemClock.monotonicTime - beganTime
            }
        }
        state.wakeAll()
    }

    public var isStaged: Bool { state.withLock { $0.isStaged } }
    /// nil while in flight.
    public var outcome: CheckpointOutcome? { state.withLock { $0.outcome } }
    /// Nanoseconds from save to staged; 0 while not staged.
    public var stagedNanoseconds: UInt64 { state.withLock { $0.stagedNanoseconds } }
    /// Nanoseconds from save to durable; 0 while not durable.
    public var durableNanoseconds: UInt64 { state.withLock { $0.durableNanoseconds } }

    /// Waits until the caller's memory is no longer read: staged, or ended otherwise.
    ///
    /// - Throws: `timeout` when that takes longer than the timeout; the checkpoint continues.
    public func waitStaged(timeoutNanoseconds: UInt64? = nil) throws(CheckpointError) {
        if isStaged { return }
        let isDone = urgency.during {
            state.wait(deadline: deadline(timeoutNanoseconds), until: { $0.isStaged })
        }
        guard isDone else {
            throw timeoutError("staged", timeoutNanoseconds)
        }
    }

    /// Waits until the payload's early regions are no longer read: copied, or the checkpoint has
    /// ended otherwise. Returns at once when there are none.
    ///
    /// - Throws: `timeout` when that takes longer than the timeout; the checkpoint continues.
    public func waitEarly(timeoutNanoseconds: UInt64? = nil) throws(CheckpointError) {
        if state.withLock({ $0.isEarlyCopied }) { return }
        let isDone = urgency.during {
            state.wait(deadline: deadline(timeoutNanoseconds), until: { $0.isEarlyCopied })
        }
        guard isDone else { throw timeoutError("copied in its early part", timeoutNanoseconds) }
    }

    /// Waits for the end.
    ///
    /// - Throws: `timeout` when that takes longer than the timeout; the checkpoint continues.
    public func wait(timeoutNanoseconds: UInt64? = nil) throws(CheckpointError) -> CheckpointOutcome
    {
        let outcome = state.waitFor(deadline: deadline(timeoutNanoseconds)) { $0.outcome }
        guard let outcome else { throw timeoutError("durable", timeoutNanoseconds) }
        return outcome
    }

    private func deadline(_ timeoutNanoseconds: UInt64?) -> UInt64 {
        guard let timeoutNanoseconds else { return 0 }
        let (sum, overflow) = SystemClock.monotonicTime.addingReportingOverflow(timeoutNanoseconds)
        return overflow ? 0 : sum
    }

    private func timeoutError(_ goal: String, _ nanoseconds: UInt64?) -> CheckpointError {
        CheckpointError(
            .timeout,
            "step \(step) (sequence \(sequence)) is not \(goal) after "
                + "\((nanoseconds ?? 0) / 1_000_000) ms; it continues")
    }
}
