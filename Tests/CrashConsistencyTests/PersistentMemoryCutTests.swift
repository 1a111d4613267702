import CheckpointSimulation
import Testing

/// Power cuts in persistent memory, at every store; `make test-simulation` tries more of them.
@Suite struct PersistentMemoryCutTests {
    @Test(arguments: [1, 2])
    func everyCutRecovers(retain: Int) throws {
        var cuts = try PersistentMemoryCuts(inFlight: 2, retain: retain, saveCount: 4)
        try cuts.check(sampleCount: 60 * crashScale, exhaustiveLimit: 8, seed: crashSeed)
        #expect(cuts.violation == nil)
        #expect(cuts.stateCount > 1000, "\(cuts.stateCount)")
    }

    @Test func aMissingFenceIsFound() throws {
        var cuts = try PersistentMemoryCuts(
            inFlight: 1, retain: 1, saveCount: 2, fences: false)
        try cuts.check(sampleCount: 60, exhaustiveLimit: 8, seed: crashSeed)
        #expect(cuts.violation != nil)
    }
}
