internal import CheckpointStorage
internal import Dispatch
internal import Synchronization

/// Runs threads one at a time, in an order that follows from a seed, on a clock of its own.
///
/// Threads are the system's, and each sleeps until it is its turn. The turn may pass on wherever a
/// thread takes a lock, waits, sleeps, or ends: between two such points nothing that it does can be
/// seen by others. It goes to the thread of the highest priority, and priorities change at random:
/// often in some runs, rarely in others, so that some threads are starved for long.
///
/// Time passes a little with every turn; when all threads wait, it jumps to the first deadline.
// Unchecked: only the thread whose turn it is touches anything here, and semaphores order the
// turns.
package final class SimulatedScheduler: ThreadScheduler, @unchecked Sendable {
    private enum Status {
        case ready
        case locking(Int)
        case waiting(Int, deadline: UInt64)
        case sleeping(until: UInt64)
        case joining(Int)
        case ended
    }

    private struct SimulatedThread {
        var status = Status.ready
        var priority: UInt64
        var hasTimedOut = false
    }

    /// Signalled when it is the thread's turn. Threads look theirs up while it is not.
    private let turns = Mutex([DispatchSemaphore]())
    private var threads: [SimulatedThread] = []
    /// Those that have not ended.
    private var alive: [Int] = []
    private var running = 0
    /// Which thread has each monitor.
    private var owners: [Int?] = []
    private var random: SplitMix64
    /// Priorities change at one in `2^stability` turns.
    private let stability: UInt64
    /// What a failure report names.
    private let name: String

    package private(set) var monotonicTime: UInt64 = 1
    package private(set) var turnCount = 0
    /// A digest of all decisions: equal for equal runs.
    package private(set) var trace: UInt64 = 0

    private static let turnNanoseconds: UInt64 = 500
    /// Far above what any run needs: beyond it, threads are busy and get nowhere.
    private static let turnLimit = 2_000_000

    /// The calling thread is the first one.
    package init(seed: UInt64, name: String) {
        random = SplitMix64(seed: seed ^ 0x5C4E_D01E)
        stability = random.next() % 6
        self.name = name
        _ = register()
    }

    /// A number below `bound`, from the run's own seed.
    package func draw(below bound: UInt64) -> UInt64 { random.next() % bound }

    package func register() -> Int {
        turns.withLock { $0.append(DispatchSemaphore(value: 0)) }
        threads.append(SimulatedThread(priority: random.next()))
        alive.append(threads.count - 1)
        return threads.count - 1
    }

    private func turn(_ thread: Int) -> DispatchSemaphore { turns.withLock { $0[thread] } }

    package func enter(_ thread: Int) { turn(thread).wait() }

    package func leave(_ thread: Int) {
        threads[thread].status = .ended
        alive.removeAll { $0 == thread }
        running = choose()
        turn(running).signal()
    }

    package func join(_ thread: Int) { pass(.joining(thread)) }

    package func sleep(nanoseconds: UInt64) {
        pass(.sleeping(until: monotonicTime + nanoseconds))
    }

    package func makeMonitor() -> Int {
        owners.append(nil)
        return owners.count - 1
    }

    package func lock(_ monitor: Int) {
        pass(.locking(monitor))
        owners[monitor] = running
    }

    package func unlock(_ monitor: Int) { owners[monitor] = nil }

    package func wakeAll(_ monitor: Int) {
        for thread in alive {
            if case .waiting(monitor, _) = threads[thread].status {
                threads[thread].status = .locking(monitor)
            }
        }
    }

    package func wait(_ monitor: Int, deadline: UInt64) -> Bool {
        owners[monitor] = nil
        pass(.waiting(monitor, deadline: deadline))
        owners[monitor] = running
        return !threads[running].hasTimedOut
    }

    /// The calling thread waits for what `status` says; returns when that has come, and its turn.
    private func pass(_ status: Status) {
        let me = running
        threads[me].status = status
        threads[me].hasTimedOut = false
        if random.next() & (1 << stability - 1) == 0 { threads[me].priority = random.next() }
        running = choose()
        guard running != me else { return }
        turn(running).signal()
        turn(me).wait()
    }

    private func choose() -> Int {
        turnCount += 1
        monotonicTime += Self.turnNanoseconds
        if turnCount > Self.turnLimit { fail("threads are busy and get nowhere") }
        while true {
            var best: Int?
            for thread in alive where canRun(thread) {
                if let other = best, threads[other].priority >= threads[thread].priority {
                    continue
                }
                best = thread
            }
            if let best {
                if case .waiting = threads[best].status { threads[best].hasTimedOut = true }
                threads[best].status = .ready
                trace = (trace ^ UInt64(best)) &* 0x100_0000_01B3
                return best
            }
            guard let next = alive.compactMap({ deadline($0) }).min() else {
                fail("every thread waits for another one")
            }
            monotonicTime = next
        }
    }

    private func canRun(_ thread: Int) -> Bool {
        switch threads[thread].status {
        case .ready: true
        case .locking(let monitor): owners[monitor] == nil
        case .waiting(let monitor, let deadline):
            deadline != 0 && deadline <= monotonicTime && owners[monitor] == nil
        case .sleeping(let until): until <= monotonicTime
        case .joining(let other):
            if case .ended = threads[other].status { true } else { false }
        case .ended: false
        }
    }

    /// When the thread can run without anybody's help.
    private func deadline(_ thread: Int) -> UInt64? {
        switch threads[thread].status {
        case .sleeping(let until): until
        case .waiting(_, let deadline) where deadline > monotonicTime: deadline
        default: nil
        }
    }

    /// Other threads hold on to the stacks of this run, so there is no way on from here.
    private func fail(_ problem: String) -> Never {
        let states = alive.map { "thread \($0): \(threads[$0].status)" }
        fatalError(
            "I6: \(problem) after \(turnCount) turns\n  \(name)\n  "
                + states.joined(separator: "\n  "))
    }
}
