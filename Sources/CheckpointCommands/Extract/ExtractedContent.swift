internal import CheckpointFormat
internal import CheckpointRecovery

/// What pcextract writes: some bytes of its own, then ranges of the payload.
struct ExtractedContent {
    /// A new manifest; empty when the payload's own bytes are written.
    let head: [UInt8]
    /// Parts of the payload, in the order in which they are written.
    let ranges: [Range<UInt64>]
    /// nil for an opaque payload.
    let tensors: [SafetensorsManifest.Tensor]?
    /// The ranges are the whole payload, so that its logical digest can be checked.
    let isWholePayload: Bool

    var byteCount: UInt64 {
        ranges.reduce(UInt64(head.count)) { $0 + UInt64($1.count) }
    }

    /// - Throws: `invalidArgument` when the payload has no tensors to choose from, or none fits.
    init(
        _ selected: SelectedCheckpoint, format: ExtractCommand.Format, patterns: [String]
    ) throws(CheckpointError) {
        let payloadByteCount = selected.candidate.header.payloadByteCount
        if format == .raw && patterns.isEmpty {
            self.init(wholePayload: payloadByteCount, tensors: nil)
            return
        }
        let manifest = try Manifest.read(selected)
        if patterns.isEmpty {
            self.init(wholePayload: payloadByteCount, tensors: manifest.tensors)
            return
        }
        let tensors = Manifest.select(patterns, from: manifest)
        guard !tensors.isEmpty else {
            let names = manifest.tensors.prefix(3).map { "\"\($0.name)\"" }
            throw CheckpointError(
                .invalidArgument,
                "no tensor fits \(patterns.map { "'\($0)'" }.joined(separator: " or ")); the "
                    + "checkpoint has \(Quantity.plural(manifest.tensors.count, "tensor")), such "
                    + "as \(names.joined(separator: ", ")); see pcextract --list")
        }
        func range(_ tensor: SafetensorsManifest.Tensor) -> Range<UInt64> {
            let start = manifest.dataOffset
            return start + tensor.dataRange.lowerBound..<start + tensor.dataRange.upperBound
        }
        if format == .raw {
            self.init(head: [], ranges: tensors.map(range), tensors: tensors)
            return
        }
        do throws(FormatError) {
            let encoded = try SafetensorsManifest.encode(
                tensors.map {
                    TensorDescription(
                        name: $0.name, elementType: $0.elementType, shape: $0.shape)
                }, metadata: manifest.metadata)
            self.init(
                head: encoded.bytes, ranges: encoded.order.map { range(tensors[$0]) },
                tensors: tensors)
        } catch {
            throw CheckpointError(.corrupt, "the new manifest: \(error)")
        }
    }

    /// The payload as it is: to verify all of it.
    static func whole(_ selected: SelectedCheckpoint) -> ExtractedContent {
        ExtractedContent(
            wholePayload: selected.candidate.header.payloadByteCount, tensors: nil)
    }

    private init(wholePayload byteCount: UInt64, tensors: [SafetensorsManifest.Tensor]?) {
        head = []
        ranges = [0..<byteCount]
        self.tensors = tensors
        isWholePayload = true
    }

    private init(
        head: [UInt8], ranges: [Range<UInt64>], tensors: [SafetensorsManifest.Tensor]
    ) {
        self.head = head
        self.ranges = ranges
        self.tensors = tensors
        isWholePayload = false
    }
}
