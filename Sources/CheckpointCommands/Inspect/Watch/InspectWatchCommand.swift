internal import ArgumentParser
internal import CheckpointFormat
internal import CheckpointStorage

struct InspectWatchCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "watch",
        abstract: "A live view of a running writer: in flight, throughput, stalls.",
        discussion: """
            Reads metadata only and takes no lock. On a terminal the screen is redrawn in place; \
            q and ^C leave. Elsewhere each event is a line, and with --json also each look.

            Exit status: 0 ended as asked for, 4 the writer was gone without closing the file \
            (with --until-closed or --exit-on-stall) or stalled (with --exit-on-stall), 8 the \
            file cannot be read, 16 usage, 32 cancelled.
            """)

    @OptionGroup var options: InspectedFile

    @Option(help: .of("seconds", "Seconds between two looks."))
    var interval = 1.0

    @Option(help: .of("looks", "End after so many looks."))
    var count: UInt64?

    @Flag(help: "End when the writer has closed the file, or is gone.")
    var untilClosed = false

    @Option(
        help: .of(
            "seconds",
            "End when nothing became durable for so long while a writer has the file, or when it "
                + "is gone."))
    var exitOnStall: Double?

    @Flag(help: "Wait for a file that is not there yet.")
    var wait = false

    func validate() throws {
        guard (0.01...86_400).contains(interval) else {
            throw ValidationError("--interval is 0.01 to 86400 seconds")
        }
        if count == 0 { throw ValidationError("--count is at least 1") }
        if let exitOnStall, !(0.01...31_536_000).contains(exitOnStall) {
            throw ValidationError("--exit-on-stall is 0.01 to 31536000 seconds")
        }
    }

    func execute() throws -> ExitStatus {
        let isLive = Output.standard.isTerminal && !options.json
        return isLive ? try live() : try log()
    }

    private var intervalNanoseconds: UInt64 { UInt64(interval * 1e9) }

    /// The screen that is redrawn in place.
    private func live() throws(CheckpointError) -> ExitStatus {
        var terminal = LiveTerminal()
        var run = WatchRun(self)
        while true {
            try run.look()
            terminal.draw(
                WatchScreen(run.watch, path: options.file).lines(width: terminal.columnCount))
            if let end = run.end { return end }
            if terminal.wait(nanoseconds: intervalNanoseconds) { return .clean }
            try Self.checkCancelled()
        }
    }

    /// One line per event.
    private func log() throws(CheckpointError) -> ExitStatus {
        let output = Output.standard
        var run = WatchRun(self)
        while !output.isBroken, output.errorNumber == 0 {
            for event in try run.look() {
                if options.json {
                    output.write(
                        WatchJSON.line(
                            event, run.watch, path: options.file, time: SystemClock.wallTime))
                } else {
                    output.line("\(Quantity.date(SystemClock.wallTime))  \(event.message)")
                }
            }
            if options.json {
                let sample = Watch.Event(kind: .sample, message: "a look at the file")
                output.write(
                    WatchJSON.line(
                        sample, run.watch, path: options.file, time: SystemClock.wallTime))
            }
            // The reader of a pipe waits for the line now.
            output.flush()
            if let end = run.end { return end }
            SystemClock.sleep(nanoseconds: intervalNanoseconds)
            try Self.checkCancelled()
        }
        return .clean
    }

    private static func checkCancelled() throws(CheckpointError) {
        if Interruption.isRequested {
            throw CheckpointError(.cancelled, "cancelled; watching changes nothing")
        }
    }
}

/// The looks of one run, and when it ends.
private struct WatchRun {
    private let command: InspectWatchCommand
    private let startTime = SystemClock.wallTime
    private var lookCount: UInt64 = 0
    private(set) var watch = Watch()

    init(_ command: InspectWatchCommand) { self.command = command }

    /// - Throws: when the file was never seen and is not waited for.
    @discardableResult
    mutating func look() throws(CheckpointError) -> [Watch.Event] {
        let look: Result<WatchSample, CheckpointError>
        do throws(CheckpointError) {
            look = .success(try WatchSample(path: command.options.file))
        } catch {
            if watch.sample == nil, !(command.wait && error.code == .notFound) { throw error }
            look = .failure(error)
        }
        lookCount += 1
        return watch.update(look)
    }

    /// The status to end with; nil to continue.
    var end: ExitStatus? {
        if let sample = watch.sample, watch.failure == nil {
            if sample.writer == .gone, command.untilClosed || command.exitOnStall != nil {
                return .uncorrected
            }
            if sample.writer == .closed, command.untilClosed { return .clean }
            if isStuck(sample) { return .uncorrected }
        }
        if let count = command.count, lookCount >= count { return .clean }
        return nil
    }

    /// Whether --exit-on-stall ends the run. A writer that had the file before is given the time
    /// from the first look: how long it has been idle is not its fault.
    private func isStuck(_ sample: WatchSample) -> Bool {
        guard let limit = command.exitOnStall, sample.isWriterAtWork != false else { return false }
        let start = max(startTime, watch.history.commits.last?.time ?? 0)
        return Double(sample.time - min(start, sample.time)) / 1e9 > limit
    }
}
