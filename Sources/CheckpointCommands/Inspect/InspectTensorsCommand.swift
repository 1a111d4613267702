internal import ArgumentParser
internal import CheckpointFormat
internal import CheckpointRecovery

struct InspectTensorsCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "tensors",
        abstract: "The tensors of a checkpoint: the newest, or the one that is chosen.")

    @OptionGroup var options: InspectedFile
    @OptionGroup var choice: CheckpointChoice

    @Option(
        name: .customLong("tensor"), parsing: .singleValue,
        help: ArgumentHelp(
            "Only tensors whose name fits this pattern of * ? [a-z]; may be repeated.",
            valueName: "glob"))
    var patterns: [String] = []

    func execute() throws -> ExitStatus {
        let inspection = try Inspection(path: options.file)
        let candidate = try choice.newest(of: inspection)
        let reader = CheckpointReader(
            storage: inspection.storage, decision: inspection.decision)
        let selected = try reader.select(candidate)
        defer { selected.close() }
        let manifest = try Manifest.read(selected)
        let tensors = Manifest.select(patterns, from: manifest)
        if options.json {
            writeJSON(manifest, tensors, candidate, inspection)
        } else {
            let output = Output.standard
            TensorScreen.lines(
                candidate, tensors, metadata: manifest.metadata, width: output.columnCount
            ).forEach(output.line)
        }
        return inspection.status
    }

    private func writeJSON(
        _ manifest: SafetensorsManifest, _ tensors: [SafetensorsManifest.Tensor],
        _ candidate: Candidate, _ inspection: Inspection
    ) {
        let metadata = manifest.metadata.map {
            JSONValue.Member(key: $0.key, value: .string($0.value))
        }
        Output.standard.write(
            JSONValue.document(
                tool: "pcinspect",
                [
                    "file": InspectionJSON.file(inspection),
                    "slot": .count(Int(candidate.slot.rawValue)),
                    "sequence": .integer(candidate.sequence.rawValue),
                    "step": .integer(candidate.step),
                    "data_offset": .integer(manifest.dataOffset),
                    "metadata": .object(metadata),
                    "tensors": .array(
                        tensors.map { tensor in
                            .dictionary([
                                "name": .string(tensor.name),
                                "dtype": .string(tensor.elementType.name),
                                "shape": .array(tensor.shape.map { .integer($0) }),
                                "byte_count": .count(tensor.dataRange.count),
                                "payload_offset": .integer(
                                    manifest.dataOffset + tensor.dataRange.lowerBound),
                            ])
                        }),
                ]
            ).bytes)
    }
}

/// Reading and filtering a checkpoint's manifest.
enum Manifest {
    /// - Throws: `invalidArgument` for an opaque payload, `corrupt` for a damaged manifest.
    static func read(
        _ selected: SelectedCheckpoint
    ) throws(CheckpointError) -> SafetensorsManifest {
        let candidate = selected.candidate
        guard candidate.header.payloadKind == .safetensors else {
            throw CheckpointError(
                .invalidArgument,
                "slot \(candidate.slot) holds an opaque payload, which has no tensors; extract it "
                    + "with pcextract --format raw", slot: candidate.slot)
        }
        let bytes = try selected.manifest()
        do throws(FormatError) {
            let manifest = try SafetensorsManifest(
                decoding: bytes, payloadByteCount: candidate.header.payloadByteCount)
            guard manifest.dataOffset == candidate.header.manifestByteCount else {
                throw .invalidField(
                    "manifest_byte_count", found: candidate.header.manifestByteCount,
                    expected: "\(manifest.dataOffset)")
            }
            return manifest
        } catch {
            throw CheckpointError(
                .corrupt, "slot \(candidate.slot): \(error)", slot: candidate.slot)
        }
    }

    /// The tensors that fit any of the patterns; all when there is none.
    static func select(
        _ patterns: [String], from manifest: SafetensorsManifest
    ) -> [SafetensorsManifest.Tensor] {
        if patterns.isEmpty { return manifest.tensors }
        let globs = patterns.map(Glob.init)
        return manifest.tensors.filter { tensor in globs.contains { $0.matches(tensor.name) } }
    }
}

/// The list of tensors that pcinspect and pcextract show.
enum TensorScreen {
    static func lines(
        _ candidate: Candidate, _ tensors: [SafetensorsManifest.Tensor],
        metadata: [(key: String, value: String)], width: Int?
    ) -> [StyledText] {
        var table = TableLayout([
            .flexible("tensor"), .left("dtype"), .right("shape"), .right("size"),
        ])
        for tensor in tensors {
            let shape = tensor.shape.map(String.init).joined(separator: " × ")
            table.add([
                "\(tensor.name)", StyledText(tensor.elementType.name, .cyan),
                "\(shape.isEmpty ? "scalar" : shape)",
                "\(Quantity.bytes(UInt64(tensor.dataRange.count)))",
            ])
        }
        let byteCount = tensors.reduce(UInt64(0)) { $0 + UInt64($1.dataRange.count) }
        var lines: [StyledText] = [
            """
            \("slot \(candidate.slot)", .bold), step \(candidate.step): \
            \(Quantity.plural(tensors.count, "tensor")), \(Quantity.bytes(byteCount))
            """
        ]
        lines += table.lines(width: width)
        if !metadata.isEmpty {
            var table = TableLayout([.left("metadata"), .flexible("value")])
            for entry in metadata { table.add(["\(entry.key)", "\(entry.value)"]) }
            lines += [""] + table.lines(width: width)
        }
        return lines
    }
}
