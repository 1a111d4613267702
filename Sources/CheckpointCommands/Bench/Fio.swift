internal import ArgumentParser
internal import CheckpointFormat

#if canImport(Glibc)
    internal import Glibc
#endif

/// fio(1), when it is installed: the judge that everybody knows.
struct Fio: Sendable {
    /// How many settings to try; the best of them is the limit.
    enum Selection: String, CaseIterable, ExpressibleByArgument, Sendable {
        case none, quick, full
    }

    struct Setting: Sendable {
        let block: String
        let depth: Int
        var name: String { "fio \(block) qd\(depth)" }
    }

    /// What is read or written.
    struct Target: Sendable {
        let path: String
        var offset: UInt64 = 0
        let byteCount: UInt64
        /// How often, each time with its own fsync.
        var loopCount = 1
        var isRead = false
    }

    /// A limit that is judged by its best setting.
    struct Rates: Sendable {
        var entries: [(setting: Setting, rate: Samples)]

        init(_ settings: [Setting]) { entries = settings.map { ($0, Samples()) } }

        /// Runs every setting once. A setting that fails, or fails ever, drops out.
        mutating func measure(_ target: Target) {
            for index in entries.indices {
                if let rate = Fio.rate(entries[index].setting, target) {
                    entries[index].rate.add(rate)
                }
            }
        }

        mutating func dropFailed(roundCount: Int) {
            entries.removeAll { $0.rate.values.count < roundCount }
        }

        var best: (setting: Setting, rate: Samples)? {
            entries.max { $0.rate.median < $1.rate.median }
        }

        var json: JSONValue {
            .object(entries.map { JSONValue.Member(key: $0.setting.name, value: $0.rate.json) })
        }
    }

    static func writeSettings(_ selection: Selection) -> [Setting] {
        switch selection {
        case .none: []
        case .quick:
            [
                Setting(block: "1M", depth: 4), Setting(block: "4M", depth: 4),
                Setting(block: "4M", depth: 16),
            ]
        case .full:
            ["1M", "2M", "4M"].flatMap { block in
                [1, 4, 8, 16].map { Setting(block: block, depth: $0) }
            }
        }
    }

    static func readSettings(_ selection: Selection) -> [Setting] {
        if selection == .none { return [] }
        return ["1M", "4M"].flatMap { block in
            [4, 16].map { Setting(block: block, depth: $0) }
        }
    }

    static let isInstalled = (output("fio --version 2>/dev/null") ?? "").hasPrefix("fio-")

    /// MB/s of sequential O_DIRECT transfers, fsync included; nil when fio fails.
    static func rate(_ setting: Setting, _ target: Target) -> Double? {
        let direction =
            target.isRead ? "--rw=read --readonly" : "--rw=write --overwrite=1 --end_fsync=1"
        let command =
            "fio --name=limit --filename=\(shellQuoted(target.path)) \(direction) "
            + "--bs=\(setting.block) --iodepth=\(setting.depth) --ioengine=libaio --direct=1 "
            + "--offset=\(target.offset) --size=\(target.byteCount) --loops=\(target.loopCount) "
            + "--output-format=terse --terse-version=3 2>/dev/null"
        // Fields 7 and 48 of the terse format, version 3: bandwidth in KiB/s, read and written.
        let field = target.isRead ? 6 : 47
        let fields = (output(command) ?? "").split(separator: ";", omittingEmptySubsequences: false)
        guard fields.count > field, let rate = Double(fields[field]), rate > 0 else { return nil }
        return rate * 1024 / 1e6
    }

    private static func shellQuoted(_ text: String) -> String {
        "'"
            + text.split(separator: "'", omittingEmptySubsequences: false).joined(
                separator: "'\\''")
            + "'"
    }

    private static func output(_ command: String) -> String? {
        // Safe: the stream is used by this function alone and closed once.
        guard let stream = unsafe popen(command, "re") else { return nil }
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 4096)
        while true {
            let count = unsafe fread(&buffer, 1, buffer.count, stream)
            if count == 0 { break }
            bytes += buffer[..<count]
        }
        guard unsafe pclose(stream) == 0 else { return nil }
        return String(decoding: bytes, as: UTF8.self)
    }
}
