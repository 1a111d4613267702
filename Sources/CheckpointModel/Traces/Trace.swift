/// How many nodes a job could hold at a time. Which node came or left is not known.
package struct AvailabilityTrace: Equatable, Sendable {
    package struct Sample: Equatable, Sendable {
        package var timeSeconds: Double
        package var nodeCount: Int

        package init(timeSeconds: Double, nodeCount: Int) {
            self.timeSeconds = timeSeconds
            self.nodeCount = nodeCount
        }
    }

    /// In order of time, from 0; a count holds until the next sample.
    package let samples: [Sample]
    package let endSeconds: Double

    /// - Throws: `TraceError`, whose line is the index of the sample from 1.
    package init(samples: [Sample], endSeconds: Double) throws(TraceError) {
        guard let first = samples.first else {
            throw TraceError(.empty, "found no sample, expected at least two")
        }
        try Check.count(samples.count, "samples", limit: TraceLimits.entryCount)
        var last = first.timeSeconds
        for (index, sample) in samples.enumerated() {
            try Check.time(sample.timeSeconds, notBefore: last, line: index + 1)
            try Check.nodeCount(sample.nodeCount, line: index + 1)
            last = sample.timeSeconds
        }
        guard samples.contains(where: { $0.nodeCount != first.nodeCount }) else {
            throw TraceError(
                .constant,
                "found \(first.nodeCount) nodes in all \(samples.count) samples, expected a "
                    + "change: nothing ends a job in this trace")
        }
        try Check.end(endSeconds, after: last)
        self.samples = samples.map {
            Sample(timeSeconds: $0.timeSeconds - first.timeSeconds, nodeCount: $0.nodeCount)
        }
        self.endSeconds = endSeconds - first.timeSeconds
    }

    package var largestNodeCount: Int { samples.lazy.map(\.nodeCount).max() ?? 0 }
}

/// Nodes that come, and that are taken away again: spot instances of a job.
package struct PreemptionTrace: Equatable, Sendable {
    package enum Kind: Sendable { case addition, removal }

    package struct Event: Equatable, Sendable {
        package var timeSeconds: Double
        package var kind: Kind
        /// From 0, below `nodeCount`.
        package var node: Int

        package init(timeSeconds: Double, kind: Kind, node: Int) {
            self.timeSeconds = timeSeconds
            self.kind = kind
            self.node = node
        }
    }

    /// In order of time.
    package let events: [Event]
    /// All nodes that ever were there.
    package let nodeCount: Int
    package let endSeconds: Double

    /// - Throws: `TraceError`, whose line is the index of the event from 1.
    package init(
        events: [Event], nodeCount: Int, endSeconds: Double
    ) throws(TraceError) {
        guard let first = events.first else {
            throw TraceError(.empty, "found no event, expected nodes that come and leave")
        }
        try Check.count(events.count, "events", limit: TraceLimits.entryCount)
        try Check.nodeCount(nodeCount, line: nil)
        var isThere = [Bool](repeating: false, count: nodeCount)
        var last = first.timeSeconds
        for (index, event) in events.enumerated() {
            let line = index + 1
            try Check.time(event.timeSeconds, notBefore: last, line: line)
            try Check.node(event.node, below: nodeCount, line: line)
            guard isThere[event.node] == (event.kind == .removal) else {
                let found = event.kind == .removal ? "a removal" : "an addition"
                let state = event.kind == .removal ? "is not there" : "is there already"
                throw TraceError(
                    .contradiction, line: line,
                    "found \(found) of a node that \(state), expected each node to come and leave "
                        + "in turn")
            }
            isThere[event.node].toggle()
            last = event.timeSeconds
        }
        guard events.contains(where: { $0.kind == .removal }) else {
            throw TraceError(
                .constant,
                "found \(events.count) additions and no removal, expected nodes that leave")
        }
        try Check.end(endSeconds, after: last)
        self.events = events
        self.nodeCount = nodeCount
        self.endSeconds = endSeconds
    }
}

/// Nodes that fail, and come back when they are repaired.
package struct FailureTrace: Equatable, Sendable {
    package struct Failure: Equatable, Sendable {
        /// From 0, below `nodeCount`.
        package var node: Int
        package var startSeconds: Double
        /// Repaired; `endSeconds` of the trace when that is after it.
        package var endSeconds: Double

        package init(node: Int, startSeconds: Double, endSeconds: Double) {
            self.node = node
            self.startSeconds = startSeconds
            self.endSeconds = endSeconds
        }
    }

    /// In order of their start.
    package let failures: [Failure]
    package let nodeCount: Int
    package let endSeconds: Double

    /// - Parameter failures: in any order.
    /// - Throws: `TraceError`, whose line is the index of the failure from 1.
    package init(
        failures: [Failure], nodeCount: Int, endSeconds: Double
    ) throws(TraceError) {
        guard !failures.isEmpty else {
            throw TraceError(
                .empty, "found no failure, expected at least one: nothing ends a job in this trace")
        }
        try Check.count(failures.count, "failures", limit: TraceLimits.entryCount)
        try Check.nodeCount(nodeCount, line: nil)
        try Check.end(endSeconds, after: 0)
        for (index, failure) in failures.enumerated() {
            try Check.time(failure.startSeconds, notBefore: 0, line: index + 1)
            try Check.time(failure.endSeconds, notBefore: failure.startSeconds, line: index + 1)
            try Check.node(failure.node, below: nodeCount, line: index + 1)
        }
        self.failures = failures.sorted {
            ($0.startSeconds, $0.node, $0.endSeconds) < ($1.startSeconds, $1.node, $1.endSeconds)
        }
        self.nodeCount = nodeCount
        self.endSeconds = endSeconds
    }
}

/// One trace of any kind, and where it is from.
package struct Trace: Equatable, Sendable {
    package enum Content: Equatable, Sendable {
        case availability(AvailabilityTrace)
        case preemption(PreemptionTrace)
        case failures(FailureTrace)
    }

    /// What was observed. Results are pooled within a setting, never across.
    package enum Setting: String, CaseIterable, Sendable {
        case spot, llm, hpc, synthetic
    }

    package var name: String
    package var setting: Setting
    package var content: Content
    /// Nodes of one machine, for traces that the PCcheck paper counts in machines.
    package var machineNodeCount: Int?

    package init(name: String, setting: Setting, content: Content) {
        self.name = name
        self.setting = setting
        self.content = content
    }

    package var endSeconds: Double {
        switch content {
        case .availability(let trace): trace.endSeconds
        case .preemption(let trace): trace.endSeconds
        case .failures(let trace): trace.endSeconds
        }
    }
}

/// What holds for every trace.
enum Check {
    static func count(_ count: Int, _ what: String, limit: Int) throws(TraceError) {
        if count > limit {
            throw TraceError(.tooLarge, "found \(count) \(what), expected at most \(limit)")
        }
    }

    static func nodeCount(_ count: Int, line: Int?) throws(TraceError) {
        guard (0...TraceLimits.nodeCount).contains(count) else {
            throw TraceError(
                .outOfRange, line: line,
                "found \(count) nodes, expected 0 to \(TraceLimits.nodeCount)")
        }
    }

    static func node(_ node: Int, below count: Int, line: Int) throws(TraceError) {
        guard node >= 0, node < count else {
            throw TraceError(
                .outOfRange, line: line, "found node \(node), expected 0 to \(count - 1)")
        }
    }

    static func time(
        _ seconds: Double, notBefore last: Double, line: Int
    ) throws(TraceError) {
        guard seconds >= 0, seconds <= TraceLimits.seconds else {
            throw TraceError(
                .outOfRange, line: line,
                "found the time \(seconds) s, expected 0 to \(TraceLimits.seconds) s")
        }
        guard seconds >= last else {
            throw TraceError(
                .unsorted, line: line,
                "found the time \(seconds) s after \(last) s, expected times in order")
        }
    }

    static func end(_ seconds: Double, after last: Double) throws(TraceError) {
        guard seconds > 0, seconds <= TraceLimits.seconds, seconds >= last else {
            throw TraceError(
                .outOfRange,
                "found \(seconds) s as the end of the trace, expected a time after 0 and not "
                    + "before \(last) s")
        }
    }
}
