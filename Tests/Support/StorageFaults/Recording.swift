/// What a `RecordingStorage` saw, in the order in which it saw it.
///
/// A write is durable once a flush that began after the write had returned has succeeded. Until
/// then a power cut leaves it absent, whole, or torn. A flush that fails makes the writes that it
/// should have covered *forgotten*: no later flush covers them.
public struct Recording: Sendable {
    public struct Write: Sendable {
        public let offset: Int
        public let bytes: [UInt8]
        var isForgotten = false
        /// Forgotten, and gone from the cache as well.
        var isDiscarded = false
        /// It is known not to be on the medium.
        public internal(set) var isLost = false
        /// It lies outside of what flushes cover: a caller's mistake, or a medium's.
        var isBeyondFlushes = false
        var hasEnded = false

        public var range: Range<Int> { offset..<offset + bytes.count }
    }

    public enum Event: Hashable, Sendable {
        /// Writes are named by their index in `writes`.
        case writeBegan(Int)
        case writeEnded(Int)
        case writeFailed(Int)
        /// Flushes are named by the index of the event with which they began.
        case flushBegan
        case flushEnded(began: Int)
        case flushFailed(began: Int)
        /// Made durable alone, by the thread that wrote it: persistent memory.
        case fenced(Int)
        /// Every write forgotten so far is known not to be on the medium from here on.
        case cacheDiscarded
        /// Something the test wants to know the position of.
        case note(UInt64)
    }

    /// The medium before the first event.
    public internal(set) var initial: [UInt8]
    public internal(set) var writes: [Write] = []
    public internal(set) var events: [Event] = []
    /// Writes that went nowhere, or elsewhere, and were called done.
    public internal(set) var silentFaultCount = 0
    /// Where a write went whose buffer changed before it had ended; nil when none did.
    public internal(set) var changedWriteOffset: Int?

    init(initial: [UInt8]) { self.initial = initial }

    /// What the medium may hold when the power is cut after `eventCount` events.
    public struct CrashPoint: Sendable {
        public let eventCount: Int
        /// Writes that are certainly there, in order.
        public let durable: [Int]
        /// Writes that may be there, in order.
        public let pending: [Int]
        /// The notes made before the cut.
        public let notes: [UInt64]
    }

    /// Every point at which the set of possible media, or the notes, differ from the point before.
    public var crashPoints: [CrashPoint] {
        var points: [CrashPoint] = []
        var state = PointState()
        points.append(state.point(0))
        for (index, event) in events.enumerated() {
            let changed = state.apply(event, at: index, in: self)
            if changed { points.append(state.point(index + 1)) }
        }
        return points
    }

    /// The point after all events.
    public var end: CrashPoint {
        var state = PointState()
        for (index, event) in events.enumerated() { _ = state.apply(event, at: index, in: self) }
        return state.point(events.count)
    }

    private struct PointState {
        var durable: Set<Int> = []
        var pending: Set<Int> = []
        var endedAt: [Int: Int] = [:]
        var forgotten: Set<Int> = []
        var notes: [UInt64] = []

        func point(_ eventCount: Int) -> CrashPoint {
            CrashPoint(
                eventCount: eventCount, durable: durable.sorted(), pending: pending.sorted(),
                notes: notes)
        }

        func covered(by began: Int, in recording: Recording) -> Set<Int> {
            pending.filter {
                endedAt[$0, default: .max] < began && !forgotten.contains($0)
                    && !recording.writes[$0].isBeyondFlushes
            }
        }

        /// True when the power cut has other results afterwards.
        mutating func apply(_ event: Event, at index: Int, in recording: Recording) -> Bool {
            switch event {
            case .writeBegan(let write):
                if recording.writes[write].isLost { return false }
                pending.insert(write)
                return true
            case .writeEnded(let write):
                endedAt[write] = index
                return false
            case .writeFailed, .flushBegan: return false
            case .flushEnded(let began):
                let covered = covered(by: began, in: recording)
                durable.formUnion(covered)
                pending.subtract(covered)
                return !covered.isEmpty
            case .flushFailed(let began):
                forgotten.formUnion(covered(by: began, in: recording))
                return false
            case .fenced(let write):
                durable.insert(write)
                pending.remove(write)
                return true
            case .cacheDiscarded:
                pending.subtract(forgotten)
                return false
            case .note(let number):
                notes.append(number)
                return true
            }
        }
    }
}
