/// Checkpoints in flight as customers of one line: copy, compress, write, flush.
///
/// Its throughput has two bounds: the busiest station serves one checkpoint at a time, and each
/// of N slots is taken for as long as one checkpoint takes alone. The time of each follows by
/// Little's law. Source: P. J. Denning, J. P. Buzen, "The Operational Analysis of Queueing Network
/// Models", ACM Computing Surveys 10 (3), 1978.
package struct CheckpointQueue: Equatable, Sendable {
    /// From `save` until durable, with nothing else in flight: Tw(1).
    package let aloneSeconds: Double
    /// D: what the busiest station needs for one checkpoint.
    package let busiestSeconds: Double
    /// Checkpoints that can be under way, however many slots there are: the next one begins when
    /// this one is copied, so that one is copied, and the others are in the pool or in a commit.
    package let most: Double

    /// One checkpoint alone keeps no station busy for longer than it takes.
    package init(aloneSeconds: Double, busiestSeconds: Double, most: Double = .infinity) {
        self.aloneSeconds = max(aloneSeconds, busiestSeconds)
        self.busiestSeconds = busiestSeconds
        self.most = max(1, most)
    }

    private func underWay(_ inFlightCount: Int) -> Double {
        min(Double(max(1, inFlightCount)), most)
    }

    /// The least time between the starts of two checkpoints: max(D, Tw(1)/N).
    package func spanSeconds(inFlightCount: Int) -> Double {
        max(busiestSeconds, aloneSeconds / underWay(inFlightCount))
    }

    /// Whether a cycle of training and blocked time is as long as that: nothing waits for a slot.
    package func isSustained(
        trainingSeconds: Double, blockedSeconds: Double, inFlightCount: Int
    ) -> Bool {
        // Sums of times are a little off.
        trainingSeconds + blockedSeconds
            >= spanSeconds(inFlightCount: inFlightCount) * (1 - 1e-12)
    }

    /// Tw(N): how long each of N takes when every slot is always taken: max(Tw(1), N·D).
    package func writeSeconds(inFlightCount: Int) -> Double {
        max(aloneSeconds, underWay(inFlightCount) * busiestSeconds)
    }

    /// The part of Tw(N) in which a checkpoint waits for those before it.
    package func waitSeconds(inFlightCount: Int) -> Double {
        writeSeconds(inFlightCount: inFlightCount) - aloneSeconds
    }

    /// The smallest N that reaches the rate of the busiest station; more only wait.
    package var saturatingCount: Double {
        let enough = busiestSeconds > 0 ? aloneSeconds / busiestSeconds : .infinity
        return min(enough, most).rounded(.up)
    }
}
