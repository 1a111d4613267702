internal import CBenchmark
internal import CheckpointFormat
internal import CheckpointStorage

#if canImport(Glibc)
    internal import Glibc
#endif

/// Facts of the machine that a figure means nothing without.
enum Machine {
    /// `Linux 6.1.0`.
    static var kernel: String {
        "\(text("/proc/sys/kernel/ostype") ?? "?") \(text("/proc/sys/kernel/osrelease") ?? "?")"
    }

    static var processorName: String {
        let line = (text("/proc/cpuinfo") ?? "").split(separator: "\n").first {
            $0.hasPrefix("model name")
        }
        return line.map { String($0.drop { $0 != ":" }.dropFirst().trimmingPrefix(" ")) } ?? "?"
    }

    static var processorCount: Int { sysconf(Int32(_SC_NPROCESSORS_ONLN)) }

    static var memoryByteCount: UInt64 { memoryInfo("MemTotal:") ?? 0 }

    /// What is available without swapping, by the kernel and by the cgroup.
    static var availableMemoryByteCount: UInt64? {
        guard var available = memoryInfo("MemAvailable:") else { return nil }
        if let limit = text("/sys/fs/cgroup/memory.max").flatMap({ UInt64($0) }),
            let used = text("/sys/fs/cgroup/memory.current").flatMap({ UInt64($0) })
        {
            available = min(available, limit - min(limit, used))
        }
        return available
    }

    private static func memoryInfo(_ name: String) -> UInt64? {
        let line = (text("/proc/meminfo") ?? "").split(separator: "\n").first {
            $0.hasPrefix(name)
        }
        let number = line?.dropFirst(name.count).split(separator: " ").first
        return number.flatMap { UInt64($0) }.map { $0 << 10 }
    }

    /// The name of the file system that holds `directory`, by its f_type of statfs(2).
    static func fileSystem(_ directory: String) -> String {
        let names: [UInt32: String] = [
            0xEF53: "ext4", 0x5846_5342: "xfs", 0x9123_683E: "btrfs", 0x0102_1994: "tmpfs",
            0x794C_7630: "overlay", 0x2FC1_2FC1: "zfs", 0xF2F5_2010: "f2fs",
            0xCA45_1A4E: "bcachefs", 0x6969: "nfs", 0x6573_5546: "fuse",
        ]
        // Safe: the path is passed as a C string for the call.
        let type = unsafe pccb_file_system_type(directory)
        return type == 0 ? "unknown" : names[type] ?? "0x" + String(type, radix: 16)
    }

    static func freeDiskByteCount(_ directory: String) -> UInt64? {
        var facts = statvfs()
        // Safe: fills the struct that it is given.
        guard unsafe statvfs(directory, &facts) == 0 else { return nil }
        return UInt64(facts.f_bavail) * UInt64(facts.f_frsize)
    }

    /// The start of a small text file, without the line feed at its end; nil without it.
    static func text(_ path: String) -> String? {
        // Safe: the stream is used by this function alone and closed once.
        guard let file = unsafe fopen(path, "re") else { return nil }
        // Safe: as above.
        defer { unsafe _ = fclose(file) }
        var buffer = [UInt8](repeating: 0, count: 16 << 10)
        let count = unsafe fread(&buffer, 1, buffer.count, file)
        let text = String(decoding: buffer[..<count], as: UTF8.self)
        return text.hasSuffix("\n") ? String(text.dropLast()) : text
    }

    /// Ends in a clear error, before anything was written, when a part cannot have what it needs.
    static func checkSpace(
        for part: String, in directory: String, disk: UInt64, memory: UInt64, advice: String
    ) throws(CheckpointError) {
        guard !directory.isEmpty else {
            throw CheckpointError(
                .invalidArgument, "the path of --directory is empty; give the name of a folder")
        }
        if let free = freeDiskByteCount(directory), free < disk {
            throw CheckpointError(
                .noSpace,
                "\(directory): the \(part) needs \(Quantity.bytes(disk)) of disk space, "
                    + "but \(Quantity.bytes(free)) are free; \(advice) or another --directory")
        }
        if let free = availableMemoryByteCount, free < memory {
            throw CheckpointError(
                .outOfMemory,
                "the \(part) needs \(Quantity.bytes(memory)) of memory, but "
                    + "\(Quantity.bytes(free)) are available; \(advice)")
        }
    }
}

/// Facts of this process that must not grow.
enum ProcessFacts {
    /// Makes the peak of resident memory begin again: proc(5), /proc/pid/clear_refs.
    static func resetPeak() {
        // Safe: the stream is used by this function alone and closed once.
        guard let file = unsafe fopen("/proc/self/clear_refs", "we") else { return }
        unsafe fputs("5", file)
        unsafe fclose(file)
    }
}

/// The peak of resident memory above what it was at the beginning.
struct MemoryPeak {
    private let before: UInt64

    init() {
        ProcessFacts.resetPeak()
        before = ThisProcess.residentByteCount
    }

    var extraByteCount: UInt64 {
        let peak = ThisProcess.peakResidentByteCount
        return peak - min(before, peak)
    }
}
