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
        help: .of(
            "glob", "Only tensors whose name fits this pattern of * ? [a-z]; may be repeated."))
    var patterns: [String] = []

    @Flag(help: "Read the tensors: least, largest, mean, deviation, NaN, Inf, zeros.")
    var stats = false

    @Flag(help: "With --stats, show of a damaged tensor what is left of it.")
    var salvage = false

    func validate() throws {
        if salvage && !stats { throw ValidationError("--salvage needs --stats") }
    }

    func execute() throws -> ExitStatus {
        let inspection = try Inspection(path: options.file)
        let selected = try inspection.shown(choice)
        defer { selected.close() }
        let candidate = selected.candidate
        let manifest = try selected.tensorManifest()
        let tensors = Manifest.select(patterns, from: manifest)
        let scanned = stats ? try TensorScan(selected, manifest, tensors).run() : nil
        if options.json {
            writeJSON(manifest, tensors, scanned, candidate, inspection)
        } else {
            let output = Output.standard
            if let scanned {
                let screen = StatisticsScreen(tensors, scanned, isSalvage: salvage)
                output.show { screen.lines(candidate, width: $0) }
            } else {
                TensorScreen.forEachLine(
                    candidate, tensors, metadata: manifest.metadata, width: output.columnCount
                ) { output.line($0) }
            }
        }
        let isDamaged = scanned?.contains { !$0.damagedChunks.isEmpty } ?? false
        return isDamaged ? inspection.status.union(.uncorrected) : inspection.status
    }

    private func writeJSON(
        _ manifest: SafetensorsManifest, _ tensors: [SafetensorsManifest.Tensor],
        _ scanned: [TensorScan.Result]?, _ candidate: Candidate, _ inspection: Inspection
    ) {
        let metadata = manifest.metadata.map {
            JSONValue.Member(key: $0.key, value: .string($0.value))
        }
        let document = JSONValue.document(
            tool: "pcinspect",
            [
                "file": InspectionJSON.file(inspection),
                "slot": .count(candidate.slot.rawValue),
                "sequence": .integer(candidate.sequence.rawValue),
                "step": .integer(candidate.step),
                "data_offset": .integer(manifest.dataOffset),
                "metadata": .object(metadata),
            ])
        let list = tensors.indices.lazy.map { index -> JSONValue in
            let tensor = tensors[index]
            let damaged = scanned?[index].damagedChunks ?? []
            return tensor.json([
                "payload_offset": .integer(manifest.payloadRange(of: tensor).lowerBound),
                "statistics": scanned.map { statistics(tensor, $0[index]) } ?? .null,
                "damaged_chunks": .array(damaged.map { .count($0) }),
                "damage": .text(scanned?[index].damage),
            ])
        }
        document.write(to: Output.standard, listing: "tensors", list)
    }

    /// null for a damaged tensor, unless what is left of it was asked for.
    private func statistics(
        _ tensor: SafetensorsManifest.Tensor, _ result: TensorScan.Result
    ) -> JSONValue {
        if !result.damagedChunks.isEmpty && !salvage { return .null }
        let statistics = result.statistics
        func number(_ value: TensorStatistics.Extreme?) -> JSONValue {
            switch value {
            case nil: .null
            case .integer(let integer): .signed(integer)
            case .real(let real): .decimal(real)
            }
        }
        return .dictionary([
            "element_count": .integer(statistics.elementCount),
            "missing_element_count": .integer(
                tensor.elementCount - statistics.elementCount),
            "finite_count": .integer(statistics.finiteCount),
            "nan_count": .integer(statistics.notANumberCount),
            "infinity_count": .integer(statistics.infinityCount),
            "zero_count": .integer(statistics.zeroCount),
            "minimum": number(statistics.least),
            "maximum": number(statistics.largest),
            "mean": statistics.finiteCount == 0 ? .null : .decimal(statistics.mean),
            "standard_deviation": .figure(statistics.standardDeviation),
        ])
    }
}
