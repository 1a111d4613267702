internal import CheckpointFormat
internal import CheckpointRecovery

/// A tensor as a comparison sees it: in one of two checkpoints.
struct ComparedTensor: Sendable {
    let name: String
    let elementType: ElementType
    let shape: [UInt64]
    /// Where its bytes are in the payload.
    let range: Range<UInt64>

    var elementCount: UInt64 { shape.reduce(1, *) }
}

/// One of the two checkpoints that are compared.
struct ComparedCheckpoint {
    let inspection: Inspection
    let selected: SelectedCheckpoint
    /// In the order of their data. An opaque payload is one tensor of bytes.
    let tensors: [ComparedTensor]
    let metadata: [(key: String, value: String)]

    /// What an opaque payload is called.
    static let payloadName = "(payload)"

    var candidate: Candidate { selected.candidate }
    var header: SlotHeader { candidate.header }

    init(
        _ inspection: Inspection, _ selected: SelectedCheckpoint, patterns: [String]
    ) throws(CheckpointError) {
        self.inspection = inspection
        self.selected = selected
        let header = selected.candidate.header
        guard header.payloadKind == .safetensors else {
            guard let bytes = ElementType(name: "U8") else {
                preconditionFailure("safetensors has a type for bytes")
            }
            metadata = []
            tensors = [
                ComparedTensor(
                    name: Self.payloadName, elementType: bytes,
                    shape: [header.payloadByteCount], range: 0..<header.payloadByteCount)
            ]
            return
        }
        let manifest: SafetensorsManifest
        do throws(CheckpointError) {
            manifest = try selected.tensorManifest()
        } catch {
            throw error.about(inspection.path)
        }
        metadata = manifest.metadata
        tensors = Manifest.select(patterns, from: manifest).map {
            ComparedTensor(
                name: $0.name, elementType: $0.elementType, shape: $0.shape,
                range: manifest.payloadRange(of: $0))
        }
    }

    var title: String {
        "\(inspection.path), step \(candidate.step) in slot \(candidate.slot)"
    }
}
