internal import ArgumentParser
internal import CheckpointFormat
internal import CheckpointModel

/// A file with traces.
enum TraceFile {
    static func traces(
        _ path: String, _ options: TraceOptions
    ) throws(CheckpointError) -> [Trace] {
        let bytes = try InputFile.bytes(
            path, limit: TraceLimits.byteCount, "the largest trace that is read")
        let name = path.split(separator: "/").last.map(String.init) ?? path
        do throws(TraceError) {
            return try TraceParser(name: name, defaults: options.defaults).parse(bytes)
        } catch {
            throw CheckpointError(.inputOutput, "\(path): \(error.message)")
        }
    }
}

/// What the files do not hold.
struct TraceOptions: ParsableArguments {
    @Option(help: .of("n", "Nodes of a trace that names only those that failed."))
    var traceNodes: Int?

    @Option(help: .of("days", "Length of a trace of failures that has no end."))
    var traceDays: Double?

    func validate() throws {
        guard (1...1_000_000).contains(traceNodes ?? 1) else {
            throw ValidationError("--trace-nodes is 1 to 1000000.")
        }
        guard (1e-6...1e6).contains(traceDays ?? 1) else {
            throw ValidationError("--trace-days is above 0, up to 1000000.")
        }
    }

    var defaults: TraceParser.Defaults {
        TraceParser.Defaults(nodeCount: traceNodes, endSeconds: traceDays.map { $0 * 86_400 })
    }
}

extension JobSize {
    /// A job of failures has a fixed size and spare nodes; one of spot instances is elastic.
    ///
    /// - Parameter nodeCount: nil: as many as the trace allows.
    static func of(
        _ timeline: Timeline, isElastic: Bool?, nodeCount: Int?, minimum: Int, _ name: String
    ) throws(CheckpointError) -> JobSize {
        let largest = timeline.largestNodeCount
        guard isElastic ?? (timeline.cause == .preemption) else {
            return .fixed(nodeCount: nodeCount ?? max(1, largest * 95 / 100))
        }
        let most = nodeCount ?? largest
        guard minimum <= most else {
            throw CheckpointError(
                .invalidArgument,
                "\(name): an elastic job of \(minimum) to \(most) nodes is not possible; "
                    + "give a smaller --minimum-nodes")
        }
        return .elastic(minimum: minimum, maximum: most)
    }
}
