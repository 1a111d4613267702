internal import CheckpointModel

/// One way to save in one trace, or in the traces of one setting.
struct GoodputRow: Sendable {
    let policy: String
    /// The name of the rule; nil when nothing is saved.
    let rule: String?
    let cost: CheckpointCost?
    /// nil when traces with intervals of their own are pooled, or nothing is saved.
    let intervalSeconds: Double?
    let goodput: Estimate
    /// Shares of the time, as means.
    let losses: Losses

    struct Losses: Sendable {
        var blocked = 0.0
        var redone = 0.0
        var restart = 0.0
        var waiting = 0.0

        var total: Double { blocked + redone + restart + waiting }

        init() {}

        init(_ tally: Tally) {
            blocked = tally.share(\.blocked)
            redone = tally.share(\.redone)
            restart = tally.share(\.restart)
            waiting = tally.share(\.waiting)
        }

        static func mean(_ losses: [Losses]) -> Losses {
            var mean = Losses()
            for loss in losses {
                mean.blocked += loss.blocked / Double(losses.count)
                mean.redone += loss.redone / Double(losses.count)
                mean.restart += loss.restart / Double(losses.count)
                mean.waiting += loss.waiting / Double(losses.count)
            }
            return mean
        }
    }
}

/// The best PCcheck against another policy with the same rule, paired.
struct GoodputComparison: Sendable {
    let policy: String
    let other: String
    let rule: String?
    /// The goodput of PCcheck without that of the other.
    let difference: Estimate

    /// A smaller difference, as a share of the time, is nothing that pays.
    static let relevantDifference = 0.001

    var verdict: Verdict {
        let relevant = Self.relevantDifference
        if difference.high < 0, difference.value <= -relevant { return .loses }
        if difference.high < relevant { return .nothing }
        if difference.low <= 0 { return .unsure }
        return difference.value < relevant ? .nothing : .pays
    }

    enum Verdict: String { case pays, nothing, unsure, loses }
}

/// The rows and comparisons of one trace, or of one setting.
struct GoodputTable: Sendable {
    let rows: [GoodputRow]
    let comparisons: [GoodputComparison]

    /// - Parameters:
    ///   - values: the goodput of each candidate.
    ///   - replicates: that of each replicate, for each candidate, paired.
    init(
        _ candidates: [PolicyStudy.Candidate], intervals: [Double]?, values: [Double],
        losses: [GoodputRow.Losses], replicates: [[Double]], confidence: Double
    ) {
        rows = candidates.indices.map { index in
            let candidate = candidates[index]
            return GoodputRow(
                policy: candidate.policy.name, rule: candidate.rule?.name,
                cost: candidate.policy.cost,
                intervalSeconds: candidate.rule == nil ? nil : intervals?[index],
                goodput: Estimate(
                    value: values[index], replicates: replicates.map { $0[index] },
                    confidence: confidence),
                losses: losses[index])
        }
        comparisons = Self.pairs(candidates, values).map { own, other in
            GoodputComparison(
                policy: candidates[own].policy.name, other: candidates[other].policy.name,
                rule: candidates[own].rule?.name,
                difference: Estimate(
                    value: values[own] - values[other],
                    replicates: replicates.map { $0[own] - $0[other] }, confidence: confidence))
        }
    }

    /// For each rule the best PCcheck, against each other policy with that rule. What never saves
    /// has no rule: the best of all is compared with it.
    private static func pairs(
        _ candidates: [PolicyStudy.Candidate], _ values: [Double]
    ) -> [(own: Int, other: Int)] {
        let own = candidates.indices.filter { candidates[$0].policy.name.hasPrefix("PCcheck") }
        return candidates.indices.filter { !own.contains($0) }.compactMap { other in
            let rule = candidates[other].rule
            let best = own.filter { rule == nil || candidates[$0].rule == rule }
                .max { values[$0] < values[$1] }
            return best.map { ($0, other) }
        }
    }
}

/// One trace and what became of the job in it.
struct GoodputSection: Sendable {
    enum Kind: String { case availability, preemption, failures }

    /// What the PCcheck paper counts in a trace of availability.
    struct PaperCount: Sendable {
        let machineNodeCount: Int
        let count: AvailabilityCount
    }

    let name: String
    let setting: Trace.Setting
    let kind: Kind
    let nodeCount: Int
    let durationSeconds: Double
    let job: JobSize
    /// Times at which nodes left; nil of synthetic traces.
    let departureCount: Int?
    let meanTimeBetweenHitsSeconds: Double?
    let count: PaperCount?
    let table: GoodputTable
    /// Of each candidate, the goodput of each part of the trace; empty of synthetic traces.
    let parts: [[Double]]
}

/// The traces of one setting together.
struct PooledGoodput: Sendable {
    let setting: Trace.Setting
    let traceCount: Int
    let table: GoodputTable
}
