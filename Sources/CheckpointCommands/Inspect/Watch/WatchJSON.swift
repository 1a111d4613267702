internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

/// One line of `pcinspect watch --json`: what happened, and the state that was seen with it.
enum WatchJSON {
    static func line(_ event: Watch.Event, _ watch: Watch, path: String, time: UInt64) -> [UInt8] {
        let sample = watch.failure == nil ? watch.sample : nil
        let rates = sample.flatMap { watch.history.rates(now: $0.time) }
        return JSONValue.document(
            tool: "pcinspect",
            [
                "path": .string(path),
                "time_nanoseconds": .integer(time),
                "event": .string(event.kind.rawValue),
                "message": .string(event.message),
                "file_uuid": .text(sample?.fileUUID),
                "writer": sample.map { .string($0.writer.rawValue) } ?? .null,
                "writer_pid": .number(sample?.decision.superblock.map { UInt64($0.writerPID) }),
                "generation": .number(sample?.generation),
                "newest": sample?.newest.map(checkpoint) ?? .null,
                "in_flight": .array(sample?.inFlight.map(checkpoint) ?? []),
                "pins": .array(sample?.pins.flatMap(pins) ?? []),
                "usual_interval_nanoseconds": .number(
                    sample == nil ? nil : watch.history.usualInterval),
                "stall_limit_nanoseconds": .number(sample == nil ? nil : watch.stallLimit),
                "is_stalled": .bool(watch.isStalled),
                "commits_per_minute": .figure(rates?.commitsPerMinute),
                "durable_bytes_per_second": .figure(rates?.bytesPerSecond),
            ]
        ).line
    }

    private static func pins(_ pin: SlotPin) -> [JSONValue] {
        pin.holdersJSON.map {
            .dictionary(["slot": .count(pin.slot.rawValue), "process": $0])
        }
    }

    private static func checkpoint(_ header: SlotHeader) -> JSONValue {
        .dictionary([
            "slot": .count(header.slot.rawValue),
            "sequence": .integer(header.sequence.rawValue),
            "step": .integer(header.step),
            "began_time_nanoseconds": .integer(header.beganTime),
            "completed_time_nanoseconds": .number(
                header.state == .complete ? header.completedTime : nil),
            "payload_byte_count": .integer(header.payloadByteCount),
        ])
    }
}
