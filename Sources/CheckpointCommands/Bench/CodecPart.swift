internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage
internal import CheckpointWriter

/// What compression of real weights brings, and costs.
struct CodecSection: BenchSection {
    struct Entry: Sendable {
        let codec: Codec
        /// Stored bytes in all, and the payload bytes that they hold.
        var storedByteCount: UInt64 = 0
        var payloadByteCount: UInt64 = 0
        /// MB/s that one writer worker compresses; empty without a codec.
        var compress = Samples()
        /// MB/s of payload that became durable.
        var durable = Samples()
        var cpuSecondsPerGiB = Samples()

        /// How many payload bytes one stored byte holds.
        var ratio: Double { Double(payloadByteCount) / Double(storedByteCount) }
    }

    /// One file of weights on one medium.
    struct Group: Sendable {
        let path: String
        let tensorCount: Int
        let elementTypes: String
        let byteCount: UInt64
        /// nil for the device as it is.
        let throttle: UInt64?
        var entries = Codec.allCases.map { Entry(codec: $0) }

        var winner: Entry? { entries.max { $0.durable.median < $1.durable.median } }
    }

    var writerWorkerCount: Int
    var groups: [Group] = []
}

extension BenchRunner {
    static let codecTitle = "Codecs"

    func measureCodec() throws(CheckpointError) -> any BenchSection {
        guard !settings.weightPaths.isEmpty else {
            return SkippedSection(
                title: Self.codecTitle,
                reason: "give real weights with --weights FILE.safetensors; random numbers would "
                    + "say nothing")
        }
        var section = CodecSection(writerWorkerCount: settings.writerWorkerCount)
        for path in settings.weightPaths {
            try progress("reading \(path)")
            let weights = try WeightsFile(path: path)
            section.groups += try measureCodec(weights)
        }
        return section
    }

    private func measureCodec(
        _ weights: WeightsFile
    ) throws(CheckpointError) -> [CodecSection.Group] {
        let byteCount = weights.payload.byteCount
        try checkSpace(for: "codec", byteCount: byteCount, slotCount: 2, option: "--weights file")
        let workspace = BenchWorkspace(directory: settings.directory)
        let path = try workspace.createFile(
            "codec", capacity: byteCount, inFlight: 1, chunkByteCount: settings.chunkByteCount)
        let throttles = [nil] + settings.throttles.map { Optional($0) }
        var groups = throttles.map {
            CodecSection.Group(
                path: weights.path, tensorCount: weights.tensorCount,
                elementTypes: weights.elementTypes, byteCount: byteCount, throttle: $0)
        }
        for round in 1...settings.roundCount {
            for index in groups.indices {
                let medium = groups[index].throttle.map { "\(Quantity.bytes($0))/s" } ?? "device"
                try progress(
                    "codecs, \(weights.path), \(medium), round \(round) of \(settings.roundCount)")
                for position in groups[index].entries.indices {
                    try measureCodec(
                        weights, path, groups[index].throttle,
                        &groups[index].entries[position])
                    if round == 1 { try verifyNewest(path) }
                }
            }
        }
        return groups
    }

    private func measureCodec(
        _ weights: WeightsFile, _ path: String, _ throttle: UInt64?,
        _ entry: inout CodecSection.Entry
    ) throws(CheckpointError) {
        var options = settings.writerOptions
        options.codec = entry.codec
        // The last codec's checkpoint is of no use, and reading it would take time.
        options.trustsAnchor = true
        let writer: CheckpointWriter
        if let throttle {
            let opened = try withCheckpointErrors { () throws(StorageError) in
                try options.backend.open(path: path)
            }
            writer = try CheckpointWriter(
                storage: ThrottledStorage(opened.storage, bytesPerSecond: throttle),
                options: options)
        } else {
            writer = try CheckpointWriter(path: path, options: options)
        }
        let before = writer.statistics
        // Small files several times: one save alone is over before it says much.
        let count = max(1, min(20, Int((64 << 20) / max(1, weights.payload.byteCount))))
        let payload = Double(count) * Double(weights.payload.byteCount)
        try measure(payload, &entry.durable, &entry.cpuSecondsPerGiB) {
            () throws(CheckpointError) in
            var elapsed = 0.0
            for number in 1...count {
                elapsed += try save(weights.payload, UInt64(number), writer).durable
            }
            return elapsed
        }
        let after = writer.statistics
        entry.payloadByteCount += after.payloadByteCount - before.payloadByteCount
        entry.storedByteCount += after.storedByteCount - before.storedByteCount
        let compressing = after.compressNanoseconds - before.compressNanoseconds
        if compressing > 0 { entry.compress.add(payload / Double(compressing) * 1e3) }
        try writer.close()
    }

    /// Reads, verifies and decompresses what was saved: a codec that cannot be read back has no
    /// ratio.
    private func verifyNewest(_ path: String) throws(CheckpointError) {
        let reader = try CheckpointReader(path: path, workerCount: settings.readerWorkerCount)
        _ = try reader.loadNewest { selected throws(CheckpointError) in try selected.verify() }
    }
}

extension CodecSection {
    var lines: [StyledText] { groups.flatMap(\.lines) }

    var json: JSONValue {
        .dictionary([
            "writer_worker_count": .count(writerWorkerCount),
            "groups": .array(groups.map(\.json)),
        ])
    }
}

extension CodecSection.Group {
    private var none: CodecSection.Entry? { entries.first { $0.codec == .none } }

    fileprivate var lines: [StyledText] {
        let medium =
            throttle.map { "a device throttled to \($0 / 1_000_000) MB/s" } ?? "the device as it is"
        let title =
            "Codecs on \(path): \(Quantity.plural(tensorCount, "tensor")) of \(elementTypes), "
            + "\(Quantity.bytes(byteCount)), on \(medium)"
        var table = TableLayout([
            .left("codec"), .right("ratio"), .right("MB/s per worker"), .right("durable MB/s"),
            .right("of none"), .right("CPU s/GiB"), .left(""),
        ])
        for entry in entries {
            let ofNone = none.map { entry.durable.ratios(to: $0.durable).median } ?? .nan
            table.add(
                [
                    entry.codec.label, Figure.decimal(entry.ratio, 3),
                    Figure.decimal(entry.compress.median, 0),
                    Figure.decimal(entry.durable.median, 0), Figure.decimal(ofNone, 2),
                    Figure.decimal(entry.cpuSecondsPerGiB.median, 3),
                    entry.codec == winner?.codec ? "fastest" : "",
                ].map { StyledText($0) })
        }
        return [StyledText(title, .bold)] + table.lines(width: nil) + [""]
    }

    fileprivate var json: JSONValue {
        .dictionary([
            "path": .string(path),
            "tensor_count": .count(tensorCount),
            "element_types": .string(elementTypes),
            "byte_count": .integer(byteCount),
            "throttle_bytes_per_second": .number(throttle),
            "winner": .text(winner?.codec.label),
            "codecs": .array(entries.map { $0.json(none: none) }),
        ])
    }
}

extension CodecSection.Entry {
    fileprivate func json(none: CodecSection.Entry?) -> JSONValue {
        .dictionary([
            "codec": .string(codec.label),
            "compression_ratio": .decimal(ratio),
            "compress_megabytes_per_second_per_worker": compress.isEmpty ? .null : compress.json,
            "durable_megabytes_per_second": durable.json,
            "ratio_to_none": none.map { durable.ratios(to: $0.durable).json } ?? .null,
            "cpu_seconds_per_gib": cpuSecondsPerGiB.json,
        ])
    }
}
