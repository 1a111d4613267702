internal import CheckpointFormat
internal import CheckpointModel

/// What `pccheck tune` prints.
struct TuneReport {
    let job: MachineJob
    let request: TuningRequest
    let found: Recommendation
    /// nil: how often failures hit the job was given.
    let rate: HitRate?
    /// What a reader should know of the measurement.
    let notes: [String]

    private var intervalSeconds: Double {
        Double(found.prediction.intervalSteps) * job.stepSeconds
    }

    private var writeSeconds: Double {
        found.queue.writeSeconds(inFlightCount: found.setting.inFlightCount)
    }

    private var meanTimeBetweenFailures: Estimate {
        let mean = job.meanTimeBetweenFailuresSeconds
        return Estimate(
            value: mean, replicates: job.failureReplicates.isEmpty ? [mean] : job.failureReplicates,
            confidence: request.confidence)
    }

    // MARK: For people

    func lines(width: Int?) -> [StyledText] {
        let (setting, prediction, certainty) = (found.setting, found.prediction, found.certainty)
        var facts = FactTable()
        facts.add("in flight", "\(setting.inFlightCount)")
        facts.add("chunk", "\(Quantity.bytes(UInt64(setting.chunkByteCount)))")
        facts.add("writer workers", "\(setting.writerWorkerCount)")
        facts.add("pool", "\(Self.bytes(setting.poolByteCount))")
        facts.add("codec", "\(setting.codec.rawValue)")
        let steps = certainty.intervalSteps
        facts.add(
            "interval",
            """
            \(Quantity.plural(prediction.intervalSteps, "step")), \
            \(Self.duration(intervalSeconds)); best between \
            \(Figure.decimal(steps.low, 0)) and \(Figure.decimal(steps.high, 0))
            """)
        facts.add("overhead", "\(Self.estimate(certainty.overhead, Self.percent))")
        facts.add("durable after", "\(Self.estimate(certainty.durableSeconds, Self.duration))")
        facts.add("goodput", "\(Self.estimate(certainty.goodput, Self.percent))")
        if let rate {
            facts.add(
                "failures",
                """
                \(Figure.decimal(rate.hitCount, 1)) hits in the trace, one in \
                \(Self.estimate(meanTimeBetweenFailures, Self.duration))
                """)
        }
        facts.add("a failure takes", "\(Self.duration(prediction.lostSeconds))")
        facts.add("disk", "\(Self.bytes(prediction.diskByteCount))")
        facts.add("memory", "\(Self.bytes(prediction.memoryByteCount))")
        facts.add("busiest", "\(found.limit.rawValue)")
        facts.add("interval set by", "\(found.bound.rawValue)")
        facts.add("interval sustained", "in \(Self.percent(certainty.sustainedShare)) of draws")
        let remarks = notes.flatMap { TextWrap.lines("note: \($0)", indent: 0, width: width) }
        return facts.lines(width: width) + remarks + [""] + changes(width)
    }

    private func changes(_ width: Int?) -> [StyledText] {
        var layout = TableLayout([
            .left("with"), .right("N"), .right("chunk"), .right("workers"),
            .right("pool"), .left("codec"), .right("steps"), .right("goodput"),
        ])
        for change in found.changes {
            let name = change.cause.rawValue.split(separator: "_").joined(separator: " ")
            guard let setting = change.setting, let prediction = change.prediction else {
                layout.add([StyledText(name)] + (0..<7).map { _ in StyledText("—") })
                continue
            }
            let cells = [
                name, "\(setting.inFlightCount)",
                Quantity.bytes(UInt64(setting.chunkByteCount)), "\(setting.writerWorkerCount)",
                Self.bytes(setting.poolByteCount), setting.codec.rawValue,
                "\(prediction.intervalSteps)", Self.percent(prediction.goodput),
            ]
            layout.add(cells.map { StyledText($0) })
        }
        return layout.lines(width: width)
    }

    private static func bytes(_ count: Double) -> String {
        Quantity.bytes(UInt64(saturating: count))
    }

    private static func duration(_ seconds: Double) -> String {
        Quantity.duration(nanoseconds: UInt64(saturating: seconds * 1e9))
    }

    private static func percent(_ share: Double) -> String {
        "\(Figure.decimal(share * 100, 2)) %"
    }

    private static func estimate(_ value: Estimate, _ text: (Double) -> String) -> String {
        "\(text(value.value)) (\(text(value.low)) to \(text(value.high)))"
    }

    // MARK: For programs

    /// spec/schemas/pccheck-tune.json
    var document: JSONValue {
        let (prediction, certainty) = (found.prediction, found.certainty)
        return .document(
            tool: "pccheck",
            [
                "command": .string("tune"),
                "budget": .decimal(request.budget),
                "confidence": .decimal(request.confidence),
                "mtbf_seconds": json(meanTimeBetweenFailures),
                "hit_count": .figure(rate?.hitCount),
                "seed": .integer(request.seed),
                "setting": json(found.setting),
                "interval_steps": .count(prediction.intervalSteps),
                "interval_seconds": .decimal(intervalSeconds),
                "limit": .string(found.limit.rawValue),
                "bound": .string(found.bound.rawValue),
                "blocked_seconds": .decimal(prediction.cost.blockedSeconds),
                "slowdown": .decimal(prediction.cost.slowdown),
                "alone_write_seconds": .decimal(found.queue.aloneSeconds),
                "busiest_seconds": .decimal(found.queue.busiestSeconds),
                "write_seconds": .decimal(writeSeconds),
                "most_under_way": .decimal(found.queue.most),
                "lost_seconds": .decimal(prediction.lostSeconds),
                "disk_byte_count": .decimal(prediction.diskByteCount),
                "memory_byte_count": .decimal(prediction.memoryByteCount),
                "overhead": json(certainty.overhead),
                "durable_seconds": json(certainty.durableSeconds),
                "goodput": json(certainty.goodput),
                "best_interval_steps": json(certainty.intervalSteps),
                "sustained_share": .decimal(certainty.sustainedShare),
                "changes": .array(found.changes.map(json)),
                "notes": .array(notes.map { .string($0) }),
            ])
    }

    private func json(_ setting: MachineSetting) -> JSONValue {
        .dictionary([
            "in_flight_count": .count(setting.inFlightCount),
            "chunk_byte_count": .count(setting.chunkByteCount),
            "writer_worker_count": .count(setting.writerWorkerCount),
            "writes_per_worker": .count(setting.writesPerWorker),
            "pool_byte_count": .decimal(setting.poolByteCount),
            "codec": .string(setting.codec.rawValue),
        ])
    }

    private func json(_ change: Recommendation.Change) -> JSONValue {
        .dictionary([
            "cause": .string(change.cause.rawValue),
            "setting": change.setting.map(json) ?? .null,
            "interval_steps": .number((change.prediction?.intervalSteps).map { UInt64($0) }),
            "goodput": .figure(change.prediction?.goodput),
        ])
    }

    private func json(_ estimate: Estimate) -> JSONValue {
        .dictionary([
            "value": .decimal(estimate.value),
            "low": .decimal(estimate.low),
            "high": .decimal(estimate.high),
        ])
    }
}
