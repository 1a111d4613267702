internal import ArgumentParser
internal import CProcessor
internal import CheckpointSimulation
internal import CheckpointStorage
internal import Foundation

/// Runs seeds until there are enough of them, or one breaks an invariant.
@main struct Simulate: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract:
            "Whole runs of the writer, whose threads, faults and power cuts follow from seeds.",
        discussion: """
            Prints one line that counts what was done, and ends with status 1 and the seed when an \
            invariant of spec/TRUST.md was broken.
            """)

    @Option(help: "How many seeds to run.") var seeds = 1000
    @Option(help: "The first of them.") var first: UInt64 = 1
    @Option(help: "Run only this seed, twice, and say whether both runs were the same.")
    var seed: UInt64?
    @Option(help: "Stop after so many seconds, whatever is left; 0 for no limit.") var seconds = 0
    @Option(help: "Seeds to run at once.") var jobs = 2
    @Option(
        help: ArgumentHelp(
            "Give the medium below the writer a mistake: "
                + PlantedBug.allCases.map(\.rawValue).joined(separator: ", ")
                + "; or the device: "
                + DeviceMistake.allCases.map(\.rawValue).joined(separator: ", ")
                + "; with --groups, the ranks: "
                + GroupMistake.allCases.map(\.rawValue).joined(separator: ", ") + "."))
    var bug: String?
    @Flag(help: "Give it each of these in turn, and fail unless every one is found.") var bugs =
        false

    @Flag(help: "Simulate whole groups of ranks, each with a writer; --bug and --bugs are theirs.")
    var groups = false
    @Flag(help: "Cut the power at every store of a run on persistent memory instead.")
    var persistentMemory = false
    @Option(help: "Checkpoints of that run.") var saves = 1

    func validate() throws {
        if let bug, !allBugs.contains(bug) {
            throw ValidationError("there is no planted bug \(bug)")
        }
        guard seeds > 0, jobs > 0, saves > 0, seconds >= 0 else {
            throw ValidationError("--seeds, --jobs and --saves are at least 1, --seconds 0")
        }
    }

    func run() throws {
        if let seed { return try repeatRun(seed) }
        if bugs { return try findAllBugs() }
        if persistentMemory { return try cutPersistentMemory() }
        guard try tally(bug).summarize(groups ? "groups" : "simulation") else {
            throw ExitCode.failure
        }
    }

    private var allBugs: [String] {
        groups
            ? GroupMistake.allCases.map(\.rawValue)
            : PlantedBug.allCases.map(\.rawValue) + DeviceMistake.allCases.map(\.rawValue)
    }

    /// Runs one seed.
    private func simulation(_ bug: String?) -> @Sendable (UInt64) -> SimulationReport {
        if groups {
            let mistake = bug.flatMap(GroupMistake.init)
            return { GroupSimulation.run(seed: $0, mistake: mistake) }
        }
        let plantedBug = bug.flatMap(PlantedBug.init)
        let deviceMistake = bug.flatMap(DeviceMistake.init)
        return { Simulation.run(seed: $0, plantedBug: plantedBug, deviceMistake: deviceMistake) }
    }

    private func tally(_ bug: String?) throws -> Tally {
        let tally = Tally(first: first, count: UInt64(seeds), seconds: seconds)
        let simulation = simulation(bug)
        let threads = try (0..<jobs).map { job in
            try WorkerThread(name: "simulate-\(job)") {
                // The threads of a run take turns. A turn that goes to another processor has to
                // wake that one first, which takes longer than the turn.
                pcct_stay_on_processor(UInt32(job))
                tally.work(simulation)
            }
        }
        for thread in threads { thread.join() }
        return tally
    }

    /// Superblocks change so few words that all their subsets can be tried.
    private func cutPersistentMemory() throws {
        var cuts = try PersistentMemoryCuts(inFlight: 2, retain: 2, saveCount: saves)
        try cuts.check(sampleCount: seeds, exhaustiveLimit: 20, seed: first)
        print(
            "persistent memory: \(cuts.stateCount) states, all subsets of stores at",
            "\(cuts.exhaustiveCount) cuts, \(cuts.violation == nil ? 0 : 1) violations")
        guard let violation = cuts.violation else { return }
        print("Violation:", violation)
        throw ExitCode.failure
    }

    private func findAllBugs() throws {
        var isMissed = false
        for bug in allBugs {
            let tally = try tally(bug)
            isMissed = isMissed || tally.violation == nil
            let finding = tally.violation?.split(separator: "\n").first ?? "MISSED"
            print("\(bug): after \(tally.seedCount) seeds: \(finding)")
        }
        if isMissed { throw ExitCode.failure }
    }

    private func repeatRun(_ seed: UInt64) throws {
        let simulation = simulation(bug)
        let runs = (0..<2).map { _ in simulation(seed) }
        print(
            "seed \(seed): \(runs[0].runCount) runs, \(runs[0].turnCount) turns,",
            "\(runs[0].savedCount) saved, \(runs[0].durableCount) durable,",
            "\(runs[0].faultCount) faults, \(runs[0].stateCount) states,",
            "trace \(String(runs[0].trace, radix: 16))")
        if let violation = runs[0].violation { print("Violation:", violation) }
        if runs[0].trace != runs[1].trace { print("Violation: a second run went another way") }
        if runs[0].violation != nil || runs[0].trace != runs[1].trace { throw ExitCode.failure }
    }
}

/// Hands out seeds and adds up what they did.
private final class Tally: Sendable {
    private struct State {
        var next: UInt64
        var doneCount = 0
        var sum = SimulationReport()
        var failedSeed: UInt64?
        var shownTime: UInt64 = 0
    }

    private let state: Monitor<State>
    private let end: UInt64
    private let count: UInt64
    private let began = SystemClock.monotonicTime
    private let deadline: UInt64
    private let showsProgress = isatty(STDERR_FILENO) == 1

    init(first: UInt64, count: UInt64, seconds: Int) {
        state = Monitor(State(next: first))
        end = first &+ count
        self.count = count
        deadline = seconds == 0 ? .max : began + UInt64(seconds) * 1_000_000_000
    }

    func work(_ simulation: (UInt64) -> SimulationReport) {
        while let seed = claim() {
            let report = simulation(seed)
            state.withLock { state in
                state.doneCount += 1
                state.sum = state.sum + report
                if report.violation != nil, state.failedSeed == nil { state.failedSeed = seed }
                show(&state)
            }
        }
    }

    private func claim() -> UInt64? {
        state.withLock { state in
            guard state.failedSeed == nil, state.next != end,
                SystemClock.monotonicTime < deadline
            else { return nil }
            state.next &+= 1
            return state.next &- 1
        }
    }

    private func show(_ state: inout State) {
        let now = SystemClock.monotonicTime
        guard showsProgress, now - state.shownTime > 500_000_000 else { return }
        state.shownTime = now
        let rate = Double(state.doneCount) * 1e9 / Double(now - began)
        let line =
            "\r\(state.doneCount) of \(count) seeds, \(Int(rate)) a second, "
            + "\(state.sum.stateCount) states, \(state.sum.faultCount) faults "
        FileHandle.standardError.write(Data(line.utf8))
    }

    var violation: String? { state.withLock { $0.sum.violation } }
    var seedCount: Int { state.withLock { $0.doneCount } }

    /// Prints the line; false when something was violated.
    func summarize(_ name: String) -> Bool {
        state.withLock { state in
            if showsProgress { FileHandle.standardError.write(Data("\r\u{1B}[K".utf8)) }
            let sum = state.sum
            print(
                "\(name): \(state.doneCount) seeds, \(sum.runCount) runs,",
                "\(sum.turnCount) turns, \(sum.savedCount) checkpoints,",
                "\(sum.durableCount) durable,",
                "\(sum.faultCount) faults, \(sum.stateCount) states,",
                "\(state.failedSeed == nil ? 0 : 1) violations,",
                "\((SystemClock.monotonicTime - began) / 1_000_000_000) s")
            guard let seed = state.failedSeed, let violation = sum.violation else { return true }
            print("Violation:", violation)
            print("replay: simulate\(name == "groups" ? " --groups" : "") --seed \(seed)")
            return false
        }
    }
}
