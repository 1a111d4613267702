internal import CheckpointFormat
internal import Synchronization

#if canImport(Glibc)
    internal import Glibc
#endif

/// SIGINT and SIGTERM ask a tool to stop: it cleans up and exits with status 32. A second one
/// ends it at once.
enum Interruption {
    // Stored by the signal handler, loaded by `isRequested`.
    private static let flag = Atomic<Bool>(false)

    static var isRequested: Bool { flag.load(ordering: .relaxed) }

    static func install() {
        // The first use initialises the flag, which a handler must not do.
        _ = isRequested
        var signals = sigset_t()
        // Safe: both calls work on the set that they are given.
        unsafe sigemptyset(&signals)
        for number in [SIGINT, SIGTERM] {
            unsafe sigaddset(&signals, number)
            // The handler stores to a lock-free atomic and calls signal(2): both are allowed in it.
            _ = signal(number) { number in
                Interruption.flag.store(true, ordering: .relaxed)
                _ = signal(number, SIG_DFL)
            }
        }
        // A parent may have left them blocked.
        // Safe: reads the set only.
        unsafe _ = pthread_sigmask(SIG_UNBLOCK, &signals, nil)
    }

    /// - Throws: `cancelled` once a signal has come.
    static func check() throws(CheckpointError) {
        if isRequested { throw CheckpointError(.cancelled, "cancelled; nothing was changed") }
    }
}
