internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

/// The parts of pcinspect's JSON.
enum InspectionJSON {
    static func identity(_ inspection: Inspection) -> JSONValue {
        let identity = inspection.decision.identity
        let geometry = identity.geometry
        return .dictionary([
            "format_version": .text("\(identity.version.major).\(identity.version.minor)"),
            "file_uuid": .text(identity.fileUUID),
            "creator": .text(identity.creator),
            "created_time_nanoseconds": .integer(identity.createdTime),
            "fingerprint": .text(identity.fingerprint),
            "rank": .count(Int(identity.rank)),
            "world_size": .count(Int(identity.worldSize)),
            "run_uuid": identity.isOfGroup ? .text(identity.runUUID) : .null,
            "features_compat": .integer(identity.features.compatible),
            "features_ro_compat": .integer(identity.features.readOnlyCompatible),
            "features_incompat": .integer(identity.features.incompatible),
            "slot_count": .count(geometry.slotCount),
            "in_flight_count": .count(geometry.inFlightCount),
            "retain_count": .count(geometry.retainCount),
            "slot_byte_count": .integer(geometry.slotByteCount),
            "chunk_byte_count": .count(geometry.chunkByteCount),
            "chunk_capacity": .count(geometry.chunkCapacity),
            "metadata_offset": .integer(geometry.metadataOffset),
            "metadata_stride": .integer(geometry.metadataStride),
            "data_offset": .integer(geometry.dataOffset),
            "data_stride": .integer(geometry.dataStride),
            "file_byte_count": .integer(geometry.fileByteCount),
        ])
    }

    static func identityCopies(_ inspection: Inspection) -> JSONValue {
        .array(
            inspection.decision.identityFindings.map { copy in
                .dictionary([
                    "position": .string(copy.position.rawValue),
                    "byte_offset": .integer(copy.offset),
                    "is_whole": .bool((try? copy.result.get()) != nil),
                    "agrees_with_chosen": .bool(copy.agreesWithChosen),
                    "error": .text(failure(copy.result)),
                ])
            })
    }

    static func superblocks(_ inspection: Inspection) -> JSONValue {
        .array(
            inspection.decision.superblockFindings.map { copy in
                .dictionary([
                    "position": .string(copy.position.rawValue),
                    "parity": .count(copy.parity),
                    "byte_offset": .integer(copy.offset),
                    "is_whole": .bool(copy.superblock != nil),
                    "error": .text(failure(copy.result)),
                    "digest": .text(copy.digest),
                    "superblock": copy.superblock.map(superblock) ?? .null,
                ])
            })
    }

    static func superblock(_ superblock: Superblock) -> JSONValue {
        .dictionary([
            "generation": .integer(superblock.generation.rawValue),
            "slot": .number(superblock.anchor.map { UInt64($0.slot.rawValue) }),
            "sequence": .number(superblock.anchor?.sequence.rawValue),
            "step": .number(superblock.anchor?.step),
            "slot_header_digest": .text(superblock.anchor?.headerDigest),
            "parent_digest": .text(superblock.parentDigest),
            "is_clean_close": .bool(superblock.isCleanClose),
            "attempt": .integer(superblock.attempt),
            "watermark": superblock.watermark.map(groupName) ?? .null,
            "commit_time_nanoseconds": .integer(superblock.commitTime),
            "writer_boot_id": .text(superblock.writerBootID),
            "writer_pid": .count(Int(superblock.writerPID)),
            "storage_kind": .string(superblock.storageKind.name),
            "unsafe_shutdown_count": .integer(superblock.unsafeShutdownCount),
            "retained": .array(
                superblock.retained.map {
                    .dictionary([
                        "slot": .count($0.slot.rawValue),
                        "sequence": .integer($0.sequence.rawValue),
                    ])
                }),
        ])
    }

    static func groupName(_ name: GroupCheckpointName) -> JSONValue {
        .dictionary(["attempt": .integer(name.attempt), "step": .integer(name.step)])
    }

    static func slots(_ inspection: Inspection) -> JSONValue {
        .array(inspection.decision.slots.map { slot($0, inspection) })
    }

    private static func slot(_ report: SlotReport, _ inspection: Inspection) -> JSONValue {
        .dictionary([
            "slot": .count(report.slot.rawValue),
            "reason": .string(report.reason.rawValue),
            "is_damaged": .bool(report.reason.isDamage),
            "error": .text(report.detail),
            "header_offset": .integer(report.headerOffset),
            "table_offset": .integer(inspection.geometry.tableOffset(report.slot)),
            "data_offset": .integer(inspection.geometry.slotDataOffset(report.slot)),
            "pins": .array(
                inspection.pins.filter { $0.slot == report.slot }.flatMap(\.holdersJSON)),
            "header": report.usedHeader.map { header($0, digest: report.headerDigest) } ?? .null,
        ])
    }

    static func header(_ header: SlotHeader, digest: Digest?) -> JSONValue {
        .dictionary([
            "state": .string("\(header.state)"),
            "sequence": .integer(header.sequence.rawValue),
            "step": .integer(header.step),
            "began_time_nanoseconds": .integer(header.beganTime),
            "completed_time_nanoseconds": .integer(header.completedTime),
            "payload_kind": .string("\(header.payloadKind)"),
            "payload_byte_count": .integer(header.payloadByteCount),
            "stored_byte_count": .integer(header.storedByteCount),
            "manifest_byte_count": .integer(header.manifestByteCount),
            "chunk_byte_count": .count(header.chunkByteCount),
            "chunk_count": .count(header.chunkCount),
            "codec": .text(header.codec.label),
            "chunk_table_digest": .text(header.chunkTableDigest),
            "logical_digest": .text(header.logicalDigest),
            "header_digest": .text(digest),
            "user_metadata": .text(header.userMetadata),
            "attempt": .integer(header.attempt),
            "stored_bytes_per_second": .figure(header.storedBytesPerSecond),
        ])
    }

    static func candidates(_ decision: RecoveryDecision) -> JSONValue {
        .array(
            decision.candidates.map { candidate in
                candidate.json([
                    "kind": .string(candidate.kind.rawValue),
                    "payload_byte_count": .integer(candidate.header.payloadByteCount),
                ])
            })
    }

    static func file(_ inspection: Inspection) -> JSONValue {
        .dictionary([
            "path": .string(inspection.path),
            "byte_count": .integer(inspection.storage.byteCount),
            "is_truncated": .bool(inspection.decision.isTruncated),
            "has_lost_end": .bool(inspection.decision.hasLostEnd),
            "is_damaged": .bool(inspection.isDamaged),
            "is_writer_at_work": .flag(inspection.isWriterAtWork),
        ])
    }

    private static func failure<Value>(_ result: Result<Value, FormatError>) -> FormatError? {
        if case .failure(let error) = result { error } else { nil }
    }
}

extension SafetensorsManifest.Tensor {
    /// Its name, type, shape and size.
    var jsonMembers: [JSONValue.Member] {
        [
            .init(key: "name", value: .string(name)),
            .init(key: "dtype", value: .string(elementType.name)),
            .init(key: "shape", value: .array(shape.map { .integer($0) })),
            .init(key: "byte_count", value: .count(dataRange.count)),
        ]
    }

    func json(_ more: KeyValuePairs<String, JSONValue>) -> JSONValue {
        .object(jsonMembers + more.map { .init(key: $0, value: $1) })
    }
}

extension Candidate {
    /// What names it, and more.
    func json(_ more: KeyValuePairs<String, JSONValue>) -> JSONValue {
        .object(jsonMembers + more.map { .init(key: $0, value: $1) })
    }

    var jsonMembers: [JSONValue.Member] {
        [
            .init(key: "slot", value: .count(slot.rawValue)),
            .init(key: "sequence", value: .integer(sequence.rawValue)),
            .init(key: "step", value: .integer(step)),
        ]
    }
}

extension SlotPin {
    /// One for each process; one without a number when this user sees none.
    var holdersJSON: [JSONValue] {
        if holders.isEmpty { return [.dictionary(["pid": .null, "command": .null])] }
        return holders.map {
            .dictionary(["pid": .count(Int($0.processID)), "command": .string($0.command)])
        }
    }
}
