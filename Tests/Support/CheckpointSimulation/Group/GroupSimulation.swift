internal import CheckpointFormat
internal import CheckpointGroup
internal import CheckpointRecovery
internal import CheckpointStorage
internal import CheckpointWriter
internal import StorageFaults

/// Mistakes of a group's ranks, so that the simulation can prove that it would find them.
package enum GroupMistake: String, CaseIterable, Sendable {
    /// A rank takes its own durable part for a checkpoint that is durable on all ranks.
    case verdictOfOneRank
    /// A rank reports its part as durable when it is staged.
    case verdictOfStaged
    /// A rank that finds no slot leaves the save out, and the others do not hear of it.
    case skipAlone
    /// Ranks save before all of them have begun the attempt.
    case attemptOfOneRank
    /// A restart takes the oldest of the ranks' newest steps.
    case oldestOfNewest
    /// A restart takes a step for a name.
    case stepAlone
    /// A restart that rejects a checkpoint takes the next one of the same decision.
    case decideOnce
}

/// A job of two or three ranks, each with a real writer and a file of its own, over a few restarts.
/// Ranks are killed alone or together, at any moment; saves fail; the job continues on the same or
/// on another number of ranks, or goes back. Everything follows from a seed.
package struct GroupSimulation {
    /// One rank's file, by the number of ranks.
    struct FileKey: Hashable {
        let rank: UInt32
        let worldSize: UInt32
    }

    private let mistake: GroupMistake?
    private let scheduler: SimulatedScheduler
    private let inFlight: Int
    private let retain: Int
    /// The job changes its number of ranks at every restart, after a power cut, often in the only
    /// save of an attempt, and misses a file of the ranks that it changes to: what a torn
    /// checkpoint falls back to may be in there.
    private let isMoving: Bool
    private let history = GroupHistory()
    private var random: SplitMix64
    /// What is on the media.
    private var files: [FileKey: [UInt8]] = [:]
    private var report = SimulationReport()

    /// Runs one seed to its end, or to the first violation of GROUP.md.
    package static func run(seed: UInt64, mistake: GroupMistake? = nil) -> SimulationReport {
        let scheduler = SimulatedScheduler(
            seed: seed, name: "replay: simulate --groups --seed \(seed)")
        return scheduler.during {
            var simulation = GroupSimulation(seed, mistake, scheduler)
            simulation.run()
            var report = simulation.report
            report.turnCount = scheduler.turnCount
            report.trace = scheduler.trace
            return report
        }
    }

    private init(_ seed: UInt64, _ mistake: GroupMistake?, _ scheduler: SimulatedScheduler) {
        self.mistake = mistake
        self.scheduler = scheduler
        random = SplitMix64(seed: seed ^ 0x6007_0000)
        inFlight = .random(in: 1...3, using: &random)
        retain = .random(in: 1...2, using: &random)
        isMoving = seed % 4 == 0
    }

    private mutating func run() {
        var worldSize = UInt32.random(in: 2...3, using: &random)
        for number in 1...Int.random(in: isMoving ? 4...8 : 2...5, using: &random) {
            if isMoving || UInt8.random(in: 0..<4, using: &random) == 0 {
                worldSize = 5 - worldSize
            }
            restart(on: worldSize)
            report.runCount = number
            if report.violation != nil { return }
        }
    }

    private mutating func fail(_ problem: String) { report.violation = report.violation ?? problem }

    // MARK: Restarting

    private mutating func restart(on worldSize: UInt32) {
        let hidden = hiddenFile(worldSize)
        let visible = files.filter { $0.key != hidden }
        let reports = visible.keys.sorted { ($0.worldSize, $0.rank) < ($1.worldSize, $1.rank) }
            .map { Self.report($0, visible[$0] ?? []) }
        report.stateCount += reports.count
        guard let start = choose(reports, visible, isHiding: hidden != nil) else { return }
        // Its rank has no file to write.
        if report.violation != nil || hidden?.worldSize == worldSize { return }
        runAttempt(worldSize, start)
    }

    /// Now and then a file cannot be reached in a restart, and can in the next.
    private mutating func hiddenFile(_ worldSize: UInt32) -> FileKey? {
        guard UInt8.random(in: 0..<(isMoving ? 2 : 6), using: &random) == 0 else { return nil }
        return files.keys.filter { !isMoving || $0.worldSize == worldSize }
            .sorted { ($0.worldSize, $0.rank) < ($1.worldSize, $1.rank) }
            .randomElement(using: &random)
    }

    static func report(_ key: FileKey, _ contents: [UInt8]) -> GroupReport {
        let path = RankFileName(rank: key.rank, worldSize: key.worldSize).map { "\($0)" } ?? ""
        do throws(CheckpointError) {
            let reader = try CheckpointReader(storage: MemoryStorage(contents: contents))
            return .file(GroupFileReport(path: path, reader.decision))
        } catch {
            return .failure(path: path, message: error.message)
        }
    }

    /// A checkpoint that a restart may continue from.
    private struct Choice {
        let name: GroupCheckpointName
        let worldSize: UInt32
        let parts: [GroupDecision.Part]

        init(_ checkpoint: GroupDecision.Checkpoint, also parts: [GroupDecision.Part] = []) {
            name = checkpoint.name
            worldSize = checkpoint.worldSize
            self.parts = checkpoint.parts + parts
        }
    }

    /// Where an attempt begins.
    private struct Start {
        let attempt: UInt64
        var base: Choice?
        var complete: [Choice] = []
    }

    /// - Returns: nil when the restart fails, as it should.
    private mutating func choose(
        _ reports: [GroupReport], _ visible: [FileKey: [UInt8]], isHiding: Bool
    ) -> Start? {
        let floor = history.acknowledged
        var rejected: [GroupDecision.Rejection] = []
        while true {
            let decision = GroupSelection.decide(
                reports, rejected: mistake == .decideOnce ? [] : rejected)
            guard let attempt = decision.nextAttempt else {
                fail("there is no number for the next attempt")
                return nil
            }
            if case .refuse(let lost) = decision.outcome {
                if !isHiding {
                    fail("the restart is refused for \(lost.map { "\($0)" } ?? "a file")")
                }
                return nil
            }
            var candidates = decision.checkpoints.filter(\.isComplete).map { Choice($0) }
            if let mistake { candidates = mistaken(mistake, decision) ?? candidates }
            candidates.removeAll { candidate in rejected.contains { $0.name == candidate.name } }
            guard let first = candidates.first else {
                if let floor {
                    fail("G1: \(floor) was durable on all ranks, and nothing can be loaded")
                    return nil
                }
                return Start(attempt: attempt)
            }
            // Not yet loaded: verified, or rejected by all ranks together.
            if let problem = load(first, visible) {
                guard problem.isDamage else {
                    fail(problem.text)
                    return nil
                }
                rejected.append(.init(first.name, .damaged))
                continue
            }
            if let floor, first.name < floor {
                fail(
                    "G1: \(floor) was durable on all ranks, and the restart is from \(first.name)"
                        + (isHiding ? ", with a file hidden" : ""))
                return nil
            }
            return rewound(Start(attempt: attempt, base: first, complete: candidates), visible)
        }
    }

    /// Sometimes training goes back on purpose, to what it can load.
    private mutating func rewound(_ start: Start, _ visible: [FileKey: [UInt8]]) -> Start {
        guard start.complete.count > 1, UInt8.random(in: 0..<6, using: &random) == 0,
            load(start.complete[1], visible) == nil
        else { return start }
        var back = start
        back.base = start.complete[1]
        back.complete.removeFirst()
        history.goesBack(to: start.complete[1].name)
        return back
    }

    private func mistaken(
        _ mistake: GroupMistake, _ decision: GroupDecision
    ) -> [Choice]? {
        switch mistake {
        case .verdictOfOneRank, .verdictOfStaged, .skipAlone, .attemptOfOneRank, .decideOnce: nil
        case .oldestOfNewest: oldestOfNewest(decision)
        case .stepAlone: stepAlone(decision)
        }
    }

    private func oldestOfNewest(_ decision: GroupDecision) -> [Choice]? {
        guard let world = decision.checkpoints.first?.worldSize else { return nil }
        let newest = (0..<world).compactMap { rank in
            decision.checkpoints.first { $0.parts.contains { $0.rank == rank } }
        }
        return newest.min { $0.name < $1.name }.map { [Choice($0)] }
    }

    /// Each rank has the step in some attempt.
    private func stepAlone(_ decision: GroupDecision) -> [Choice]? {
        for checkpoint in decision.checkpoints {
            var others: [GroupDecision.Part] = []
            for other in decision.checkpoints
            where other.name.step == checkpoint.name.step
                && other.worldSize == checkpoint.worldSize
            {
                others += other.parts.filter { part in
                    !(checkpoint.parts + others).contains { $0.rank == part.rank }
                }
            }
            let choice = Choice(checkpoint, also: others)
            if UInt32(choice.parts.count) == choice.worldSize { return [choice] }
        }
        return nil
    }

    private struct Problem {
        let text: String
        /// A part that no superblock vouched for did not verify.
        var isDamage = false
    }

    /// What every rank does with the checkpoint that was chosen.
    private func load(
        _ checkpoint: Choice, _ visible: [FileKey: [UInt8]]
    ) -> Problem? {
        guard UInt32(checkpoint.parts.count) == checkpoint.worldSize else {
            return Problem(text: "G2: not every rank has \(checkpoint.name)")
        }
        for part in checkpoint.parts {
            let key = FileKey(rank: part.rank, worldSize: checkpoint.worldSize)
            do throws(CheckpointError) {
                let reader = try CheckpointReader(
                    storage: MemoryStorage(contents: visible[key] ?? []))
                guard
                    let candidate = reader.decision.candidates.first(where: {
                        $0.sequence == part.sequence
                    })
                else { return Problem(text: "G2: \(part.path) has no sequence \(part.sequence)") }
                let selected = try reader.select(candidate)
                defer { selected.close() }
                let digest = try ResumeTrial.load(selected)
                if let problem = history.problem(checkpoint.name, key, digest) {
                    return Problem(text: problem)
                }
            } catch {
                let isNamed = part.reason == .anchored || part.reason == .retained
                return Problem(
                    text: "\(part.path): \(error), of \(checkpoint.name)", isDamage: !isNamed)
            }
        }
        return nil
    }

    // MARK: An attempt

    private mutating func runAttempt(_ worldSize: UInt32, _ start: Start) {
        let keys = (0..<worldSize).map { FileKey(rank: $0, worldSize: worldSize) }
        for key in keys where files[key] == nil {
            files[key] = Self.newFile(key, inFlight: inFlight, retain: retain)
        }
        let isShort = isMoving && start.attempt.isMultiple(of: 2)
        let run = GroupRun(
            keys.map { RecordingStorage(contents: files[$0] ?? []) }, keys, history, scheduler,
            mistake, attempt: start.attempt, seed: random.next(), mostSaves: isShort ? 1 : 8)
        run.run { key in Self.attempt(start, key) }
        report.savedCount += run.savedCount
        report.durableCount += run.completeCount
        report.faultCount += run.faultCount
        if let problem = run.problem { fail(problem) }
        for (key, medium) in zip(keys, run.media) { files[key] = afterTheEnd(of: medium) }
    }

    private static func attempt(_ start: Start, _ key: FileKey) -> GroupAttempt {
        var attempt = GroupAttempt(number: start.attempt, base: start.base?.name)
        func sequence(_ checkpoint: Choice) -> SequenceNumber? {
            guard checkpoint.worldSize == key.worldSize else { return nil }
            return checkpoint.parts.first { $0.rank == key.rank }?.sequence
        }
        attempt.baseSequence = start.base.flatMap(sequence) ?? .none
        attempt.completeSequences = Set(start.complete.compactMap(sequence))
        return attempt
    }

    private static func newFile(_ key: FileKey, inFlight: Int, retain: Int) -> [UInt8] {
        guard
            let file = try? SmallFile.file(
                inFlight: inFlight, retain: retain, chunkCount: 1, rank: key.rank,
                worldSize: key.worldSize, runUUID: ImageBuilder.uuid)
        else { preconditionFailure("the geometry of a small file is valid") }
        return file
    }

    /// A killed process leaves what it wrote; a power cut leaves of that what was flushed, and any
    /// part of the rest.
    private mutating func afterTheEnd(of medium: RecordingStorage) -> [UInt8] {
        if !isMoving, UInt8.random(in: 0..<3, using: &random) == 0 { return medium.contents }
        let recording = medium.recording
        let states = CrashStates(recording, at: recording.end, seed: random.next())
        let image = MemoryStorage(contents: states.durableImage())
        if let fates = states.fates(limit: 2).randomElement(using: &random) {
            _ = states.apply(fates, to: image)
        }
        return image.contents
    }
}

/// What the ranks saved, and what a caller of any rank knows.
final class GroupHistory: Sendable {
    private struct Part: Hashable {
        let name: GroupCheckpointName
        let key: GroupSimulation.FileKey
    }

    private struct State {
        var digests: [Part: Digest] = [:]
        /// Which run of the job saved under a name.
        var runs: [GroupCheckpointName: Int] = [:]
        var acknowledged: GroupCheckpointName?
    }

    private let state = Monitor(State())

    /// A rank is about to save a part.
    ///
    /// - Returns: what is wrong with its name.
    func saves(
        _ name: GroupCheckpointName, _ key: GroupSimulation.FileKey, _ digest: Digest, run: Int
    ) -> String? {
        state.withLock { state in
            state.digests[Part(name: name, key: key)] = digest
            let other = state.runs.updateValue(run, forKey: name)
            return other ?? run == run ? nil : "G3: two histories have \(name)"
        }
    }

    func problem(
        _ name: GroupCheckpointName, _ key: GroupSimulation.FileKey, _ digest: Digest
    ) -> String? {
        state.withLock { state in
            state.digests[Part(name: name, key: key)] == digest
                ? nil : "G2: rank \(key.rank) of \(key.worldSize) loads other bytes as \(name)"
        }
    }

    /// A caller learned that it is durable on all ranks.
    func acknowledges(_ name: GroupCheckpointName) {
        state.withLock { $0.acknowledged = max($0.acknowledged ?? name, name) }
    }

    func goesBack(to name: GroupCheckpointName) { state.withLock { $0.acknowledged = name } }

    var acknowledged: GroupCheckpointName? { state.withLock { $0.acknowledged } }
}
