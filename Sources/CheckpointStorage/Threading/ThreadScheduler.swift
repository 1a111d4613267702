internal import CPlatformLinux

/// Decides which thread runs next, and what time it is, in place of the operating system.
///
/// A simulation installs one on a thread. Monitors made there, threads started there, and the clock
/// then ask it, and so does everything on the threads that it starts. A program never has one.
package protocol ThreadScheduler: AnyObject, Sendable {
    /// Nanoseconds since the scheduler was made.
    var monotonicTime: UInt64 { get }
    func sleep(nanoseconds: UInt64)

    /// Monitors and threads are named by numbers.
    func makeMonitor() -> Int
    func lock(_ monitor: Int)
    func unlock(_ monitor: Int)
    func wakeAll(_ monitor: Int)
    /// With the lock held; false when the deadline passed first, 0 for none.
    func wait(_ monitor: Int, deadline: UInt64) -> Bool

    func register() -> Int
    /// Called first by the new thread: returns when it is its turn.
    func enter(_ thread: Int)
    /// Called last by the thread.
    func leave(_ thread: Int)
    func join(_ thread: Int)
}

extension ThreadScheduler {
    /// Makes this the scheduler of the calling thread while `body` runs.
    package func during<Result, Failure: Error>(
        _ body: () throws(Failure) -> Result
    ) throws(Failure) -> Result {
        let box = CurrentScheduler.Box(self)
        // Safe: the box is alive until the pointer is taken away again.
        unsafe pccp_set_scheduler(Unmanaged.passUnretained(box).toOpaque())
        defer {
            pccp_set_scheduler(nil)
            withExtendedLifetime(box) {}
        }
        return try body()
    }
}

/// The scheduler of the calling thread; nil when the operating system does that.
enum CurrentScheduler {
    final class Box: Sendable {
        let scheduler: any ThreadScheduler
        init(_ scheduler: any ThreadScheduler) { self.scheduler = scheduler }
    }

    static var value: (any ThreadScheduler)? {
        // Safe: `during` keeps the box alive while the pointer is set.
        guard let pointer = unsafe pccp_scheduler() else { return nil }
        // Safe: as above.
        return unsafe Unmanaged<Box>.fromOpaque(pointer).takeUnretainedValue().scheduler
    }
}
