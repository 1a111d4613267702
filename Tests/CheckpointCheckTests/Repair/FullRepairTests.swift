import CheckpointFormat
import CheckpointRecovery
import CheckpointSimulation
import CheckpointStorage
import StorageFaults
import Testing

@testable import CheckpointCheck

/// `pcfsck -y` on every image under Fixtures/: nothing that loads is lost, numbers never go back, a
/// second repair finds nothing, and the undo file brings every byte back, also when the power went
/// in the middle.
@Suite struct FullRepairTests {
    static let stamp = RepairStamp(
        time: 1_800_000_000_000_000_000, bootID: .zero, processID: 4711)

    static func check(_ storage: any Storage) -> CheckReport {
        FileChecker(storage: storage).run(options: CheckOptions(depth: .full, workerCount: 1))
    }

    static func plan(
        _ storage: any Storage, consents: Set<String> = []
    ) -> RepairPlan {
        check(storage).fullPlan(stamp: stamp, consents: consents) {
            candidate throws(CheckpointError) in
            try SlotVerifier.verify(candidate, in: storage, workerCount: 1)
        }
    }

    /// What a resume and a writer see of a file.
    struct Standing: Equatable {
        var slot: SlotIndex?
        var sequence: SequenceNumber?
        var digest: Digest?
        var loadable: Set<SlotIndex> = []
        var generation: UInt64 = 0
        var nextSequence: UInt64 = 0

        init(_ storage: any Storage) {
            let trial = ResumeTrial(storage, workerCount: 1)
            slot = trial.loaded?.candidate.slot
            sequence = trial.loaded?.candidate.sequence
            digest = trial.loaded?.digest
            guard let reader = try? CheckpointReader(storage: storage, workerCount: 1) else {
                return
            }
            let decision = reader.decision
            generation = decision.highestGeneration.rawValue
            nextSequence = max(
                min(decision.highestSequence.rawValue, .max - 1) + 1,
                decision.superblock?.sequenceLimit ?? 0)
            for candidate in decision.candidates {
                guard let selected = try? reader.select(candidate) else { continue }
                if (try? ResumeTrial.load(selected)) != nil { loadable.insert(candidate.slot) }
                selected.close()
            }
        }

        /// Why this is worse than `before`; nil when it is not.
        func problem(since before: Standing) -> String? {
            if (slot, sequence) != (before.slot, before.sequence) || digest != before.digest {
                return "I1: sequence \(sequence ?? .none) loads, before \(before.sequence ?? .none)"
            }
            if !loadable.isSuperset(of: before.loadable) { return "a checkpoint was lost" }
            if generation < before.generation { return "I3: the generation went back" }
            if nextSequence < before.nextSequence { return "I3: the sequence went back" }
            return nil
        }
    }

    @Test(arguments: Fixture.allNames) func nothingIsLostAndUndoBringsItBack(
        _ name: String
    ) throws {
        let image = try Fixture.image(name)
        let storage = MemoryStorage(contents: image)
        let before = Standing(storage)
        let plan = Self.plan(storage)
        let undo = plan.undoFile(stamp: Self.stamp)
        #expect((undo == nil) == plan.isEmpty)
        if plan.refusal != nil {
            #expect(throws: CheckpointError.self) { try plan.apply(to: storage) }
            #expect(storage.contents == image)
            return
        }
        #expect(try plan.apply(to: storage) == plan.repairs)
        #expect(Standing(storage).problem(since: before) == nil)
        #expect(try plan.apply(to: storage).isEmpty)

        let again = Self.plan(storage)
        #expect(again.isEmpty, "a second run would: \(again.repairs)")
        #expect(again.questions == plan.questions)
        let left = Self.check(storage).findings
        let answered = Set(plan.repairs.map { "\($0.problem.id)" })
        #expect(
            !left.contains { $0.severity == .error && answered.contains($0.id) },
            "left: \(left)")

        guard let undo else { return }
        let decoded = try UndoFile(decoding: undo.encoded())
        #expect(decoded == undo)
        #expect(try Undoing(decoded).apply(to: storage) == plan.repairs.count)
        #expect(storage.contents == image)
        #expect(try Undoing(decoded).apply(to: storage) == 0)
    }

    /// `-p` is a part of `-y`.
    @Test(arguments: Fixture.allNames) func safeRepairsComeFirst(_ name: String) throws {
        let storage = MemoryStorage(contents: try Fixture.image(name))
        let safe = Self.check(storage).plan
        let full = Self.plan(storage)
        let written = Set(full.repairs.map(\.byteOffset))
        #expect(safe.repairs.allSatisfy { written.contains($0.byteOffset) })
        #expect(safe.repairs.allSatisfy { $0.fixClass == .safe })
        // Without an answer, nothing is done that needs one.
        #expect(!full.repairs.contains { $0.fixClass == .asked })
    }

    /// The power fails at every call of the repair, and writes are torn: the file is then no worse
    /// than before, another repair ends as the first would have, and the undo file restores it.
    @Test(arguments: Fixture.names(in: "corrupt")) func interruptedRepairIsHarmless(
        _ name: String
    ) throws {
        let image = try Fixture.image(name)
        let storage = RecordingStorage(contents: image)
        let before = Standing(MemoryStorage(contents: image))
        let plan = Self.plan(storage)
        guard let undo = plan.undoFile(stamp: Self.stamp) else { return }
        try plan.apply(to: storage)
        let recording = storage.recording
        var count = 0
        for point in recording.crashPoints {
            let states = CrashStates(recording, at: point, seed: 7)
            for fates in states.fates(limit: 3) {
                let cut = MemoryStorage(contents: states.durableImage())
                _ = states.apply(fates, to: cut)
                let place = "\(name), event \(point.eventCount): \(states.describe(fates))"
                if let problem = Standing(cut).problem(since: before) {
                    Issue.record("\(problem)\n  \(place)")
                    return
                }
                let undone = MemoryStorage(contents: cut.contents)
                _ = try Undoing(undo).apply(to: undone)
                #expect(undone.contents == image, "\(place)")
                count += 1
                guard count % 4 == 0 else { continue }
                try Self.plan(cut).apply(to: cut)
                #expect(Self.plan(cut).isEmpty, "\(place)")
                #expect(Standing(cut).problem(since: before) == nil, "\(place)")
            }
        }
    }

    /// The power fails at every call of the undo: a second one ends it.
    @Test func interruptedUndoIsFinished() throws {
        let image = try Fixture.image("corrupt/superblocks-lost")
        let repaired = MemoryStorage(contents: image)
        let plan = Self.plan(repaired)
        try plan.apply(to: repaired)
        let undo = try #require(plan.undoFile(stamp: Self.stamp))
        let storage = RecordingStorage(contents: repaired.contents)
        _ = try Undoing(undo).apply(to: storage)
        #expect(storage.contents == image)
        let recording = storage.recording
        var count = 0
        for point in recording.crashPoints {
            let states = CrashStates(recording, at: point, seed: 11)
            for fates in states.fates(limit: 8) {
                let cut = MemoryStorage(contents: states.durableImage())
                _ = states.apply(fates, to: cut)
                _ = try Undoing(undo).apply(to: cut)
                #expect(cut.contents == image, "\(states.describe(fates))")
                count += 1
            }
        }
        #expect(count > 20)
    }

    @Test func lostWriteIsNoticed() throws {
        let storage = MemoryStorage(contents: try Fixture.image("corrupt/superblocks-lost"))
        let plan = Self.plan(storage)
        let offset = plan.repairs[0].byteOffset
        storage.setFaultHook { [storage] call in
            if case .flush = call { storage.flip(1, at: offset + 9) }
            return nil
        }
        #expect(throws: CheckpointError.self) { try plan.apply(to: storage) }
    }
}
