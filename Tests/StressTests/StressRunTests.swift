import CheckpointWriter
import StressTargets
import Testing

/// Real histories; `make test-threads` has more of them, under ThreadSanitizer.
@Suite(.serialized) struct StressRunTests {
    @Test(arguments: UInt64(0)..<9) func historyIsExplained(seed: UInt64) throws {
        let history = try StressRun(seed: seed).history()
        #expect(history.violation == nil, "replay: StressDriver 100 \(seed)")
        #expect(history.operations.count > 100)
    }

    /// The check finds what it is there for: a late older checkpoint that is published.
    @Test func aLateOlderCheckpointIsFound() throws {
        let isFound = try (UInt64(0)..<200).contains { number in
            // Memory, two or three in flight, and waiting for a slot: what overtaking needs.
            var run = StressRun(seed: 6 * number + 6)
            run.medium = .memory
            run.plantedBug = .publishLateOlder
            return try run.history().violation != nil
        }
        #expect(isFound)
    }
}
