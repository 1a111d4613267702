public import CheckpointFormat
internal import CheckpointStorage
internal import Logging

/// A save that has no slot yet, of one thread: its payload is described once, and it may wait in
/// parts, so that its caller can look after other things in between.
///
/// This is the only place where a busy writer keeps anybody waiting. What frees a slot, or ends the
/// writer, wakes it at once. The pins of readers are locks of other openers, perhaps of other
/// processes, and wake nobody: while only they are in the way, it asks for the locks again every
/// 20 ms. An urgent save that has waited keeps its claim on the next slot until it has begun, or
/// is released: it stays urgent whatever its caller says later, as its own claim would hold it up.
public final class PendingSave {
    /// Keeps it open: a writer that nobody holds ends.
    private let writer: CheckpointWriter
    private let engine: Engine
    private let request: SaveRequest
    private var hasUrgentClaim = false
    /// As it was found last: so many slots are free, but pinned by readers.
    private var pinnedCount = 0

    private static let pinPollNanoseconds: UInt64 = 20_000_000

    init(_ writer: CheckpointWriter, _ engine: Engine, _ request: SaveRequest) {
        self.writer = writer
        self.engine = engine
        self.request = request
    }

    deinit {
        guard hasUrgentClaim, writer.isInOwnProcess else { return }
        engine.monitor.withLock { $0.endUrgentWait() }
        engine.monitor.wakeAll()
    }

    private var patience: UInt64 { engine.options.urgentPatienceNanoseconds }

    /// Begins the checkpoint; nil while there is no slot for it.
    ///
    /// - Throws: `stepBackwards`, `slotsExhausted`, `failStop`, `closed`, `forked`, `inputOutput`.
    public func begin(isUrgent: Bool) throws(CheckpointError) -> CheckpointTicket? {
        try writer.checkProcess()
        let isUrgent = isUrgent || hasUrgentClaim
        let admission = try engine.monitor.withLock { state throws(CheckpointError) in
            let admission = try state.admit(request, isUrgent: isUrgent, patience: patience)
            if case .begun = admission, hasUrgentClaim {
                hasUrgentClaim = false
                state.endUrgentWait()
            }
            return admission
        }
        switch admission {
        case .begun(let ticket, let brokenPin):
            engine.monitor.wakeAll()
            if let brokenPin { reportBrokenPin(brokenPin) }
            return ticket
        case .noSlot(let pinnedCount):
            self.pinnedCount = pinnedCount
            return nil
        }
    }

    /// The answer of the writer's policy when there is no slot: a skipped ticket; or nil to wait.
    ///
    /// - Throws: `busy`.
    public func answerOfPolicy() throws(CheckpointError) -> CheckpointTicket? {
        switch engine.options.busyPolicy {
        case .wait: return nil
        case .fail: throw busyError(.busy)
        case .skip:
            if pinnedCount > 0 { lookAtPins() }
            engine.monitor.withLock { $0.statistics.skippedCount += 1 }
            let ticket = CheckpointTicket(
                step: request.step, sequence: .none, urgency: engine.urgency)
            ticket.resolve(.skipped)
            return ticket
        }
    }

    /// Waits until `begin` has a slot to take, or an error to throw.
    ///
    /// - Throws: `timeout`, with what is in the way, and the save may wait again; `forked`.
    public func wait(
        isUrgent: Bool, timeoutNanoseconds: UInt64? = nil
    ) throws(CheckpointError) {
        try wait(isUrgent: isUrgent, deadline: Self.deadline(after: timeoutNanoseconds))
    }

    /// - Returns: 0, which is no deadline, also for one that the clock never comes to.
    static func deadline(after timeoutNanoseconds: UInt64?) -> UInt64 {
        guard let timeoutNanoseconds else { return 0 }
        let (sum, overflow) = SystemClock.monotonicTime.addingReportingOverflow(
            max(timeoutNanoseconds, 1))
        return overflow ? 0 : sum
    }

    /// - Parameter deadline: on the clock of `SystemClock.monotonicTime`; 0 waits without end.
    func wait(isUrgent: Bool, deadline: UInt64) throws(CheckpointError) {
        try writer.checkProcess()
        let began = engine.monitor.withLock { state in
            if isUrgent, !hasUrgentClaim {
                hasUrgentClaim = true
                state.beginUrgentWait()
            }
            let began = SystemClock.monotonicTime
            state.beginWait(now: began)
            return began
        }
        let isOpen = waitForChance(isUrgent: hasUrgentClaim, deadline: deadline)
        engine.monitor.withLock { $0.endWait(began: began, now: SystemClock.monotonicTime) }
        if !isOpen { throw busyError(.timeout) }
    }

    /// - Returns: false when the deadline passed first.
    private func waitForChance(isUrgent: Bool, deadline: UInt64) -> Bool {
        while true {
            let wasPinned = pinnedCount > 0
            if wasPinned { lookAtPins() }
            let now = SystemClock.monotonicTime
            let poll = now + Self.pinPollNanoseconds
            let wakeTime =
                !wasPinned ? deadline : deadline == 0 ? poll : min(deadline, poll)
            let chance = engine.monitor.waitFor(deadline: wakeTime) {
                state -> EngineState.Chance? in
                let chance = state.chance(of: request, isUrgent: isUrgent, patience: patience)
                // What is in the way decides how to wait.
                if case .noSlot(let count) = chance, (count > 0) == wasPinned { return nil }
                return chance
            }
            switch chance {
            case .open: return true
            case .noSlot(let count): pinnedCount = count
            case nil: if deadline != 0, SystemClock.monotonicTime >= deadline { return false }
            }
        }
    }

    private func reportBrokenPin(_ slot: SlotIndex) {
        let pins = engine.storage.slotPins([slot]).map(\.description).joined()
        engine.options.logger.warning(
            "an urgent save took a slot from its readers",
            metadata: [
                "path": "\(engine.storage.path)", "step": "\(request.step)", "slot": "\(slot)",
                "pins": "\(pins)",
            ])
    }

    /// Finds out whom a save waits for, now and then, and logs it once when it takes long.
    private func lookAtPins(isFailing: Bool = false) {
        let slots = engine.monitor.withLock { $0.beginPinLook(isFailing: isFailing) }
        guard !slots.isEmpty else { return }
        // Not with the lock held: all of /proc is read.
        let pins = engine.storage.slotPins(slots)
        let limit = engine.options.pinWarningNanoseconds
        let waited = engine.monitor.withLock { $0.endPinLook(pins, limit: limit) }
        guard let waited else { return }
        engine.options.logger.warning(
            "a save waits for readers",
            metadata: [
                "path": "\(engine.storage.path)", "step": "\(request.step)",
                "waited_seconds": "\(waited / 1_000_000_000)",
                "pins": "\(pins.map(\.description).joined(separator: "; "))",
            ])
    }

    private func busyError(_ code: CheckpointError.Code) -> CheckpointError {
        if pinnedCount > 0 { lookAtPins(isFailing: true) }
        let (pins, inFlightCount, isStandingBack, isHolding, undecidedCount) =
            engine.monitor.withLock {
                (
                    $0.pinStall?.pins ?? [], $0.inFlight.count, $0.urgentWaitCount > 0,
                    $0.slots.holdsSlot, $0.group?.undecidedCount ?? 0
                )
            }
        let reason =
            if pinnedCount == 0, isStandingBack {
                "an urgent save waits for the next slot; try again"
            } else if pinnedCount == 0, isHolding {
                "a slot is kept until the first save since opening is durable; wait for that save"
            } else if pinnedCount == 0, undecidedCount > 0,
                inFlightCount < engine.geometry.inFlightCount
            {
                "\(undecidedCount) checkpoints are durable here, and kept until the other ranks "
                    + "have theirs; wait for the other ranks"
            } else if pinnedCount == 0 {
                "\(inFlightCount) of \(engine.geometry.inFlightCount) checkpoints are in flight; "
                    + "save less often, or create the file with more slots in flight"
            } else if pins.isEmpty {
                "a reader has pinned every free slot; close the reader, or create the file with "
                    + "more slots in flight"
            } else {
                pins.map(\.description).joined(separator: "; ")
                    + "; close that reader, or create the file with more slots in flight"
            }
        return CheckpointError(
            code, "\(engine.storage.path): cannot start step \(request.step): \(reason)",
            slot: pins.first?.slot)
    }
}
