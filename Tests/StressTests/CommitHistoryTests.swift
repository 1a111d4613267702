import CheckpointFormat
import StressTargets
import Testing

/// Histories written down by hand: those that an order of commits explains, and one for each way
/// in which none does.
@Suite struct CommitHistoryTests {
    private typealias Event = CommitHistory.Event

    private static func sequence(_ value: UInt64) -> SequenceNumber {
        SequenceNumber(rawValue: value)
    }

    private static func digest(_ value: UInt64) -> Digest { Digest(low: value, high: 0) }

    private static func saved(_ value: UInt64) -> Event {
        .saved(sequence(value), digest(value))
    }

    private static func durable(_ value: UInt64) -> Event { .durable(sequence(value)) }
    private static func newest(_ value: UInt64) -> Event { .newest(sequence(value)) }

    private static func loaded(_ value: UInt64) -> Event {
        .loaded(sequence(value), value == 0 ? .zero : digest(value))
    }

    private static func superseded(_ value: UInt64, by newer: UInt64) -> Event {
        .superseded(sequence(value), by: sequence(newer))
    }

    /// - Parameter steps: invocation, response, event.
    private static func violation(
        _ steps: [(UInt64, UInt64, Event)], kept: [UInt64], retain: Int = 1
    ) -> String? {
        CommitHistory(
            operations: steps.map { CommitHistory.Operation($0, $1, $2) },
            kept: kept.map(sequence), retainCount: retain
        ).violation
    }

    @Test func nothingIsExplained() { #expect(Self.violation([], kept: []) == nil) }

    @Test func overlappingSavesMayBeNumberedEitherWay() {
        let steps: [(UInt64, UInt64, Event)] = [
            (0, 10, Self.saved(2)), (1, 9, Self.saved(1)),
            (11, 30, Self.superseded(1, by: 2)), (12, 20, Self.durable(2)),
        ]
        #expect(Self.violation(steps, kept: [2]) == nil)
    }

    @Test func observationsThatOverlapTheCommitMaySeeEither() {
        let steps: [(UInt64, UInt64, Event)] = [
            (0, 1, Self.saved(1)), (2, 20, Self.durable(1)), (3, 19, Self.newest(0)),
            (4, 5, Self.newest(1)), (4, 18, Self.loaded(0)), (21, 22, Self.loaded(1)),
        ]
        #expect(Self.violation(steps, kept: [1]) == nil)
    }

    @Test func olderOnesAreKept() {
        let steps: [(UInt64, UInt64, Event)] = [
            (0, 1, Self.saved(1)), (2, 3, Self.saved(2)), (4, 5, Self.saved(3)),
            (6, 7, Self.durable(1)), (6, 7, Self.durable(2)), (6, 8, Self.durable(3)),
        ]
        #expect(Self.violation(steps, kept: [3, 2], retain: 2) == nil)
        #expect(Self.violation(steps, kept: [3, 1], retain: 2) != nil)
        #expect(Self.violation(steps, kept: [3], retain: 2) != nil)
    }

    static let wrong: [(String, [(UInt64, UInt64, CommitHistory.Event)], [UInt64])] = [
        ("a sequence given twice", [(0, 1, saved(1)), (2, 3, saved(1)), (4, 5, durable(1))], [1]),
        (
            "sequences against the order of saves",
            [(0, 1, saved(2)), (2, 3, saved(1)), (4, 5, durable(2)), (4, 5, durable(1))], [2]
        ),
        ("an end without a beginning", [(0, 1, durable(1))], [1]),
        (
            "superseded by an older one",
            [(0, 1, saved(1)), (2, 3, saved(2)), (4, 5, durable(1)), (4, 5, superseded(2, by: 1))],
            [1]
        ),
        (
            "superseded by what never became durable",
            [(0, 1, saved(1)), (2, 3, saved(2)), (4, 5, superseded(1, by: 2))], []
        ),
        (
            "two ends",
            [
                (0, 1, saved(1)), (0, 1, saved(2)), (2, 3, durable(1)), (2, 3, durable(2)),
                (4, 5, superseded(1, by: 2)),
            ], [2]
        ),
        (
            "pending after the end",
            [(0, 1, saved(1)), (2, 3, durable(1)), (4, 5, .pending(sequence(1)))], [1]
        ),
        (
            "the newest is older than what was acknowledged",
            [(0, 1, saved(1)), (2, 3, durable(1)), (4, 5, newest(0))], [1]
        ),
        (
            "the newest goes back",
            [
                (0, 1, saved(1)), (2, 3, saved(2)), (4, 5, newest(2)), (6, 7, newest(1)),
                (8, 9, durable(1)), (8, 9, durable(2)),
            ], [2]
        ),
        (
            "the newest was never durable",
            [(0, 1, saved(1)), (2, 3, newest(2)), (4, 5, durable(1))], [1]
        ),
        (
            "a reader finds less than was acknowledged",
            [(0, 1, saved(1)), (2, 3, durable(1)), (4, 5, loaded(0))], [1]
        ),
        (
            "readers go back",
            [
                (0, 1, saved(1)), (0, 1, saved(2)), (2, 3, loaded(2)), (4, 5, loaded(1)),
                (6, 7, durable(1)), (6, 7, durable(2)),
            ], [2]
        ),
        (
            "a reader finds other bytes",
            [(0, 1, saved(1)), (2, 3, durable(1)), (4, 5, .loaded(sequence(1), digest(7)))], [1]
        ),
        (
            "a save after the close",
            [(0, 1, .closed), (2, 3, saved(1)), (4, 5, durable(1))], [1]
        ),
        (
            "refused before the close",
            [(0, 1, .refused), (2, 3, .closed)], []
        ),
        (
            "an older one is kept",
            [
                (0, 1, saved(1)), (2, 3, saved(2)), (4, 5, durable(2)), (6, 7, durable(1)),
            ], [1]
        ),
    ]

    @Test(arguments: wrong.indices) func wrongHistoriesAreRejected(index: Int) {
        let (name, steps, kept) = Self.wrong[index]
        #expect(Self.violation(steps, kept: kept) != nil, "\(name)")
    }
}
