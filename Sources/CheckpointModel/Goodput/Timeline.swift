/// A trace of any kind as what a job sees: when nodes leave and come, in order.
package struct Timeline: Sendable {
    /// Why nodes leave.
    package enum Cause: Sendable {
        /// They were taken away: others may be given, also when the job asks for none.
        case preemption
        /// They failed, and come back when they are repaired.
        case failure
    }

    package struct Change: Equatable, Sendable {
        package var timeSeconds: Double
        /// nil-like: −1 when the trace does not say which nodes these are.
        var node: Int32
        /// Negative for nodes that leave.
        package var nodeCountChange: Int32
    }

    /// In order of time; at one time, nodes leave first.
    package private(set) var changes: [Change]
    package let nodeCount: Int
    /// Nodes that are there before the first change: all or none.
    package let areNodesThere: Bool
    package let endSeconds: Double
    package let cause: Cause

    package init(_ trace: Trace) {
        switch trace.content {
        case .availability(let trace): self.init(trace)
        case .preemption(let trace): self.init(trace)
        case .failures(let trace):
            self.init(
                failures: trace.failures, nodeCount: trace.nodeCount, endSeconds: trace.endSeconds)
        }
    }

    package init(_ trace: AvailabilityTrace) {
        var changes: [Change] = []
        var last = 0
        for sample in trace.samples where sample.nodeCount != last {
            changes.append(
                Change(
                    timeSeconds: sample.timeSeconds, node: -1,
                    nodeCountChange: Int32(sample.nodeCount - last)))
            last = sample.nodeCount
        }
        self.changes = changes
        nodeCount = trace.largestNodeCount
        areNodesThere = false
        endSeconds = trace.endSeconds
        cause = .preemption
    }

    package init(_ trace: PreemptionTrace) {
        var changes: [Change] = []
        var additions = [Int](repeating: -1, count: trace.nodeCount)
        for event in trace.events {
            let added = additions[event.node]
            // A node that leaves when it comes was never there.
            if event.kind == .removal, changes.indices.contains(added),
                changes[added].timeSeconds == event.timeSeconds
            {
                changes[added].nodeCountChange = 0
                continue
            }
            if event.kind == .addition { additions[event.node] = changes.count }
            changes.append(
                Change(
                    timeSeconds: event.timeSeconds, node: Int32(event.node),
                    nodeCountChange: event.kind == .addition ? 1 : -1))
        }
        self.changes = Self.sorted(changes.filter { $0.nodeCountChange != 0 })
        nodeCount = trace.nodeCount
        areNodesThere = false
        endSeconds = trace.endSeconds
        cause = .preemption
    }

    /// - Parameter failures: of valid nodes, sorted by their start for each node. Those of one node
    ///   that overlap become one.
    init(failures: [FailureTrace.Failure], nodeCount: Int, endSeconds: Double) {
        var merged: [FailureTrace.Failure] = []
        merged.reserveCapacity(failures.count)
        var last = [Int32](repeating: -1, count: nodeCount)
        for failure in failures.sorted(by: { $0.startSeconds < $1.startSeconds }) {
            let index = Int(last[failure.node])
            if index >= 0, failure.startSeconds <= merged[index].endSeconds {
                merged[index].endSeconds = max(merged[index].endSeconds, failure.endSeconds)
            } else {
                last[failure.node] = Int32(merged.count)
                merged.append(failure)
            }
        }
        var changes: [Change] = []
        changes.reserveCapacity(2 * merged.count)
        for failure in merged where failure.startSeconds < endSeconds {
            let node = Int32(failure.node)
            changes.append(
                Change(timeSeconds: failure.startSeconds, node: node, nodeCountChange: -1))
            guard failure.endSeconds < endSeconds else { continue }
            changes.append(Change(timeSeconds: failure.endSeconds, node: node, nodeCountChange: 1))
        }
        self.changes = Self.sorted(changes)
        self.nodeCount = nodeCount
        areNodesThere = true
        self.endSeconds = endSeconds
        cause = .failure
    }

    /// The same with other numbers for its nodes. A job takes nodes in the order of their numbers,
    /// and files name those first that failed first: one that is smaller than the trace would get
    /// just these.
    package func renumbered(seed: UInt64) -> Timeline {
        var random = SeededRandom(seed: seed)
        let numbers = (0..<Int32(nodeCount)).shuffled(using: &random)
        var other = self
        for index in changes.indices where changes[index].node >= 0 {
            other.changes[index].node = numbers[Int(changes[index].node)]
        }
        return other
    }

    private static func sorted(_ changes: [Change]) -> [Change] {
        changes.sorted {
            if $0.timeSeconds != $1.timeSeconds { return $0.timeSeconds < $1.timeSeconds }
            if $0.nodeCountChange != $1.nodeCountChange {
                return $0.nodeCountChange < $1.nodeCountChange
            }
            return $0.node < $1.node
        }
    }

    package var largestNodeCount: Int {
        if areNodesThere { return nodeCount }
        var (count, largest) = (0, 0)
        for change in changes {
            count += Int(change.nodeCountChange)
            largest = max(largest, count)
        }
        return largest
    }

    /// Times at which nodes leave: nodes that leave at one time are one.
    package var departureCount: Int {
        var count = 0
        var last = -1.0
        for change in changes where change.nodeCountChange < 0 && change.timeSeconds != last {
            count += 1
            last = change.timeSeconds
        }
        return count
    }
}
