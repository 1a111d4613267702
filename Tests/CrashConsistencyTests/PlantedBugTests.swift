import CheckpointFormat
import CheckpointRecovery
import CheckpointSimulation
import CheckpointStorage
@testable import CheckpointWriter
import Foundation
import StorageFaults
import Synchronization
import Testing

/// Safety nets, tested with falls: every bug must be found by each net that claims it, and a writer
/// without a bug by none.
///
/// The writer itself is always the one that ships. Most bugs are planted in the medium below it.
/// Those that no medium can have are patches of a copy of the sources, in
/// Tests/Mutation/planted.json: `make planted` runs with each of them the tests that claim it,
/// `aWriterWithoutABugIsCleared` where a net does, which must fail.
@Suite struct PlantedBugTests {
    /// A way to look for broken promises.
    enum Net: String, CaseIterable, Sendable, Decodable {
        /// Rung 4: every crash state of a run.
        case crashStates
        /// Rung 4, killed: the page cache survives, and the next writer is cut off.
        case killedAndCut
        /// Rungs 7 and 11: a flush fails once.
        case failedFlush
        /// A chunk of an older checkpoint is held back until a newer one is durable.
        case overtaken
        /// The flush of a superblock is held back while more is saved.
        case heldFlush
        /// The anchored checkpoint rots, and the next writer trusts it.
        case rottenAnchor
    }

    /// What finds what. A bug that a net finds now and then, by the order in which threads happen
    /// to run, is not claimed by it.
    static let claims: [PlantedBug: Set<Net>] = [
        .skipF1: [.crashStates],
        .skipF2: [.crashStates, .killedAndCut],
        .commitWithoutJoin: [.crashStates, .killedAndCut],
        .retryFailedFlush: [.failedFlush],
        .trustCacheOnOpen: [.killedAndCut],
        .writeOtherBuffer: [.crashStates, .killedAndCut],
    ]

    @Test func everyBugIsClaimed() throws {
        for bug in PlantedBug.allCases {
            #expect(Self.claims[bug]?.isEmpty == false, "\(bug) is found by nothing")
        }
        let patches = try Self.patches()
        let claimed = Self.claims.values.flatMap(\.self) + patches.compactMap(\.net)
        #expect(Set(claimed) == Set(Net.allCases))
        for patch in patches where patch.net == nil {
            #expect(!patch.tests.isEmpty, "\(patch.name) is found by nothing")
        }
    }

    /// A bug that is planted in a copy of the sources.
    struct Patch: Decodable {
        struct Edit: Decodable {
            let file: String
            let find: String
        }

        let name: String
        let net: Net?
        let tests: [String]
        let edits: [Edit]
    }

    private static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
        .deletingLastPathComponent().deletingLastPathComponent()

    private static func patches() throws -> [Patch] {
        let list = try Data(contentsOf: root.appending(path: "Tests/Mutation/planted.json"))
        return try JSONDecoder().decode([Patch].self, from: list)
    }

    /// A patch that no longer fits would be missed only when somebody runs `make planted`.
    @Test func everyPatchFitsTheSources() throws {
        for patch in try Self.patches() {
            for edit in patch.edits {
                let source = try String(
                    contentsOf: Self.root.appending(path: edit.file), encoding: .utf8)
                let count = source.components(separatedBy: edit.find).count - 1
                #expect(count == 1, "\(patch.name): \(edit.file) has \(count) places for it")
            }
        }
    }

    @Test(arguments: Net.allCases)
    func aWriterWithoutABugIsCleared(net: Net) throws {
        let finding = try Self.look(for: nil, with: net)
        #expect(finding.problem == nil, "\(net): \(finding.problem ?? "")")
        #expect(finding.stateCount > 20, "so few states clear nobody")
    }

    @Test(arguments: PlantedBug.allCases)
    func everyNetCatchesWhatItClaims(bug: PlantedBug) throws {
        for net in Self.claims[bug, default: []].sorted(by: { $0.rawValue < $1.rawValue }) {
            let finding = try Self.look(for: bug, with: net)
            #expect(finding.problem != nil, "\(net) does not find \(bug)")
            print(
                "\(bug): \(net) found it after \(finding.stateCount) states:",
                finding.problem ?? "nothing")
        }
    }

    /// The range that is synced ends before the last chunk: a mistake that this writer cannot make,
    /// as its flush names no range, but a medium can.
    @Test func aFlushOfTheWrongRangeIsCaught() throws {
        let script = Script(
            inFlight: 1, retain: 1, operations: [.saveAndWait, .saveAndWait, .saveAndWait])
        var runner = ScriptRunner(
            script: script, contents: try SmallFile.file(inFlight: 1, retain: 1))
        let decision = try CheckpointReader(storage: runner.storage).decision
        let geometry = decision.identity.geometry
        let last = try #require(geometry.slots.last)
        // Everything behind the first chunk of the last slot is never flushed.
        runner.storage.setFlushLimit(Int(geometry.slotDataOffset(last)) + SmallFile.chunkByteCount)
        try runner.run()
        var finding = Finding()
        try Self.check(
            runner.storage.recording, runner.promises.payloads, "\(script)", &finding)
        #expect(finding.problem != nil, "no net finds a flush of the wrong range")
        print("wrong range: crashStates found it after \(finding.stateCount) states")
    }

    /// What ships knows of no bug.
    @Test func nothingThatShipsPlantsABug() throws {
        let sources = Self.root.appending(path: "Sources")
        let files = try #require(
            FileManager.default.enumerator(at: sources, includingPropertiesForKeys: nil))
        for case let file as URL in files where file.pathExtension == "swift" {
            let text = try String(contentsOf: file, encoding: .utf8)
            #expect(!text.contains(/[Pp]lanted/), "\(file.lastPathComponent) plants a bug")
        }
    }

    // MARK: The nets

    struct Finding {
        var problem: String?
        var stateCount = 0
    }

    static func look(for bug: PlantedBug?, with net: Net) throws -> Finding {
        switch net {
        case .crashStates:
            try crash([.saveAndWait, .save, .saveAndWait], bug)
        case .killedAndCut: try kill(bug)
        case .failedFlush: try crash([.saveAndWait, .failFlush, .saveAndWait], bug)
        case .overtaken: try overtake()
        case .heldFlush: try holdFlush()
        case .rottenAnchor: try rotAnchor()
        }
    }

    private static func crash(_ operations: [Operation], _ bug: PlantedBug?) throws -> Finding {
        var finding = Finding()
        for retain in 1...2 where finding.problem == nil {
            let script = Script(
                inFlight: 2, retain: retain, operations: operations, plantedBug: bug)
            let run: ScriptRun
            do {
                run = try ScriptRun(script)
            } catch {
                // The run itself noticed: a reopening that finds no whole checkpoint, say.
                finding.problem = "the run failed: \(error)"
                break
            }
            try check(run.recording, run.payloads, "\(script)", &finding)
        }
        return finding
    }

    private static func kill(_ bug: PlantedBug?) throws -> Finding {
        var finding = Finding()
        let script = Script(
            inFlight: 2, retain: 1, operations: [.saveAndWait, .save, .saveAndWait],
            plantedBug: bug)
        let run = try ScriptRun(script)
        for point in run.recording.crashPoints where finding.problem == nil {
            let found = Mutex<String?>(nil)
            var checker = CrashChecker(
                run.recording, run.payloads, name: "\(script)", seed: crashSeed)
            checker.plantedBug = bug
            checker.onProblem = { problem in found.withLock { $0 = $0 ?? problem } }
            do {
                try checker.checkKilled(at: point)
            } catch {
                found.withLock { $0 = $0 ?? "the next writer refused the file: \(error)" }
            }
            finding.stateCount += checker.stateCount
            finding.problem = found.withLock { $0 }
        }
        return finding
    }

    private static func check(
        _ recording: Recording, _ payloads: [UInt64: Set<Digest>], _ name: String,
        _ finding: inout Finding
    ) throws {
        let found = Mutex<String?>(nil)
        var checker = CrashChecker(recording, payloads, name: name, seed: crashSeed)
        checker.onProblem = { problem in found.withLock { $0 = $0 ?? problem } }
        try checker.checkAll()
        finding.stateCount += checker.stateCount
        finding.problem = found.withLock { $0 }
    }

    /// Sequence 2 is anchored and rots, sequence 1 is what loads. Two saves follow, of a writer
    /// that did not read either; nothing that loaded may be lost in any crash.
    private static func rotAnchor() throws -> Finding {
        var options = SmallFile.options()
        options.trustsAnchor = true
        let file = RecordingStorage(contents: try SmallFile.file(inFlight: 2, retain: 1))
        let promises = Promises()
        try save([1, 2], CheckpointWriter(storage: file, options: options), file, promises)
        let storage = MemoryStorage(contents: file.contents)
        let anchor = try #require(CheckpointReader(storage: storage).decision.candidates.first)
        try #require(anchor.isAnchored && anchor.sequence.rawValue == 2)
        storage.flip(4, at: anchor.dataOffset)
        // The recording begins with the damage.
        let rotten = RecordingStorage(contents: storage.contents)
        rotten.note(1)
        let writer = try CheckpointWriter(storage: rotten, options: options)
        try #require(writer.recovered?.isVerified == false)
        try save([3, 4], writer, rotten, promises)
        var finding = Finding()
        for point in rotten.recording.crashPoints where finding.problem == nil {
            let states = CrashStates(rotten.recording, at: point, seed: crashSeed)
            let image = MemoryStorage(contents: states.durableImage())
            let promise = Promise(
                sequence: SequenceNumber(rawValue: point.notes.max() ?? 0),
                generation: Generation(rawValue: 0))
            for fates in states.fates(limit: 16) where finding.problem == nil {
                let undo = states.apply(fates, to: image)
                finding.stateCount += 1
                finding.problem = promise.problem(image, promises.payloads)
                CrashStates.revert(undo, in: image)
            }
        }
        return finding
    }

    private static func save(
        _ steps: [UInt64], _ writer: CheckpointWriter, _ storage: RecordingStorage,
        _ promises: Promises
    ) throws {
        for step in steps {
            let payload = SmallFile.payload(step: step * 7 + 4)
            let ticket = try writer.save(step: step, payload: CheckpointPayload(opaque: payload))
            promises.began(ticket, payload)
            _ = try ticket.wait()
            for sequence in promises.newlyDurable() { storage.note(sequence) }
        }
        writer.abandon()
    }

    /// Holds one kind of call back until it is let go.
    private final class Hold: Sendable {
        private let state = Monitor((isOpen: false, isHolding: false))
        private let isMine: @Sendable (MemoryStorage.Call) -> Bool

        init(_ isMine: @escaping @Sendable (MemoryStorage.Call) -> Bool) { self.isMine = isMine }

        var hook: MemoryStorage.FaultHook {
            { [self] call in
                guard isMine(call) else { return nil }
                state.withLock { $0.isHolding = true }
                state.wakeAll()
                state.wait(deadline: SystemClock.monotonicTime + 20_000_000_000) { $0.isOpen }
                return nil
            }
        }

        func waitUntilHolding() -> Bool {
            state.wait(deadline: SystemClock.monotonicTime + 10_000_000_000) { $0.isHolding }
        }

        func open() {
            state.withLock { $0.isOpen = true }
            state.wakeAll()
        }
    }

    /// An older checkpoint ends after a newer one is durable, and two more follow.
    private static func overtake() throws -> Finding {
        let script = Script(inFlight: 2, retain: 1, operations: [])
        var runner = ScriptRunner(
            script: script, contents: try SmallFile.file(inFlight: 2, retain: 1))
        runner.observe()
        let writer = try runner.open()
        let slot = try #require(try CheckpointReader(storage: runner.storage).decision.slots.first)
        let geometry = writer.identity.geometry
        let hold = Hold {
            if case .write(let offset, _) = $0 {
                return offset == geometry.slotDataOffset(slot.slot)
            }
            return false
        }
        runner.storage.setFaultHook(hold.hook)
        try runner.save(writer)
        try #require(hold.waitUntilHolding())
        try runner.save(writer)
        let deadline = SystemClock.monotonicTime + 10_000_000_000
        while writer.statistics.durableCount < 1, SystemClock.monotonicTime < deadline {
            usleep(1000)
        }
        for sequence in runner.promises.newlyDurable() { runner.storage.note(sequence) }
        hold.open()
        try runner.settle()
        runner.storage.setFaultHook(nil)
        for _ in 0..<2 {
            try runner.save(writer)
            try runner.settle()
        }
        try writer.close()
        var finding = Finding()
        try check(runner.storage.recording, runner.promises.payloads, "overtaken", &finding)
        return finding
    }

    /// While the flush of a superblock is held back, the next checkpoint looks for a slot.
    private static func holdFlush() throws -> Finding {
        let script = Script(inFlight: 2, retain: 1, operations: [])
        var runner = ScriptRunner(
            script: script, contents: try SmallFile.file(inFlight: 2, retain: 1))
        runner.observe()
        let writer = try runner.open()
        for _ in 0..<2 {
            try runner.save(writer)
            try runner.settle()
        }
        for sequence in runner.promises.newlyDurable() { runner.storage.note(sequence) }
        // The flush after the next one: F2, with F1 before it.
        let flushes = Mutex(0)
        let hold = Hold {
            guard case .flush = $0 else { return false }
            return flushes.withLock { count in
                count += 1
                return count == 2
            }
        }
        runner.storage.setFaultHook(hold.hook)
        try runner.save(writer)
        try #require(hold.waitUntilHolding())
        // A reader has the only slot that is free: another one is there only if it was freed early.
        let reader = RecordingStorage(openerOf: runner.storage)
        let decision = try CheckpointReader(storage: reader).decision
        let free = try #require(
            decision.identity.geometry.slots.first { slot in
                decision.superblock?.anchor?.slot != slot
                    && decision.slots.first { $0.slot == slot }?.header?.sequence
                        != decision.highestSequence
            })
        try #require(try reader.tryLock(.slot(free), exclusive: false))
        let promises = runner.promises
        let saver = try WorkerThread(name: "saver") {
            let payload = SmallFile.payload(step: 77)
            guard
                let ticket = try? writer.save(
                    step: 100, payload: CheckpointPayload(opaque: payload))
            else { return }
            promises.began(ticket, payload)
        }
        // Long enough for chunks to be written where they must not be.
        usleep(100_000)
        hold.open()
        saver.join()
        try reader.unlock(.slot(free))
        runner.storage.setFaultHook(nil)
        try writer.close()
        for sequence in runner.promises.newlyDurable() { runner.storage.note(sequence) }
        var finding = Finding()
        try check(runner.storage.recording, runner.promises.payloads, "held flush", &finding)
        return finding
    }
}
