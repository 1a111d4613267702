/// Reads traces from the bytes of a file; spec/MODEL.md lists the formats.
package struct TraceParser: Sendable {
    /// What a format may leave out.
    package struct Defaults: Sendable {
        /// Nodes of failures whose file names only nodes that failed.
        package var nodeCount: Int?
        /// The end of failures whose file has no end.
        package var endSeconds: Double?

        package init(nodeCount: Int? = nil, endSeconds: Double? = nil) {
            self.nodeCount = nodeCount
            self.endSeconds = endSeconds
        }
    }

    let name: String
    let defaults: Defaults

    package init(name: String, defaults: Defaults = Defaults()) {
        self.name = name
        self.defaults = defaults
    }

    /// The traces of one file: several when it is of several systems.
    ///
    /// - Throws: `TraceError` with the line, what was found and what was expected.
    package func parse(_ bytes: [UInt8]) throws(TraceError) -> [Trace] {
        guard bytes.count <= TraceLimits.byteCount else {
            throw TraceError(
                .tooLarge, "found \(bytes.count) bytes, expected at most \(TraceLimits.byteCount)")
        }
        guard let first = bytes.first(where: { ![0x20, 0x09, 0x0A, 0x0D].contains($0) }) else {
            throw TraceError(.empty, "found nothing, expected a trace")
        }
        if bytes.starts(with: [0xFD, 0x37, 0x7A, 0x58, 0x5A, 0x00]) {
            throw TraceError(
                .malformed, line: 1,
                "found data that xz compressed, expected text; run xz -dk on it")
        }
        switch first {
        case UInt8(ascii: "{"): return [try jsonObject(bytes)]
        case UInt8(ascii: "["): return [try faultEvents(bytes)]
        default: return try table(bytes)
        }
    }

    private func table(_ bytes: [UInt8]) throws(TraceError) -> [Trace] {
        var reader = CSVReader(bytes)
        var notes = Notes()
        var row = try reader.row()
        while let fields = row, fields[0].hasPrefix("#") {
            try notes.add(fields.joined(separator: ","), line: reader.line)
            row = try reader.row()
        }
        guard let header = row else {
            throw TraceError(.empty, "found only comments, expected a trace")
        }
        switch header {
        case ["", "Time", "GPUs"]:
            return [try countedSamples(&reader)]
        case ["time_seconds", "nodes"]:
            return [try ownAvailability(&reader, notes)]
        case ["time_seconds", "event", "node"]:
            return [try events(&reader, notes, first: nil, unitSeconds: 1)]
        case ["node", "start_seconds", "end_seconds"]:
            return [try ownFailures(&reader, notes)]
        default:
            if header[0] == "System" { return try SiteLog(self, header).traces(&reader) }
            if header.count == 3, ["add", "remove"].contains(header[1]) {
                return [try events(&reader, notes, first: header, unitSeconds: 0.001)]
            }
            throw TraceError(
                .malformed, line: reader.line,
                "found \(TraceNumber.quoted(header.joined(separator: ","))), expected the header "
                    + "of a format that spec/MODEL.md lists")
        }
    }

    /// `# name: value` above the header of a format of our own.
    struct Notes {
        var setting: Trace.Setting?
        var nodeCount: Int?
        var endSeconds: Double?

        mutating func add(_ text: String, line: Int) throws(TraceError) {
            let parts = text.dropFirst().split(separator: ":", maxSplits: 1)
                .map { String($0.drop { $0 == " " }) }
            guard parts.count == 2 else { return }
            try add(parts[0], parts[1], line: line)
        }

        mutating func add(_ name: String, _ value: String, line: Int?) throws(TraceError) {
            switch name {
            case "setting":
                guard let known = Trace.Setting(rawValue: value) else {
                    throw TraceError(
                        .malformed, line: line,
                        "found the setting \(TraceNumber.quoted(value)), expected one of spot, "
                            + "llm, hpc, synthetic")
                }
                setting = known
            case "node_count":
                nodeCount = try TraceNumber.whole(
                    value, "a number of nodes", limit: TraceLimits.nodeCount, line: line)
            case "end_seconds":
                endSeconds = try TraceNumber.decimal(value, "a time in seconds", line: line)
            default: break
            }
        }
    }

    // MARK: CSV

    /// The next row, which has `count` fields.
    private func fields(
        _ reader: inout CSVReader, count: Int, _ form: String
    ) throws(TraceError) -> [String]? {
        guard let row = try reader.row() else { return nil }
        guard row.count == count else {
            throw TraceError(
                row.count < count ? .truncated : .malformed, line: reader.line,
                "found \(row.count) fields, expected \(count): \(form)")
        }
        return row
    }

    /// `,Time,GPUs`: a count every so often.
    private func countedSamples(_ reader: inout CSVReader) throws(TraceError) -> Trace {
        var rows: [(line: Int, sample: AvailabilityTrace.Sample)] = []
        while let row = try fields(&reader, count: 3, "index, time, GPUs") {
            try addSample(row[1], row[2], line: reader.line, to: &rows)
        }
        var trace = try availability(rows, endSeconds: nil, .spot)
        // The script of the paper divides the number of accelerators by that.
        trace.machineNodeCount = 4
        return trace
    }

    private func ownAvailability(
        _ reader: inout CSVReader, _ notes: Notes
    ) throws(TraceError) -> Trace {
        var rows: [(line: Int, sample: AvailabilityTrace.Sample)] = []
        while let row = try fields(&reader, count: 2, "time_seconds, nodes") {
            try addSample(row[0], row[1], line: reader.line, to: &rows)
        }
        return try availability(rows, endSeconds: notes.endSeconds, notes.setting ?? .spot)
    }

    private func addSample(
        _ time: String, _ count: String, line: Int,
        to rows: inout [(line: Int, sample: AvailabilityTrace.Sample)]
    ) throws(TraceError) {
        try Check.count(rows.count + 1, "samples", limit: TraceLimits.entryCount)
        let seconds = try TraceNumber.decimal(time, "a time in seconds", line: line)
        let nodes = try TraceNumber.whole(
            count, "a number of nodes", limit: TraceLimits.nodeCount, line: line)
        rows.append((line, AvailabilityTrace.Sample(timeSeconds: seconds, nodeCount: nodes)))
    }

    /// Without an end of its own, the last sample lasts as long as the one before it.
    func availability(
        _ rows: [(line: Int, sample: AvailabilityTrace.Sample)], endSeconds: Double?,
        _ setting: Trace.Setting
    ) throws(TraceError) -> Trace {
        let samples = rows.map(\.sample)
        var end = endSeconds ?? samples.last?.timeSeconds ?? 0
        if endSeconds == nil, samples.count > 1 {
            end += max(0, end - samples[samples.count - 2].timeSeconds)
        }
        let trace = try atLines(rows.map(\.line)) { () throws(TraceError) in
            try AvailabilityTrace(samples: samples, endSeconds: end)
        }
        return Trace(name: name, setting: setting, content: .availability(trace))
    }

    /// `time, add|remove, node`.
    private func events(
        _ reader: inout CSVReader, _ notes: Notes, first: [String]?, unitSeconds: Double
    ) throws(TraceError) -> Trace {
        var rows = PreemptionRows(unitSeconds: unitSeconds)
        if let first { try rows.add(first[0], first[1], first[2], line: reader.line) }
        while let row = try fields(&reader, count: 3, "time, add or remove, node") {
            try rows.add(row[0], row[1], row[2], line: reader.line)
        }
        return try preemption(rows, notes)
    }

    func preemption(_ rows: PreemptionRows, _ notes: Notes) throws(TraceError) -> Trace {
        let end = notes.endSeconds ?? rows.events.last?.timeSeconds ?? 0
        let trace = try atLines(rows.lines) { () throws(TraceError) in
            try PreemptionTrace(
                events: rows.events, nodeCount: rows.names.count, endSeconds: end)
        }
        return Trace(name: name, setting: notes.setting ?? .spot, content: .preemption(trace))
    }

    private func ownFailures(
        _ reader: inout CSVReader, _ notes: Notes
    ) throws(TraceError) -> Trace {
        var rows = FailureRows()
        while let row = try fields(&reader, count: 3, "node, start_seconds, end_seconds") {
            try rows.add(row[0], row[1], row[2], line: reader.line)
        }
        return try failures(rows, notes, notes.setting ?? .llm)
    }

    /// With the number of nodes and the end of the file, of the defaults, or as seen.
    func failures(
        _ rows: FailureRows, _ notes: Notes, _ setting: Trace.Setting
    ) throws(TraceError) -> Trace {
        let seen = rows.failures.lazy.map(\.endSeconds).max() ?? 0
        let count = notes.nodeCount ?? max(defaults.nodeCount ?? 0, rows.names.count)
        let end = notes.endSeconds ?? max(defaults.endSeconds ?? 0, seen)
        let trace = try atLines(rows.lines) { () throws(TraceError) in
            try FailureTrace(failures: rows.failures, nodeCount: count, endSeconds: end)
        }
        return Trace(name: name, setting: setting, content: .failures(trace))
    }

    /// Replaces the number of an entry in an error with its line.
    func atLines<Value>(
        _ lines: [Int], _ body: () throws(TraceError) -> Value
    ) throws(TraceError) -> Value {
        do throws(TraceError) {
            return try body()
        } catch {
            var failure = error
            failure.line = error.line.map { lines.indices.contains($0 - 1) ? lines[$0 - 1] : $0 }
            throw failure
        }
    }
}

/// Events of preemption while they are read.
struct PreemptionRows {
    var names = NodeNames()
    var events: [PreemptionTrace.Event] = []
    var lines: [Int] = []
    let unitSeconds: Double

    mutating func add(
        _ time: String, _ event: String, _ node: String, line: Int
    ) throws(TraceError) {
        try Check.count(events.count + 1, "events", limit: TraceLimits.entryCount)
        let value = try TraceNumber.decimal(time, "a time", line: line)
        guard event == "add" || event == "remove" else {
            throw TraceError(
                .malformed, line: line,
                "found \(TraceNumber.quoted(event)), expected add or remove")
        }
        events.append(
            PreemptionTrace.Event(
                timeSeconds: value * unitSeconds, kind: event == "add" ? .addition : .removal,
                node: try names.number(node, line: line)))
        lines.append(line)
    }
}

/// Failures while they are read.
struct FailureRows {
    var names = NodeNames()
    var failures: [FailureTrace.Failure] = []
    var lines: [Int] = []

    mutating func add(
        _ node: String, _ start: String, _ end: String, line: Int
    ) throws(TraceError) {
        try add(
            node, try TraceNumber.decimal(start, "a time in seconds", line: line),
            try TraceNumber.decimal(end, "a time in seconds", line: line), line: line)
    }

    mutating func add(
        _ node: String, _ start: Double, _ end: Double, line: Int
    ) throws(TraceError) {
        try Check.count(failures.count + 1, "failures", limit: TraceLimits.entryCount)
        failures.append(
            FailureTrace.Failure(
                node: try names.number(node, line: line), startSeconds: start, endSeconds: end))
        lines.append(line)
    }
}
