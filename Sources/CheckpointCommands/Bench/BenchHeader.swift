internal import CheckpointFormat
internal import CheckpointStorage
internal import CheckpointWriter

/// What was measured, on what: the head of the table and of the JSON.
struct BenchHeader: Sendable {
    let settings: BenchSettings
    /// From a writer of a small file in the directory.
    let statistics: WriterStatistics

    /// Opens a small file as the parts will, so that an option that cannot work ends the
    /// benchmark at once.
    init(_ settings: BenchSettings) throws(CheckpointError) {
        self.settings = settings
        let workspace = BenchWorkspace(directory: settings.directory)
        let path = try workspace.createFile(
            "probe", capacity: 64 << 10, inFlight: 1, chunkByteCount: 64 << 10)
        let writer = try CheckpointWriter(path: path, options: settings.writerOptions)
        let runner = BenchRunner(settings: settings) { _ in }
        // What a back end says of itself is known once it has written something.
        _ = try runner.save(BenchState(byteCount: 64 << 10).payload, 1, writer)
        statistics = writer.statistics
        try writer.close()
    }

    private var pool: String {
        settings.writerOptions.poolByteCount.map { Quantity.bytes($0) } ?? "one slot up to 2 GiB"
    }

    var lines: [StyledText] {
        let options = settings.writerOptions
        var lines: [StyledText] = [
            "\("PCcheck \(Tool.version)", .bold) on \(Machine.kernel), \(Machine.processorName)",
            StyledText(
                "  \(Quantity.plural(Machine.processorCount, "core")), "
                    + "\(Quantity.bytes(Machine.memoryByteCount)) of memory, "
                    + "\(Machine.fileSystem(settings.directory)) at \(settings.directory)"),
            StyledText(
                "  back end \(statistics.storageName) (asked: \(options.backend.rawValue)), "
                    + "chunks of \(Quantity.bytes(UInt64(settings.chunkByteCount))), "
                    + "pool \(pool), codec \(options.codec.label)"),
            StyledText(
                "  \(statistics.snapshotWorkerCount) snapshot and \(options.writerWorkerCount) "
                    + "writer workers, write queue of \(options.writeQueueDepth); "
                    + "medians of \(Quantity.plural(settings.roundCount, "round"))"),
        ]
        if let reason = statistics.storageFallbackReason {
            lines.append("  \("took a slower back end:", .yellow) \(reason)")
        }
        return lines + [""]
    }

    var machine: JSONValue {
        .dictionary([
            "kernel": .string(Machine.kernel),
            "processor": .string(Machine.processorName),
            "core_count": .count(Machine.processorCount),
            "memory_byte_count": .integer(Machine.memoryByteCount),
            "directory": .string(settings.directory),
            "file_system": .string(Machine.fileSystem(settings.directory)),
            "time": .string(Quantity.date(SystemClock.wallTime)),
            "has_fio": .bool(Fio.isInstalled),
        ])
    }

    var configuration: JSONValue {
        let options = settings.writerOptions
        return .dictionary([
            "backend_asked": .string(options.backend.rawValue),
            "backend": .string(statistics.storageKind.name),
            "backend_detail": .text(statistics.storageDetail),
            "backend_fallback_reason": .text(statistics.storageFallbackReason),
            "chunk_byte_count": .count(settings.chunkByteCount),
            "pool_byte_count": .number(options.poolByteCount),
            "codec": .string(options.codec.label),
            "snapshot_worker_count": .count(statistics.snapshotWorkerCount),
            "writer_worker_count": .count(options.writerWorkerCount),
            "write_queue_depth": .count(options.writeQueueDepth),
            "reader_worker_count": .count(settings.readerWorkerCount),
            "round_count": .count(settings.roundCount),
            "fio_settings": .string(settings.fio.rawValue),
        ])
    }
}

extension WriterStatistics {
    /// The back end's name, and what it says of itself.
    var storageName: String {
        storageKind.name + (storageDetail.map { ", \($0)" } ?? "")
    }
}
