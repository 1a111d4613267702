internal import ArgumentParser
internal import CheckpointFormat
internal import CheckpointStorage
internal import CheckpointWriter

/// `pccheck bench`: measures the engine on this machine, against limits measured in the same run.
struct BenchCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "bench",
        abstract: "Measure this machine: throughput, staging, a training loop, recovery.",
        discussion: """
            Every ratio compares two figures of the same run. fio is used as the limit when it \
            is installed; a plain O_DIRECT writer always. Files are made in --directory, on the \
            file system to be measured, and removed again. Needs about four times --size on disk \
            and three times --size in memory.

            Exit status: 0 done, 8 it failed, 16 usage, 32 cancelled.
            """)

    enum Part: String, CaseIterable, ExpressibleByArgument { case durable, loop, open }

    @Option(help: "Where the files go.")
    var directory = "."

    @Option(help: "Bytes of one checkpoint.")
    var size: ByteSize = "1GiB"

    @Option(help: "Rounds; medians are reported.")
    var rounds = 5

    @Option(help: "What to measure; repeatable. Everything when left out.")
    var only: [Part] = []

    @Option(help: "Bytes of state in the training loop.")
    var loopSize: ByteSize = "256MiB"

    @Option(help: "Save every this many steps of the training loop.")
    var interval = 5

    @Option(help: "Threads that copy state.")
    var snapshotWorkers = 2

    @Option(help: "Threads that digest and write chunks.")
    var writerWorkers = 3

    @Flag(help: "Print JSON.")
    var json = false

    func validate() throws {
        guard (1...1000).contains(rounds) else { throw ValidationError("--rounds is 1 to 1000.") }
        guard (1...1000).contains(interval) else {
            throw ValidationError("--interval is 1 to 1000.")
        }
        guard (1...64).contains(snapshotWorkers), (1...64).contains(writerWorkers) else {
            throw ValidationError("Worker counts are 1 to 64.")
        }
        let sizes: ClosedRange<UInt64> = (64 << 10)...(1 << 40)
        guard sizes.contains(size.byteCount), sizes.contains(loopSize.byteCount) else {
            throw ValidationError("Sizes are 64KiB to 1TiB.")
        }
    }

    func execute() throws -> ExitStatus {
        var options = BenchRunner.Options()
        options.directory = directory
        options.byteCount = size.byteCount
        options.repeatCount = rounds
        options.loopByteCount = loopSize.byteCount
        options.interval = interval
        options.writerOptions.snapshotWorkerCount = snapshotWorkers
        options.writerOptions.writerWorkerCount = writerWorkers
        let runner = BenchRunner(options: options, progress: showProgress)
        let parts = only.isEmpty ? Part.allCases : only
        var report = BenchReport()
        // First, while this process has used little memory: its peak is a figure of the report.
        if parts.contains(.durable) { report.durable = try runner.measureDurable() }
        if parts.contains(.loop) { report.loop = try runner.measureLoop() }
        if parts.contains(.open) {
            for payload in [UInt64(1 << 20), size.byteCount] {
                report.open.append(try runner.measureOpen(payloadByteCount: payload))
            }
        }
        if Output.diagnostics.isTerminal { Output.diagnostics.redraw("") }
        if json {
            Output.standard.write(report.json.bytes)
        } else {
            for line in report.lines { Output.standard.line(line) }
        }
        return .clean
    }

    private func showProgress(_ what: String) throws(CheckpointError) {
        try Interruption.check()
        guard Output.diagnostics.isTerminal else { return }
        Output.diagnostics.redraw(StyledText(what + " …", .dim))
    }
}
