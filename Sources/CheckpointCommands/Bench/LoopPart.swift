internal import CheckpointFormat
internal import CheckpointStorage
internal import CheckpointWriter

/// One way to save in a training loop.
struct LoopCase: Hashable, Sendable {
    var step: StepKind
    var interval: Int
    var policy: LoopPolicy
    var inFlightCount: Int

    /// Whose policy this is, on our engine.
    var standsFor: String? {
        switch policy {
        case .synchronous: "GPM"
        case .wait where inFlightCount == 1: "CheckFreq"
        case .wait, .skip: nil
        }
    }

    /// The cases asked for; by default those that say most, in a few minutes.
    static func chosen(_ settings: BenchSettings) -> [LoopCase] {
        let isDefault =
            settings.intervals == nil && settings.policies == nil && settings.stepKinds == nil
            && settings.inFlightCounts == nil && !settings.isFull
        var cases: [LoopCase] = []
        for step in settings.stepKinds ?? StepKind.allCases {
            for interval in settings.intervals ?? [1, 5, 10] {
                for policy in settings.policies ?? LoopPolicy.allCases {
                    for count in settings.inFlightCounts ?? [1, 2] {
                        let entry = LoopCase(
                            step: step, interval: interval, policy: policy, inFlightCount: count)
                        // A caller that waits for the end has one in flight only.
                        let isRepeated =
                            policy == .synchronous
                            && count != (settings.inFlightCounts ?? [1, 2]).first
                        if !isRepeated, !isDefault || entry.isInDefaultSet { cases.append(entry) }
                    }
                }
            }
        }
        return cases
    }

    private var isInDefaultSet: Bool {
        switch (step, interval, policy, inFlightCount) {
        case (_, _, .wait, 2): true
        case (.sleep, 1, .wait, 1), (.sleep, 1, .skip, 2), (.sleep, 1, .synchronous, _): true
        case (.sleep, 5, .wait, 1): true
        default: false
        }
    }
}

/// A training loop, with and without checkpoints.
struct LoopSection: BenchSection {
    struct Entry: Sendable {
        let loopCase: LoopCase
        /// Seconds of the whole loop; the drain of what is in flight at its end is apart.
        var plain = Samples()
        var checkpointed = Samples()
        var drain = Samples()
        /// Milliseconds that one save kept the caller: waiting for a slot, and for *staged*.
        var blocked = Samples()
        /// Milliseconds from the moment that a checkpoint has its slot until it is durable.
        var durable = Samples()
        /// The same until it is staged.
        var staged = Samples()
        /// The least slowdown that the device allows when nothing is skipped.
        var deviceBound = Samples()
        /// Over all rounds.
        var wantedCount = 0
        var durableCount = 0
        var skippedCount = 0
        var supersededCount = 0

        var slowdown: Samples { checkpointed.ratios(to: plain) }
        var slowdownToBound: Samples { slowdown.ratios(to: deviceBound) }
    }

    var byteCount: UInt64
    var stepCount: Int
    var stepMilliseconds: Int
    var roundCount: Int
    /// MB/s of plain O_DIRECT writes of the state, each with its fdatasync(2), before each case.
    var bandwidth = Samples()
    var backend = ""
    var entries: [Entry] = []
}

extension BenchRunner {
    /// What the cases share.
    private struct LoopMaterial {
        let state: BenchState
        let plain: FileStorage
        let paths: [Int: String]
        let steps: [StepKind: TrainingStep]
    }

    func measureLoop() throws(CheckpointError) -> LoopSection {
        let cases = LoopCase.chosen(settings)
        let byteCount = settings.loopByteCount
        let counts = Set(cases.map(\.inFlightCount)).sorted()
        try checkSpace(
            for: "loop", byteCount: byteCount, slotCount: counts.reduce(0) { $0 + $1 + 1 },
            plainByteCount: byteCount, option: "--loop-size")
        let workspace = BenchWorkspace(directory: settings.directory)
        let material = try prepareLoop(workspace, cases, counts)
        var section = LoopSection(
            byteCount: UInt64(material.state.byteCount), stepCount: settings.loopStepCount,
            stepMilliseconds: settings.stepMilliseconds, roundCount: settings.roundCount,
            entries: cases.map { LoopSection.Entry(loopCase: $0) })
        for round in 1...settings.roundCount {
            let name = "training loop, round \(round) of \(settings.roundCount)"
            var plain: (kind: StepKind, interval: Int, seconds: Double)?
            for index in section.entries.indices {
                let loopCase = section.entries[index].loopCase
                try progress("\(name), case \(index + 1) of \(section.entries.count)")
                // Again for each group of cases, so that both sides of a ratio are close in time.
                if plain?.kind != loopCase.step || plain?.interval != loopCase.interval {
                    let elapsed = try plainLoop(material.steps[loopCase.step])
                    plain = (loopCase.step, loopCase.interval, elapsed)
                }
                let plainSeconds = plain?.seconds ?? .nan
                section.entries[index].plain.add(plainSeconds)
                // Right before each case: the device's rate moves within seconds.
                let rate = try PlainWrites.rate(
                    material.state, to: material.plain, count: 4, settings)
                section.bandwidth.add(rate)
                let writeSeconds = Double(material.state.byteCount) / rate / 1e6
                let stepSeconds = plainSeconds / Double(settings.loopStepCount)
                section.entries[index].deviceBound.add(
                    max(1, writeSeconds / (stepSeconds * Double(loopCase.interval))))
                section.backend = try run(loopCase, material, &section.entries[index])
            }
        }
        return section
    }

    private func prepareLoop(
        _ workspace: BenchWorkspace, _ cases: [LoopCase], _ counts: [Int]
    ) throws(CheckpointError) -> LoopMaterial {
        try progress("preparing the training loop")
        let state = BenchState(byteCount: settings.loopByteCount)
        let plainPath = try workspace.writePlainFile("plain", byteCount: UInt64(state.byteCount))
        var paths: [Int: String] = [:]
        for count in counts {
            paths[count] = try workspace.createFile(
                "loop-\(count)", capacity: UInt64(state.byteCount), inFlight: count,
                chunkByteCount: settings.chunkByteCount)
        }
        var steps: [StepKind: TrainingStep] = [:]
        for kind in Set(cases.map(\.step)) {
            steps[kind] = TrainingStep(kind, milliseconds: settings.stepMilliseconds)
        }
        return LoopMaterial(
            state: state, plain: try FileStorage.opened(plainPath, .write), paths: paths,
            steps: steps)
    }

    private func plainLoop(_ step: TrainingStep?) throws(CheckpointError) -> Double {
        try seconds { () throws(CheckpointError) in
            for _ in 0..<settings.loopStepCount {
                try Interruption.check()
                step?.run()
            }
        }
    }

    /// The loop once; returns the back end's name.
    private func run(
        _ loopCase: LoopCase, _ material: LoopMaterial, _ entry: inout LoopSection.Entry
    ) throws(CheckpointError) -> String {
        guard let path = material.paths[loopCase.inFlightCount],
            let step = material.steps[loopCase.step]
        else { preconditionFailure("every case was prepared") }
        var options = settings.writerOptions
        options.busyPolicy =
            loopCase.policy == .skip ? .skip : .wait(timeoutNanoseconds: nil)
        // The last round's checkpoint is of no use, and reading it would take time.
        options.trustsAnchor = true
        let writer = try CheckpointWriter(path: path, options: options)
        let run = try LoopRun(
            step, count: settings.loopStepCount, interval: loopCase.interval,
            isSynchronous: loopCase.policy == .synchronous, writer, material.state.payload)
        entry.checkpointed.add(run.seconds)
        entry.drain.add(run.drainSeconds)
        for milliseconds in run.blockedMilliseconds { entry.blocked.add(milliseconds) }
        for milliseconds in run.durableMilliseconds { entry.durable.add(milliseconds) }
        for milliseconds in run.stagedMilliseconds { entry.staged.add(milliseconds) }
        entry.wantedCount += run.outcomes.count
        for outcome in run.outcomes {
            switch outcome {
            case .durable: entry.durableCount += 1
            case .skipped: entry.skippedCount += 1
            case .superseded: entry.supersededCount += 1
            case .failed(let error): throw error
            }
        }
        let backend = writer.statistics.storageKind.name
        try writer.close()
        return backend
    }
}

/// A training loop that saves, run once.
struct LoopRun {
    /// Of the loop; what is in flight at its end is left out.
    private(set) var seconds = 0.0
    /// From the loop's end until the last checkpoint has ended.
    private(set) var drainSeconds = 0.0
    /// What each save kept the caller: waiting for a slot, and for *staged*.
    private(set) var blockedMilliseconds: [Double] = []
    private(set) var outcomes: [CheckpointOutcome] = []
    /// Of the checkpoints that became durable, from the slot on.
    private(set) var durableMilliseconds: [Double] = []
    private(set) var stagedMilliseconds: [Double] = []

    init(
        _ step: TrainingStep, count: Int, interval: Int, isSynchronous: Bool = false,
        firstStep: UInt64 = 1, _ writer: CheckpointWriter, _ payload: CheckpointPayload
    ) throws(CheckpointError) {
        var tickets: [CheckpointTicket] = []
        var blocked: [UInt64] = []
        let began = SystemClock.monotonicTime
        for number in 1...count {
            try Interruption.check()
            step.run()
            // The optimizer is about to change the state: the copy must be done.
            if let last = tickets.last, !last.isStaged {
                let waited = SystemClock.monotonicTime
                try last.waitStaged()
                blocked[blocked.count - 1] += SystemClock.monotonicTime - waited
            }
            guard number % interval == 0 else { continue }
            let called = SystemClock.monotonicTime
            let ticket = try writer.save(step: firstStep + UInt64(number), payload: payload)
            if isSynchronous { _ = try ticket.wait() }
            blocked.append(SystemClock.monotonicTime - called)
            tickets.append(ticket)
        }
        let ended = SystemClock.monotonicTime
        for ticket in tickets {
            let outcome = try ticket.wait()
            outcomes.append(outcome)
            guard outcome == .durable else { continue }
            durableMilliseconds.append(Double(ticket.durableNanoseconds) / 1e6)
            stagedMilliseconds.append(Double(ticket.stagedNanoseconds) / 1e6)
        }
        seconds = Double(ended - began) / 1e9
        drainSeconds = Double(SystemClock.monotonicTime - ended) / 1e9
        blockedMilliseconds = blocked.map { Double($0) / 1e6 }
    }
}

extension LoopSection {
    var lines: [StyledText] {
        let title =
            "Training loop: \(stepCount) steps of \(stepMilliseconds) ms, "
            + "\(Quantity.bytes(byteCount)) (\(backend); device "
            + "\(Figure.decimal(bandwidth.median, 0)) MB/s; "
            + "\(Quantity.plural(roundCount, "round")))"
        var table = TableLayout([
            .left("step"), .right("every"), .left("policy"), .right("in flight"),
            .right("slowdown"), .right("max"), .right("device bound"), .right("of bound"),
            .right("durable"), .right("skipped"), .right("blocked ms"), .right("max"),
            .left(""),
        ])
        for entry in entries {
            let loopCase = entry.loopCase
            let isSynchronous = loopCase.policy == .synchronous
            let cells: [String] = [
                loopCase.step.rawValue, "\(loopCase.interval)", loopCase.policy.rawValue,
                isSynchronous ? "—" : "\(loopCase.inFlightCount)",
                Figure.decimal(entry.slowdown.median, 3),
                Figure.decimal(entry.slowdown.maximum, 3),
                Figure.decimal(entry.deviceBound.median, 3),
                Figure.decimal(entry.slowdownToBound.median, 3),
                "\(entry.durableCount)/\(entry.wantedCount)", "\(entry.skippedCount)",
                Figure.decimal(entry.blocked.mean, 2), Figure.decimal(entry.blocked.maximum, 1),
                loopCase.standsFor.map { "as \($0)" } ?? "",
            ]
            table.add(cells.map { StyledText($0) })
        }
        return [StyledText(title, .bold)] + table.lines(width: nil) + [""]
    }

    var json: JSONValue {
        .dictionary([
            "byte_count": .integer(byteCount),
            "step_count": .count(stepCount),
            "step_milliseconds": .count(stepMilliseconds),
            "round_count": .count(roundCount),
            "backend": .string(backend),
            "device_megabytes_per_second": bandwidth.json,
            "cases": .array(entries.map(\.json)),
        ])
    }
}

extension LoopSection.Entry {
    fileprivate var json: JSONValue {
        .dictionary([
            "step": .string(loopCase.step.rawValue),
            "interval": .count(loopCase.interval),
            "policy": .string(loopCase.policy.rawValue),
            "in_flight_count": .count(loopCase.inFlightCount),
            "stands_for": .text(loopCase.standsFor),
            "plain_seconds": plain.json,
            "checkpointed_seconds": checkpointed.json,
            "drain_seconds": drain.json,
            "slowdown": slowdown.json,
            "device_bound": deviceBound.json,
            "ratio_to_device_bound": slowdownToBound.json,
            "wanted_count": .count(wantedCount),
            "durable_count": .count(durableCount),
            "skipped_count": .count(skippedCount),
            "superseded_count": .count(supersededCount),
            "durable_share": .decimal(Double(durableCount) / Double(wantedCount)),
            "blocked_milliseconds_mean": .decimal(blocked.mean),
            "blocked_milliseconds": blocked.json(withValues: false),
            "staged_milliseconds": staged.isEmpty ? .null : staged.json(withValues: false),
            "durable_milliseconds": durable.isEmpty ? .null : durable.json(withValues: false),
        ])
    }
}
