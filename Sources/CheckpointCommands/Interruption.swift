internal import CheckpointFormat
internal import Synchronization

#if canImport(Glibc)
    internal import Glibc
#endif

/// SIGINT and SIGTERM ask a tool to stop: it cleans up and exits with status 32. A second one
/// ends it at once.
enum Interruption {
    // Stored by the signal handler, loaded by whoever calls `isRequested`.
    private static let flag = Atomic<Bool>(false)

    static var isRequested: Bool { flag.load(ordering: .relaxed) }

    static func install() {
        // The first use initialises the flag, which a handler must not do.
        _ = isRequested
        for number in [SIGINT, SIGTERM] {
            // The handler stores to a lock-free atomic and calls signal(2): both are allowed in it.
            _ = signal(number) { number in
                Interruption.flag.store(true, ordering: .relaxed)
                _ = signal(number, SIG_DFL)
            }
        }
    }

    /// - Throws: `cancelled` once a signal has come.
    static func check() throws(CheckpointError) {
        if isRequested { throw CheckpointError(.cancelled, "cancelled; nothing was changed") }
    }
}
