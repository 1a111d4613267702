internal import CPlatformLinux
internal import Synchronization

/// A named thread of the operating system: pthread_create(3), with every signal blocked.
///
/// The thread that starts one joins it; a thread that is never joined keeps its stack.
public final class WorkerThread: Sendable {
    private let handle: UInt64
    /// Who knows in the system's place when it has ended, in a simulation.
    private let simulated: (scheduler: any ThreadScheduler, number: Int)?
    private let isJoined = Mutex(false)

    /// Starts `body` on a new thread. The kernel shows the first 15 bytes of `name`.
    ///
    /// - Throws: `StorageError` with EAGAIN when the system has no room for another thread.
    public init(
        name: String, _ body: @escaping @Sendable () -> Void
    ) throws(StorageError) {
        var handle: UInt64 = 0
        let shown = String(decoding: name.utf8.prefix(15), as: UTF8.self)
        simulated = CurrentScheduler.value.map { ($0, $0.register()) }
        let run = simulated.map { Self.simulate(body, $0.scheduler, $0.number) } ?? body
        // Safe: the box is retained here and released by the thread that runs it.
        let context = unsafe Unmanaged.passRetained(Body(run: run)).toOpaque()
        // Safe: the C function copies its arguments before it returns.
        let result = unsafe pccp_thread_start(shown, Self.enter, context, &handle)
        guard result == 0 else {
            // Safe: no thread runs, so the reference is still ours.
            unsafe Unmanaged<Body>.fromOpaque(context).release()
            throw StorageError.startThread(errno: -result, name: name)
        }
        self.handle = handle
    }

    private static func simulate(
        _ body: @escaping @Sendable () -> Void, _ scheduler: any ThreadScheduler, _ number: Int
    ) -> @Sendable () -> Void {
        {
            scheduler.enter(number)
            scheduler.during(body)
            scheduler.leave(number)
        }
    }

    /// The same, for a reader of the call site.
    public static func start(
        name: String, _ body: @escaping @Sendable () -> Void
    ) throws(StorageError) -> WorkerThread {
        try WorkerThread(name: name, body)
    }

    /// setpriority(2) for the calling thread: it gets less of a busy processor than the others.
    public static func yieldToOthers(nice: Int) {
        if CurrentScheduler.value == nil { pccp_thread_yield_to_others(Int32(nice)) }
    }

    /// Waits until the thread has ended. Further calls return once the first has.
    public func join() {
        isJoined.withLock { isJoined in
            if isJoined { return }
            if let simulated { simulated.scheduler.join(simulated.number) }
            pccp_thread_join(handle)
            isJoined = true
        }
    }

    private final class Body: Sendable {
        let run: @Sendable () -> Void
        init(run: @escaping @Sendable () -> Void) { self.run = run }
    }

    private static let enter: @convention(c) (UnsafeMutableRawPointer?) -> Void = { context in
        // Safe: only compared with NULL.
        guard let context = unsafe context else { return }
        // Safe: the reference that init retained; taken once, as a thread starts once.
        unsafe Unmanaged<Body>.fromOpaque(context).takeRetainedValue().run()
    }
}
