internal import Synchronization

/// How many callers are waiting for *staged* right now.
///
/// Copying and writing share the memory's bandwidth. While somebody waits for the copy, writers
/// leave it most of that (see `CopyPace`); while nobody does, both run and the medium never rests.
final class StagingUrgency: Sendable {
    // Added to and subtracted from by waiters, loaded by writer workers. It orders nothing: a
    // writer that sees an old value writes one chunk more or waits for the next wake-up.
    private let waiterCount = Atomic<Int>(0)

    var isUrgent: Bool { waiterCount.load(ordering: .relaxed) > 0 }

    func during<Result>(_ wait: () -> Result) -> Result {
        waiterCount.add(1, ordering: .relaxed)
        defer { waiterCount.subtract(1, ordering: .relaxed) }
        return wait()
    }
}
