/// Resamples the parts of traces, to show how sure a mean over them is.
///
/// A replicate draws as many traces as there are, with replacement. In each of them it draws
/// stretches of consecutive parts, also with replacement, around the end of the trace too, so that
/// what happens shortly after each other stays together. All policies are drawn alike: the
/// difference between two of them is paired.
///
/// Source: D. N. Politis, J. P. Romano, "A Circular Block-Resampling Procedure for Stationary
/// Data", 1992.
package struct BlockBootstrap: Sendable {
    /// Of each trace and policy, sums of the parts before each index, twice around.
    private let sums: [[[Double]]]
    private let counts: [Int]
    private let seed: UInt64
    package let policyCount: Int

    /// - Parameters:
    ///   - parts: of each trace, of each policy, a figure of each of equally long parts. Every
    ///     trace has the same policies, and its policies have the same parts.
    /// - Returns: nil when that is not so, or there is nothing.
    package init?(parts: [[[Double]]], seed: UInt64) {
        guard let policyCount = parts.first?.count, policyCount > 0 else { return nil }
        for trace in parts {
            guard trace.count == policyCount, let count = trace.first?.count, count > 0,
                trace.allSatisfy({ $0.count == count })
            else { return nil }
        }
        sums = parts.map { trace in
            trace.map { values in
                var sum = 0.0
                return [0]
                    + (values + values).map { value in
                        sum += value
                        return sum
                    }
            }
        }
        counts = parts.map { $0[0].count }
        self.seed = seed
        self.policyCount = policyCount
    }

    /// Consecutive parts that are drawn together: n^(1/3) of n.
    package static func stretchCount(of count: Int) -> Int {
        var length = 1
        while (length + 1) * (length + 1) * (length + 1) <= count { length += 1 }
        return length
    }

    /// The mean over the traces, each with the weight of one, for every policy.
    ///
    /// - Parameter partCount: how many parts are drawn of each trace; nil: as many as it has.
    package func replicate(_ index: Int, partCount: Int? = nil) -> [Double] {
        var random = SeededRandom(seed: seed, stream: index)
        var means = [Double](repeating: 0, count: policyCount)
        for place in sums.indices {
            let trace = sums.count == 1 ? place : random.index(below: sums.count)
            let count = partCount ?? counts[trace]
            let stretch = min(Self.stretchCount(of: count), counts[trace])
            var left = count
            var stretches: [(start: Int, end: Int)] = []
            while left > 0 {
                let start = random.index(below: counts[trace])
                let length = min(stretch, left)
                stretches.append((start, start + length))
                left -= length
            }
            for policy in means.indices {
                let series = sums[trace][policy]
                var sum = 0.0
                for (start, end) in stretches { sum += series[end] - series[start] }
                means[policy] += sum / Double(count)
            }
        }
        return means.map { $0 / Double(sums.count) }
    }

    /// The same of the traces as they are.
    package var means: [Double] {
        (0..<policyCount).map { policy in
            let sum = sums.indices.reduce(0.0) {
                $0 + sums[$1][policy][counts[$1]] / Double(counts[$1])
            }
            return sum / Double(sums.count)
        }
    }
}
