internal import ArgumentParser
internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage
internal import CheckpointWriter

/// `pccheck bench`: measures the engine on this machine, against limits measured in the same run.
struct BenchCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "bench",
        abstract: "Measure this machine: throughput, loads, staging, a training loop.",
        discussion: """
            Every ratio compares two figures that were taken in turn in one run. fio is used as \
            the limit when it is installed; a plain O_DIRECT writer always. Files are made in \
            --directory, on the file system to be measured, and removed again. Without --only, \
            all of them run, in a few minutes; a part that needs more disk space or memory than is \
            available ends with an error before it begins.

            durable, load: against fio. loop: a training loop, with a processor that rests or \
            works. open: recovery from metadata. device: state on a CUDA device, against fio and \
            a plain copy; only when it is named, as it needs one.

            Exit status: 0 done, 8 it failed, 16 usage, 32 cancelled.
            """)

    enum Part: String, CaseIterable, ExpressibleByArgument {
        case durable, load, loop, open, device
    }

    @Option(help: .of("path", "Where the files go."), completion: .directory)
    var directory = "."

    @Option(parsing: .upToNextOption, help: "What to measure (default: all but device).")
    var only: [Part] = []

    @Flag(help: "Use every fio setting, and run every case of the loop.")
    var full = false

    @Option(
        parsing: .upToNextOption,
        help: .of("sizes", "Bytes of one checkpoint (default: 1GiB 256MiB 64MiB 4MiB)."))
    var size: [ByteSize] = []

    @Option(help: .of("n", "Rounds; medians are reported (default: 5; loop 3)."))
    var rounds: Int?

    @OptionGroup(title: "Engine")
    var engine: EngineOptions

    @OptionGroup(title: "Parts")
    var parts: PartOptions

    @Flag(help: "Print JSON; pccheck(1) has its schema.")
    var json = false

    /// How the engine is set up.
    struct EngineOptions: ParsableArguments {
        @Option(help: "How the files are written.")
        var backend = BackendArgument(.automatic)

        @Option(help: "How chunks are compressed.")
        var codec = CodecArgument(.none)

        @Option(help: .of("size", "Unit of I/O and checksums."))
        var chunk: ByteSize = "4MiB"

        @Option(
            parsing: .upToNextOption,
            help: .of("n", "Checkpoints in flight (default: 1; loop 1 2)."))
        var inFlight: [Int] = []

        @Option(help: .of("size", "Bytes of the staging pool (default: one slot up to 2 GiB)."))
        var pool: ByteSize?

        @Option(help: .of("n", "Threads that compress and write chunks."))
        var writerWorkers = WriterOptions().writerWorkerCount

        @Option(help: .of("n", "Writes that each of them keeps under way, where the back end can."))
        var queueDepth = WriterOptions().writeQueueDepth

        @Option(
            help: .of(
                "n", "Threads that copy and digest state (default: 1 to 4, by the processors)."))
        var snapshotWorkers: Int?

        @Option(help: .of("n", "Threads that read and verify chunks."))
        var readWorkers = CheckpointReader.defaultWorkerCount
    }

    /// What belongs to single parts.
    struct PartOptions: ParsableArguments {
        @Option(help: "durable, load: none, or a set of fio settings: quick|full.")
        var fioSettings: Fio.Selection?

        @Option(help: .of("size", "loop: bytes of state."))
        var loopSize: ByteSize = "256MiB"

        @Option(help: .of("n", "loop: steps."))
        var loopSteps = 60

        @Option(help: .of("n", "loop: milliseconds of one step."))
        var stepMilliseconds = 50

        @Option(
            parsing: .upToNextOption,
            help: .of("n", "loop: save every so many steps (default: 1 5 10)."))
        var interval: [Int] = []

        @Option(parsing: .upToNextOption, help: "loop: what a save does that finds no slot.")
        var policy: [LoopPolicy] = []

        @Option(
            parsing: .upToNextOption,
            help: "loop: the processor rests in a step, or multiplies matrices.")
        var step: [StepKind] = []
    }

    func validate() throws {
        func check(_ isValid: Bool, _ message: String) throws {
            if !isValid { throw ValidationError(message) }
        }
        try check((1...1000).contains(rounds ?? 1), "--rounds is 1 to 1000.")
        try check(parts.interval.allSatisfy { (1...1000).contains($0) }, "--interval is 1 to 1000.")
        try check((1...100_000).contains(parts.loopSteps), "--loop-steps is 1 to 100000.")
        try check(
            (1...10_000).contains(parts.stepMilliseconds), "--step-milliseconds is 1 to 10000.")
        let counts = [
            engine.snapshotWorkers ?? 1, engine.writerWorkers, engine.queueDepth,
            engine.readWorkers,
        ]
        try check(
            counts.allSatisfy { (1...64).contains($0) }, "Worker counts and depths are 1 to 64.")
        try check(
            engine.inFlight.allSatisfy { Limits.inFlightCount.contains($0) },
            "--in-flight is 1 to 64.")
        let chunk = engine.chunk.byteCount
        try check(
            chunk % (64 << 10) == 0 && (1...(256 << 20)).contains(chunk),
            "--chunk is a multiple of 64K up to 256M.")
        let sizes = (size + [parts.loopSize]).map(\.byteCount)
        try check(
            sizes.allSatisfy { ((64 << 10)...(1 << 40)).contains($0) },
            "Sizes are 64KiB to 1TiB.")
        let longest = parts.interval.max() ?? 10
        let hasLoop = only.isEmpty || only.contains(.loop)
        try check(
            !hasLoop || longest <= parts.loopSteps,
            "Every \(longest) steps saves nothing in \(parts.loopSteps); use more --loop-steps or "
                + "a smaller --interval.")
    }

    private func makeSettings() -> BenchSettings {
        func given<Value>(_ values: [Value]) -> [Value]? { values.isEmpty ? nil : values }
        var settings = BenchSettings()
        settings.directory = directory
        settings.isFull = full
        settings.byteCounts =
            given(size.map(\.byteCount)) ?? [1 << 30, 256 << 20, 64 << 20, 4 << 20]
        settings.roundCount = rounds ?? 5
        settings.chunkByteCount = Int(engine.chunk.byteCount)
        settings.inFlightCounts = given(engine.inFlight)
        settings.writerOptions.backend = engine.backend.backend
        settings.writerOptions.codec = engine.codec.codec
        settings.writerOptions.poolByteCount = engine.pool?.byteCount
        settings.writerOptions.writerWorkerCount = engine.writerWorkers
        settings.writerOptions.writeQueueDepth = engine.queueDepth
        settings.writerOptions.snapshotWorkerCount = engine.snapshotWorkers
        settings.readerWorkerCount = engine.readWorkers
        settings.fio = parts.fioSettings ?? (full ? .full : .quick)
        settings.loopByteCount = parts.loopSize.byteCount
        settings.loopStepCount = parts.loopSteps
        settings.stepMilliseconds = parts.stepMilliseconds
        settings.intervals = given(parts.interval)
        settings.policies = given(parts.policy)
        settings.stepKinds = given(parts.step)
        return settings
    }

    func execute() throws -> ExitStatus {
        let settings = makeSettings()
        let header = try BenchHeader(settings)
        if !json { show(header.lines) }
        var members = [
            JSONValue.Member(key: "machine", value: header.machine),
            JSONValue.Member(key: "settings", value: header.configuration),
        ]
        for part in Part.allCases {
            guard only.isEmpty ? part != .device : only.contains(part) else {
                members.append(.init(key: part.rawValue, value: .null))
                continue
            }
            let section = try measure(part, settings)
            members.append(.init(key: part.rawValue, value: section.json))
            if !json { show(section.lines) }
        }
        if Output.diagnostics.isTerminal { Output.diagnostics.redraw("") }
        if json { Output.standard.write(JSONValue.document(tool: "pccheck bench", members).bytes) }
        return .clean
    }

    private func measure(
        _ part: Part, _ settings: BenchSettings
    ) throws(CheckpointError) -> any BenchSection {
        var settings = settings
        if part == .loop { settings.roundCount = rounds ?? 3 }
        let runner = BenchRunner(settings: settings, progress: showProgress)
        switch part {
        case .durable: return try runner.measureDurable()
        case .load: return try runner.measureLoad()
        case .loop: return try runner.measureLoop()
        case .open: return try runner.measureOpen()
        case .device: return try runner.measureDevice()
        }
    }

    /// What is finished is shown at once: the next part may take minutes.
    private func show(_ lines: [StyledText]) {
        if Output.diagnostics.isTerminal { Output.diagnostics.redraw("") }
        for line in lines { Output.standard.line(line) }
        Output.standard.flush()
    }

    private func showProgress(_ what: String) throws(CheckpointError) {
        try Interruption.check()
        guard Output.diagnostics.isTerminal else { return }
        Output.diagnostics.redraw(StyledText(what + " …", .dim))
    }
}
