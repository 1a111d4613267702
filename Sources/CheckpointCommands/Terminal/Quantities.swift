internal import ArgumentParser

#if canImport(Glibc)
    internal import Glibc
#endif

/// A size on the command line: `4096`, `512M`, `1.5GiB`, `2GB`.
///
/// `K M G T` and `KiB MiB GiB TiB` are powers of 1024, `KB MB GB TB` powers of 1000.
struct ByteSize: ExpressibleByArgument, ExpressibleByStringLiteral, Hashable, Sendable {
    let byteCount: UInt64

    /// A size that the source code gives, as the default of an option.
    init(stringLiteral text: String) {
        guard let size = ByteSize(argument: text) else { preconditionFailure("no size: \(text)") }
        self = size
    }

    /// As `--help` shows a default.
    var defaultValueDescription: String { Quantity.bytes(byteCount) }

    private static let suffixes: [String: UInt64] = [
        "": 1, "b": 1, "k": 1 << 10, "kib": 1 << 10, "kb": 1000, "m": 1 << 20, "mib": 1 << 20,
        "mb": 1_000_000, "g": 1 << 30, "gib": 1 << 30, "gb": 1_000_000_000, "t": 1 << 40,
        "tib": 1 << 40, "tb": 1_000_000_000_000,
    ]

    init?(argument: String) {
        let digits = argument.prefix { ("0"..."9").contains($0) || $0 == "." }
        let suffix = argument.dropFirst(digits.count).trimmingPrefix(" ").lowercased()
        guard let factor = Self.suffixes[suffix] else { return nil }
        if let whole = UInt64(digits) {
            let (product, overflow) = whole.multipliedReportingOverflow(by: factor)
            if overflow { return nil }
            byteCount = product
        } else {
            guard factor > 1, let number = Double(digits), number.isFinite,
                number * Double(factor) < 0x1p63
            else { return nil }
            byteCount = UInt64((number * Double(factor)).rounded())
        }
    }
}

/// Quantities as people read them.
enum Quantity {
    /// `812 MiB`, `1.5 GiB`, `17 B`: three significant digits, rounded down.
    static func bytes(_ count: UInt64) -> String {
        var unit: UInt64 = 1
        var names = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"][...]
        while count / unit >= 1024, names.count > 1 {
            unit <<= 10
            names.removeFirst()
        }
        let name = names.first ?? "B"
        let whole = count / unit
        if unit == 1 || count % unit == 0 || whole >= 100 { return "\(whole) \(name)" }
        let scale: UInt64 = whole >= 10 ? 10 : 100
        let part = (count % unit) * scale / unit
        return "\(whole).\(part.digits(scale == 10 ? 1 : 2)) \(name)"
    }

    /// `1 234 567`.
    static func count(_ value: UInt64) -> String {
        let digits = String(value)
        var result = ""
        for (index, digit) in digits.enumerated() {
            if index > 0, (digits.count - index) % 3 == 0 { result += " " }
            result.append(digit)
        }
        return result
    }

    static func plural(_ count: Int, _ noun: String) -> String {
        "\(Quantity.count(UInt64(count))) \(noun)\(count == 1 ? "" : "s")"
    }

    /// `950`, `9.5 k`, `12 M`: for a narrow column.
    static func short(_ value: UInt64) -> String {
        var unit: UInt64 = 1
        var names = ["", " k", " M", " G", " T", " P", " E"][...]
        while value / unit >= 1000, names.count > 1 {
            unit *= 1000
            names.removeFirst()
        }
        let (whole, name) = (value / unit, names.first ?? "")
        let tenth = value % unit * 10 / unit
        return unit > 1 && whole < 10 && tenth > 0 ? "\(whole).\(tenth)\(name)" : "\(whole)\(name)"
    }

    /// `1.2 GiB/s`, of any number that a hostile header may give.
    static func rate(bytesPerSecond: Double) -> String {
        "\(bytes(UInt64(saturating: bytesPerSecond)))/s"
    }

    /// So many significant digits, as `%.4g` of printf(3) has them.
    static func significant(_ value: Double, digitCount: Int = 4) -> String {
        var text = [CChar](repeating: 0, count: 32)
        // Safe: vsnprintf(3) writes at most 32 bytes, with a zero at the end, and takes an int and
        // a double.
        return unsafe text.withUnsafeMutableBufferPointer { buffer in
            guard let start = buffer.baseAddress else { return "" }
            unsafe _ = withVaList([CInt(digitCount), value]) {
                unsafe vsnprintf(start, buffer.count, "%.*g", $0)
            }
            return unsafe String(cString: start)
        }
    }

    /// `0`, `<1 %`, `37 %`, `100 %`, the last only for all of it.
    static func percent(_ part: UInt64, of whole: UInt64) -> String {
        if part == 0 || whole == 0 { return "0" }
        let share = Int(Double(part) / Double(whole) * 100)
        if share == 0 { return "<1 %" }
        return "\(part < whole ? min(share, 99) : 100) %"
    }

    private static let second: UInt64 = 1_000_000_000

    /// `3 min`, `41 s`, `250 ms`: the largest unit that fits.
    static func duration(nanoseconds: UInt64) -> String {
        let units: [(UInt64, String)] = [
            (86_400 * second, "d"), (3600 * second, "h"), (60 * second, "min"), (second, "s"),
            (1_000_000, "ms"), (1000, "µs"),
        ]
        for (size, name) in units where nanoseconds >= size {
            return "\(nanoseconds / size) \(name)"
        }
        return "\(nanoseconds) ns"
    }

    /// How long ago `time` was, seen from `now`; both in nanoseconds since 1970.
    static func age(of time: UInt64, now: UInt64) -> String {
        if time == 0 { return "—" }
        if time > now + second { return "in the future" }
        return now - min(time, now) < second
            ? "just now" : duration(nanoseconds: now - time) + " ago"
    }

    /// `2026-11-23 21:14:22 UTC`.
    static func date(_ nanoseconds: UInt64) -> String {
        if nanoseconds == 0 { return "—" }
        let seconds = nanoseconds / second
        let (year, month, day) = civilDate(daysSince1970: seconds / 86_400)
        let time = [seconds / 3600 % 24, seconds / 60 % 60, seconds % 60].map { $0.digits(2) }
        return "\(year)-\(month.digits(2))-\(day.digits(2)) "
            + time.joined(separator: ":") + " UTC"
    }

    /// The Gregorian date; Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    private static func civilDate(
        daysSince1970 days: UInt64
    ) -> (year: UInt64, month: UInt64, day: UInt64) {
        // Days are counted from 1 March of year 0, so that a leap day ends its year.
        let shifted = days + 719_468
        let era = shifted / 146_097
        let dayOfEra = shifted % 146_097
        let yearOfEra =
            (dayOfEra - dayOfEra / 1460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
        let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
        let shiftedMonth = (5 * dayOfYear + 2) / 153
        let day = dayOfYear - (153 * shiftedMonth + 2) / 5 + 1
        let month = shiftedMonth < 10 ? shiftedMonth + 3 : shiftedMonth - 9
        return (yearOfEra + era * 400 + (month <= 2 ? 1 : 0), month, day)
    }

    /// A bar of `width` cells, of which part/whole are full.
    static func bar(_ part: UInt64, of whole: UInt64, width: Int, full: Character = "█") -> String {
        let share = whole == 0 ? 0 : Double(min(part, whole)) / Double(whole)
        var filled = Int((share * Double(width)).rounded())
        if part > 0 { filled = max(filled, 1) }
        return String(repeating: full, count: filled)
            + String(repeating: "░", count: width - filled)
    }
}

extension BinaryInteger {
    /// At least `count` digits, with `filler` before them.
    func digits(_ count: Int, radix: Int = 10, filler: Character = "0") -> String {
        let text = String(self, radix: radix)
        return String(repeating: filler, count: max(0, count - text.count)) + text
    }
}

extension UInt64 {
    /// `value` without its fraction, or the nearest number that there is; 0 for NaN.
    init(saturating value: Double) {
        self = value >= 0x1p64 ? .max : value > 0 ? UInt64(value) : 0
    }
}
