internal import CheckpointFormat
internal import CheckpointRecovery

/// The machine-readable map of what a salvage could not save; spec/schemas/pcextract-holes.json.
struct HolesMap: Sendable {
    /// Where the names of the tensors come from.
    enum Names: Equatable, Sendable {
        case own
        /// Another slot's manifest of the same size, as the user said.
        case slot(SlotIndex)
        /// Names are lost: the payload is bytes.
        case lost
        /// The payload never had tensors.
        case opaque

        var text: String {
            switch self {
            case .own: "own"
            case .slot: "other_slot"
            case .lost: "lost"
            case .opaque: "opaque"
            }
        }
    }

    enum TensorState: String, Sendable {
        case whole
        case partlyLost = "partly_lost"
        case fullyLost = "fully_lost"
    }

    struct TensorEntry: Sendable {
        let tensor: SafetensorsManifest.Tensor
        let payloadOffset: UInt64
        /// Relative to the tensor's first byte.
        let lostBytes: [Range<UInt64>]
        var isWritten: Bool

        var state: TensorState {
            let lost = lostBytes.reduce(UInt64(0)) { $0 + UInt64($1.count) }
            if lost == 0 { return .whole }
            return lost == UInt64(tensor.dataRange.count) ? .fullyLost : .partlyLost
        }

        /// The elements that are in a hole, if only in part.
        var lostElements: [Range<UInt64>] {
            let bits = UInt64(tensor.elementType.bitCount)
            var parts: [Range<UInt64>] = []
            for bytes in lostBytes {
                let first = bytes.lowerBound * 8 / bits
                let part = first..<(bytes.upperBound * 8 + bits - 1) / bits
                if let last = parts.last, last.upperBound >= first {
                    parts[parts.count - 1] = last.lowerBound..<part.upperBound
                } else {
                    parts.append(part)
                }
            }
            return parts
        }
    }

    let source: SalvageSource
    let survey: SalvageSurvey
    let names: Names
    /// Those that were asked for; empty without names.
    let tensors: [TensorEntry]

    var lostByteCount: UInt64 { survey.holes.reduce(0) { $0 + UInt64($1.range.count) } }

    func count(_ state: TensorState) -> Int { tensors.count { $0.state == state } }

    static func entries(
        _ tensors: [SafetensorsManifest.Tensor], of manifest: SafetensorsManifest,
        _ survey: SalvageSurvey,
        isWritten: (Bool) -> Bool
    ) -> [TensorEntry] {
        tensors.map { tensor in
            let range = manifest.payloadRange(of: tensor)
            let (start, lost) = (range.lowerBound, survey.lost(in: range))
            return TensorEntry(
                tensor: tensor, payloadOffset: start,
                lostBytes: lost.map { $0.lowerBound - start..<$0.upperBound - start },
                isWritten: isWritten(lost.isEmpty))
        }
    }

    func json(file: String, output: String, format: OutputFormat, holes: HoleTreatment) -> JSONValue
    {
        let header = source.candidate.header
        var slot = JSONValue.null
        if case .slot(let other) = names { slot = .count(other.rawValue) }
        return .document(
            tool: "pcextract",
            [
                "file": .string(file),
                "output": .string(output),
                "format": .string(format.rawValue),
                "slot": .count(header.slot.rawValue),
                "sequence": .integer(header.sequence.rawValue),
                "step": .integer(header.step),
                "payload_byte_count": .integer(header.payloadByteCount),
                "chunk_byte_count": .count(header.chunkByteCount),
                "chunk_count": .count(header.chunkCount),
                "is_chunk_table_damaged": .bool(source.isTableDamaged),
                "payload_digest": .string(survey.payloadDigest.rawValue),
                "tensor_names": .string(names.text),
                "tensor_names_slot": slot,
                "hole_treatment": .string(holes.rawValue),
                "surviving_byte_count": .integer(survey.survivingByteCount),
                "lost_byte_count": .integer(lostByteCount),
                "holes": .array(survey.holes.map(Self.json)),
                "tensors": .array(tensors.map(Self.json)),
            ])
    }

    private static func json(_ hole: SalvageSurvey.Hole) -> JSONValue {
        .dictionary([
            "chunk": .count(hole.chunk),
            "payload_range": json(hole.range),
            "file_offset": .number(hole.fileOffset),
            "reason": .string(hole.reason.rawValue),
            "detail": .string(hole.detail),
        ])
    }

    private static func json(_ range: Range<UInt64>) -> JSONValue {
        .array([.integer(range.lowerBound), .integer(range.upperBound)])
    }

    private static func json(_ entry: TensorEntry) -> JSONValue {
        let elements = entry.lostElements
        return entry.tensor.json([
            "payload_offset": .integer(entry.payloadOffset),
            "state": .string(entry.state.rawValue),
            "is_written": .bool(entry.isWritten),
            "lost_byte_ranges": .array(entry.lostBytes.map(json)),
            "lost_element_ranges": .array(elements.map(json)),
            "lost_element_count": .integer(elements.reduce(0) { $0 + UInt64($1.count) }),
        ])
    }
}
