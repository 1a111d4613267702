internal import CheckpointFormat
internal import CheckpointRecovery

/// The tensors of a group checkpoint: those that its ranks hold together, and those of each rank.
///
/// The rules are in spec/STATE.md, "How to join the files".
struct JoinedState: Sendable {
    struct Tensor: Sendable {
        enum Source: Sendable {
            /// All of it, dense, at this byte of the payload of one part.
            case own(part: Int, payloadOffset: UInt64)
            /// Boxes of it, which may overlap with equal values.
            case joined([Region], ranks: [UInt64])
        }

        let name: String
        let elementType: ElementType
        /// As it is stored: complex numbers have a last dimension of 2.
        let shape: [UInt64]
        let source: Source
    }

    /// Elements of a tensor that one part of the checkpoint holds.
    struct Region: Hashable, Sendable {
        /// The index of the part.
        let part: Int
        let box: TensorBox
        /// Of the first element of the box.
        let payloadOffset: UInt64
        /// In bytes.
        let strides: [UInt64]
    }

    /// The directory of all tensors, as if they were one payload.
    let manifest: SafetensorsManifest
    /// Torch's types that are stored as words or pairs of others, with how many tensors have them.
    let standIns: [String: Int]
    /// The parts have values that are no tensors.
    let hasOtherValues: Bool

    private let tensors: [String: Tensor]

    /// Reads the documents of all parts.
    ///
    /// - Throws: `corrupt` when they do not fit each other.
    init(_ checkpoint: OpenedGroupCheckpoint) throws(CheckpointError) {
        let parts = checkpoint.parts
        let bar = ProgressBar(
            "reading the manifests of \(checkpoint.name)", total: UInt64(2 * parts.count), .files)
        defer { bar.finish() }
        var records: [String?] = []
        var claims = RankClaims()
        for (index, part) in parts.enumerated() {
            try Interruption.check()
            let manifest = try part.manifest()
            records.append(manifest.value(of: "pccheck.objects"))
            do throws(StateDocumentError) {
                try claims.add(manifest.value(of: RankClaims.metadataKey), rank: part.rank)
            } catch {
                throw CheckpointError(.corrupt, "\(part.path): its claims: \(error.message)")
            }
            bar.update(UInt64(index + 1))
        }
        if let difference = claims.difference {
            throw CheckpointError(.corrupt, "\(checkpoint.name): \(difference)")
        }
        var joining: StateJoining
        do throws(StateDocumentError) {
            joining = StateJoining(
                ranks: parts.map(\.rank), numbers: try OptimizerNumbers(records))
        } catch {
            throw CheckpointError(.corrupt, "\(checkpoint.name): \(error.message)")
        }
        for (index, part) in parts.enumerated() {
            try Interruption.check()
            let manifest = try part.manifest()
            do throws(StateDocumentError) {
                try joining.add(manifest, part: index)
            } catch {
                throw CheckpointError(.corrupt, "\(part.path): the state: \(error.message)")
            }
            bar.update(UInt64(parts.count + index + 1))
        }
        let tensors = joining.named
        self.tensors = Dictionary(uniqueKeysWithValues: tensors.map { ($0.name, $0) })
        manifest = try Self.manifest(tensors, joining.format)
        standIns = joining.standIns
        hasOtherValues = joining.hasDocument
    }

    private static func manifest(
        _ tensors: [Tensor], _ format: String?
    ) throws(CheckpointError) -> SafetensorsManifest {
        do throws(FormatError) {
            let encoded = try SafetensorsManifest.encode(
                tensors.map {
                    TensorDescription(
                        name: $0.name, elementType: $0.elementType, shape: $0.shape)
                }, metadata: format.map { [(key: "format", value: $0)] } ?? [])
            return try SafetensorsManifest(
                decoding: encoded.bytes,
                payloadByteCount: UInt64(encoded.bytes.count) + encoded.dataByteCount)
        } catch {
            throw CheckpointError(.corrupt, "the tensors of all ranks together: \(error)")
        }
    }

    /// The tensor that the manifest has under this name.
    func tensor(_ name: String) -> Tensor {
        guard let tensor = tensors[name] else {
            preconditionFailure("the manifest was made of the tensors")
        }
        return tensor
    }
}

extension SafetensorsManifest {
    /// The value of a key of `__metadata__`.
    func value(of key: String) -> String? { metadata.first { $0.key == key }?.value }
}
