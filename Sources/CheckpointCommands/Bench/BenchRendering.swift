/// The report as a table and as JSON.
extension BenchReport {
    var lines: [StyledText] {
        var lines: [StyledText] = []
        if let durable { lines += durable.lines }
        if let loop { lines += loop.lines }
        if !open.isEmpty { lines += Open.lines(open) }
        return lines
    }

    var json: JSONValue {
        .document(
            tool: "pccheck bench",
            [
                "durable": durable?.json ?? .null,
                "loop": loop?.json ?? .null,
                "open": .array(open.map(\.json)),
            ])
    }

    /// `1.23`, with as many decimals as asked for.
    static func decimal(_ value: Double, _ digits: Int) -> String {
        guard value.isFinite else { return "—" }
        var factor = 1.0
        for _ in 0..<digits { factor *= 10 }
        let scaled = UInt64((abs(value) * factor).rounded())
        let whole = scaled / UInt64(factor)
        let part = String(scaled % UInt64(factor))
        let sign = value < 0 ? "-" : ""
        if digits == 0 { return "\(sign)\(whole)" }
        return "\(sign)\(whole)." + String(repeating: "0", count: digits - part.count) + part
    }

    fileprivate static func table(_ rows: [(String, Samples, Int, String, String)]) -> [StyledText]
    {
        var table = TableLayout([
            .left(""), .right("median"), .right("minimum"), .right("maximum"), .left("unit"),
            .left("ratio"),
        ])
        for (name, samples, digits, unit, ratio) in rows {
            table.add(
                [
                    StyledText(name), StyledText(decimal(samples.median, digits)),
                    StyledText(decimal(samples.minimum, digits)),
                    StyledText(decimal(samples.maximum, digits)), StyledText(unit),
                    StyledText(ratio),
                ])
        }
        return table.lines(width: nil)
    }
}

extension Samples {
    fileprivate var json: JSONValue {
        .dictionary([
            "median": .decimal(median), "minimum": .decimal(minimum),
            "maximum": .decimal(maximum), "values": .array(values.map { .decimal($0) }),
        ])
    }
}

extension BenchReport.Durable {
    fileprivate var lines: [StyledText] {
        let title =
            "One durable checkpoint of \(Quantity.bytes(byteCount)) "
            + "(\(backend), pool \(Quantity.bytes(poolByteCount)))"
        func ratio(_ other: Samples) -> String {
            "pccheck is " + BenchReport.decimal(checkpoint.median / other.median, 2) + " of it"
        }
        var rows = [("pccheck, checksums on", checkpoint, 0, "MB/s", "")]
        for entry in fio { rows.append((entry.name, entry.rate, 0, "MB/s", ratio(entry.rate))) }
        rows.append(("plain O_DIRECT", plain, 0, "MB/s", ratio(plain)))
        rows.append(("save to staged", staged, 1, "ms", ""))
        rows.append(
            (
                "memcpy of the same", memcpy, 1, "ms",
                "staging is " + BenchReport.decimal(staged.median / memcpy.median, 2) + " of it"
            ))
        rows.append(("CPU", cpuSecondsPerGiB, 3, "s/GiB", ""))
        let extra = Int64(extraResidentByteCount) - Int64(poolByteCount)
        let memory =
            "  memory: pool " + (extra < 0 ? "- " : "+ ")
            + Quantity.bytes(UInt64(abs(extra)))
            + "; per checkpoint \(BenchReport.decimal(flushesPerCheckpoint, 1)) flushes, "
            + "\(BenchReport.decimal(metadataWritesPerCheckpoint, 1)) metadata writes"
        return [StyledText(title, .bold)] + BenchReport.table(rows) + [StyledText(memory), ""]
    }

    fileprivate var json: JSONValue {
        .dictionary([
            "byte_count": .integer(byteCount),
            "backend": .string(backend),
            "pool_byte_count": .integer(poolByteCount),
            "extra_resident_byte_count": .integer(extraResidentByteCount),
            "checkpoint_megabytes_per_second": checkpoint.json,
            "plain_megabytes_per_second": plain.json,
            "fio_megabytes_per_second": .object(
                fio.map { JSONValue.Member(key: $0.name, value: $0.rate.json) }),
            "ratio_to_best_fio": bestFio.map { .decimal(checkpoint.median / $0.median) } ?? .null,
            "ratio_to_plain": .decimal(checkpoint.median / plain.median),
            "staged_milliseconds": staged.json,
            "memcpy_milliseconds": memcpy.json,
            "ratio_staged_to_memcpy": .decimal(staged.median / memcpy.median),
            "cpu_seconds_per_gib": cpuSecondsPerGiB.json,
            "flushes_per_checkpoint": .decimal(flushesPerCheckpoint),
            "metadata_writes_per_checkpoint": .decimal(metadataWritesPerCheckpoint),
        ])
    }
}

extension BenchReport.Loop {
    fileprivate var lines: [StyledText] {
        let title =
            "Training loop: \(stepCount) steps of \(stepMilliseconds) ms, "
            + "\(Quantity.bytes(byteCount)) saved every \(interval)"
        let rows = [
            ("without checkpoints", plain, 3, "s", ""),
            (
                "with checkpoints", checkpointed, 3, "s",
                "slowdown " + BenchReport.decimal(slowdown, 3)
            ),
            ("drain of the last one", drain, 3, "s", ""),
        ]
        return [StyledText(title, .bold)] + BenchReport.table(rows) + [""]
    }

    fileprivate var json: JSONValue {
        .dictionary([
            "byte_count": .integer(byteCount), "step_count": .count(stepCount),
            "step_milliseconds": .count(stepMilliseconds), "interval": .count(interval),
            "plain_seconds": plain.json, "checkpointed_seconds": checkpointed.json,
            "drain_seconds": drain.json, "slowdown": .decimal(slowdown),
        ])
    }
}

extension BenchReport.Open {
    fileprivate static func lines(_ all: [Self]) -> [StyledText] {
        let rows = all.map { entry in
            (
                "\(entry.slotCount) slots of \(Quantity.bytes(entry.payloadByteCount))",
                entry.milliseconds, 3, "ms", ""
            )
        }
        let title = StyledText("Open, and choose the newest valid slot (metadata)", .bold)
        return [title] + BenchReport.table(rows)
    }

    fileprivate var json: JSONValue {
        .dictionary([
            "slot_count": .count(slotCount), "payload_byte_count": .integer(payloadByteCount),
            "milliseconds": milliseconds.json,
        ])
    }
}
