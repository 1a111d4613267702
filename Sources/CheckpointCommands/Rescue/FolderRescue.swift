internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointGroup
internal import CheckpointRecovery
internal import CheckpointStorage

/// The files of all ranks, each rescued into a new folder under its name, and what a restart makes
/// of them there.
///
/// Nothing is decided for the job: a file keeps its identity, its superblocks and all of its
/// checkpoints. What is repaired has one right answer, and blocks that the medium does not return
/// are zero. Only where no superblock is intact, new ones are written from the slot headers.
struct FolderRescue {
    /// What became of one file.
    struct File {
        let name: String
        /// Where it was.
        let path: String
        let result: Result<Rescued, CheckpointError>
    }

    struct Rescued {
        let path: String
        let repairs: [Repair]
        /// Blocks of 4096 bytes that the medium did not return, and that are zero.
        let unreadableBlockCount: Int
        /// What a person should know of the superblocks, or why nothing was repaired.
        let note: String?
        /// Of the full check of the new file.
        let findings: [Finding]
        /// What the new file tells the group.
        let report: GroupReport
        /// What it told before it was repaired.
        fileprivate let reportBefore: GroupReport
    }

    let folder: RankFolder
    let output: String
    private(set) var files: [File] = []
    private(set) var decision = GroupSelection.decide([])
    private(set) var findings: [GroupFinding] = []
    /// The newest checkpoint that may have been durable on all ranks, as far as the files showed
    /// before the repairs, and that is not complete.
    private(set) var lost: GroupCheckpointName?

    private let stamp = RepairStamp.now

    init(_ folder: RankFolder, to output: String) {
        self.folder = folder
        self.output = output
    }

    /// Rescues every file that can be read, and publishes the new folder.
    ///
    /// - Throws: `locked` when a writer is at work, `noSpace`, `cancelled` and what else concerns
    ///   the new folder: it does not exist then.
    mutating func run() throws(CheckpointError) {
        let target = try StagedFolder(output)
        for path in folder.files {
            try Interruption.check()
            let name = path.split(separator: "/").last.map(String.init) ?? path
            let result: Result<Rescued, CheckpointError>
            if let loss = Self.loss(of: path) {
                result = .failure(loss)
            } else {
                result = .success(try rescue(path, name, into: target))
            }
            files.append(File(name: name, path: path, result: result))
        }
        guard files.contains(where: { (try? $0.result.get()) != nil }) else {
            throw CheckpointError(
                .corrupt, "\(folder.path): no file can be read; pcfsck \(folder.path) says why")
        }
        try target.publish()
        let rescued = files.compactMap { try? $0.result.get() }
        decision = try FolderDecision.decide(rescued.map(\.report))
        findings = GroupCheck.findings(decision)
        lost = GroupSelection.decide(rescued.map(\.reportBefore)).lost
    }

    var status: ExitStatus {
        let isUnsound = files.contains { file in
            switch file.result {
            case .success(let rescued): rescued.findings.contains { $0.severity == .error }
            case .failure: true
            }
        }
        let hasErrors = findings.contains { $0.severity == .error }
        return isUnsound || hasErrors || lost != nil ? .uncorrected : .clean
    }

    // MARK: One file

    /// Why nothing of a file can be rescued: it cannot be opened, or is no checkpoint file.
    private static func loss(of path: String) -> CheckpointError? {
        do throws(CheckpointError) {
            let storage = try FileStorage.opened(path, .read)
            let image = try MetadataImage.read(from: storage)
            _ = try SlotSelection.decide(image, allowsTruncation: true)
            return nil
        } catch {
            return error.about(path)
        }
    }

    private func rescue(
        _ path: String, _ name: String, into target: StagedFolder
    ) throws(CheckpointError) -> Rescued {
        let storage = try FileStorage.opened(path, .read)
        try checkUnused(storage)
        let decision = try SlotSelection.decide(
            MetadataImage.read(from: storage), allowsTruncation: true)
        let copy = try RescueCopy(
            of: storage, byteCount: decision.identity.geometry.fileByteCount,
            to: target.file(name))
        let before = try SlotSelection.decide(MetadataImage.read(from: copy.storage))
        let (plan, note) = try plan(copy.storage, name)
        let repairs = plan.refusal == nil ? try plan.apply(to: copy.storage) : []
        let check = copy.storage.check(.full, "checking \(name)")
        try Interruption.check()
        // It may have changed while it was copied.
        try checkUnused(storage)
        let unreadable = try copy.publish()
        let newPath = target.finalFile(name)
        return Rescued(
            path: newPath, repairs: repairs, unreadableBlockCount: unreadable,
            note: plan.refusal ?? note, findings: check.findings,
            report: check.groupReport(path: newPath),
            reportBefore: GroupReport(
                path: newPath, before, damaged: check.slotsWithDamagedPayload))
    }

    private func checkUnused(_ storage: FileStorage) throws(CheckpointError) {
        guard try storage.isWriterAtWork != true else {
            throw CheckpointError(
                .locked,
                "\(storage.path): a writer has it open; end the job before the rescue")
        }
    }

    /// What is repaired of a copy. The superblocks stay as they are where one is intact: what they
    /// name shows a restart which checkpoints were lost (GROUP.md, "Restart").
    private func plan(
        _ storage: FileStorage, _ name: String
    ) throws(CheckpointError) -> (plan: RepairPlan, note: String?) {
        let image = try MetadataImage.read(from: storage)
        let decision = try SlotSelection.decide(image)
        let safe = RepairPlan(image: image, decision: decision)
        guard decision.superblock == nil, decision.mayHoldDurable else { return (safe, nil) }
        let progress = ProgressBar("verifying \(name)", total: 0)
        defer { progress.finish() }
        do throws(CheckpointError) {
            let rescue = try Rescue(.rebuild, image: image, stamp: stamp) {
                candidate throws(CheckpointError) in
                try RepairSession.verify(candidate, in: storage, progress)
            }
            return (rescue.plan, "no superblock was intact; new ones name what verified")
        } catch {
            guard error.code == .corrupt || error.code == .invalidArgument else { throw error }
            return (safe, "no superblock is intact, and none is written: \(error.message)")
        }
    }
}
