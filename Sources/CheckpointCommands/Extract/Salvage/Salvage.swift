internal import ArgumentParser
internal import CheckpointFormat
internal import CheckpointRecovery

/// What is written of a tensor that is in a hole.
enum HoleTreatment: String, ExpressibleByArgument, CaseIterable, Sendable {
    /// Nothing: a loader that misses it reports it.
    case skip
    /// What is left of it, and zeros.
    case zero
}

/// Writes what is left of one damaged checkpoint, and a map of its holes.
struct Salvage {
    let request: OutputPlan.Request
    let treatment: HoleTreatment
    /// Take the names of the tensors from this slot when the checkpoint's own are lost.
    let namesSlot: UInt32?
    let mapPath: String
    let inspection: Inspection

    /// - Returns: nil when the reader of a stream had enough.
    /// - Throws: `corrupt` when the names that the format needs are lost.
    func run(
        _ source: SalvageSource, _ selected: SelectedCheckpoint, to target: ExtractionTarget
    ) throws(CheckpointError) -> ExtractionResult? {
        let reader = CheckpointReader(storage: inspection.storage, decision: inspection.decision)
        let survey = try SalvageSurvey(source, selected)
        let (manifest, names) = try self.manifest(selected, survey, reader)
        let map = HolesMap(
            source: source, survey: survey, names: names,
            tensors: try entries(manifest, survey))
        let plan = try self.plan(map, manifest)
        let document = map.json(
            file: inspection.path, output: target.name, format: request.format, holes: treatment)
        let isDone = try target.write(
            plan, from: selected, holes: survey.damagedChunks,
            documents: [(mapPath, document.bytes)])
        return isDone
            ? ExtractionResult(source.candidate, request, plan, salvage: (map, mapPath)) : nil
    }

    private func entries(
        _ manifest: SafetensorsManifest?, _ survey: SalvageSurvey
    ) throws(CheckpointError) -> [HolesMap.TensorEntry] {
        guard let manifest else { return [] }
        let tensors = try request.choice.selectSome(from: manifest)
        // Bytes keep their places: in a raw file a hole is always zeros.
        let isZeroed = treatment == .zero || request.format == .raw
        return HolesMap.entries(tensors, of: manifest, survey) {
            $0 || isZeroed
        }
    }

    private func plan(
        _ map: HolesMap, _ manifest: SafetensorsManifest?
    ) throws(CheckpointError) -> OutputPlan {
        let written = map.tensors.filter(\.isWritten).map(\.tensor)
        return try OutputPlan(
            request,
            OutputPlan.Source(
                map.source.candidate.header, manifest: manifest, tensors: written,
                isWhole: request.choice.isAll && written.count == map.tensors.count
                    && (map.names == .own || request.format == .raw)))
    }

    /// The directory of the tensors: the checkpoint's own when it is intact.
    private func manifest(
        _ selected: SelectedCheckpoint, _ survey: SalvageSurvey, _ reader: CheckpointReader
    ) throws(CheckpointError) -> (SafetensorsManifest?, HolesMap.Names) {
        let header = selected.candidate.header
        guard header.payloadKind == .safetensors else {
            if request.format == .raw && request.choice.isAll { return (nil, .opaque) }
            // Says what the payload is, and what to do.
            return (try selected.tensorManifest(), .own)
        }
        let lost = survey.lost(in: 0..<header.manifestByteCount)
        var why = "it is in a damaged chunk"
        if lost.isEmpty {
            do throws(CheckpointError) {
                return (try selected.tensorManifest(), .own)
            } catch {
                guard error.code == .corrupt else { throw error }
                why = error.message
            }
        }
        if let namesSlot {
            return try borrowedManifest(namesSlot, header, reader)
        }
        if request.format == .raw && request.choice.isAll { return (nil, .lost) }
        throw CheckpointError(
            .corrupt,
            "\(inspection.path): the manifest of slot \(header.slot) is damaged (\(why)), and with "
                + "it the names of its tensors; \(advice(header))", slot: header.slot)
    }

    /// Candidates whose manifest could stand in for that of `header`.
    private func kin(of header: SlotHeader) -> [Candidate] {
        inspection.decision.candidates.filter {
            $0.slot != header.slot && $0.header.payloadKind == .safetensors
                && $0.header.manifestByteCount == header.manifestByteCount
                && $0.header.payloadByteCount == header.payloadByteCount
        }
    }

    private func advice(_ header: SlotHeader) -> String {
        let raw = "--format raw writes its bytes"
        guard let other = kin(of: header).first else { return raw }
        return raw + "; slot \(other.slot) (step \(other.step)) has tensors of the same size: if "
            + "both are of one run, --manifest-from \(other.slot) takes their names from there"
    }

    /// The manifest of another slot, as far as it fits: names, types, shapes and places. What
    /// else it says is of another step, and is left out.
    private func borrowedManifest(
        _ slot: UInt32, _ header: SlotHeader, _ reader: CheckpointReader
    ) throws(CheckpointError) -> (SafetensorsManifest?, HolesMap.Names) {
        guard let other = kin(of: header).first(where: { $0.slot.rawValue == slot }) else {
            throw CheckpointError(
                .invalidArgument,
                "--manifest-from \(slot): that slot holds no checkpoint with a manifest of "
                    + "\(header.manifestByteCount) and a payload of \(header.payloadByteCount) "
                    + "bytes, as slot \(header.slot) has; \(advice(header))")
        }
        let selected = try reader.select(other, proof: .waived)
        defer { selected.close() }
        let manifest = try selected.tensorManifest()
        return (manifest.withoutMetadata(), .slot(other.slot))
    }
}
