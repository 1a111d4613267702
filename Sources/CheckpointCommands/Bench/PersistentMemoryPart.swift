internal import CheckpointFormat
internal import CheckpointStorage
internal import CheckpointWriter

#if canImport(Glibc)
    internal import Glibc
#endif

/// Durable checkpoints into persistent memory, against a copy with non-temporal stores into the
/// same medium.
struct PersistentMemorySection: BenchSection {
    var byteCount: UInt64
    var directory: String
    var fileSystem: String
    var isForced: Bool
    var backendDetail: String?
    /// MB/s of durable checkpoints.
    var checkpoint = Samples()
    /// MB/s of a non-temporal copy by as many threads as write chunks.
    var copy = Samples()
    var cpuSecondsPerGiB = Samples()
}

extension BenchRunner {
    static let persistentMemoryTitle = "Persistent memory"

    func measurePersistentMemory() throws(CheckpointError) -> any BenchSection {
        let directory = settings.persistentMemoryDirectory
        guard let backend = StorageBackend(rawValue: "pmem") else {
            return SkippedSection(
                title: Self.persistentMemoryTitle, reason: "this build has no back end pmem")
        }
        let byteCount = settings.byteCounts.max() ?? 1 << 30
        // On a tmpfs the files are memory too.
        let isMemory = Machine.fileSystem(directory) == "tmpfs"
        try checkSpace(
            for: "pmem", byteCount: byteCount, slotCount: 2, plainByteCount: byteCount,
            otherMemoryByteCount: isMemory ? 3 * byteCount : 0, directory: directory)
        let isForced = isMemory && Self.forceGranularity()
        let workspace = BenchWorkspace(directory: directory)
        var options = settings.writerOptions
        options.backend = backend
        try progress("preparing persistent memory in \(directory)")
        let path = try workspace.createFile(
            "pmem", capacity: byteCount, inFlight: 1, chunkByteCount: settings.chunkByteCount)
        let writer: CheckpointWriter
        do throws(CheckpointError) {
            writer = try CheckpointWriter(path: path, options: options)
        } catch {
            return SkippedSection(title: Self.persistentMemoryTitle, reason: error.message)
        }
        guard writer.statistics.storageKind == .persistentMemory else {
            let reason = writer.statistics.storageFallbackReason ?? "no reason was given"
            return SkippedSection(
                title: Self.persistentMemoryTitle,
                reason: "the back end is \(writer.statistics.storageKind.name): \(reason)")
        }
        let state = BenchState(byteCount: byteCount)
        let plainPath = try workspace.writePlainFile("plain", byteCount: UInt64(state.byteCount))
        let mapping = try SharedMapping(path: plainPath, byteCount: state.byteCount)
        var section = PersistentMemorySection(
            byteCount: UInt64(state.byteCount), directory: directory,
            fileSystem: Machine.fileSystem(directory), isForced: isForced)
        for step in [UInt64(1), 2] { _ = try save(state.payload, step, writer) }
        section.backendDetail = writer.statistics.storageDetail
        for round in 1...settings.roundCount {
            try progress("persistent memory, round \(round) of \(settings.roundCount)")
            let copySeconds = try PlainWrites.streamSeconds(
                state, to: mapping, threadCount: writer.statistics.snapshotWorkerCount,
                chunkByteCount: settings.chunkByteCount)
            section.copy.add(Double(state.byteCount) / copySeconds / 1e6)
            try measure(
                Double(state.byteCount), &section.checkpoint, &section.cpuSecondsPerGiB
            ) { () throws(CheckpointError) in
                try save(state.payload, UInt64(round + 2), writer).durable
            }
        }
        try writer.close()
        return section
    }

    /// libpmem2 takes a tmpfs for a medium that loses power whole only with a setting; false
    /// when the user has said already what it is.
    private static func forceGranularity() -> Bool {
        let name = "PMEM2_FORCE_GRANULARITY"
        if Environment.value(name) != nil { return false }
        // Safe: both are passed as C strings, and no other thread runs yet that reads them.
        unsafe setenv(name, "CACHE_LINE", 1)
        return true
    }
}

extension PersistentMemorySection {
    var lines: [StyledText] {
        let title =
            "Persistent memory: one durable checkpoint of \(Quantity.bytes(byteCount)) in "
            + "\(directory) (\(fileSystem)\(isForced ? ", granularity forced" : "")"
            + (backendDetail.map { "; \($0))" } ?? ")")
        var table = BenchTable()
        table.add("pccheck, checksums on", checkpoint, digits: 0, unit: "MB/s")
        table.add(limit: "non-temporal memcpy", copy, reachedBy: checkpoint)
        table.add("CPU", cpuSecondsPerGiB, digits: 3, unit: "s/GiB")
        return [StyledText(title, .bold)] + table.lines + [""]
    }

    var json: JSONValue {
        .dictionary([
            "byte_count": .integer(byteCount),
            "directory": .string(directory),
            "file_system": .string(fileSystem),
            "backend_detail": .text(backendDetail),
            "is_granularity_forced": .bool(isForced),
            "checkpoint_megabytes_per_second": checkpoint.json,
            "copy_megabytes_per_second": copy.json,
            "ratio_to_copy": checkpoint.ratios(to: copy).json,
            "cpu_seconds_per_gib": cpuSecondsPerGiB.json,
        ])
    }
}
