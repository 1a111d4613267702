/// What the changes of an availability trace are, counted in machines of several accelerators.
///
/// The script of the PCcheck paper counts every change as that many failures: the start, what
/// comes, what leaves, and the end of the trace, when all is given back.
package struct AvailabilityCount: Equatable, Sendable {
    /// Counted as the script does: |change| / `unit`, rounded down for each change.
    package var start = 0
    package var additions = 0
    package var removals = 0
    /// The drop to zero with which the trace ends.
    package var finalCollapse = 0
    /// Times at which something left before that, which is what ends a job.
    package var departureCount = 0
    /// Times at which something came after the start.
    package var arrivalCount = 0

    /// What the script calls failures.
    package var changesOfAnyKind: Int { start + additions + removals + finalCollapse }

    package init(_ trace: AvailabilityTrace, unit: Int) {
        let unit = max(1, unit)
        let counts = trace.samples.map(\.nodeCount)
        let collapse = Self.collapseStart(counts)
        var last = 0
        for (index, count) in counts.enumerated() where count != last {
            let part = abs(count - last) / unit
            if index == 0 {
                start += part
            } else if count > last {
                additions += part
                arrivalCount += 1
            } else if index >= collapse {
                finalCollapse += part
            } else {
                removals += part
                departureCount += 1
            }
            last = count
        }
    }

    /// The first of the samples, one after the other, that only drop until nothing is left for
    /// the rest of the trace.
    private static func collapseStart(_ counts: [Int]) -> Int {
        guard counts.last == 0, var index = counts.lastIndex(where: { $0 != 0 }) else {
            return counts.count
        }
        index += 1
        while index > 1, counts[index - 1] < counts[index - 2] { index -= 1 }
        return index
    }
}
