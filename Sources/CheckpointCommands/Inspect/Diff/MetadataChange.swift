internal import CheckpointFormat
internal import CheckpointRecovery

/// A text that is not alike on both sides; nil where it is missing.
struct MetadataChange: Sendable {
    let name: String
    let first: String?
    let second: String?

    /// The entries of two `__metadata__`. Values that are JSON on both sides, such as the state of
    /// a training run, are compared leaf by leaf.
    static func between(
        _ first: [(key: String, value: String)], _ second: [(key: String, value: String)]
    ) -> [MetadataChange] {
        compare(first, second).flatMap { change -> [MetadataChange] in
            guard let a = change.first, let b = change.second, let before = JSONLeaves.of(a),
                let after = JSONLeaves.of(b)
            else { return [change] }
            let changes = compare(before, after).map {
                MetadataChange(
                    name: change.name + $0.name, first: $0.first, second: $0.second)
            }
            // The texts differ, but only in how they are written.
            return changes.isEmpty
                ? [MetadataChange(name: change.name, first: "as JSON", second: "the same")]
                : changes
        }
    }

    private static func compare(
        _ first: [(key: String, value: String)], _ second: [(key: String, value: String)]
    ) -> [MetadataChange] {
        let after = Dictionary(second, uniquingKeysWith: { first, _ in first })
        let names = Set(first.map(\.key))
        let changed = first.compactMap { key, value in
            after[key] == value
                ? nil : MetadataChange(name: key, first: value, second: after[key])
        }
        let added = second.filter { !names.contains($0.key) }.map {
            MetadataChange(name: $0.key, first: nil, second: $0.value)
        }
        return changed + added
    }

    /// Facts of the files and the checkpoints that differ; they say nothing about the payload.
    static func facts(
        _ first: ComparedCheckpoint, _ second: ComparedCheckpoint
    ) -> [MetadataChange] {
        zip(facts(first), facts(second)).compactMap { a, b in
            a.value == b.value
                ? nil : MetadataChange(name: a.key, first: a.value, second: b.value)
        }
    }

    private static func facts(_ side: ComparedCheckpoint) -> [(key: String, value: String)] {
        let (header, identity) = (side.header, side.inspection.decision.identity)
        let geometry = identity.geometry
        return [
            ("file_uuid", "\(identity.fileUUID)"), ("fingerprint", identity.fingerprint),
            ("creator", identity.creator), ("rank", "\(identity.rank)"),
            ("world_size", "\(identity.worldSize)"),
            ("in_flight_count", "\(geometry.inFlightCount)"),
            ("retain_count", "\(geometry.retainCount)"),
            ("slot_byte_count", "\(geometry.slotByteCount)"),
            ("file_byte_count", "\(geometry.fileByteCount)"), ("step", "\(header.step)"),
            ("sequence", "\(header.sequence)"), ("payload_kind", "\(header.payloadKind)"),
            ("payload_byte_count", "\(header.payloadByteCount)"),
            ("stored_byte_count", "\(header.storedByteCount)"),
            ("chunk_byte_count", "\(header.chunkByteCount)"), ("codec", header.codec.label),
            ("user_metadata", header.userMetadata),
            ("logical_digest", "\(header.logicalDigest)"),
        ]
    }
}
