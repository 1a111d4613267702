import CheckpointFormat
import CheckpointRecovery
import CheckpointSimulation
import CheckpointStorage
import CheckpointWriter
import Foundation
import StorageFaults
import Synchronization
import Testing

/// Checks the invariants in the crash states of a recording.
struct CrashChecker {
    let recording: Recording
    let payloads: [UInt64: Set<Digest>]
    /// For failure reports.
    let name: String
    let seed: UInt64
    /// Every n-th state is also reopened by a real writer; 0 for none.
    var reopenInterval = 0
    /// Crash states per point at most.
    var limit = 48
    /// Reopened files are not crashed again.
    var isNested = false
    /// The bug of the medium below the writer that reopens files.
    var plantedBug: PlantedBug?
    /// Given what breaks an invariant, instead of a failed test: for writers with planted bugs.
    var onProblem: ((String) -> Void)?
    private(set) var stateCount = 0
    private let memo = RecoveryMemo()

    init(_ recording: Recording, _ payloads: [UInt64: Set<Digest>], name: String, seed: UInt64) {
        self.recording = recording
        self.payloads = payloads
        self.name = name
        self.seed = seed
    }

    /// Stops at the first state that breaks an invariant.
    mutating func checkAll() throws {
        for point in recording.crashPoints {
            guard try check(point) else { return }
        }
    }

    /// Only the power cut after everything.
    mutating func checkEnd() throws { _ = try check(recording.end) }

    private mutating func check(_ point: Recording.CrashPoint) throws -> Bool {
        let states = CrashStates(recording, at: point, seed: seed)
        let image = MemoryStorage(contents: states.durableImage())
        let promised = SequenceNumber(rawValue: point.notes.max() ?? 0)
        let generation = try CheckpointReader(storage: image).decision.highestGeneration
        let promise = Promise(sequence: promised, generation: generation)
        for fates in states.fates(limit: limit) {
            let undo = states.apply(fates, to: image)
            defer { CrashStates.revert(undo, in: image) }
            stateCount += 1
            let isReopened = reopenInterval > 0 && stateCount % reopenInterval == 0
            // Some states go the reader's own way; all go its parts, with results kept by content.
            let problem =
                stateCount % 61 == 0
                ? promise.problem(image, payloads)
                : memo.problem(image, promise, payloads)
            if let problem {
                report(problem, states, fates, image)
                return false
            }
            if isReopened {
                if let problem = CrashRepair.problem(image.contents, promise, payloads) {
                    report(problem, states, fates, image)
                    return false
                }
                try reopen(image.contents, promised, states, fates)
            }
        }
        return true
    }

    /// The process is killed at `point` and the page cache survives: a real writer opens the file,
    /// and the power is cut at any moment of that.
    mutating func checkKilled(at point: Recording.CrashPoint) throws {
        let states = CrashStates(recording, at: point, seed: seed)
        let storage = RecordingStorage(contents: states.durableImage())
        let promised = point.notes.max() ?? 0
        storage.note(promised)
        for index in point.pending {
            let write = recording.writes[index]
            guard !write.bytes.isEmpty else { continue }
            try storage.writeBlocks(write.bytes, at: UInt64(write.offset))
        }
        let writer = try CheckpointWriter(
            storage: FaultyStorage.plant(plantedBug, in: storage), options: SmallFile.options())
        storage.note(writer.statistics.newestDurableSequence.rawValue)
        writer.abandon()
        var second = CrashChecker(
            storage.recording, payloads,
            name: "\(name), killed after \(point.eventCount) events and reopened",
            seed: seed &+ 2)
        second.limit = 24
        second.reopenInterval = 4
        second.isNested = true
        second.plantedBug = plantedBug
        second.onProblem = onProblem
        try second.checkAll()
        stateCount += second.stateCount
    }

    /// A real writer opens the crashed file and goes on; the second crash is checked as well.
    private mutating func reopen(
        _ contents: [UInt8], _ promised: SequenceNumber, _ states: CrashStates,
        _ fates: [WriteFate]
    ) throws {
        let storage = RecordingStorage(contents: contents)
        storage.note(promised.rawValue)
        let before = try CheckpointReader(storage: storage).decision
        let script = Script(inFlight: 1, retain: 1, operations: [], plantedBug: plantedBug)
        var runner = ScriptRunner(script: script, contents: [])
        runner.storage = storage
        runner.promises.add(payloads)
        runner.observe()
        let writer = try runner.open()
        // What the writer goes on from must load, whatever else is on the file.
        let adopted = Promise(
            sequence: max(promised, writer.statistics.newestDurableSequence),
            generation: before.highestGeneration
        ).problem(storage, payloads)
        let payload = SmallFile.payload(step: 1_000_003)
        let ticket = try writer.save(
            step: 1_000_003, payload: CheckpointPayload(opaque: payload))
        runner.promises.began(ticket, payload)
        let outcome = try ticket.wait(timeoutNanoseconds: 20_000_000_000)
        try writer.close()
        let after = try CheckpointReader(storage: storage).decision
        var problem = adopted
        if outcome != .durable { problem = "a save after reopening ended as \(outcome)" }
        if ticket.sequence <= max(promised, before.highestSequence) {
            problem = "I3: sequence \(ticket.sequence) follows \(before.highestSequence)"
        }
        if after.highestGeneration <= before.highestGeneration {
            problem =
                "I3: generation \(after.highestGeneration) follows "
                + "\(before.highestGeneration)"
        }
        problem =
            problem
            ?? Promise(sequence: ticket.sequence, generation: after.highestGeneration)
            .problem(storage, runner.promises.payloads)
        if let problem { report(problem, states, fates, MemoryStorage(contents: contents)) }
        if isNested { return }
        var second = CrashChecker(
            storage.recording, runner.promises.payloads,
            name: name + ", then a crash after reopening", seed: seed &+ 1)
        second.limit = 12
        second.onProblem = onProblem
        try second.checkAll()
        stateCount += second.stateCount
    }

    private func report(
        _ problem: String, _ states: CrashStates, _ fates: [WriteFate], _ image: MemoryStorage
    ) {
        if let onProblem { return onProblem(problem) }
        let path = FileManager.default.temporaryDirectory
            .appendingPathComponent("pccheck-crash-\(UUID().uuidString).pcc").path
        _ = FileManager.default.createFile(atPath: path, contents: Data(image.contents))
        Issue.record(
            """
            \(problem)
              script: \(name)
              after \(states.point.eventCount) events: \(states.describe(fates))
              the image: pcfsck --verify full \(path)
              replay: PCCHECK_CRASH_SEED=\(seed) swift test --filter CrashConsistencyTests
            """)
    }
}

/// The seed of a run: fixed, unless the environment asks for another.
let crashSeed: UInt64 =
    ProcessInfo.processInfo.environment["PCCHECK_CRASH_SEED"].flatMap { UInt64($0) } ?? 20_260_101

/// How much longer than in CI to look.
let crashScale: Int =
    ProcessInfo.processInfo.environment["PCCHECK_CRASH_SCALE"].flatMap { Int($0) } ?? 1
