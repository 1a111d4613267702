internal import CheckpointFormat
internal import CheckpointStorage

/// Turns looks at a file into events. Pure but for the looks that it is given.
struct Watch {
    enum Kind: String, CaseIterable {
        /// The file is seen for the first time.
        case opened
        case began, durable
        /// Complete, and older than the newest durable one by the time it was seen.
        case finished
        case writerStarted = "writer_started"
        case writerClosed = "writer_closed"
        case writerGone = "writer_gone"
        /// Nothing shows whether a writer is at work.
        case writerUnknown = "writer_unknown"
        case stalled, resumed
        /// Another file has the path now.
        case replaced
        case missing, unreadable
        /// Nothing happened: the regular look.
        case sample
    }

    struct Event {
        let kind: Kind
        /// One sentence for people.
        let message: String
    }

    /// So many usual intervals without a commit are a stall …
    private static let stallFactor: UInt64 = 5
    /// … but not less than this, …
    private static let stallMinimum: UInt64 = 5_000_000_000
    /// … and this while no interval is known.
    private static let stallDefault: UInt64 = 60_000_000_000

    private(set) var sample: WatchSample?
    private(set) var history = WatchHistory()
    private(set) var isStalled = false
    /// Why there is no sample now.
    private(set) var failure: CheckpointError?
    private var begun = SequenceNumber.none

    /// Takes the next look.
    mutating func update(_ look: Result<WatchSample, CheckpointError>) -> [Event] {
        switch look {
        case .success(let sample): return update(sample)
        case .failure(let error):
            let isNews = failure.map { $0.code != error.code } ?? true
            failure = error
            guard isNews else { return [] }
            return [
                Event(
                    kind: error.code == .notFound ? .missing : .unreadable, message: error.message)
            ]
        }
    }

    private mutating func update(_ next: WatchSample) -> [Event] {
        let wasUnreadable = failure != nil
        failure = nil
        let last = sample
        sample = next
        guard let last, last.fileUUID == next.fileUUID, last.generation <= next.generation else {
            return restart(next, isReplaced: last != nil)
        }
        // A clean close and a new writer may both lie between two looks.
        var events: [Event] = []
        if wasUnreadable {
            events.append(Event(kind: .opened, message: "the file can be read again"))
        }
        if last.writer != .atWork, next.writer == .atWork { events.append(writerEvent(next)) }
        for header in history.add(next.finished) {
            events.append(finishedEvent(header, next))
        }
        events += begunEvents(next)
        if last.writer != next.writer, next.writer != .atWork { events.append(writerEvent(next)) }
        return events + stallEvents(next)
    }

    private mutating func restart(_ next: WatchSample, isReplaced: Bool) -> [Event] {
        history = WatchHistory()
        _ = history.add(next.finished)
        isStalled = false
        begun = .none
        let newest = next.anchor.map { "newest durable step \($0.step)" } ?? "nothing durable yet"
        let first =
            isReplaced
            ? Event(kind: .replaced, message: "another file has this path now: \(newest)")
            : Event(kind: .opened, message: newest)
        return [first, writerEvent(next)] + begunEvents(next) + stallEvents(next)
    }

    private func writerEvent(_ sample: WatchSample) -> Event {
        switch sample.writer {
        case .atWork: Event(kind: .writerStarted, message: "a writer is at work")
        case .closed:
            Event(kind: .writerClosed, message: "no writer: the file was closed cleanly")
        case .gone:
            Event(
                kind: .writerGone,
                message: "writer gone: the lock is free and the file was not closed")
        case .unknown:
            Event(
                kind: .writerUnknown,
                message: "no locks here show whether a writer is at work; the file was not closed")
        }
    }

    private mutating func begunEvents(_ next: WatchSample) -> [Event] {
        let new = next.inFlight.filter { $0.sequence > begun }
        begun = new.last?.sequence ?? begun
        return new.map { Event(kind: .began, message: "\(Self.name($0)) began") }
    }

    /// Whether a superblock has ever named what it does not name now, nothing shows it: the
    /// checkpoint may have been overtaken.
    private func finishedEvent(_ header: SlotHeader, _ next: WatchSample) -> Event {
        next.names(header)
            ? Event(kind: .durable, message: "\(Self.name(header)) is durable")
            : Event(
                kind: .finished,
                message: "\(Self.name(header)) is complete; a newer one is durable")
    }

    private static func name(_ header: SlotHeader) -> String {
        "step \(header.step) (sequence \(header.sequence)) in slot \(header.slot), "
            + Quantity.bytes(header.payloadByteCount)
    }

    /// Nanoseconds without a commit that are a stall.
    var stallLimit: UInt64 {
        guard let usual = history.usualInterval else { return Self.stallDefault }
        let (product, overflow) = usual.multipliedReportingOverflow(by: Self.stallFactor)
        return overflow ? .max : max(Self.stallMinimum, product)
    }

    /// Nanoseconds since something became durable, or since the oldest checkpoint in flight
    /// began, whichever is less; nil while nothing is in flight.
    private func stuckTime(_ sample: WatchSample) -> UInt64? {
        guard let oldest = sample.inFlight.first else { return nil }
        let start = max(oldest.beganTime, history.commits.last?.time ?? 0)
        return sample.time - min(start, sample.time)
    }

    private mutating func stallEvents(_ next: WatchSample) -> [Event] {
        let stuck = stuckTime(next)
        let wasStalled = isStalled
        isStalled = stuck.map { $0 > stallLimit } ?? false
        if isStalled == wasStalled { return [] }
        guard isStalled, let stuck else {
            return next.writer == .atWork
                ? [Event(kind: .resumed, message: "no longer stalled")] : []
        }
        let usual = history.usualInterval.map {
            "; usually one becomes durable every \(Quantity.duration(nanoseconds: $0))"
        }
        return [
            Event(
                kind: .stalled,
                message: "stalled: \(Quantity.plural(next.inFlight.count, "checkpoint")) in flight "
                    + "and none durable for \(Quantity.duration(nanoseconds: stuck))"
                    + (usual ?? ""))
        ]
    }
}
