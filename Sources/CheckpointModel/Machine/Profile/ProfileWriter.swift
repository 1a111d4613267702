package import CheckpointFormat

extension MachineProfile {
    /// The form that `ProfileReader` reads.
    package var json: JSONValue {
        .dictionary([
            "processor_count": .count(processorCount),
            "device": .array(device.map(\.json)),
            "flush_seconds": flushSeconds.json,
            "block_seconds": blockSeconds.json,
            "commit_seconds": commitSeconds.json,
            "call_seconds": callSeconds.json,
            "memory_bytes_per_second": memoryBytesPerSecond.json,
            "digest_bytes_per_second": digestBytesPerSecond.json,
            "writer": .array(writer.map(\.json)),
            "codecs": .array(codecs.map(\.json)),
        ])
    }
}

extension MachineProfile.DevicePoint {
    fileprivate var json: JSONValue {
        .dictionary([
            "write_byte_count": .count(writeByteCount),
            "queue_depth": .count(queueDepth),
            "other_bytes_per_second": .decimal(otherBytesPerSecond),
            "bytes_per_second": bytesPerSecond.json,
        ])
    }
}

extension MachineProfile.WriterPoint {
    fileprivate var json: JSONValue {
        var members: [JSONValue.Member] = [
            .init(key: "chunk_byte_count", value: .count(chunkByteCount)),
            .init(key: "writer_worker_count", value: .count(writerWorkerCount)),
            .init(key: "bytes_per_second", value: bytesPerSecond.json),
        ]
        if let crowdedBytesPerSecond {
            members.append(
                .init(key: "crowded_bytes_per_second", value: crowdedBytesPerSecond.json))
        }
        return .object(members)
    }
}

extension MachineProfile.CodecPoint {
    fileprivate var json: JSONValue {
        .dictionary([
            "codec": .string(codec.rawValue),
            "bytes_per_second": bytesPerSecond.json,
            "compression_ratio": .decimal(compressionRatio),
        ])
    }
}

extension MeasuredValues {
    fileprivate var json: JSONValue { .array(samples.map { .decimal($0) }) }
}
