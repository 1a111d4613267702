internal import ArgumentParser
internal import CheckpointFormat
internal import CheckpointModel
internal import CheckpointStorage

#if canImport(Glibc)
    internal import Glibc
#endif

/// `pccheck tune`: recommends a setting and an interval for a machine that was measured.
struct TuneCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "tune",
        abstract: "Recommend in flight, chunk, workers, pool, codec and interval.",
        discussion: """
            The rates of the machine are measured first, in under a minute, with files in \
            --directory that are removed again. --save-profile keeps them, and --profile reads \
            them instead of measuring: also those of another machine, or of your own \
            measurements. The output shows the recommendation, what it costs, how sure that is, \
            what limits, and what would change it. spec/MODEL.md has the form of a profile, every \
            formula, and how each term is measured.

            The options of "Fixed" are taken as they are, and the rest is recommended. With all \
            of them, the output is the prediction for that one setting.

            Exit status: 0 done, 8 the machine could not be measured or the profile not be read, \
            16 usage, or no setting keeps to the limits, 32 cancelled.
            """)

    @Option(
        help: .of("path", "Measure the file system of this folder (default: .)."),
        completion: .directory)
    var directory: String?

    @Option(
        help: .of("path", "Read this profile of a machine, in JSON, and measure nothing."),
        completion: .file())
    var profile: String?

    @Option(help: .of("path", "Write what was measured to this file."), completion: .file())
    var saveProfile: String?

    @OptionGroup(title: "Job")
    var jobOptions: JobOptions

    @OptionGroup(title: "Job")
    var traces: TraceOptions

    @OptionGroup(title: "Limits")
    var limits: LimitOptions

    @OptionGroup(title: "Fixed")
    var fixed: FixedOptions

    @Option(help: .of("share", "How much of the replicates the intervals cover."))
    var confidence = 0.95

    @Option(help: .of("n", "Whatever is random follows from it."))
    var seed: UInt64 = 1

    @OptionGroup(title: "Drawing")
    var plotOptions: PlotOptions

    @Flag(help: "Print JSON for programs.")
    var json = false

    func validate() throws {
        guard (jobOptions.mtbfSeconds == nil) != (jobOptions.trace == nil) else {
            throw ValidationError("Give either --mtbf-seconds or --trace.")
        }
        guard jobOptions.trace != nil || (traces.traceNodes == nil && traces.traceDays == nil)
        else {
            throw ValidationError("--trace-nodes and --trace-days belong to --trace.")
        }
        if plotOptions.replace, plotOptions.plot == nil, saveProfile == nil {
            throw ValidationError("--replace goes with --plot or --save-profile.")
        }
        if let saveProfile, let plot = plotOptions.plot, OutputPath.areSame(saveProfile, plot) {
            throw ValidationError("--plot and --save-profile name the same file.")
        }
        guard profile != nil else { return }
        if directory != nil || saveProfile != nil {
            throw ValidationError(
                "With --profile nothing is measured; leave out --directory and --save-profile.")
        }
    }

    func execute() throws -> ExitStatus {
        let drawing = try plotOptions.target(
            isJSON: json, sources: inputs + [saveProfile].compactMap { $0 })
        var request = limits.request
        request.confidence = confidence
        request.seed = seed
        request.fixed = fixed.choices
        // What cannot be used is reported before a minute of measuring.
        var job = jobOptions.job
        try tuning { () throws(TuningError) in
            try request.check()
            try job.check()
        }
        var notes: [String] = []
        let rate = try jobOptions.trace.map { path throws(CheckpointError) in
            try TraceFailures(path: path, options: traces, job: job, request: request)
                .rate(&notes)
        }
        if let rate {
            job.meanTimeBetweenFailuresSeconds = rate.meanSeconds
            job.failureReplicates = rate.replicates
            try tuning { () throws(TuningError) in try job.check() }
        }
        let machine = try machineProfile()
        let found = try tuning { () throws(TuningError) in
            try Recommendation(profile: machine.profile, job: job, request: request)
        }
        let report = TuneReport(
            job: job, request: request, found: found, rate: rate, notes: machine.notes + notes)
        if json {
            Output.standard.write(report.document.bytes)
        } else if drawing?.isOnStandardOutput != true {
            Output.standard.show { report.lines(width: $0) }
        }
        try drawing?.write(TunePlot(profile: machine.profile, report: report).document.bytes)
        return .clean
    }

    private var inputs: [String] { [profile, jobOptions.trace].compactMap { $0 } }

    private func tuning<Value>(
        _ body: () throws(TuningError) -> Value
    ) throws(CheckpointError) -> Value {
        do throws(TuningError) {
            return try body()
        } catch {
            throw CheckpointError(.invalidArgument, error.message)
        }
    }

    private func machineProfile() throws(CheckpointError) -> MachineProbe.Result {
        guard let profile else { return try measuredProfile() }
        let bytes = try InputFile.bytes(
            profile, limit: TuningLimits.profileByteCount, "the largest profile that is read")
        do throws(TuningError) {
            return MachineProbe.Result(profile: try ProfileReader.profile(bytes), notes: [])
        } catch {
            throw CheckpointError(.inputOutput, "\(profile): \(error.message)")
        }
    }

    private func measuredProfile() throws(CheckpointError) -> MachineProbe.Result {
        // Where it cannot be written, that is known before a minute is over.
        let output = try saveProfile.map { path throws(CheckpointError) in
            guard try [nil, S_IFREG].contains(OutputPath.kind(path)), path != "-" else {
                throw CheckpointError(
                    .invalidArgument,
                    "\(path) is no regular file; give the name of a new file")
            }
            return try DocumentTarget(path, replaces: plotOptions.replace, sources: inputs)
        }
        let bar = ProgressBar("measuring this machine", total: 100, .percent)
        defer { bar.finish() }
        let other = jobOptions.job.otherDeviceBytesPerSecond
        let found = try MachineProbe(directory: directory ?? ".", otherBytesPerSecond: other) {
            share throws(CheckpointError) in
            try Interruption.check()
            bar.update(UInt64(share * 100))
        }.run()
        try output?.write(found.profile.json.bytes)
        return found
    }
}

extension TuneCommand {
    /// What is saved, and what runs meanwhile.
    struct JobOptions: ParsableArguments {
        @Option(help: .of("size", "State that one rank saves."))
        var state: ByteSize

        @Option(help: .of("s", "One step of training without checkpoints, in seconds."))
        var stepSeconds: Double

        @Option(help: .of("s", "Mean time between the failures that hit the job, in seconds."))
        var mtbfSeconds: Double?

        @Option(
            help: .of("path", "Take that time from a trace that `pccheck goodput` reads."),
            completion: .file())
        var trace: String?

        @Option(help: .of("s", "From a failure until training continues, in seconds."))
        var restartSeconds = 120.0

        @Option(help: .of("n", "Ranks of the job, on all machines."))
        var ranks = 1

        @Option(help: .of("n", "Ranks that share one machine and its device."))
        var ranksPerMachine = 1

        @Option(help: .of("n", "Durable checkpoints that stay."))
        var retain = 1

        @Option(help: .of("n", "Processors of one machine that training keeps busy."))
        var busyProcessors = 0.0

        @Option(help: .of("size", "Bytes per second that training moves in memory."))
        var memoryUse: ByteSize = "0"

        @Option(
            help: .of(
                "size",
                "Bytes per second of other load on the device; reads of the probe make it up."))
        var otherLoad: ByteSize = "0"

        @Option(help: .of("share", "Part of a step after a save that does not change the state."))
        var overlap = 0.0

        @Option(help: .of("share", "Measured: how much longer a step is with a save in flight."))
        var slowdown: Double?

        var job: MachineJob {
            var job = MachineJob(
                stateByteCount: Double(state.byteCount), stepSeconds: stepSeconds,
                // Any one, until the trace is read.
                meanTimeBetweenFailuresSeconds: mtbfSeconds ?? 1)
            job.restartSeconds = restartSeconds
            job.rankCount = ranks
            job.ranksPerMachine = ranksPerMachine
            job.retainCount = retain
            job.busyProcessorCount = busyProcessors
            job.memoryBytesPerSecond = Double(memoryUse.byteCount)
            job.otherDeviceBytesPerSecond = Double(otherLoad.byteCount)
            job.overlapShare = overlap
            job.slowdown = slowdown
            return job
        }
    }

    /// What the recommendation may cost.
    struct LimitOptions: ParsableArguments {
        @Option(help: .of("share", "How much longer the loop may take."))
        var budget = 0.03

        @Option(help: .of("size", "Disk for checkpoints of one machine (default: no limit)."))
        var disk: ByteSize?

        @Option(help: .of("size", "Memory for checkpoints of one machine (default: no limit)."))
        var memory: ByteSize?

        @Option(help: .of("n", "Most checkpoints in flight."))
        var inFlight = 64

        @Option(help: .of("n", "Writes of one worker under way: more than 1 with io_uring."))
        var writesPerWorker = 1

        var request: TuningRequest {
            var request = TuningRequest(budget: budget)
            if let disk { request.diskByteCount = min(1e18, Double(disk.byteCount)) }
            if let memory { request.memoryByteCount = min(1e18, Double(memory.byteCount)) }
            request.inFlightCount = inFlight
            request.writesPerWorker = writesPerWorker
            return request
        }
    }

    /// What was chosen already.
    struct FixedOptions: ParsableArguments {
        @Option(help: .of("n", "Checkpoints in flight."))
        var fixInFlight: Int?

        @Option(help: .of("size", "Unit of I/O and checksums."))
        var fixChunk: ByteSize?

        @Option(help: .of("n", "Writer workers."))
        var fixWorkers: Int?

        @Option(help: .of("size", "Staging pool of one rank."))
        var fixPool: ByteSize?

        @Option(help: "How chunks are compressed.")
        var fixCodec: CodecArgument?

        @Option(help: .of("n", "Steps between two checkpoints, whatever they cost."))
        var fixInterval: Int?

        var choices: FixedChoices {
            var choices = FixedChoices()
            choices.inFlightCount = fixInFlight
            choices.chunkByteCount = fixChunk.map { Int(clamping: $0.byteCount) }
            choices.writerWorkerCount = fixWorkers
            choices.poolByteCount = fixPool.map { Double($0.byteCount) }
            choices.codec = fixCodec.flatMap { MachineCodec(rawValue: $0.codec.label) }
            choices.intervalSteps = fixInterval
            return choices
        }
    }
}
