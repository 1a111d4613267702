internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointGroup
internal import CheckpointRecovery

/// A folder of a group as pcinspect sees it: the metadata of every rank's file, and what the ranks
/// claimed of the checkpoint that a restart loads.
struct FolderInspection {
    /// What is kept of one file.
    struct File: Sendable {
        let report: GroupReport
        /// Something in it is damaged, as its own summary shows.
        let isDamaged: Bool
        /// nil where there are no locks that show it.
        let isWriterAtWork: Bool?
        /// Why it cannot be used.
        let failure: ExitStatus
    }

    /// Opening and reading the metadata of a file waits for the device most of the time.
    private static let threadCount = 8

    let folder: RankFolder
    let files: [File]
    let decision: GroupDecision
    let findings: [GroupFinding]

    /// - Throws: `cancelled` after a signal.
    init(path: String) throws(CheckpointError) {
        let folder = try RankFolder(path: path)
        let progress = ProgressBar("reading \(path)", total: UInt64(folder.files.count), .files)
        var files: [File] = []
        OrderedWork.run(folder.files.count, threadCount: Self.threadCount) { index in
            Interruption.isRequested ? nil : Self.look(folder.files[index])
        } consume: { index, file in
            if let file { files.append(file) }
            progress.update(UInt64(index + 1))
        }
        progress.finish()
        try Interruption.check()
        self.folder = folder
        self.files = files
        decision = try FolderDecision.decide(files.map(\.report))
        findings = GroupCheck.findings(decision)
    }

    private static func look(_ path: String) -> File {
        do throws(CheckpointError) {
            let inspection = try Inspection(path: path)
            return File(
                report: GroupReport(path: path, inspection.decision),
                isDamaged: inspection.isDamaged, isWriterAtWork: inspection.isWriterAtWork,
                failure: .clean)
        } catch {
            return File(
                report: .failure(path: path, message: error.message), isDamaged: true,
                isWriterAtWork: nil, failure: ExitStatus(error.code))
        }
    }

    var status: ExitStatus {
        files.reduce(into: findings.contains { $0.severity == .error } ? .uncorrected : .clean) {
            $0.formUnion($1.isDamaged ? .uncorrected : .clean)
            $0.formUnion($1.failure)
        }
    }

    /// Files that can be used and are damaged; a finding names each of the others.
    var damagedPaths: [String] {
        files.compactMap { file in
            if case .file(let report) = file.report, file.isDamaged { report.path } else { nil }
        }
    }
}

extension GroupReport {
    /// - Parameters:
    ///   - decision: of the file at `path`, truncated or not.
    ///   - damaged: slots of which reading the payload found damage.
    init(path: String, _ decision: RecoveryDecision, damaged: Set<SlotIndex> = []) {
        if decision.isTruncated {
            self = .failure(
                path: path,
                message: "the file is truncated: it has \(decision.fileByteCount) bytes, expected "
                    + "\(decision.identity.geometry.fileByteCount)")
        } else {
            self = .file(GroupFileReport(path: path, decision, damaged: damaged))
        }
    }
}
