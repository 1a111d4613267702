internal import CheckpointFormat
internal import CheckpointModel

/// What `pccheck goodput` prints.
struct GoodputReport {
    let command: GoodputCommand
    let sections: [GoodputSection]
    let pooled: [PooledGoodput]

    // MARK: For people

    func lines(width: Int?) -> [StyledText] {
        var lines: [StyledText] = []
        for section in sections {
            if !lines.isEmpty { lines.append("") }
            lines += head(section, width) + table(section.table, width)
            lines += verdicts(section.table, width)
        }
        for pool in pooled {
            let name = pool.setting.rawValue
            lines += ["", "\("all of \(name)", .bold)  the mean of \(pool.traceCount) traces"]
            lines += table(pool.table, width) + verdicts(pool.table, width)
        }
        return lines
    }

    private func head(_ section: GoodputSection, _ width: Int?) -> [StyledText] {
        let nodes = Quantity.plural(section.nodeCount, "node")
        let days = Figure.decimal(section.durationSeconds / 86_400, 1)
        var lines: [StyledText] = [
            """
            \(section.name, .bold)  \(section.setting.rawValue), \(section.kind.rawValue), \
            \(days) d, up to \(nodes)
            """
        ]
        var facts = "the job has \(jobText(section.job))"
        if let mean = section.meanTimeBetweenHitsSeconds {
            facts += ", and is hit every \(duration(mean))"
        } else {
            facts += ", and is never hit"
        }
        if let count = section.departureCount {
            facts += "; nodes leave at \(Quantity.plural(count, "time"))"
        }
        lines += TextWrap.lines(facts, indent: 2, width: width)
        if let paper = section.count {
            let count = paper.count
            let text =
                "in machines of \(paper.machineNodeCount) the PCcheck paper counts "
                + "\(count.changesOfAnyKind) failures: the start is \(count.start) of them, "
                + "additions are \(count.additions), the collapse at the end is "
                + "\(count.finalCollapse), and removals before it are \(count.removals); nodes "
                + "come at \(Quantity.plural(count.arrivalCount, "time")), and leave at "
                + "\(count.departureCount) before the collapse"
            lines += TextWrap.lines(text, indent: 2, width: width)
        }
        return lines
    }

    private func jobText(_ job: JobSize) -> String {
        switch job {
        case .fixed(let count): Quantity.plural(count, "node")
        case .elastic(let minimum, let maximum): "\(minimum) to \(maximum) nodes"
        }
    }

    private func duration(_ seconds: Double) -> String {
        Quantity.duration(nanoseconds: UInt64(saturating: seconds * 1e9))
    }

    private func table(_ table: GoodputTable, _ width: Int?) -> [StyledText] {
        var layout = TableLayout([
            .left("policy"), .left("interval"), .right("goodput"), .right("from"), .right("to"),
            .right("blocked"), .right("redone"), .right("restart"), .right("waiting"),
        ])
        for row in table.rows {
            var interval = row.rule ?? "—"
            if let seconds = row.intervalSeconds {
                interval += " \(Quantity.significant(seconds, digitCount: 4)) s"
            }
            let shares = [
                row.goodput.value, row.goodput.low, row.goodput.high, row.losses.blocked,
                row.losses.redone, row.losses.restart, row.losses.waiting,
            ]
            layout.add(
                [StyledText(row.policy), StyledText(interval)]
                    + shares.map { StyledText(percent($0)) })
        }
        return layout.lines(width: width)
    }

    private func percent(_ share: Double) -> String { "\(Figure.decimal(share * 100, 2)) %" }

    private func verdicts(_ table: GoodputTable, _ width: Int?) -> [StyledText] {
        let hasSeveralRules = Set(table.rows.compactMap(\.rule)).count > 1
        return table.comparisons.flatMap { comparison -> [StyledText] in
            let difference = comparison.difference
            let figures =
                "\(points(difference.value)) points (\(points(difference.low)) to "
                + "\(points(difference.high)))"
            var names = "\(comparison.policy) against \(comparison.other)"
            if hasSeveralRules, let rule = comparison.rule { names += " (\(rule))" }
            let text: String
            switch comparison.verdict {
            case .pays: text = "\(names) pays: \(figures)"
            case .nothing: text = "\(names) does not pay: \(figures)"
            case .unsure: text = "\(names) does not pay for sure: \(figures)"
            case .loses: text = "\(names) loses: \(figures)"
            }
            return TextWrap.lines(text, indent: 2, width: width)
        }
    }

    private func points(_ share: Double) -> String {
        (share > 0 ? "+" : "") + Figure.decimal(share * 100, 2)
    }

    // MARK: For programs

    /// spec/schemas/pccheck-goodput.json
    var document: JSONValue {
        .document(
            tool: "pccheck",
            [
                "command": .string("goodput"),
                "costs": costs,
                "replications": .count(command.replications),
                "confidence": .decimal(command.confidence),
                "seed": .integer(command.seed),
                "traces": .array(sections.map(json)),
                "pooled": .array(pooled.map(json)),
            ])
    }

    private var costs: JSONValue {
        let machine = command.costs.machine
        return .dictionary([
            "state_byte_count": .integer(command.costs.state.byteCount),
            "step_seconds": .decimal(machine.stepSeconds),
            "write_bytes_per_second": .decimal(machine.writeBytesPerSecond),
            "solo_write_bytes_per_second": .decimal(machine.soloWriteBytesPerSecond),
            "copy_bytes_per_second": .decimal(machine.copyBytesPerSecond),
            "read_bytes_per_second": .decimal(machine.readBytesPerSecond),
            "network_bytes_per_second": .decimal(machine.networkBytesPerSecond),
            "slowdown": .decimal(machine.slowdown),
            "detect_seconds": .decimal(machine.detectSeconds),
            "reschedule_seconds": .decimal(machine.rescheduleSeconds),
            "replica_count": .count(machine.replicaCount),
            "storage_interval_seconds": .decimal(machine.storageIntervalSeconds),
            "notice_seconds": .decimal(command.job.noticeSeconds),
            "settle_seconds": .decimal(command.job.settleSeconds),
        ])
    }

    private func json(_ section: GoodputSection) -> JSONValue {
        .dictionary([
            "name": .string(section.name),
            "setting": .string(section.setting.rawValue),
            "kind": .string(section.kind.rawValue),
            "node_count": .count(section.nodeCount),
            "duration_seconds": .decimal(section.durationSeconds),
            "job_minimum_node_count": .count(section.job.leastNodeCount),
            "job_maximum_node_count": .count(section.job.mostNodeCount),
            "departure_count": .number(section.departureCount.map { UInt64($0) }),
            "mean_time_between_hits_seconds": .figure(section.meanTimeBetweenHitsSeconds),
            "paper_count": section.count.map(json) ?? .null,
            "policies": .array(section.table.rows.map(json)),
            "comparisons": .array(section.table.comparisons.map(json)),
        ])
    }

    private func json(_ paper: GoodputSection.PaperCount) -> JSONValue {
        .dictionary([
            "machine_node_count": .count(paper.machineNodeCount),
            "failures": .count(paper.count.changesOfAnyKind),
            "start": .count(paper.count.start),
            "additions": .count(paper.count.additions),
            "removals": .count(paper.count.removals),
            "final_collapse": .count(paper.count.finalCollapse),
            "arrival_time_count": .count(paper.count.arrivalCount),
            "departure_time_count": .count(paper.count.departureCount),
        ])
    }

    private func json(_ pool: PooledGoodput) -> JSONValue {
        .dictionary([
            "setting": .string(pool.setting.rawValue),
            "trace_count": .count(pool.traceCount),
            "policies": .array(pool.table.rows.map(json)),
            "comparisons": .array(pool.table.comparisons.map(json)),
        ])
    }

    private func json(_ row: GoodputRow) -> JSONValue {
        .dictionary([
            "policy": .string(row.policy),
            "rule": .text(row.rule),
            "interval_seconds": .figure(row.intervalSeconds),
            "blocked_seconds": .figure(row.cost?.blockedSeconds),
            "write_seconds": .figure(row.cost?.writeSeconds),
            "in_flight_count": .number((row.cost?.inFlightCount).map { UInt64($0) }),
            "goodput": json(row.goodput),
            "blocked": .decimal(row.losses.blocked),
            "redone": .decimal(row.losses.redone),
            "restart": .decimal(row.losses.restart),
            "waiting": .decimal(row.losses.waiting),
        ])
    }

    private func json(_ comparison: GoodputComparison) -> JSONValue {
        .dictionary([
            "policy": .string(comparison.policy),
            "other": .string(comparison.other),
            "rule": .text(comparison.rule),
            "difference": json(comparison.difference),
            "verdict": .string(comparison.verdict.rawValue),
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
