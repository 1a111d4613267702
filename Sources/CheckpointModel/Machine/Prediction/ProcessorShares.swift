#if canImport(Glibc)
    internal import Glibc
#endif

/// What each thread gets of a processor, where all threads want as much as there is.
///
/// The kernel divides by weight, and no thread runs on more than one processor. A level of nice is
/// a factor of 1.25 in the weight: `sched_prio_to_weight` in kernel/sched/core.c of Linux.
package struct ProcessorShares: Equatable, Sendable {
    /// Of writer workers, which run at a lower priority than copies and training.
    package static let writerNice = 10
    static let writerWeight = pow(1.25, -Double(writerNice))

    /// Of training and of copies.
    package let normal: Double
    package let writer: Double
    /// Of writer workers beside threads that want more than there is.
    package let writerByWeight: Double

    package init(processorCount: Double, normalThreads: Double, writerThreads: Double) {
        let weight = normalThreads + Self.writerWeight * writerThreads
        let perWeight = processorCount / max(weight, 1e-9)
        normal = min(1, perWeight)
        writerByWeight = min(1, Self.writerWeight * perWeight)
        let left = (processorCount - normalThreads) / max(writerThreads, 1)
        writer = min(1, max(left, writerByWeight))
    }
}
