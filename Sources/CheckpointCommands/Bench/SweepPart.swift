internal import CheckpointFormat
internal import CheckpointStorage
internal import CheckpointWriter

/// One set of parameters of the sweep.
struct SweepPoint: Sendable {
    var axis: SweepAxis
    /// The value on the axis, as the table shows it.
    var label = ""
    var byteCount: UInt64
    var inFlightCount: Int
    var chunkByteCount: Int
    var options: WriterOptions

    /// The points of one axis around the default point.
    static func points(on axis: SweepAxis, _ settings: BenchSettings) -> [SweepPoint] {
        let origin = SweepPoint(
            axis: axis, byteCount: settings.sweepByteCount, inFlightCount: settings.inFlightCount,
            chunkByteCount: settings.chunkByteCount, options: settings.writerOptions)
        func vary<Value>(
            _ values: [Value], _ label: (Value) -> String,
            _ change: (inout SweepPoint, Value) -> Void
        ) -> [SweepPoint] {
            values.map {
                var point = origin
                point.label = label($0)
                change(&point, $0)
                return point
            }
        }
        switch axis {
        case .size:
            let sizes = (0...5).map { UInt64(4 << 20) << (2 * $0) }.filter {
                $0 <= settings.sweepLimitByteCount
            }
            return vary(sizes, Quantity.bytes) { $0.byteCount = $1 }
        case .inFlight:
            return vary([1, 2, 3, 4, 6, 8], { "\($0)" }) { $0.inFlightCount = $1 }
        case .writerWorkers:
            return vary([1, 2, 3, 4, 6, 8], { "\($0)" }) { $0.options.writerWorkerCount = $1 }
        case .chunk:
            let sizes = [256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20]
            return vary(sizes, { Quantity.bytes(UInt64($0)) }) { $0.chunkByteCount = $1 }
        case .backend:
            return vary(StorageBackend.allCases, \.rawValue) { $0.options.backend = $1 }
        case .codec:
            return vary(Codec.allCases, \.label) { $0.options.codec = $1 }
        }
    }
}

/// Figures along several axes, one parameter varied at a time.
struct SweepSection: BenchSection {
    struct Entry: Sendable {
        let point: SweepPoint
        /// Set when this point is not available here.
        var skipReason: String?
        var backend = ""
        var poolByteCount: UInt64 = 0
        /// MB/s of checkpoints one after another, each waited for.
        var durable = Samples()
        /// MB/s of checkpoints as many in flight as the file allows.
        var sustained = Samples()
        var plain = Samples()
        var staged = Samples()
        /// Milliseconds per checkpoint of the sustained ones that copying waited for the pool.
        var stall = Samples()
        var slowdown = Samples()
        var cpuSecondsPerGiB = Samples()
        var extraResidentByteCount: UInt64 = 0
    }

    var loopInterval: Int
    var roundCount: Int
    var entries: [Entry] = []
}

extension BenchRunner {
    private static let sweepLoopInterval = 5

    func measureSweep() throws(CheckpointError) -> SweepSection {
        var section = SweepSection(
            loopInterval: Self.sweepLoopInterval, roundCount: settings.roundCount)
        let axes = settings.sweepAxes.map { SweepPoint.points(on: $0, settings) }
        for points in axes { try checkSweepSpace(points) }
        for points in axes { section.entries += try measureSweep(points) }
        return section
    }

    private func checkSweepSpace(_ points: [SweepPoint]) throws(CheckpointError) {
        let largest = points.map(\.byteCount).max() ?? 0
        let files = points.reduce(0) { $0 + $1.byteCount * UInt64($1.inFlightCount + 1) }
        let pools = points.map { point in
            point.options.poolByteCount
                ?? max(
                    min(point.byteCount, 2 << 30),
                    UInt64(point.chunkByteCount * point.options.writerWorkerCount))
        }
        try Machine.checkSpace(
            for: "sweep", in: settings.directory, disk: files + largest + 64 << 20,
            memory: largest + (pools.max() ?? 0) + 64 << 20,
            advice: "choose a smaller --sweep-size or --sweep-limit, fewer --axis")
    }

    /// One axis: its points in turn within each round.
    private func measureSweep(
        _ points: [SweepPoint]
    ) throws(CheckpointError) -> [SweepSection.Entry] {
        var entries = points.map { SweepSection.Entry(point: $0) }
        guard let axis = points.first?.axis, let largest = points.map(\.byteCount).max() else {
            return []
        }
        try progress("sweep of \(axis.rawValue), preparing")
        let workspace = BenchWorkspace(directory: settings.directory)
        let plainPath = try workspace.writePlainFile("plain", byteCount: largest)
        let plain = try FileStorage.opened(plainPath, .write)
        var paths: [String] = []
        for (index, point) in points.enumerated() {
            paths.append(
                try workspace.createFile(
                    "sweep-\(index)", capacity: point.byteCount, inFlight: point.inFlightCount,
                    chunkByteCount: point.chunkByteCount))
        }
        let step = TrainingStep(.sleep, milliseconds: settings.stepMilliseconds)
        var state = BenchState(byteCount: points.first?.byteCount ?? 4096)
        for round in 1...settings.roundCount {
            let plainLoop = try seconds { () throws(CheckpointError) in
                for _ in 0..<sweepLoopCount {
                    try Interruption.check()
                    step.run()
                }
            }
            for index in entries.indices where entries[index].skipReason == nil {
                let point = entries[index].point
                try progress(
                    "sweep of \(axis.rawValue), \(point.label), round \(round) of "
                        + "\(settings.roundCount)")
                if state.byteCount != Int(point.byteCount) {
                    state = BenchState(byteCount: point.byteCount)
                }
                let count = sweepSaveCount(point)
                entries[index].plain.add(
                    try PlainWrites.rate(state, to: plain, count: count, settings))
                try measure(
                    paths[index], state, step, plainLoop: plainLoop, &entries[index])
            }
        }
        return entries
    }

    private var sweepLoopCount: Int { max(Self.sweepLoopInterval, settings.loopStepCount / 3) }

    private func sweepSaveCount(_ point: SweepPoint) -> Int {
        point.byteCount < 64 << 20 ? 10 : point.byteCount < 1 << 30 ? 3 : 1
    }

    private func measure(
        _ path: String, _ state: BenchState, _ step: TrainingStep, plainLoop: Double,
        _ entry: inout SweepSection.Entry
    ) throws(CheckpointError) {
        let point = entry.point
        var options = point.options
        // The last round's checkpoint is of no use, and reading it would take time.
        options.trustsAnchor = true
        let memory = MemoryPeak()
        let writer: CheckpointWriter
        do throws(CheckpointError) {
            writer = try CheckpointWriter(path: path, options: options)
        } catch {
            // A back end that is not available here is a finding, not a failure.
            guard point.axis == .backend else { throw error }
            entry.skipReason = error.message
            return
        }
        entry.backend = writer.statistics.storageKind.name
        entry.poolByteCount = writer.statistics.poolByteCount
        let payload = state.payload
        let count = sweepSaveCount(point)
        var number: UInt64 = 0
        try measure(
            Double(count) * Double(state.byteCount), &entry.durable, &entry.cpuSecondsPerGiB
        ) { () throws(CheckpointError) in
            var elapsed = 0.0
            for _ in 0..<count {
                number += 1
                elapsed += try save(payload, number, writer).durable
            }
            return elapsed
        }
        number += 1
        entry.staged.add(try stagedMilliseconds(payload, number, writer))
        try measureSustained(
            payload, max(count, 2 * point.inFlightCount), writer, &number, &entry)
        let loop = try LoopRun(
            step, count: sweepLoopCount, interval: Self.sweepLoopInterval, firstStep: number,
            writer, payload)
        entry.slowdown.add(loop.seconds / plainLoop)
        entry.extraResidentByteCount = max(
            entry.extraResidentByteCount, memory.extraByteCount)
        try writer.close()
    }

    private func measureSustained(
        _ payload: CheckpointPayload, _ count: Int, _ writer: CheckpointWriter,
        _ number: inout UInt64, _ entry: inout SweepSection.Entry
    ) throws(CheckpointError) {
        let before = writer.statistics
        let elapsed = try seconds { () throws(CheckpointError) in
            var tickets: [CheckpointTicket] = []
            for _ in 0..<count {
                try Interruption.check()
                number += 1
                tickets.append(try writer.save(step: number, payload: payload))
            }
            for ticket in tickets {
                if case .failed(let error) = try ticket.wait() { throw error }
            }
        }
        let stall = writer.statistics.stagingStallNanoseconds - before.stagingStallNanoseconds
        entry.stall.add(Double(stall) / Double(count) / 1e6)
        entry.sustained.add(Double(count) * Double(payload.byteCount) / elapsed / 1e6)
    }
}

extension SweepSection {
    var lines: [StyledText] {
        var lines: [StyledText] = []
        for axis in SweepAxis.allCases {
            let chosen = entries.filter { $0.point.axis == axis }
            guard let first = chosen.first else { continue }
            let title =
                "Sweep of \(axis.rawValue) (\(Quantity.bytes(first.point.byteCount))"
                + (axis == .size ? " and more" : "") + ")"
            lines.append(StyledText(title, .bold))
            lines += Self.table(chosen) + [""]
        }
        return lines
    }

    private static func table(_ entries: [Entry]) -> [StyledText] {
        var table = TableLayout([
            .right(""), .left("back end"), .right("durable MB/s"), .right("of plain"),
            .right("sustained MB/s"), .right("staged ms"), .right("stall ms"),
            .right("CPU s/GiB"), .right("slowdown"), .right("memory"), .left(""),
        ])
        for entry in entries {
            if let reason = entry.skipReason {
                let cells = [entry.point.label] + Array(repeating: "—", count: 9)
                table.add((cells + ["skipped: \(reason)"]).map { StyledText($0) })
                continue
            }
            let cells = [
                entry.point.label, entry.backend, Figure.decimal(entry.durable.median, 0),
                Figure.decimal(entry.durable.ratios(to: entry.plain).median, 2),
                Figure.decimal(entry.sustained.median, 0), Figure.decimal(entry.staged.median, 1),
                Figure.decimal(entry.stall.median, 1),
                Figure.decimal(entry.cpuSecondsPerGiB.median, 3),
                Figure.decimal(entry.slowdown.median, 3),
                Quantity.bytes(entry.extraResidentByteCount), "",
            ]
            table.add(cells.map { StyledText($0) })
        }
        return table.lines(width: nil)
    }

    var json: JSONValue {
        .dictionary([
            "loop_interval": .count(loopInterval),
            "round_count": .count(roundCount),
            "rows": .array(entries.map(\.json)),
        ])
    }
}

extension SweepSection.Entry {
    fileprivate var json: JSONValue {
        var members: KeyValuePairs<String, JSONValue> {
            [
                "axis": .string(point.axis.rawValue),
                "label": .string(point.label),
                "byte_count": .integer(point.byteCount),
                "in_flight_count": .count(point.inFlightCount),
                "writer_worker_count": .count(point.options.writerWorkerCount),
                "chunk_byte_count": .count(point.chunkByteCount),
                "backend_asked": .string(point.options.backend.rawValue),
                "codec": .string(point.options.codec.label),
                "skipped": .text(skipReason),
                "backend": skipReason == nil ? .string(backend) : .null,
                "pool_byte_count": .integer(poolByteCount),
                "durable_megabytes_per_second": durable.json,
                "plain_megabytes_per_second": plain.json,
                "ratio_to_plain": durable.ratios(to: plain).json,
                "sustained_megabytes_per_second": sustained.json,
                "staged_milliseconds": staged.json,
                "stall_milliseconds": stall.json,
                "cpu_seconds_per_gib": cpuSecondsPerGiB.json,
                "slowdown": slowdown.json,
                "extra_resident_byte_count": .integer(extraResidentByteCount),
            ]
        }
        return .dictionary(members)
    }
}
