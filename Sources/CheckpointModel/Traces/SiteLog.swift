/// The failures of all systems of a site, as Los Alamos published them: one line per failure,
/// with the columns named in the first one. Each system becomes a trace of its own.
struct SiteLog {
    private let parser: TraceParser
    private let columnCount: Int
    private let columns: [Int]

    /// What is read of each line.
    private static let names = ["System", "nodes", "nodenum", "Prob Started", "Prob Fixed"]

    init(_ parser: TraceParser, _ header: [String]) throws(TraceError) {
        self.parser = parser
        columnCount = header.count
        var columns: [Int] = []
        for name in Self.names {
            guard let column = header.firstIndex(of: name) else {
                throw TraceError(
                    .malformed, line: 1, "found no column \(name), expected it beside System")
            }
            columns.append(column)
        }
        self.columns = columns
    }

    private struct System {
        var rows = FailureRows()
        var nodeCount = 0
    }

    func traces(_ reader: inout CSVReader) throws(TraceError) -> [Trace] {
        var systems: [String: System] = [:]
        var order: [String] = []
        var count = 0
        while let row = try reader.row() {
            let line = reader.line
            guard row.count == columnCount else {
                throw TraceError(
                    row.count < columnCount ? .truncated : .malformed, line: line,
                    "found \(row.count) fields, expected \(columnCount) as in the first line")
            }
            count += 1
            try Check.count(count, "failures", limit: TraceLimits.entryCount)
            let field = { row[columns[$0]] }
            if systems[field(0)] == nil {
                order.append(field(0))
                try Check.count(order.count, "systems", limit: TraceLimits.traceCount)
            }
            try add(field, line: line, to: &systems[field(0), default: System()])
        }
        guard !order.isEmpty else {
            throw TraceError(.empty, "found only the first line, expected failures below it")
        }
        var traces: [Trace] = []
        for name in order {
            guard let system = systems[name] else { continue }
            traces.append(try trace(system, "\(parser.name):\(name)"))
        }
        return traces
    }

    private func add(
        _ field: (Int) -> String, line: Int, to system: inout System
    ) throws(TraceError) {
        // A system whose number of nodes was not written down has those that failed.
        if !field(1).isEmpty {
            system.nodeCount = max(
                system.nodeCount,
                try TraceNumber.whole(
                    field(1), "a number of nodes", limit: TraceLimits.nodeCount, line: line))
        }
        let start = try Self.seconds(field(3), line: line)
        let end = try Self.seconds(field(4), line: line)
        guard end >= start else {
            throw TraceError(
                .unsorted, line: line,
                "found the repair \(field(4)) before the failure \(field(3)), expected it after it")
        }
        // Where no node was written down, all failures are those of one.
        let node = field(2).isEmpty ? "unknown" : field(2)
        try system.rows.add(node, start, end, line: line)
    }

    /// Time 0 is the first failure, because the log does not cover what was before it.
    private func trace(_ system: System, _ name: String) throws(TraceError) -> Trace {
        var rows = system.rows
        let origin = rows.failures.lazy.map(\.startSeconds).min() ?? 0
        for index in rows.failures.indices {
            rows.failures[index].startSeconds -= origin
            rows.failures[index].endSeconds -= origin
        }
        var notes = TraceParser.Notes()
        notes.nodeCount = max(system.nodeCount, rows.names.count)
        notes.endSeconds = rows.failures.lazy.map(\.endSeconds).max() ?? 0
        var trace = try parser.failures(rows, notes, .hpc)
        trace.name = name
        return trace
    }

    /// `month/day/year hour:minute`, in seconds since 1970.
    static func seconds(_ text: String, line: Int) throws(TraceError) -> Double {
        let parts = text.split { $0 == "/" || $0 == " " || $0 == ":" }.map { Int($0) ?? -1 }
        guard parts.count == 5, text.utf8.count <= 20, (1...12).contains(parts[0]),
            (1...31).contains(parts[1]), (1970...9999).contains(parts[2]),
            (0...23).contains(parts[3]), (0...59).contains(parts[4])
        else {
            throw TraceError(
                .malformed, line: line,
                "found \(TraceNumber.quoted(text)), expected month/day/year hour:minute")
        }
        let days = daysSince1970(year: parts[2], month: parts[0], day: parts[1])
        return Double(days * 86_400 + parts[3] * 3600 + parts[4] * 60)
    }

    /// Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    private static func daysSince1970(year: Int, month: Int, day: Int) -> Int {
        // Days are counted from 1 March of year 0, so that a leap day ends its year.
        let shifted = month <= 2 ? year - 1 : year
        let era = shifted / 400
        let yearOfEra = shifted - era * 400
        let dayOfYear = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1
        let dayOfEra = yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear
        return era * 146_097 + dayOfEra - 719_468
    }
}
