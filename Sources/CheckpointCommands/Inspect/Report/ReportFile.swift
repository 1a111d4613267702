internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

/// Writes the report page of a file, whatever state it is in.
enum ReportFile {
    static func write(
        _ path: String, of source: String, depth: CheckOptions.Depth
    ) throws(CheckpointError) -> ExitStatus {
        let storage: FileStorage
        let isWriterAtWork: Bool?
        do throws(StorageError) {
            storage = try FileStorage(path: source, access: .read)
            isWriterAtWork = try storage.isLockedByAnother(.writer)
        } catch {
            throw CheckpointError(error)
        }
        // Refuses the checkpoint file itself, directories and terminals.
        let target = try ExtractionTarget(path, source: source)
        let report = try check(storage, depth)
        let page = ReportPage(
            report: report, manifest: manifest(report, storage), isWriterAtWork: isWriterAtWork,
            now: SystemClock.wallTime)
        try target.write(document: Array(page.html.markup.utf8))
        return ExitStatus(rawValue: report.exitCode)
    }

    private static func check(
        _ storage: FileStorage, _ depth: CheckOptions.Depth
    ) throws(CheckpointError) -> CheckReport {
        let progress = ProgressBar("verifying \(storage.path)", total: 0)
        defer { progress.finish() }
        let report = FileChecker(storage: storage).run(options: CheckOptions(depth: depth)) {
            if $0.totalByteCount > 0 { progress.update($0.doneByteCount, of: $0.totalByteCount) }
        }
        try Interruption.check()
        return report
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
