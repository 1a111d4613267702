internal import CheckpointFormat
internal import CheckpointRecovery

/// Pass 4: chunk tables, and the manifests of safetensors payloads.
///
/// The tables were decoded with the metadata. A manifest is in the first chunks of the payload;
/// they are read, verified and decoded even when the rest of the payload is not.
enum Pass4Tables {
    static func run(_ context: inout CheckContext) {
        context.enter(.tables)
        guard let decision = context.decision else { return }
        for report in decision.slots where report.reason == .tableDamaged {
            checkTable(report, decision, &context)
        }
        let reader = CheckpointReader(
            storage: context.storage, decision: decision,
            workerCount: context.options.workerCount)
        for candidate in decision.candidates where candidate.header.payloadKind == .safetensors {
            checkManifest(candidate, reader, &context)
        }
    }

    private static func checkTable(
        _ report: SlotReport, _ decision: RecoveryDecision, _ context: inout CheckContext
    ) {
        let offset = decision.identity.geometry.tableOffset(report.slot)
        let isWrongContent =
            switch report.detail {
            case .checksumMismatch, .truncated, .blank, nil: true
            default: false
            }
        let problem =
            isWrongContent ? ProblemCatalogue.tableDamaged : ProblemCatalogue.tableInvalid
        context.report(
            Finding(
                problem, isWrongContent ? context.severity(of: report.slot) : .error,
                slot: report.slot, at: offset, found: report.detail.map { "\($0)" } ?? "nothing",
                expected: "the chunk table of sequence "
                    + "\(report.header?.sequence ?? SequenceNumber.none)"))
    }

    private static func checkManifest(
        _ candidate: Candidate, _ reader: CheckpointReader, _ context: inout CheckContext
    ) {
        do throws(FormatError) {
            try checkClaim(candidate.header)
            let bytes: [UInt8]
            do throws(CheckpointError) {
                let selected = try reader.select(candidate, proof: .waived)
                defer { selected.close() }
                bytes = try manifest(selected)
            } catch {
                return report(error, candidate, &context)
            }
            _ = try SafetensorsManifest(decoding: bytes, header: candidate.header)
        } catch {
            context.unloadable[candidate.slot] = "its manifest is invalid: \(error)"
            context.report(
                Finding(
                    ProblemCatalogue.manifestInvalid, slot: candidate.slot,
                    at: candidate.dataOffset, found: "\(error)",
                    expected: "a safetensors header"))
        }
    }

    /// A size that no manifest has is the header's lie, whatever is in the chunks.
    private static func checkClaim(_ header: SlotHeader) throws(FormatError) {
        let limit = UInt64(Limits.manifestByteCount) + 8
        guard header.manifestByteCount <= limit else {
            throw .invalidField(
                "manifest_byte_count", found: header.manifestByteCount,
                expected: "at most \(limit)")
        }
    }

    /// Chunk by chunk: one chunk may be the whole payload, whose digest is the next pass's matter.
    private static func manifest(
        _ selected: SelectedCheckpoint
    ) throws(CheckpointError) -> [UInt8] {
        try selected.leadingBytes(selected.candidate.header.manifestByteCount)
    }

    private static func report(
        _ error: CheckpointError, _ candidate: Candidate, _ context: inout CheckContext
    ) {
        if error.code == .busy {
            return context.report(
                Finding(
                    ProblemCatalogue.slotInUse, slot: candidate.slot, at: candidate.headerOffset,
                    found: "a writer at work", expected: "sequence \(candidate.sequence)"))
        }
        if error.code == .outOfMemory { return context.reportNoMemory(candidate, error) }
        // A medium that fails is pass 5's finding, too, but that pass may not run. Beyond the end
        // of a truncated file, the medium is not to blame.
        if error.code == .inputOutput, context.decision?.isTruncated != true {
            context.hasMediumFailure = true
        }
        context.unloadable[candidate.slot] = "its manifest cannot be read: \(error.message)"
        context.report(
            Finding(
                ProblemCatalogue.manifestDamaged, context.severity(of: candidate.slot),
                slot: candidate.slot, at: error.byteOffset ?? candidate.dataOffset,
                found: error.message, expected: "an intact manifest"))
    }
}
