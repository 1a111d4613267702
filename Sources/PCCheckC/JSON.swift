internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage
internal import CheckpointWriter

/// The little JSON that the C ABI returns, without Foundation, which would weigh more than the
/// rest of the library.
indirect enum JSON: CustomStringConvertible {
    case null
    case bool(Bool)
    case number(UInt64)
    case string(String)
    case array([JSON])
    case object([(key: String, value: JSON)])

    /// Text for people, which may quote a path or what is in a file.
    static func message(_ text: String) -> JSON { .string(PrintableText.escaped(text)) }
    static func count(_ value: Int) -> JSON { .number(UInt64(clamping: value)) }
    static func optional(_ value: UInt64?) -> JSON { value.map(JSON.number) ?? .null }

    var description: String {
        switch self {
        case .null: "null"
        case .bool(let value): value ? "true" : "false"
        case .number(let value): "\(value)"
        case .string(let value): Self.quoted(value)
        case .array(let values): "[" + values.map(\.description).joined(separator: ",") + "]"
        case .object(let members):
            "{" + members.map { "\(Self.quoted($0.key)):\($0.value)" }.joined(separator: ",") + "}"
        }
    }

    private static func quoted(_ text: String) -> String {
        var result = "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"": result += "\\\""
            case "\\": result += "\\\\"
            case ..<" ":
                let digits = String(scalar.value, radix: 16)
                result += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
            default: result.unicodeScalars.append(scalar)
            }
        }
        return result + "\""
    }
}

extension WriterStatistics {
    var json: JSON {
        .object([
            ("backend", .string(storageKind.name)),
            ("backend_fallback_reason", storageFallbackReason.map(JSON.message) ?? .null),
            ("backend_detail", storageDetail.map(JSON.message) ?? .null),
            ("snapshot_worker_count", .count(snapshotWorkerCount)),
            ("writer_worker_count", .count(writerWorkerCount)),
            ("pool_byte_count", .number(poolByteCount)),
            ("in_flight_count", .count(inFlightCount)),
            ("saved_count", .number(savedCount)),
            ("durable_count", .number(durableCount)),
            ("superseded_count", .number(supersededCount)),
            ("skipped_count", .number(skippedCount)),
            ("failed_count", .number(failedCount)),
            ("payload_byte_count", .number(payloadByteCount)),
            ("stored_byte_count", .number(storedByteCount)),
            ("metadata_write_count", .number(metadataWriteCount)),
            ("chunk_write_count", .number(chunkWriteCount)),
            ("flush_count", .number(flushCount)),
            ("flush_nanoseconds", .number(flushNanoseconds)),
            ("write_nanoseconds", .number(writeNanoseconds)),
            ("compress_nanoseconds", .number(compressNanoseconds)),
            ("copy_nanoseconds", .number(copyNanoseconds)),
            ("staging_stall_nanoseconds", .number(stagingStallNanoseconds)),
            ("busy_nanoseconds", .number(busyNanoseconds)),
            ("write_queue_count_maximum", .count(writeQueueCountMaximum)),
            ("quarantined_slot_count", .count(quarantinedSlotCount)),
            ("broken_pin_count", .number(brokenPinCount)),
            ("pinned_slots", .array(pinnedSlots.flatMap(\.json))),
            ("newest_durable_step", .optional(newestDurableStep)),
            ("newest_durable_sequence", .number(newestDurableSequence.rawValue)),
            ("last_error", lastError.map(JSON.message) ?? .null),
            ("is_fail_stop", .bool(isFailStop)),
            ("recent", .array(recent.map(\.json))),
        ])
    }
}

extension SlotPin {
    /// One for each process; one without a number when this user sees none.
    fileprivate var json: [JSON] {
        let slot = JSON.number(UInt64(slot.rawValue))
        if holders.isEmpty {
            return [.object([("slot", slot), ("pid", .null), ("command", .null)])]
        }
        return holders.map {
            .object([
                ("slot", slot), ("pid", .number(UInt64($0.processID))),
                ("command", .message($0.command)),
            ])
        }
    }
}

extension WriterStatistics.TimeLine {
    var json: JSON {
        .object([
            ("step", .number(step)), ("sequence", .number(sequence.rawValue)),
            ("payload_byte_count", .number(payloadByteCount)),
            ("stored_byte_count", .number(storedByteCount)),
            ("staged_nanoseconds", .number(stagedNanoseconds)),
            ("durable_nanoseconds", .number(durableNanoseconds)),
        ])
    }
}

extension RecoveryDecision {
    var json: JSON {
        .object([
            ("file_uuid", .string("\(identity.fileUUID)")),
            ("fingerprint", .string(identity.fingerprint)),
            ("rank", .number(UInt64(identity.rank))),
            ("world_size", .number(UInt64(identity.worldSize))),
            ("in_flight", .count(identity.geometry.inFlightCount)),
            ("retain", .count(identity.geometry.retainCount)),
            ("chunk_byte_count", .count(identity.geometry.chunkByteCount)),
            ("slot_byte_count", .number(identity.geometry.slotByteCount)),
            ("file_byte_count", .number(identity.geometry.fileByteCount)),
            ("generation", .number(highestGeneration.rawValue)),
            ("highest_sequence", .number(highestSequence.rawValue)),
            ("is_clean_close", .bool(superblock?.isCleanClose ?? false)),
            ("may_hold_durable", .bool(mayHoldDurable)),
            ("has_lost_end", .bool(hasLostEnd)),
            ("slots", .array(slots.map(\.json))),
        ])
    }
}

extension Load.Rejection {
    var json: JSON {
        .object([
            ("slot", .number(UInt64(candidate.slot.rawValue))),
            ("sequence", .number(candidate.sequence.rawValue)),
            ("step", .number(candidate.step)),
            ("code", .count(Int(error.code.rawValue))),
            ("message", .message(error.message)),
        ])
    }
}

extension SlotReport {
    var json: JSON {
        .object([
            ("slot", .number(UInt64(slot.rawValue))),
            ("reason", .string(reason.rawValue)),
            ("detail", detail.map { .message("\($0)") } ?? .null),
            ("sequence", .optional(header?.sequence.rawValue)),
            ("step", .optional(header?.step)),
            ("payload_byte_count", .optional(header?.payloadByteCount)),
            ("codec", header.map { .string($0.codec.label) } ?? .null),
        ])
    }
}

extension Codec {
    fileprivate var label: String {
        switch self {
        case .none: "none"
        case .zstd: "zstd"
        case .planesZstd: "planes-zstd"
        }
    }
}
