internal import CheckpointFormat

/// The durable checkpoints that were seen, and what follows from their times.
struct WatchHistory {
    struct Commit: Equatable {
        let sequence: SequenceNumber
        /// When its last chunk was written, in nanoseconds since 1970.
        let time: UInt64
        let payloadByteCount: UInt64
    }

    static let capacity = 256
    /// Rates are of so long a time before now.
    static let windowNanoseconds: UInt64 = 60_000_000_000
    private static let usualCount = 32

    private(set) var commits: [Commit] = []

    /// Adds those that are newer than all known ones.
    ///
    /// - Returns: the headers that were added, oldest first.
    mutating func add(_ headers: [SlotHeader]) -> [SlotHeader] {
        let last = commits.last?.sequence ?? .none
        let new = headers.filter { $0.sequence > last }
        commits += new.map {
            Commit(
                sequence: $0.sequence, time: $0.completedTime,
                payloadByteCount: $0.payloadByteCount)
        }
        commits.removeFirst(max(0, commits.count - Self.capacity))
        return new
    }

    /// Nanoseconds between each commit and the next. A clock that went back gives 0.
    var intervals: [UInt64] {
        zip(commits, commits.dropFirst()).map { $1.time - min($0.time, $1.time) }
    }

    /// The median of the last intervals; nil while fewer than two commits are known.
    var usualInterval: UInt64? {
        let last = intervals.suffix(Self.usualCount).sorted()
        return last.isEmpty ? nil : last[last.count / 2]
    }

    struct Rates: Equatable {
        let commitsPerMinute: Double
        let bytesPerSecond: Double
    }

    /// What became durable per time, up to `now`; nil while no interval is known.
    func rates(now: UInt64) -> Rates? {
        guard commits.count > 1, let first = commits.first else { return nil }
        let start = max(first.time, now - min(now, Self.windowNanoseconds))
        guard now > start else { return nil }
        let recent = commits.filter { $0.time > start && $0.time <= now }
        let seconds = Double(now - start) / 1e9
        let byteCount = recent.reduce(0.0) { $0 + Double($1.payloadByteCount) }
        return Rates(
            commitsPerMinute: Double(recent.count) * 60 / seconds,
            bytesPerSecond: byteCount / seconds)
    }

    /// The last intervals as columns of a chart, the longest of them full.
    func sparkline(columnCount: Int) -> String {
        let levels = Array("▁▂▃▄▅▆▇█")
        let last = intervals.suffix(columnCount)
        let longest = last.max() ?? 0
        return String(
            last.map { interval in
                longest == 0
                    ? levels[0]
                    : levels[Int(Double(interval) / Double(longest) * Double(levels.count - 1))]
            })
    }
}
