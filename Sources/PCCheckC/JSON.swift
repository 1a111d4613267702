internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage
internal import CheckpointWriter

extension JSONValue {
    /// Text for people, which may quote a path or what is in a file.
    static func message(_ text: String) -> JSONValue { .string(PrintableText.escaped(text)) }
}

extension WriterStatistics {
    var json: JSONValue {
        .dictionary([
            "backend": .string(storageKind.name),
            "backend_fallback_reason": storageFallbackReason.map(JSONValue.message) ?? .null,
            "backend_detail": storageDetail.map(JSONValue.message) ?? .null,
            "snapshot_worker_count": .count(snapshotWorkerCount),
            "writer_worker_count": .count(writerWorkerCount),
            "pool_byte_count": .integer(poolByteCount),
            "in_flight_count": .count(inFlightCount),
            "saved_count": .integer(savedCount),
            "durable_count": .integer(durableCount),
            "superseded_count": .integer(supersededCount),
            "skipped_count": .integer(skippedCount),
            "failed_count": .integer(failedCount),
            "payload_byte_count": .integer(payloadByteCount),
            "stored_byte_count": .integer(storedByteCount),
            "metadata_write_count": .integer(metadataWriteCount),
            "chunk_write_count": .integer(chunkWriteCount),
            "flush_count": .integer(flushCount),
            "flush_nanoseconds": .integer(flushNanoseconds),
            "write_nanoseconds": .integer(writeNanoseconds),
            "compress_nanoseconds": .integer(compressNanoseconds),
            "copy_nanoseconds": .integer(copyNanoseconds),
            "staging_stall_nanoseconds": .integer(stagingStallNanoseconds),
            "device_leg": deviceLeg.json,
            "medium_leg": mediumLeg.json,
            "devices": .array(devices.map { .string($0) }),
            "unpinned_reason": unpinnedReason.map { .message($0) } ?? .null,
            "busy_nanoseconds": .integer(busyNanoseconds),
            "write_queue_count_maximum": .count(writeQueueCountMaximum),
            "quarantined_slot_count": .count(quarantinedSlotCount),
            "broken_pin_count": .integer(brokenPinCount),
            "pinned_slots": .array(pinnedSlots.flatMap(\.json)),
            "newest_durable_step": .number(newestDurableStep),
            "newest_durable_sequence": .integer(newestDurableSequence.rawValue),
            "last_error": lastError.map(JSONValue.message) ?? .null,
            "is_fail_stop": .bool(isFailStop),
            "group": group.map(\.json) ?? .null,
            "recent": .array(recent.map(\.json)),
        ])
    }
}

extension WriterStatistics.Group {
    fileprivate var json: JSONValue {
        .dictionary([
            "attempt": .integer(attempt),
            "watermark": watermark.map(\.json) ?? .null,
            "undecided_count": .count(undecidedCount),
            "free_slot_count": .count(freeSlotCount),
        ])
    }
}

extension GroupCheckpointName {
    var json: JSONValue { .dictionary(["attempt": .integer(attempt), "step": .integer(step)]) }
}

extension SlotPin {
    /// One for each process; one without a number when this user sees none.
    fileprivate var json: [JSONValue] {
        let slot = JSONValue.integer(UInt64(slot.rawValue))
        if holders.isEmpty {
            return [.dictionary(["slot": slot, "pid": .null, "command": .null])]
        }
        return holders.map {
            .dictionary([
                "slot": slot, "pid": .integer(UInt64($0.processID)),
                "command": .message($0.command),
            ])
        }
    }
}

extension WriterStatistics.Leg {
    fileprivate var json: JSONValue {
        .dictionary([
            "byte_count": .integer(byteCount), "busy_nanoseconds": .integer(busyNanoseconds),
            "stall_nanoseconds": .integer(stallNanoseconds),
        ])
    }
}

extension WriterStatistics.TimeLine {
    var json: JSONValue {
        .dictionary([
            "step": .integer(step), "sequence": .integer(sequence.rawValue),
            "payload_byte_count": .integer(payloadByteCount),
            "stored_byte_count": .integer(storedByteCount),
            "staged_nanoseconds": .integer(stagedNanoseconds),
            "durable_nanoseconds": .integer(durableNanoseconds),
        ])
    }
}

extension RecoveryDecision {
    var json: JSONValue {
        .dictionary([
            "file_uuid": .string("\(identity.fileUUID)"),
            "fingerprint": .string(identity.fingerprint),
            "rank": .integer(UInt64(identity.rank)),
            "world_size": .integer(UInt64(identity.worldSize)),
            "run_uuid": identity.isOfGroup ? .string("\(identity.runUUID)") : .null,
            "attempt": .integer(superblock?.attempt ?? 0),
            "watermark": superblock?.watermark.map(\.json) ?? .null,
            "in_flight": .count(identity.geometry.inFlightCount),
            "retain": .count(identity.geometry.retainCount),
            "chunk_byte_count": .count(identity.geometry.chunkByteCount),
            "slot_byte_count": .integer(identity.geometry.slotByteCount),
            "file_byte_count": .integer(identity.geometry.fileByteCount),
            "generation": .integer(highestGeneration.rawValue),
            "highest_sequence": .integer(highestSequence.rawValue),
            "is_clean_close": .bool(superblock?.isCleanClose ?? false),
            "may_hold_durable": .bool(mayHoldDurable),
            "has_lost_end": .bool(hasLostEnd),
            "slots": .array(
                slots.map { $0.json(isNamed: superblock?.names($0.slot) ?? true) }),
        ])
    }
}

extension Load.Rejection {
    var json: JSONValue {
        .dictionary([
            "slot": .integer(UInt64(candidate.slot.rawValue)),
            "sequence": .integer(candidate.sequence.rawValue),
            "step": .integer(candidate.step),
            "code": .count(Int(error.code.rawValue)),
            "message": .message(error.message),
        ])
    }
}

extension SlotReport {
    func json(isNamed: Bool) -> JSONValue {
        .dictionary([
            "slot": .integer(UInt64(slot.rawValue)),
            "reason": .string(reason.rawValue),
            "is_named": .bool(isNamed),
            "detail": detail.map { .message("\($0)") } ?? .null,
            "sequence": .number(header?.sequence.rawValue),
            "step": .number(header?.step),
            "attempt": .number(header?.attempt),
            "payload_byte_count": .number(header?.payloadByteCount),
            "codec": header.map { .string($0.codec.label) } ?? .null,
        ])
    }
}
