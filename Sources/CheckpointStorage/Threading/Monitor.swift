internal import CPlatformLinux

/// State behind a lock that threads can wait on: a mutex and a condition variable.
///
/// Every access goes through a closure that runs with the lock held; closures must be short, must
/// not call back into the same monitor, and must not let the state escape. A thread that changes
/// what others wait for calls `wakeAll` afterwards.
// Unchecked: `state` is touched only with the lock held, and the lock orders the accesses.
@safe public final class Monitor<State>: @unchecked Sendable {
    private let monitor: OpaquePointer
    /// Who locks instead, when this was made in a simulation.
    private let simulated: (scheduler: any ThreadScheduler, number: Int)?
    private var state: State

    public init(_ initial: sending State) {
        // Safe: the call returns a monitor or ends the process.
        unsafe monitor = pccp_monitor_create()
        simulated = CurrentScheduler.value.map { ($0, $0.makeMonitor()) }
        state = initial
    }

    deinit {
        // Safe: nobody waits on an object that has no reference left; destroyed once.
        unsafe pccp_monitor_destroy(monitor)
    }

    /// Runs `body` with the lock held.
    @discardableResult
    public func withLock<Result, Failure: Error>(
        _ body: (inout State) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        lock()
        defer { unlock() }
        return try body(&state)
    }

    /// Wakes every waiting thread, which then evaluates its condition again.
    public func wakeAll() {
        if let simulated { return simulated.scheduler.wakeAll(simulated.number) }
        // Safe: the monitor lives as long as self.
        unsafe pccp_monitor_wake_all(monitor)
    }

    /// Waits until `condition`, evaluated with the lock held, is true.
    ///
    /// - Parameter deadline: on the clock of `SystemClock.monotonicTime`; 0 waits without end.
    /// - Returns: false when the deadline passed first.
    @discardableResult
    public func wait(deadline: UInt64 = 0, until condition: (inout State) -> Bool) -> Bool {
        waitFor(deadline: deadline) { condition(&$0) ? true : nil } ?? false
    }

    /// Waits until `body`, evaluated with the lock held, returns a value, and returns that.
    public func waitFor<Result>(_ body: (inout State) -> Result?) -> Result {
        while true {
            if let result = waitFor(deadline: 0, body) { return result }
        }
    }

    /// The same, for a limited time.
    ///
    /// - Parameter deadline: on the clock of `SystemClock.monotonicTime`; 0 waits without end.
    /// - Returns: nil when the deadline passed first.
    public func waitFor<Result>(
        deadline: UInt64, _ body: (inout State) -> Result?
    ) -> Result? {
        lock()
        defer { unlock() }
        while true {
            if let result = body(&state) { return result }
            // After the deadline the condition has its last word.
            guard sleep(deadline) else { return body(&state) }
        }
    }

    private func lock() {
        if let simulated { return simulated.scheduler.lock(simulated.number) }
        // Safe: the monitor lives as long as self.
        unsafe pccp_monitor_lock(monitor)
    }

    private func unlock() {
        if let simulated { return simulated.scheduler.unlock(simulated.number) }
        // Safe: the monitor lives as long as self.
        unsafe pccp_monitor_unlock(monitor)
    }

    /// Releases the lock until somebody wakes this thread; false when the deadline passed first.
    private func sleep(_ deadline: UInt64) -> Bool {
        if let simulated {
            return simulated.scheduler.wait(simulated.number, deadline: deadline)
        }
        // Safe: the monitor lives as long as self; the wait releases and retakes the lock.
        return unsafe pccp_monitor_wait(monitor, deadline)
    }
}
