internal import ArgumentParser
internal import CheckpointFormat
internal import CheckpointModel
internal import CheckpointStorage

/// `pccheck goodput`: replays traces of failures and preemptions against ways to save.
struct GoodputCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "goodput",
        abstract: "Replay traces of failures and preemptions against ways to save.",
        discussion: """
            Each TRACE is replayed with every policy and every rule for its interval. The output \
            shows which part of the time was useful, with a confidence interval, and where the \
            rest was lost: blocked by checkpoints, redone after a failure, restarting, or waiting \
            for nodes. Results are shown for each trace, and pooled within spot, llm and hpc; \
            traces of different settings are never pooled. Then the command names the policies \
            against which PCcheck does not pay.

            --synthetic replays traces that a seed makes, --replications of them. The formats of \
            traces, the formulas and what is not modelled are in spec/MODEL.md. The costs are \
            yours to give: pccheck bench measures the rates of this machine.

            Exit status: 0 done, 8 a trace could not be read, 16 usage, 32 cancelled.
            """)

    @Argument(help: "Files with traces.", completion: .file())
    var trace: [String] = []

    @OptionGroup(title: "Job")
    var job: JobOptions

    @OptionGroup(title: "Costs")
    var costs: CostOptions

    @OptionGroup(title: "Policies")
    var policies: PolicyOptions

    @OptionGroup(title: "Traces")
    var traces: TraceOptions

    @OptionGroup(title: "Traces")
    var counting: CountOptions

    @OptionGroup(title: "Synthetic traces")
    var synthetic: SyntheticOptions

    @Option(help: .of("n", "Bootstrap replicates of each trace, or synthetic traces."))
    var replications = 10_000

    @Option(help: .of("share", "How much of the replicates the intervals cover."))
    var confidence = 0.95

    @Option(help: .of("n", "Whatever is random follows from it."))
    var seed: UInt64 = 1

    @OptionGroup(title: "Drawing")
    var plotOptions: PlotOptions

    @Flag(help: "Print JSON for programs.")
    var json = false

    func validate() throws {
        func check(_ isValid: Bool, _ message: String) throws {
            if !isValid { throw ValidationError(message) }
        }
        try check(!trace.isEmpty || synthetic.synthetic, "Name a trace, or give --synthetic.")
        try check(
            !plotOptions.replace || plotOptions.plot != nil, "--replace goes with --plot.")
        try check(trace.count <= 1000, "Name at most 1000 traces.")
        try check((100...1_000_000).contains(replications), "--replications is 100 to 1000000.")
        try check((0.5...0.999).contains(confidence), "--confidence is 0.5 to 0.999.")
        try check(
            policies.inFlight.allSatisfy { Limits.inFlightCount.contains($0) },
            "--in-flight is 1 to 64.")
        try check((1...1_000_000).contains(job.nodes ?? 1), "--nodes is 1 to 1000000.")
        try check(
            (1...1_000_000).contains(job.minimumNodes), "--minimum-nodes is 1 to 1000000.")
        try check(
            (1...1024).contains(counting.machineNodes ?? 1), "--machine-nodes is 1 to 1024.")
        for seconds in [job.noticeSeconds, job.settleSeconds] {
            try check((0...1e9).contains(seconds), "A notice or a delay is 0 to 10^9 seconds.")
        }
        do { try costs.machine.check() } catch { throw ValidationError("\(error.message).") }
        if synthetic.synthetic {
            do { try synthetic.trace.check() } catch { throw ValidationError("\(error.message).") }
        }
    }

    func execute() throws -> ExitStatus {
        let drawing = try plotOptions.target(isJSON: json, sources: trace)
        let study = PolicyStudy(
            candidates: policies.candidates(costs.machine),
            stepSeconds: costs.machine.stepSeconds)
        var read: [Trace] = []
        for path in trace { read += try TraceFile.traces(path, traces) }
        let runner = GoodputRunner(
            study: study, job: job, replicationCount: replications, confidence: confidence,
            seed: seed)
        var sections: [GoodputSection] = []
        for trace in read {
            sections.append(
                try runner.section(
                    trace, machineNodeCount: counting.machineNodes ?? trace.machineNodeCount))
        }
        let pooled = try runner.pooled(sections)
        if synthetic.synthetic { sections.append(try runner.section(synthetic.trace)) }
        let report = GoodputReport(command: self, sections: sections, pooled: pooled)
        if json {
            Output.standard.write(report.document.bytes)
        } else if drawing?.isOnStandardOutput != true {
            Output.standard.show { report.lines(width: $0) }
        }
        try drawing?.write(GoodputPlot(report: report).document.bytes)
        return .clean
    }
}
