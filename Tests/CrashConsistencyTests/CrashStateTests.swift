import CheckpointFormat
import StorageFaults
import Testing

/// Bounded crash states over real writer runs: after every write and flush, any subset of what no
/// flush had covered, each write absent, whole or torn.
@Suite struct CrashStateTests {
    struct Shape: Sendable, CustomTestStringConvertible {
        let inFlight: Int
        let retain: Int
        var testDescription: String { "N=\(inFlight) retain=\(retain)" }
    }

    static let shapes = (1...3).flatMap { inFlight in
        (1...2).map { Shape(inFlight: inFlight, retain: $0) }
    }

    @Test(arguments: shapes)
    func everyCrashStateRecovers(shape: Shape) throws {
        var random = SplitMix64(seed: crashSeed &+ UInt64(shape.inFlight * 10 + shape.retain))
        var sequences = Script.sequences(1) + Script.sequences(2)
        let longer = Script.sequences(3) + Script.sequences(4)
        for _ in 0..<(12 * crashScale) {
            if let sequence = longer.randomElement(using: &random) { sequences.append(sequence) }
        }
        var stateCount = 0
        var promiseCount = 0
        let clock = ContinuousClock()
        let began = clock.now
        for (index, operations) in sequences.enumerated() {
            var script = Script(
                inFlight: shape.inFlight, retain: shape.retain, operations: operations)
            script.codec = index % 8 == 7 ? .zstd : .none
            let run = try ScriptRun(script)
            var checker = CrashChecker(
                run.recording, run.payloads, name: "\(script)",
                seed: crashSeed &+ UInt64(index))
            checker.reopenInterval = 311
            checker.limit = 30 * crashScale
            try checker.checkAll()
            stateCount += checker.stateCount
            promiseCount += Set(run.recording.end.notes).subtracting([0]).count
        }
        print(
            "\(shape.testDescription): \(stateCount) crash states of \(sequences.count) runs,",
            "\(clock.now - began)")
        #expect(stateCount > 10_000, "so few states prove little")
        // Saves that nobody waits for may or may not be acknowledged before the run ends.
        #expect(promiseCount > 20, "without promises nothing can be broken")
    }

    /// Killed, not cut: the next writer finds in the page cache what is not on the medium yet.
    @Test(arguments: shapes)
    func aKilledProcessLosesNothingEither(shape: Shape) throws {
        let script = Script(
            inFlight: shape.inFlight, retain: shape.retain,
            operations: [.saveAndWait, .save, .saveAndWait])
        let run = try ScriptRun(script)
        var checker = CrashChecker(
            run.recording, run.payloads, name: "\(script)", seed: crashSeed)
        for point in run.recording.crashPoints { try checker.checkKilled(at: point) }
        #expect(checker.stateCount > 500)
    }
}
