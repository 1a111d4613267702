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

    @Test(arguments: StressRun.Medium.allCases, UInt64(20)..<24)
    func savesOfDevicesAreExplained(medium: StressRun.Medium, seed: UInt64) throws {
        var run = StressRun(seed: seed)
        run.medium = medium
        run.isOnDevice = true
        #expect(try run.history().violation == nil, "seed \(seed), over \(medium)")
    }

    /// Memory, two or three in flight, and waiting for a slot: what overtaking needs. A writer that
    /// publishes a late older checkpoint fails this: Tests/Mutation/planted.json.
    @Test func overtakenCheckpointsAreExplained() throws {
        for seed in stride(from: UInt64(6), to: 6 * Self.overtakingRunCount, by: 6) {
            var run = StressRun(seed: seed)
            run.medium = .memory
            run.isOnDevice = false
            #expect(try run.history().violation == nil, "seed \(seed), over memory")
        }
    }

    private static let overtakingRunCount: UInt64 = 40
}
