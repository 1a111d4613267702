internal import CheckpointFormat

extension TuningError: JSONScannerFailure {
    package init(json message: String) { self.init(.malformed, message) }
}

/// Reads a profile from JSON.
///
/// A member that it does not know is refused, because a misspelled one would be missed silently.
package struct ProfileReader {
    private typealias Scanner = JSONScanner<TuningError>

    private var scanner: Scanner
    private var processorCount: Int?
    private var device: [MachineProfile.DevicePoint]?
    private var writer: [MachineProfile.WriterPoint] = []
    private var codecs: [MachineProfile.CodecPoint] = []
    private var values: [String: MeasuredValues] = [:]

    /// - Throws: where the text has another form, or when the profile makes no sense.
    package static func profile(_ bytes: [UInt8]) throws(TuningError) -> MachineProfile {
        var reader = ProfileReader(scanner: Scanner(bytes))
        return try reader.read()
    }

    private init(scanner: Scanner) { self.scanner = scanner }

    private mutating func read() throws(TuningError) -> MachineProfile {
        try eachMember { (reader, key) throws(TuningError) in
            switch key {
            case "processor_count": reader.processorCount = try reader.whole()
            case "device":
                reader.device = try reader.list { (reader) throws(TuningError) in
                    try reader.devicePoint()
                }
            case "writer":
                reader.writer = try reader.list { (reader) throws(TuningError) in
                    try reader.writerPoint()
                }
            case "codecs":
                reader.codecs = try reader.list { (reader) throws(TuningError) in
                    try reader.codecPoint()
                }
            case "flush_seconds", "block_seconds", "commit_seconds", "call_seconds",
                "memory_bytes_per_second", "digest_bytes_per_second":
                reader.values[key] = try reader.samples()
            default: throw reader.unknown(key)
            }
        }
        try scanner.expectEnd()
        let profile = MachineProfile(
            processorCount: try Self.needed(processorCount, "processor_count"),
            device: try Self.needed(device, "device"),
            flushSeconds: try Self.needed(values["flush_seconds"], "flush_seconds"),
            blockSeconds: try Self.needed(values["block_seconds"], "block_seconds"),
            commitSeconds: try Self.needed(values["commit_seconds"], "commit_seconds"),
            memoryBytesPerSecond: try Self.needed(
                values["memory_bytes_per_second"], "memory_bytes_per_second"),
            digestBytesPerSecond: try Self.needed(
                values["digest_bytes_per_second"], "digest_bytes_per_second"),
            callSeconds: try Self.needed(values["call_seconds"], "call_seconds"), writer: writer,
            codecs: codecs)
        try profile.check()
        return profile
    }

    private mutating func devicePoint() throws(TuningError) -> MachineProfile.DevicePoint {
        var size: Int?
        var depth: Int?
        var other = 0.0
        var rate: MeasuredValues?
        try eachMember { (reader, key) throws(TuningError) in
            switch key {
            case "write_byte_count": size = try reader.whole()
            case "queue_depth": depth = try reader.whole()
            case "other_bytes_per_second": other = try reader.decimal()
            case "bytes_per_second": rate = try reader.samples()
            default: throw reader.unknown(key)
            }
        }
        return MachineProfile.DevicePoint(
            writeByteCount: try Self.needed(size, "write_byte_count"),
            queueDepth: try Self.needed(depth, "queue_depth"), otherBytesPerSecond: other,
            bytesPerSecond: try Self.needed(rate, "bytes_per_second of the device"))
    }

    private mutating func writerPoint() throws(TuningError) -> MachineProfile.WriterPoint {
        var chunk: Int?
        var workers: Int?
        var rate: MeasuredValues?
        var crowded: MeasuredValues?
        try eachMember { (reader, key) throws(TuningError) in
            switch key {
            case "chunk_byte_count": chunk = try reader.whole()
            case "writer_worker_count": workers = try reader.whole()
            case "bytes_per_second": rate = try reader.samples()
            case "crowded_bytes_per_second": crowded = try reader.samples()
            default: throw reader.unknown(key)
            }
        }
        return MachineProfile.WriterPoint(
            chunkByteCount: try Self.needed(chunk, "chunk_byte_count"),
            writerWorkerCount: try Self.needed(workers, "writer_worker_count"),
            bytesPerSecond: try Self.needed(rate, "bytes_per_second of the writer"),
            crowdedBytesPerSecond: crowded)
    }

    private mutating func codecPoint() throws(TuningError) -> MachineProfile.CodecPoint {
        var codec: MachineCodec?
        var rate: MeasuredValues?
        var ratio: Double?
        try eachMember { (reader, key) throws(TuningError) in
            switch key {
            case "codec": codec = try reader.codec()
            case "bytes_per_second": rate = try reader.samples()
            case "compression_ratio": ratio = try reader.decimal()
            default: throw reader.unknown(key)
            }
        }
        return MachineProfile.CodecPoint(
            codec: try Self.needed(codec, "codec"),
            bytesPerSecond: try Self.needed(rate, "bytes_per_second of a codec"),
            compressionRatio: try Self.needed(ratio, "compression_ratio"))
    }

    // MARK: Parts of JSON

    private mutating func eachMember(
        _ body: (inout ProfileReader, String) throws(TuningError) -> Void
    ) throws(TuningError) {
        var seen: Set<String> = []
        try scanner.expect("{")
        if scanner.consume("}") { return }
        repeat {
            let key = String(decoding: try scanner.string(limit: 64), as: UTF8.self)
            guard seen.insert(key).inserted else {
                throw TuningError(
                    .malformed, "found \(PrintableText.escaped(key)) twice, expected it once")
            }
            try scanner.expect(":")
            try body(&self, key)
        } while scanner.consume(",")
        try scanner.expect("}")
    }

    private mutating func list<Element>(
        _ element: (inout ProfileReader) throws(TuningError) -> Element
    ) throws(TuningError) -> [Element] {
        var elements: [Element] = []
        try scanner.expect("[")
        if scanner.consume("]") { return [] }
        repeat {
            guard elements.count < TuningLimits.sampleCount.upperBound else {
                throw TuningError(
                    .outOfRange,
                    "found a list of more than \(TuningLimits.sampleCount.upperBound) entries")
            }
            elements.append(try element(&self))
        } while scanner.consume(",")
        try scanner.expect("]")
        return elements
    }

    private mutating func samples() throws(TuningError) -> MeasuredValues {
        MeasuredValues(
            try list { (reader) throws(TuningError) in try reader.decimal() })
    }

    private mutating func codec() throws(TuningError) -> MachineCodec {
        let name = String(decoding: try scanner.string(limit: 64), as: UTF8.self)
        guard let codec = MachineCodec(rawValue: name), codec != .none else {
            throw TuningError(
                .malformed,
                "found the codec \(PrintableText.escaped(name)), expected zstd or planes-zstd")
        }
        return codec
    }

    private mutating func decimal() throws(TuningError) -> Double {
        let text = try scanner.number()
        guard let value = Double(text), value.isFinite else {
            throw TuningError(.malformed, "found \(text), expected a number")
        }
        return value
    }

    private mutating func whole() throws(TuningError) -> Int {
        let value = try scanner.unsignedInteger()
        return Int(exactly: value) ?? .max
    }

    private func unknown(_ key: String) -> TuningError {
        TuningError(
            .malformed,
            "found \(PrintableText.escaped(key)), expected a member of a profile")
    }

    private static func needed<Value>(
        _ value: Value?, _ name: String
    ) throws(TuningError) -> Value {
        guard let value else {
            throw TuningError(.notMeasured, "the profile has no \(name)")
        }
        return value
    }
}
