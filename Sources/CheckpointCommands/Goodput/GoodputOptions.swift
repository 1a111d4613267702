internal import ArgumentParser
internal import CheckpointModel

/// A policy on the command line.
enum PolicyArgument: String, CaseIterable, ExpressibleByArgument, Sendable {
    case none
    case torchSave = "torch.save"
    case async, gemini, pccheck
}

/// What a checkpoint of a policy was measured to cost: `async=1.5,40`.
struct MeasuredCost: ExpressibleByArgument, Sendable {
    let policy: PolicyArgument
    let blockedSeconds: Double
    let writeSeconds: Double

    init?(argument: String) {
        let parts = argument.split(separator: "=", maxSplits: 1)
        guard parts.count == 2, let policy = PolicyArgument(rawValue: String(parts[0])),
            policy != .none
        else { return nil }
        let seconds = parts[1].split(separator: ",").compactMap { Double($0) }
        guard seconds.count == 2, seconds.allSatisfy({ (0...1e9).contains($0) }) else {
            return nil
        }
        self.policy = policy
        (blockedSeconds, writeSeconds) = (seconds[0], seconds[1])
    }

    func applied(to policy: Policy) -> Policy {
        MachineCosts.measured(
            policy, blockedSeconds: blockedSeconds, writeSeconds: writeSeconds)
    }
}

/// A rule for the interval on the command line: its name, or seconds.
struct IntervalArgument: ExpressibleByArgument, Sendable {
    let rule: IntervalRule

    init(_ rule: IntervalRule) { self.rule = rule }

    init?(argument: String) {
        switch argument {
        case "young": rule = .young
        case "daly": rule = .daly
        case "tuned": rule = .tuned
        default:
            guard let seconds = Double(argument), (1e-3...1e9).contains(seconds) else {
                return nil
            }
            rule = .fixed(seconds: seconds)
        }
    }

    static var allValueStrings: [String] { ["young", "daly", "tuned", "SECONDS"] }
}

extension GoodputCommand {
    /// The job that is replayed.
    struct JobOptions: ParsableArguments {
        enum Kind: String, CaseIterable, ExpressibleByArgument { case fixed, elastic }

        @Option(
            help: "It needs all of its nodes, or runs on those it gets (default: by the trace).")
        var job: Kind?

        @Option(help: .of("n", "Its nodes (default: 95 % of the trace's; elastic: all)."))
        var nodes: Int?

        @Option(help: .of("n", "The fewest nodes of an elastic job."))
        var minimumNodes = 1

        @Option(help: .of("s", "Warning before a preemption, in seconds."))
        var noticeSeconds = 0.0

        @Option(help: .of("s", "How long an elastic job waits for more nodes before it grows."))
        var settleSeconds = 300.0
    }

    /// What was measured of the machine and the job.
    struct CostOptions: ParsableArguments {
        @Option(help: .of("size", "State that one node saves."))
        var state: ByteSize = "16GiB"

        @Option(help: .of("s", "One step of training, in seconds."))
        var stepSeconds = 1.0

        @Option(help: .of("size", "Bytes per second to storage, for one node."))
        var writeRate: ByteSize = "1GB"

        @Option(help: .of("size", "The same for one checkpoint alone (default: --write-rate)."))
        var soloWriteRate: ByteSize?

        @Option(help: .of("size", "Bytes per second out of training's memory, while it waits."))
        var copyRate: ByteSize = "10GB"

        @Option(help: .of("size", "Bytes per second from storage (default: --write-rate)."))
        var readRate: ByteSize?

        @Option(help: .of("size", "Bytes per second to the memory of another node."))
        var networkRate: ByteSize = "5GB"

        @Option(help: .of("share", "How much longer a step is while a checkpoint is in flight."))
        var slowdown = 0.01

        @Option(help: .of("s", "Until a failure is noticed, in seconds."))
        var detectSeconds = 30.0

        @Option(help: .of("s", "Until a job is scheduled again and trains, without reading."))
        var rescheduleSeconds = 120.0

        @Option(help: .of("n", "gemini: copies of each state, its own among them."))
        var replicas = 2

        @Option(help: .of("s", "gemini: seconds between checkpoints on storage."))
        var storageInterval = 10_800.0

        var machine: MachineCosts {
            var machine = MachineCosts(
                stateByteCount: Double(state.byteCount), stepSeconds: stepSeconds,
                writeBytesPerSecond: Double(writeRate.byteCount),
                soloWriteBytesPerSecond: soloWriteRate.map { Double($0.byteCount) },
                copyBytesPerSecond: Double(copyRate.byteCount),
                readBytesPerSecond: Double((readRate ?? writeRate).byteCount),
                networkBytesPerSecond: Double(networkRate.byteCount), slowdown: slowdown,
                detectSeconds: detectSeconds, rescheduleSeconds: rescheduleSeconds)
            machine.replicaCount = replicas
            machine.storageIntervalSeconds = storageInterval
            return machine
        }
    }

    /// The ways to save that are compared.
    struct PolicyOptions: ParsableArguments {
        @Option(parsing: .upToNextOption, help: "Ways to save (default: all).")
        var policy: [PolicyArgument] = []

        @Option(
            parsing: .upToNextOption,
            help: .of("n", "pccheck: checkpoints in flight (default: 2 4)."))
        var inFlight: [Int] = []

        @Option(
            parsing: .upToNextOption,
            help: "How intervals are chosen, or seconds (default: daly tuned).")
        var interval: [IntervalArgument] = []

        @Option(
            parsing: .upToNextOption,
            help: .of(
                "policy=blocked,write",
                "Measured seconds of one checkpoint, in place of those from the rates."))
        var measured: [MeasuredCost] = []

        func candidates(_ machine: MachineCosts) -> [PolicyStudy.Candidate] {
            let rules = interval.isEmpty ? [.daly, .tuned] : interval.map(\.rule)
            var candidates: [PolicyStudy.Candidate] = []
            func add(_ policy: Policy, _ name: PolicyArgument) {
                let cost = measured.last { $0.policy == name }
                let policy = cost?.applied(to: policy) ?? policy
                candidates += rules.map { PolicyStudy.Candidate(policy: policy, rule: $0) }
            }
            for policy in PolicyArgument.allCases
            where self.policy.isEmpty || self.policy.contains(policy) {
                switch policy {
                case .none:
                    candidates.append(PolicyStudy.Candidate(policy: machine.nothing, rule: nil))
                case .torchSave: add(machine.blocking, policy)
                case .async: add(machine.oneInFlight, policy)
                case .gemini: add(machine.peerMemory, policy)
                case .pccheck:
                    for count in inFlight.isEmpty ? [2, 4] : inFlight {
                        add(machine.pccheck(inFlightCount: count), policy)
                    }
                }
            }
            return candidates
        }
    }

    /// How availability is counted.
    struct CountOptions: ParsableArguments {
        @Option(
            help: .of("n", "Count availability as the PCcheck paper does, in machines of n nodes."))
        var machineNodes: Int?
    }

    /// A trace that a seed makes.
    struct SyntheticOptions: ParsableArguments {
        @Flag(help: "Replay synthetic traces of failures with repair.")
        var synthetic = false

        @Option(help: .of("n", "Nodes."))
        var syntheticNodes = 400

        @Option(help: .of("days", "Length of each trace."))
        var syntheticDays = 365.0

        @Option(help: .of("n", "Failures per 1000 node-days."))
        var failureRate = 4.2

        @Option(help: .of("shape", "Weibull times between failures (default: exponential)."))
        var weibull: Double?

        @Option(help: .of("days", "Median time of a repair; it is log-normal."))
        var repairMedian = 0.85

        @Option(help: .of("days", "Mean time of a repair."))
        var repairMean = 5.5

        @Option(help: .of("share", "Part of the time with many failures."))
        var burstShare = 0.0

        @Option(help: .of("n", "How many times as many failures a burst has."))
        var burstFactor = 1.0

        @Option(help: .of("days", "Mean length of a burst."))
        var burstDays = 1.0

        @Option(help: .of("n", "Nodes that may fail together, such as a rack."))
        var groupNodes = 1

        @Option(help: .of("share", "How likely the others of the group fail with a node."))
        var groupProbability = 0.0

        var trace: SyntheticTrace {
            let day = 86_400.0
            var trace = SyntheticTrace(
                nodeCount: syntheticNodes, durationSeconds: syntheticDays * day,
                meanTimeBetweenFailuresSeconds: 1000 / failureRate * day,
                repairMedianSeconds: repairMedian * day, repairMeanSeconds: repairMean * day)
            if let weibull { trace.law = .weibull(shape: weibull) }
            trace.burstShare = burstShare
            trace.burstFactor = burstFactor
            trace.burstSeconds = burstDays * day
            trace.groupNodeCount = groupNodes
            trace.groupProbability = groupProbability
            return trace
        }
    }
}
