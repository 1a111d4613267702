/// Where the time of a job was spent, in node-seconds. The sum is the size of the job times the
/// length of the trace.
package struct Tally: Equatable, Sendable {
    /// Training that no failure took back.
    package var useful = 0.0
    /// Checkpoints kept training waiting, or slowed it down.
    package var blocked = 0.0
    /// Training after the last durable checkpoint before a failure.
    package var redone = 0.0
    /// Detecting, rescheduling, reading.
    package var restart = 0.0
    /// Too few nodes: all of a fixed-size job, the missing part of an elastic one.
    package var waiting = 0.0

    package init() {}

    package var total: Double { useful + blocked + redone + restart + waiting }
    package var goodput: Double { total > 0 ? useful / total : 0 }

    /// Of `total`.
    package func share(_ part: KeyPath<Tally, Double>) -> Double {
        total > 0 ? self[keyPath: part] / total : 0
    }

    static func += (sum: inout Tally, term: Tally) {
        sum.useful += term.useful
        sum.blocked += term.blocked
        sum.redone += term.redone
        sum.restart += term.restart
        sum.waiting += term.waiting
    }
}

/// What became of a job in one replay.
package struct ReplayResult: Equatable, Sendable {
    package var total = Tally()
    /// The same for parts of equal length, in order.
    package var blocks: [Tally]
    /// When the running job lost a node: after so much time in which it ran.
    package var hitSeconds: [Double] = []
    /// Restarts during which it lost another one.
    package var interruptedRestartCount = 0
    /// Times at which it took in nodes that had come.
    package var growthCount = 0
    /// Times at which memory of other nodes did not hold the state any more.
    package var fallbackCount = 0
    /// Time in which it ran, whatever became of that.
    package var runningSeconds = 0.0

    package var hitCount: Int { hitSeconds.count }

    /// Of the running job; nil when nothing hit it.
    package var meanTimeBetweenHitsSeconds: Double? {
        hitCount > 0 ? runningSeconds / Double(hitCount) : nil
    }
}
