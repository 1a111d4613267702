internal import CheckpointFormat
internal import CheckpointGroup

/// What was written of a group checkpoint.
struct GroupExtractionResult {
    private let checkpoint: GroupDecision.Checkpoint
    private let format: OutputFormat
    /// The files, in order, and their sizes.
    private let files: [(path: String, byteCount: UInt64)]
    private let indexPath: String?
    private let tensorCount: Int
    /// What is not, or not as it was, in what was written.
    private let remarks: [String]

    init(
        _ checkpoint: GroupDecision.Checkpoint, _ request: OutputPlan.Request, _ plan: OutputPlan,
        remarks: [String]
    ) {
        self.checkpoint = checkpoint
        format = request.format
        files = plan.files.map { ($0.path, $0.contentByteCount + $0.directoryByteCount) }
        indexPath = plan.index?.path
        tensorCount = plan.files.reduce(0) { $0 + $1.tensorNames.count }
        self.remarks = remarks
    }

    private var byteCount: UInt64 { files.reduce(0) { $0 + $1.byteCount } }

    /// - Parameter name: where it was written to.
    func lines(name: String) -> [StyledText] {
        let shards = files.count > 1 ? " in \(files.count) shards" : ""
        return [
            """
            \(checkpoint.name) from \(Quantity.plural(checkpoint.parts.count, "rank")): \
            \(Quantity.bytes(byteCount)) with \(Quantity.plural(tensorCount, "tensor"))\
            \(shards), every digest verified, written to \(indexPath ?? name)
            """
        ] + remarks.map { "\("note:", .yellow) \($0)" }
    }

    var json: JSONValue {
        .object(
            checkpoint.jsonName + [
                .init(key: "format", value: .string(format.rawValue)),
                .init(key: "byte_count", value: .integer(byteCount)),
                .init(key: "tensor_count", value: .count(tensorCount)),
                .init(
                    key: "files",
                    value: .array(
                        files.map {
                            .dictionary([
                                "path": .string($0.path), "byte_count": .integer($0.byteCount),
                            ])
                        })),
                .init(key: "index", value: .text(indexPath)),
                .init(key: "remarks", value: .array(remarks.map { .string($0) })),
            ])
    }
}

extension JoinedState {
    /// What a file of tensors does not have of the state.
    var remarks: [String] {
        var remarks = standIns.sorted { $0.key < $1.key }.map { type, count in
            let stored = StoredForm(torchType: type).map {
                $0.isPair ? "pairs of \($0.elementType)" : "words of \($0.elementType)"
            }
            return "\(Quantity.plural(count, "tensor")) of \(type) "
                + "\(count == 1 ? "is" : "are") written as \(stored ?? "words")"
        }
        if hasOtherValues {
            remarks.append(
                "values that are no tensors are not in it; pccheck.distributed.load returns them, "
                    + "and python -m pccheck convert makes one .pcc file of the folder, with them")
        }
        return remarks
    }
}
