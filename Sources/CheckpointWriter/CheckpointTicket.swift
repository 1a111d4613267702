public import CheckpointDevice
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
        /// Everything was copied, or handed to a device.
        var isQueued = false
        /// After these it reads early memory of a device no longer, and after those any of it;
        /// empty when it does not.
        var lastEarlyCopies: [LastCopy] = []
        var lastCopies: [LastCopy] = []
        var outcome: CheckpointOutcome?
        var stagedNanoseconds: UInt64 = 0
        var durableNanoseconds: UInt64 = 0

        mutating func endReading() {
            isQueued = true
            lastEarlyCopies = []
            lastCopies = []
        }
    }

    private let beganTime = SystemClock.monotonicTime
    /// Some of its payload is.
    let isFromDevice: Bool
    private let devices: DeviceTable?
    private let state: Monitor<State>
    private let urgency: StagingUrgency

    init(
        step: UInt64, sequence: SequenceNumber, urgency: StagingUrgency, hasEarly: Bool = false,
        isOnDevice: Bool = false, devices: DeviceTable? = nil
    ) {
        self.devices = devices
        isFromDevice = isOnDevice
        state = Monitor(State(isEarlyCopied: !hasEarly))
        self.urgency = urgency
        self.step = step
        self.sequence = sequence
    }

    /// An event behind all of a checkpoint's copies from a device.
    typealias LastCopy = (device: any Device, event: any DeviceEvent)

    /// The host does not read early regions, or any, any more. Devices do, until these events.
    func markReleased(_ released: InFlightCheckpoint.Release, until lastCopies: [LastCopy]) {
        state.withLock { state in
            if released.contains(.early) {
                if !state.isStaged { state.lastEarlyCopies = lastCopies }
                state.isEarlyCopied = true
            }
            if released.contains(.all), !state.isStaged {
                state.isQueued = true
                state.lastCopies = lastCopies
            }
        }
        state.wakeAll()
    }

    func markStaged() {
        state.withLock { state in
            if state.isStaged { return }
            state.endReading()
            state.isStaged = true
            state.stagedNanoseconds = SystemClock.monotonicTime - beganTime
        }
        state.wakeAll()
    }

    /// Ends the ticket; the caller's memory is no longer read.
    func resolve(_ outcome: CheckpointOutcome) {
        state.withLock { state in
            precondition(state.outcome == nil, "a ticket ends once")
            state.endReading()
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
    /// ended otherwise. Returns at once when there are none. For early regions of a device, hold
    /// its streams afterwards.
    ///
    /// - Throws: `timeout` when that takes longer than the timeout; the checkpoint continues.
    public func waitEarly(timeoutNanoseconds: UInt64? = nil) throws(CheckpointError) {
        if state.withLock({ $0.isEarlyCopied }) { return }
        let isDone = urgency.during {
            state.wait(deadline: deadline(timeoutNanoseconds), until: { $0.isEarlyCopied })
        }
        guard isDone else { throw timeoutError("copied in its early part", timeoutNanoseconds) }
    }

    /// Has what is queued on `stream` from now on wait until the checkpoint no longer reads memory
    /// of that stream's device, so that it may change that memory. The calling thread waits until
    /// memory of the host was copied, and the copies of the rest were handed to the devices: not
    /// long, when the staging pool has room for all of it.
    ///
    /// - Parameter onlyEarly: until it no longer reads early regions.
    /// - Throws: `timeout` when that takes longer than the timeout: nothing is held back then;
    ///   `accelerator`, `forked`; `invalidArgument` while the stream records a graph, also when
    ///   nothing is left to wait for: the graph would change the memory behind later saves.
    public func hold(
        _ stream: DeviceStream, onlyEarly: Bool = false, timeoutNanoseconds: UInt64? = nil
    ) throws(CheckpointError) {
        try devices?.refuseGraph(on: stream)
        let isQueued = urgency.during {
            state.wait(
                deadline: deadline(timeoutNanoseconds),
                until: { onlyEarly ? $0.isEarlyCopied : $0.isQueued })
        }
        guard isQueued else { throw timeoutError("handed to the device", timeoutNanoseconds) }
        let copies = state.withLock { onlyEarly ? $0.lastEarlyCopies : $0.lastCopies }
        for (device, event) in copies where device.name == stream.device {
            try device.hold(stream.handle, until: event)
        }
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
