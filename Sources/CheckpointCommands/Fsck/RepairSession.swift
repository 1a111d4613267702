internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

/// How far pcfsck may go.
enum RepairLevel {
    /// `-n`
    case none
    /// `-p`
    case safe
    /// `-y`
    case full
}

/// One file's repair: lock, check, plan, ask, print, undo file, apply.
struct RepairSession {
    let level: RepairLevel
    /// Where the undo file goes; nil: beside the file with `-y`, nowhere with `-p`.
    let undoPath: String?
    /// Nothing is printed and nothing asked.
    let isQuiet: Bool
    /// The checker with its progress bar; told whether the file was changed already.
    let check: (FileStorage, _ isChanged: Bool) -> CheckReport

    private let stamp = RepairStamp.now

    init(
        level: RepairLevel, undoPath: String?, isQuiet: Bool,
        check: @escaping (FileStorage, Bool) -> CheckReport
    ) {
        self.level = level
        self.undoPath = undoPath
        self.isQuiet = isQuiet
        self.check = check
    }

    /// What `-y` would do, as far as the check knows: it verifies what it names before.
    func foresee(_ report: CheckReport) -> RepairPlan {
        report.fullPlan(stamp: stamp) { candidate throws(CheckpointError) in
            // A full check knows better than to hope.
            guard report.depth == .full else { return }
            guard report.slots.first(where: { $0.slot == candidate.slot })?.isVerified == true
            else { throw CheckpointError(.corrupt, "not verified", slot: candidate.slot) }
        }
    }

    /// Repairs the file of `run`, which holds the report of a first look at it.
    func repair(_ run: inout FsckRun) throws(CheckpointError) {
        let first = level == .safe ? run.report.plan : run.fullPlan
        run.refusal = first.refusal
        if first.isEmpty && first.questions.isEmpty { return }
        try Interruption.check()
        let path = run.report.path
        let storage = try FileStorage.opened(path, .write)
        let medium = LockedFile(storage)
        try medium.lock()
        defer { medium.unlock() }
        // Nobody writes from here on, and what is read is on the medium.
        let report = check(storage, false)
        let plan = try plan(report, storage)
        run.questions = plan.questions
        run.notes = plan.notes
        run.refusal = plan.refusal
        if plan.isEmpty {
            run.report = report
            return
        }
        if !isQuiet { RepairScreen.plan(plan, path).forEach(Output.standard.line) }
        var written: String?
        do throws(CheckpointError) {
            run.repairs = try plan.apply(to: storage) { () throws(CheckpointError) in
                written = try writeUndo(plan, storage)
            }
        } catch {
            run.undoPath = written
            throw error
        }
        run.undoPath = written
        run.report = check(storage, true)
        run.fullPlan = foresee(run.report)
    }

    private func plan(
        _ report: CheckReport, _ storage: FileStorage
    ) throws(CheckpointError) -> RepairPlan {
        guard level == .full else { return report.plan }
        let progress = ProgressBar("verifying \(storage.path)", total: 0)
        defer { progress.finish() }
        let verify = { (candidate: Candidate) throws(CheckpointError) in
            try RepairSession.verify(candidate, in: storage, progress)
        }
        let plan = report.fullPlan(stamp: stamp, verify: verify)
        progress.finish()
        if isQuiet || plan.questions.isEmpty { return plan }
        let consents = try RepairPrompt.consents(to: plan.questions, about: storage.path)
        return consents.isEmpty
            ? plan : report.fullPlan(stamp: stamp, consents: consents, verify: verify)
    }

    /// Reads every chunk of `candidate`.
    ///
    /// - Throws: `cancelled` after a signal: nothing was changed.
    static func verify(
        _ candidate: Candidate, in storage: any Storage, _ progress: ProgressBar
    ) throws(CheckpointError) {
        try Interruption.check()
        let total = candidate.header.payloadByteCount
        try SlotVerifier.verify(candidate, in: storage) { done in
            progress.update(done, of: total)
        }
        try Interruption.check()
    }

    /// - Returns: the undo file's path; nil when none was asked for.
    private func writeUndo(
        _ plan: RepairPlan, _ storage: FileStorage
    ) throws(CheckpointError) -> String? {
        guard let undo = plan.undoFile(stamp: stamp) else { return nil }
        if let undoPath {
            try UndoFileAccess.write(undo, to: undoPath)
            return undoPath
        }
        guard level == .full else { return nil }
        guard !storage.isBlockDevice else {
            throw CheckpointError(
                .invalidArgument,
                "\(storage.path) is a device; say with --undo where the undo file goes")
        }
        let path = UndoFileAccess.freePath(beside: storage.path, time: stamp.time)
        try UndoFileAccess.write(undo, to: path)
        return path
    }
}

/// A file that a tool is about to change, locked against writers.
struct LockedFile {
    let storage: FileStorage

    init(_ storage: FileStorage) { self.storage = storage }

    /// Takes the writer lock, and makes reads see the medium: what an earlier writer's failed
    /// flush left in the page cache looks intact and is not there.
    func lock() throws(CheckpointError) {
        let isLocked = try withCheckpointErrors { () throws(StorageError) in
            try storage.tryLock(.writer, exclusive: true)
        }
        guard isLocked else {
            throw CheckpointError(
                .locked,
                "\(storage.path): a writer has the file open; close it before the repair")
        }
        try withCheckpointErrors { () throws(StorageError) in try storage.flush() }
        storage.discardCache()
    }

    func unlock() {
        // One that fails leaves the lock to the end of this opener.
        try? storage.unlock(.writer)
    }
}
