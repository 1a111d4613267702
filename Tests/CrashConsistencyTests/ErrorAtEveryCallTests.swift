import CheckpointFormat
import CheckpointRecovery
import CheckpointSimulation
import CheckpointStorage
import CheckpointWriter
import StorageFaults
import Testing

/// An I/O error at every call of a run in turn, once and for ever: nobody hangs, nothing that was
/// called durable is lost, and what is not durable is not called so.
@Suite struct ErrorAtEveryCallTests {
    static let retainCounts = [1, 2]

    /// What one run under a fault plan left.
    private struct Result {
        let storage: RecordingStorage
        let promises: Promises
        let promised: SequenceNumber
        let callCounts: [FaultPlan.CallKind: Int]
    }

    /// Two checkpoints are on the file, one of them unanchored, so that opening verifies, adopts
    /// and reads payload; then three more are saved, and the file is closed.
    private static func startImage(retain: Int) throws -> ([UInt8], [UInt64: Set<Digest>]) {
        var builder = try ImageBuilder(
            inFlight: 2, retain: retain, capacity: UInt64(3 * SmallFile.chunkByteCount),
            chunkByteCount: SmallFile.chunkByteCount)
        let parent = builder.commit(builder.superblock(generation: 1, anchor: nil))
        let anchor = builder.complete(slot: 0, sequence: 1)
        builder.commit(builder.superblock(generation: 2, anchor: anchor, parent: parent))
        builder.complete(slot: 1, sequence: 2)
        var payloads: [UInt64: Set<Digest>] = [:]
        for sequence in [UInt64(1), 2] {
            payloads[sequence] = [Digest(of: ImageBuilder.bytes(100_000, seed: sequence))]
        }
        return (builder.bytes, payloads)
    }

    /// The run, on a thread of its own that must end in time.
    private static func run(_ plan: FaultPlan, retain: Int) throws -> Result {
        let (image, payloads) = try startImage(retain: retain)
        let storage = RecordingStorage(contents: image)
        storage.note(1)
        let promises = Promises()
        promises.add(payloads)
        storage.setPlan(plan)
        let isDone = Monitor(false)
        let thread = try WorkerThread(name: "run") {
            work(storage, promises)
            isDone.withLock { $0 = true }
            isDone.wakeAll()
        }
        let deadline = SystemClock.monotonicTime + 30_000_000_000
        try #require(isDone.wait(deadline: deadline) { $0 }, "the run hangs")
        thread.join()
        for sequence in promises.newlyDurable() { storage.note(sequence) }
        let callCounts = storage.callCounts
        storage.setPlan(FaultPlan())
        let notes = storage.recording.end.notes
        return Result(
            storage: storage, promises: promises,
            promised: SequenceNumber(rawValue: notes.max() ?? 0), callCounts: callCounts)
    }

    private static func work(_ storage: RecordingStorage, _ promises: Promises) {
        guard let writer = try? CheckpointWriter(storage: storage, options: SmallFile.options())
        else { return }
        storage.note(writer.statistics.newestDurableSequence.rawValue)
        storage.setObserver { promises.newlyDurable() }
        for step in UInt64(1)...3 {
            let payload = SmallFile.payload(step: step + 1)
            guard
                let ticket = try? writer.save(
                    step: step, payload: CheckpointPayload(opaque: payload))
            else { continue }
            promises.began(ticket, payload)
            if step == 2 { _ = try? ticket.wait() }
        }
        try? writer.close()
    }

    /// Power cut or not, whatever was promised is there, and a writer goes on from it.
    private static func check(_ result: Result, _ name: String) throws {
        let recording = result.storage.recording
        let payloads = result.promises.payloads
        var checker = CrashChecker(recording, payloads, name: name, seed: crashSeed)
        checker.limit = 12 * crashScale
        try checker.checkEnd()
        // No power cut: the page cache is what it is, and the next writer opens the file.
        let storage = RecordingStorage(openerOf: result.storage)
        let writer = try CheckpointWriter(storage: storage, options: SmallFile.options())
        #expect(writer.statistics.newestDurableSequence >= result.promised, "\(name)")
        let payload = SmallFile.payload(step: 99)
        let ticket = try writer.save(step: 99, payload: CheckpointPayload(opaque: payload))
        #expect(try ticket.wait(timeoutNanoseconds: 20_000_000_000) == .durable, "\(name)")
        #expect(ticket.sequence > result.promised)
        try writer.close()
        result.promises.began(ticket, payload)
        let promise = Promise(sequence: ticket.sequence, generation: Generation(rawValue: 3))
        let problem = promise.problem(storage, result.promises.payloads)
        #expect(problem == nil, "\(name): \(problem ?? "")")
    }

    @Test(arguments: FaultPlan.CallKind.allCases, retainCounts)
    func nothingDurableIsLost(kind: FaultPlan.CallKind, retain: Int) throws {
        let clean = try Self.run(FaultPlan(), retain: retain)
        let calls = clean.callCounts[kind] ?? 0
        #expect(calls > 5)
        var runCount = 0
        for number in 0..<calls {
            for isPermanent in [false, true] {
                var effects = [FaultPlan.Effect.error(FaultPlan.inputOutputError)]
                if kind == .write {
                    effects.append(.error(FaultPlan.noSpaceError))
                    effects.append(.partialWrite(FaultPlan.inputOutputError))
                }
                for effect in effects {
                    let rule = FaultPlan.Rule(
                        kind, number: number, isPermanent: isPermanent, effect)
                    let name =
                        "retain=\(retain) \(kind) \(number) \(effect)"
                        + (isPermanent ? " for ever" : " once")
                    try Self.check(Self.run(FaultPlan([rule]), retain: retain), name)
                    runCount += 1
                }
            }
        }
        print("retain=\(retain) \(kind), failing calls: \(runCount) runs")
    }

    /// With writes that get lost or go astray, a medium that lies, a checkpoint may be lost; what
    /// loads is right all the same.
    @Test func mediaThatLieNeverGiveWrongBytes() throws {
        var loadedCount = 0
        for number in 0..<UInt64(60 * crashScale) {
            let plan = FaultPlan(seed: crashSeed &+ number, callCount: 24)
            let result = try Self.run(plan, retain: 1 + Int(number % 2))
            let promise = Promise(sequence: .none, generation: Generation(rawValue: 0))
            let problem = promise.problem(result.storage, result.promises.payloads)
            // A file whose two identity blocks were hit is refused, which is right too.
            let isRefusal = problem?.hasPrefix("I1: nothing") == true
            #expect(problem == nil || isRefusal, "seed \(crashSeed &+ number): \(problem ?? "")")
            if problem == nil { loadedCount += 1 }
        }
        #expect(loadedCount > 30)
    }
}
