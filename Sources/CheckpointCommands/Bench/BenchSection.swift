internal import CheckpointFormat

/// The results of one part of the benchmark. Every ratio in it is between figures that were taken
/// in turn in one run.
protocol BenchSection: Sendable {
    /// As people read it: a bold title, then a table.
    var lines: [StyledText] { get }
    /// As programs read it; pccheck(1) has the schema.
    var json: JSONValue { get }
}

/// A table of samples: median and extremes, and a remark.
struct BenchTable {
    private var table = TableLayout([
        .left(""), .right("median"), .right("minimum"), .right("maximum"), .left("unit"),
        .left("ratio"),
    ])

    mutating func add(
        _ name: String, _ samples: Samples, digits: Int, unit: String, _ remark: String = ""
    ) {
        let figures = [samples.median, samples.minimum, samples.maximum].map {
            StyledText(Figure.decimal($0, digits))
        }
        table.add([StyledText(name)] + figures + [StyledText(unit), StyledText(remark)])
    }

    /// A limit in MB/s, and how much of it `own` reaches.
    mutating func add(
        limit name: String, _ limit: Samples, reachedBy own: Samples, _ mark: String = ""
    ) {
        let ratio = Figure.decimal(own.ratios(to: limit).median, 2)
        add(name, limit, digits: 0, unit: "MB/s", "pccheck is \(ratio) of it\(mark)")
    }

    mutating func add(_ fio: Fio.Rates, reachedBy own: Samples) {
        let best = fio.best?.setting.name
        for (setting, rate) in fio.entries {
            add(limit: setting.name, rate, reachedBy: own, setting.name == best ? " (best)" : "")
        }
    }

    var lines: [StyledText] { table.lines(width: nil) }
}

/// How figures are written.
enum Figure {
    /// `1.23`, with as many decimals as asked for.
    static func decimal(_ value: Double, _ digits: Int) -> String {
        guard value.isFinite else { return "—" }
        var factor = 1.0
        for _ in 0..<digits { factor *= 10 }
        let product = (abs(value) * factor).rounded()
        guard product < 0x1p63 else { return "—" }
        let scaled = UInt64(product)
        let whole = scaled / UInt64(factor)
        let sign = value < 0 && scaled > 0 ? "-" : ""
        if digits == 0 { return "\(sign)\(whole)" }
        return "\(sign)\(whole).\((scaled % UInt64(factor)).digits(digits))"
    }

    /// `+ 1.37 MiB`, `- 12 KiB`.
    static func difference(_ byteCount: Int64) -> String {
        (byteCount < 0 ? "- " : "+ ") + Quantity.bytes(byteCount.magnitude)
    }

    /// Memory above a bound, for JSON: a plain number that may be negative.
    static func json(_ byteCount: Int64) -> JSONValue {
        byteCount >= 0 ? .integer(UInt64(byteCount)) : .decimal(Double(byteCount))
    }
}
