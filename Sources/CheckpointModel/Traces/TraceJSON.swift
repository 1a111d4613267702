internal import CheckpointFormat

extension TraceParser {
    typealias Scanner = JSONScanner<TraceError>

    /// Runs `body` on a scanner of `bytes`; an error gets the line at which it stopped.
    private func scan<Value>(
        _ bytes: [UInt8], _ body: (inout Scanner) throws(TraceError) -> Value
    ) throws(TraceError) -> Value {
        var scanner = Scanner(bytes)
        do throws(TraceError) {
            let value = try body(&scanner)
            try scanner.expectEnd()
            return value
        } catch {
            var failure = error
            failure.line = error.line ?? Self.line(of: scanner.position, in: bytes)
            throw failure
        }
    }

    static func line(of position: Int, in bytes: [UInt8]) -> Int {
        1 + bytes[..<min(position, bytes.count)].lazy.filter { $0 == 0x0A }.count
    }

    // MARK: An object: ours, or samples at a fixed gap

    /// What an object of either form may have.
    private struct Members {
        var notes = Notes()
        var kind: String?
        var gapSeconds: Double?
        var data: [Int]?
        var rows: [(position: Int, fields: [String])]?
        var rowsName = ""
    }

    func jsonObject(_ bytes: [UInt8]) throws(TraceError) -> Trace {
        let members = try scan(bytes) { (scanner) throws(TraceError) in
            try readMembers(&scanner)
        }
        if let data = members.data { return try ticks(data, gapSeconds: members.gapSeconds) }
        guard let kind = members.kind, let rows = members.rows else {
            throw TraceError(
                .malformed, line: 1,
                "found no list of entries with a kind, expected kind and samples, events or "
                    + "failures, or metadata and data")
        }
        let lines = Self.lines(of: rows.map(\.position), in: bytes)
        return try own(kind, rows.map(\.fields), lines, members)
    }

    private func own(
        _ kind: String, _ rows: [[String]], _ lines: [Int], _ members: Members
    ) throws(TraceError) -> Trace {
        let lists = ["availability": "samples", "preemption": "events", "failures": "failures"]
        guard lists[kind] == members.rowsName else {
            throw TraceError(
                .malformed, line: 1,
                "found \(members.rowsName) of the kind \(TraceNumber.quoted(kind)), expected "
                    + "samples of availability, events of preemption, or failures of failures")
        }
        let width = kind == "availability" ? 2 : 3
        for (row, line) in zip(rows, lines) where row.count != width {
            throw TraceError(
                .malformed, line: line, "found \(row.count) values, expected \(width)")
        }
        switch kind {
        case "availability":
            var samples: [(line: Int, sample: AvailabilityTrace.Sample)] = []
            for (row, line) in zip(rows, lines) {
                let seconds = try TraceNumber.decimal(row[0], "a time in seconds", line: line)
                let count = try TraceNumber.whole(
                    row[1], "a number of nodes", limit: TraceLimits.nodeCount, line: line)
                samples.append(
                    (line, AvailabilityTrace.Sample(timeSeconds: seconds, nodeCount: count)))
            }
            return try availability(
                samples, endSeconds: members.notes.endSeconds, members.notes.setting ?? .spot)
        case "preemption":
            var events = PreemptionRows(unitSeconds: 1)
            for (row, line) in zip(rows, lines) {
                try events.add(row[0], row[1], row[2], line: line)
            }
            return try preemption(events, members.notes)
        default:
            var list = FailureRows()
            for (row, line) in zip(rows, lines) {
                try list.add(row[0], row[1], row[2], line: line)
            }
            return try failures(list, members.notes, members.notes.setting ?? .llm)
        }
    }

    private func readMembers(_ scanner: inout Scanner) throws(TraceError) -> Members {
        var members = Members()
        try eachMember(&scanner) { (key, scanner) throws(TraceError) in
            switch key {
            case "kind":
                members.kind = String(
                    decoding: try scanner.string(limit: TraceLimits.fieldByteCount),
                    as: UTF8.self)
            case "setting", "node_count", "end_seconds":
                try members.notes.add(key, try scalar(&scanner), line: nil)
            case "metadata":
                try eachMember(&scanner) { (key, scanner) throws(TraceError) in
                    guard key == "gap_seconds" else { return try skip(&scanner) }
                    members.gapSeconds = try TraceNumber.decimal(
                        try scanner.number(), "seconds between two samples", line: nil)
                }
            case "data":
                members.data = try counts(&scanner)
            case "samples", "events", "failures":
                members.rowsName = key
                members.rows = try rows(&scanner)
            default: try skip(&scanner)
            }
        }
        return members
    }

    private func eachMember(
        _ scanner: inout Scanner,
        _ body: (String, inout Scanner) throws(TraceError) -> Void
    ) throws(TraceError) {
        try scanner.expect("{")
        if scanner.consume("}") { return }
        repeat {
            let key = try scanner.string(limit: TraceLimits.fieldByteCount)
            try scanner.expect(":")
            try body(String(decoding: key, as: UTF8.self), &scanner)
        } while scanner.consume(",")
        try scanner.expect("}")
    }

    private func eachElement(
        _ scanner: inout Scanner, limit: Int,
        _ body: (inout Scanner) throws(TraceError) -> Void
    ) throws(TraceError) {
        try scanner.expect("[")
        if scanner.consume("]") { return }
        var count = 0
        repeat {
            count += 1
            try Check.count(count, "entries", limit: limit)
            try body(&scanner)
        } while scanner.consume(",")
        try scanner.expect("]")
    }

    private func counts(_ scanner: inout Scanner) throws(TraceError) -> [Int] {
        var counts: [Int] = []
        try eachElement(&scanner, limit: TraceLimits.entryCount) { (scanner) throws(TraceError) in
            let count = try scanner.unsignedInteger()
            guard count <= UInt64(TraceLimits.nodeCount) else {
                throw TraceError(
                    .outOfRange,
                    "found \(count), expected a number of nodes up to "
                        + "\(TraceLimits.nodeCount)")
            }
            counts.append(Int(count))
        }
        return counts
    }

    private func rows(
        _ scanner: inout Scanner
    ) throws(TraceError) -> [(position: Int, fields: [String])] {
        var rows: [(position: Int, fields: [String])] = []
        try eachElement(&scanner, limit: TraceLimits.entryCount) { (scanner) throws(TraceError) in
            scanner.skipSpace()
            let position = scanner.position
            var fields: [String] = []
            try eachElement(&scanner, limit: 3) { (scanner) throws(TraceError) in
                fields.append(try scalar(&scanner))
            }
            rows.append((position, fields))
        }
        return rows
    }

    /// A string or the text of a number.
    private func scalar(_ scanner: inout Scanner) throws(TraceError) -> String {
        switch try scanner.kind() {
        case .string:
            let bytes = try scanner.string(limit: TraceLimits.fieldByteCount)
            return String(decoding: bytes, as: UTF8.self)
        case .number: return try scanner.number()
        default: throw scanner.failure("a number or a string")
        }
    }

    /// Skips a value that means nothing here.
    private func skip(_ scanner: inout Scanner, depth: Int = 0) throws(TraceError) {
        guard depth < 16 else { throw scanner.failure("at most 16 lists in each other") }
        switch try scanner.kind() {
        case .object:
            try eachMember(&scanner) { (_, scanner) throws(TraceError) in
                try skip(&scanner, depth: depth + 1)
            }
        case .array:
            try eachElement(&scanner, limit: TraceLimits.entryCount) {
                (scanner) throws(TraceError) in
                try skip(&scanner, depth: depth + 1)
            }
        case .string: _ = try scanner.string(limit: TraceLimits.fieldByteCount)
        case .number: _ = try scanner.number()
        case .null: try scanner.expect(word: "null")
        case .bool(let value): try scanner.expect(word: value ? "true" : "false")
        }
    }

    /// The lines of positions that are in order.
    private static func lines(of positions: [Int], in bytes: [UInt8]) -> [Int] {
        var (line, start) = (1, 0)
        return positions.map { position in
            line += bytes[start..<position].lazy.filter { $0 == 0x0A }.count
            start = position
            return line
        }
    }

    private func ticks(_ data: [Int], gapSeconds: Double?) throws(TraceError) -> Trace {
        guard let gap = gapSeconds, gap > 0 else {
            throw TraceError(
                .malformed, line: 1,
                "found no gap_seconds above 0 in metadata, expected the seconds between two samples"
            )
        }
        let samples = data.enumerated().map { index, count in
            AvailabilityTrace.Sample(timeSeconds: Double(index) * gap, nodeCount: count)
        }
        let trace = try AvailabilityTrace(
            samples: samples, endSeconds: Double(data.count) * gap)
        return Trace(name: name, setting: .spot, content: .availability(trace))
    }

    // MARK: A list of events with their causes

    private struct FaultEvent {
        var node: String?
        var timeDays: Double?
        var isStart: Bool?
        var position = 0
    }

    /// A list of `fault_start` and `fault_end` of nodes, with times in days.
    func faultEvents(_ bytes: [UInt8]) throws(TraceError) -> Trace {
        var events: [FaultEvent] = []
        try scan(bytes) { (scanner) throws(TraceError) in
            try eachElement(&scanner, limit: TraceLimits.entryCount) {
                (scanner) throws(TraceError) in
                events.append(try faultEvent(&scanner))
            }
        }
        let lines = Self.lines(of: events.map(\.position), in: bytes)
        var faults = OpenFaults()
        for (event, line) in zip(events, lines) {
            guard let node = event.node, let days = event.timeDays, let isStart = event.isStart
            else {
                throw TraceError(
                    .malformed, line: line,
                    "found an event without node_id, event_time or event_type, expected all three")
            }
            try faults.add(node, days * 86_400, isStart: isStart, line: line)
        }
        let end = max(defaults.endSeconds ?? 0, faults.lastSeconds)
        return try failures(try faults.rows(endSeconds: end), Notes(endSeconds: end), .llm)
    }

    private func faultEvent(_ scanner: inout Scanner) throws(TraceError) -> FaultEvent {
        var event = FaultEvent()
        scanner.skipSpace()
        event.position = scanner.position
        try eachMember(&scanner) { (key, scanner) throws(TraceError) in
            switch key {
            case "node_id": event.node = try scalar(&scanner)
            case "event_time":
                event.timeDays = try TraceNumber.decimal(
                    try scanner.number(), "a time in days", line: nil)
            case "event_type":
                let type = try scalar(&scanner)
                guard type == "fault_start" || type == "fault_end" else {
                    throw TraceError(
                        .malformed,
                        "found \(TraceNumber.quoted(type)), expected fault_start or fault_end")
                }
                event.isStart = type == "fault_start"
            default: try skip(&scanner)
            }
        }
        return event
    }
}

/// Faults whose end was not seen yet. A node may have several at once.
private struct OpenFaults {
    private var finished = FailureRows()
    private var open: [String: [(seconds: Double, line: Int)]] = [:]
    private(set) var lastSeconds = 0.0

    mutating func add(
        _ node: String, _ seconds: Double, isStart: Bool, line: Int
    ) throws(TraceError) {
        try Check.time(seconds, notBefore: lastSeconds, line: line)
        lastSeconds = seconds
        if isStart {
            open[node, default: []].append((seconds, line))
        } else if let start = open[node]?.popLast() {
            try finished.add(node, start.seconds, seconds, line: start.line)
        } else {
            throw TraceError(
                .contradiction, line: line,
                "found the end of a fault that did not begin, expected fault_start of the node "
                    + "before it")
        }
    }

    /// What is still open lasts to the end.
    func rows(endSeconds: Double) throws(TraceError) -> FailureRows {
        var rows = finished
        let rest = open.flatMap { node, starts in starts.map { (node, $0) } }
        for (node, start) in rest.sorted(by: { $0.1.line < $1.1.line }) {
            try rows.add(node, start.seconds, endSeconds, line: start.line)
        }
        return rows
    }
}
