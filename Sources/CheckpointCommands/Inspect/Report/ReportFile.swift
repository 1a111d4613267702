internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

/// Writes the report page of a file, whatever state it is in.
enum ReportFile {
    static func write(
        _ path: String, of source: String, depth: CheckOptions.Depth
    ) throws(CheckpointError) -> ExitStatus {
        let storage = try FileStorage.opened(source, .read)
        let isWriterAtWork = try storage.isWriterAtWork
        // Refuses the checkpoint file itself, directories and terminals.
        let target = try ExtractionTarget(path, source: source)
        let report = storage.check(depth, "verifying \(storage.path)")
        try Interruption.check()
        let page = ReportPage(
            report: report, manifest: manifest(report, storage), isWriterAtWork: isWriterAtWork,
            now: SystemClock.wallTime)
        try target.write(document: Array(page.html.markup.utf8))
        return ExitStatus(rawValue: report.exitCode)
    }

    /// nil for an opaque payload, and when there is no checkpoint.
    private static func manifest(
        _ report: CheckReport, _ storage: FileStorage
    ) -> Result<SafetensorsManifest, CheckpointError>? {
        guard let decision = report.decision, let choice = report.resume.choice,
            let candidate = decision.candidates.first(where: { $0.slot == choice.slot }),
            candidate.header.payloadKind == .safetensors
        else { return nil }
        do throws(CheckpointError) {
            let reader = CheckpointReader(storage: storage, decision: decision)
            let selected = try reader.select(candidate, proof: .waived)
            defer { selected.close() }
            return .success(try selected.tensorManifest())
        } catch {
            return .failure(error)
        }
    }
}
