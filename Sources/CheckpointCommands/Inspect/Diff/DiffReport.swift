internal import CheckpointFormat
internal import CheckpointRecovery

/// How two checkpoints differ.
struct DiffReport {
    let first: ComparedCheckpoint
    let second: ComparedCheckpoint
    /// The recorded digests of the payloads are the same: nothing had to be read.
    let isIdentical: Bool
    /// Those that changed, most first; then those whose elements could not be compared.
    let changes: [TensorChange]
    let sameCount: Int
    let metadata: [MetadataChange]
    let facts: [MetadataChange]

    init(
        _ first: ComparedCheckpoint, _ second: ComparedCheckpoint
    ) throws(CheckpointError) {
        self.first = first
        self.second = second
        isIdentical =
            first.header.logicalDigest == second.header.logicalDigest
            && first.header.payloadByteCount == second.header.payloadByteCount
            && first.header.payloadKind == second.header.payloadKind
        facts = MetadataChange.facts(first, second)
        if isIdentical {
            (changes, metadata, sameCount) = ([], [], first.tensors.count)
            return
        }
        let all = try TensorComparison(first, second).run()
        changes = all.filter { $0.kind != .same || !$0.damage.isEmpty }.sorted(by: Self.isMore)
        sameCount = all.count - changes.count
        metadata = MetadataChange.between(first.metadata, second.metadata)
    }

    /// Appearing and vanishing tensors first, then by relative distance; the sort is stable.
    private static func isMore(_ left: TensorChange, _ right: TensorChange) -> Bool {
        func rank(_ change: TensorChange) -> Double {
            switch change.kind {
            case .added, .removed, .retyped: .infinity
            default:
                change.difference.map { $0.relativeNorm ?? .greatestFiniteMagnitude } ?? .infinity
            }
        }
        let ranks = (rank(left), rank(right))
        // A norm that overflowed is not a number, which has no order.
        return (ranks.0.isNaN ? .infinity : ranks.0) > (ranks.1.isNaN ? .infinity : ranks.1)
    }

    func count(_ kind: TensorChange.Kind) -> Int { changes.count { $0.kind == kind } }

    var isDifferent: Bool {
        !metadata.isEmpty || changes.contains { $0.kind != .same }
    }

    var status: ExitStatus {
        var status: ExitStatus = isDifferent ? .differs : .clean
        if changes.contains(where: { !$0.damage.isEmpty }) { status.insert(.uncorrected) }
        return status
    }

    func listed(top: Int) -> ArraySlice<TensorChange> {
        top == 0 ? changes[...] : changes.prefix(top)
    }

    // MARK: JSON

    func json(top: Int) -> JSONValue {
        JSONValue.document(
            tool: "pcinspect",
            [
                "first": side(first), "second": side(second),
                "is_identical": .bool(isIdentical),
                "is_different": .bool(isDifferent),
                "tensor_counts": .dictionary([
                    "same": .count(sameCount), "changed": .count(count(.changed)),
                    "added": .count(count(.added)), "removed": .count(count(.removed)),
                    "reshaped": .count(count(.reshaped)), "retyped": .count(count(.retyped)),
                ]),
                "tensors": .array(listed(top: top).map(tensor)),
                "metadata": .array(metadata.map(change)),
                "facts": .array(facts.map(change)),
            ])
    }

    private func side(_ side: ComparedCheckpoint) -> JSONValue {
        side.candidate.json([
            "file": InspectionJSON.file(side.inspection),
            "logical_digest": .text(side.header.logicalDigest),
        ])
    }

    private func change(_ change: MetadataChange) -> JSONValue {
        .dictionary([
            "name": .string(change.name), "first": .text(change.first),
            "second": .text(change.second),
        ])
    }

    private func tensor(_ change: TensorChange) -> JSONValue {
        func description(_ tensor: ComparedTensor?) -> JSONValue {
            guard let tensor else { return .null }
            return .dictionary([
                "dtype": .string(tensor.elementType.name),
                "shape": .array(tensor.shape.map { .integer($0) }),
                "byte_count": .count(tensor.range.count),
            ])
        }
        let difference = change.difference
        return .dictionary([
            "name": .string(change.name),
            "change": .string(change.kind.rawValue),
            "first": description(change.first),
            "second": description(change.second),
            "compared_element_count": .number(difference?.elementCount),
            "changed_element_count": .number(difference?.changedCount),
            "changed_not_finite_count": .number(difference?.changedNotFiniteCount),
            "maximum_absolute_difference": .figure(difference?.largest),
            "relative_l2_difference": .figure(difference?.relativeNorm),
            "damage": .array(change.damage.map { .string($0) }),
        ])
    }
}
