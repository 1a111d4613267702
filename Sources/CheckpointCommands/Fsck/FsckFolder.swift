internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointGroup
internal import CheckpointRecovery
internal import CheckpointStorage

#if canImport(Glibc)
    internal import Glibc
#endif

/// What pcfsck found in a folder with the files of ranks.
///
/// Of a file without errors and warnings only numbers are kept, so that a folder may have
/// thousands of them.
struct FsckFolder {
    /// What is kept of one file.
    struct File: Sendable {
        let report: GroupReport
        let status: ExitStatus
        let counts: [Severity: Int]
        let verifiedByteCount: UInt64

        var isClean: Bool { status.isDisjoint(with: [.uncorrected, .operational]) }
    }

    /// Metadata is a few reads that wait for the device; payload keeps four threads busy per file.
    private static func threadCount(_ depth: CheckOptions.Depth) -> Int {
        depth == .metadata ? 8 : 2
    }

    let folder: RankFolder
    private(set) var files: [File] = []
    private(set) var decision = GroupSelection.decide([])
    private(set) var findings: [GroupFinding] = []
    private let beganTime = SystemClock.monotonicTime

    init(_ folder: RankFolder) { self.folder = folder }

    /// Checks every file, several at once.
    ///
    /// - Parameter show: called in the order of the files, with what is worth showing.
    mutating func check(
        _ depth: CheckOptions.Depth, show: (Result<FsckRun, CheckpointError>, String) -> Void
    ) {
        let title = depth == .full ? "verifying" : "checking"
        let progress = ProgressBar(
            "\(title) \(folder.path)", total: UInt64(folder.files.count), .files)
        let paths = folder.files
        var files: [File] = []
        OrderedWork.run(paths.count, threadCount: Self.threadCount(depth)) { index in
            Self.look(paths[index], depth, progress)
        } consume: { index, result in
            let file = Self.summary(result, paths[index])
            files.append(file)
            if file.counts[.error, default: 0] + file.counts[.warning, default: 0] > 0
                || !file.isClean
            {
                progress.finish()
                show(result, paths[index])
            }
            progress.update(UInt64(index + 1))
        }
        progress.finish()
        self.files = files
        decide()
    }

    /// Checks and repairs one file after the other.
    mutating func repair(
        _ check: (_ path: String, _ index: Int) throws(CheckpointError) -> FsckRun,
        show: (Result<FsckRun, CheckpointError>, String) -> Void
    ) {
        for (index, path) in folder.files.enumerated() {
            let result: Result<FsckRun, CheckpointError>
            do throws(CheckpointError) {
                result = .success(try check(path, index))
            } catch {
                result = .failure(error)
            }
            let file = Self.summary(result, path)
            files.append(file)
            if file.status != .clean || file.counts[.warning] != nil { show(result, path) }
            if file.status.contains(.cancelled) { break }
        }
        decide()
    }

    /// After a signal, from the metadata alone.
    private mutating func decide() {
        let reports = files.map(\.report)
        decision = (try? FolderDecision.decide(reports)) ?? GroupSelection.decide(reports)
        findings = GroupCheck.findings(decision)
    }

    var status: ExitStatus {
        files.reduce(into: findings.contains { $0.severity == .error } ? .uncorrected : .clean) {
            $0.formUnion($1.status)
        }
    }

    // MARK: One file

    private static func look(
        _ path: String, _ depth: CheckOptions.Depth, _ progress: ProgressBar
    ) -> Result<FsckRun, CheckpointError> {
        do throws(CheckpointError) {
            let storage = try FileStorage.opened(path, .read)
            let report = FileChecker(storage: storage).run(options: CheckOptions(depth: depth)) {
                _ in cancel(path, progress)
            }
            let session = RepairSession(level: .none, undoPath: nil, isQuiet: true) { _, _ in
                report
            }
            return .success(
                FsckRun(
                    report: report, fullPlan: session.foresee(report),
                    isWriterAtWork: (try? storage.isWriterAtWork) ?? nil))
        } catch {
            return .failure(error)
        }
    }

    private static let isCancelled = Monitor(false)

    /// Ends the process after a signal: a check changes nothing. Called from any thread.
    private static func cancel(_ path: String, _ progress: ProgressBar) {
        guard Interruption.isRequested else { return }
        let isFirst = isCancelled.withLock { isCancelled in
            defer { isCancelled = true }
            return !isCancelled
        }
        guard isFirst else { return }
        progress.finish()
        Output.standard.flush()
        Output.diagnostics.line("pcfsck: cancelled in \(path); nothing was changed")
        Output.diagnostics.flush()
        Glibc.exit(ExitStatus.cancelled.rawValue)
    }

    private static func summary(
        _ result: Result<FsckRun, CheckpointError>, _ path: String
    ) -> File {
        switch result {
        case .failure(let error):
            return File(
                report: .failure(path: path, message: error.message),
                status: ExitStatus(error.code), counts: [.error: 1], verifiedByteCount: 0)
        case .success(let run):
            return File(
                report: run.report.groupReport, status: run.status,
                counts: Dictionary(
                    run.report.findings.map { ($0.severity, 1) }, uniquingKeysWith: +),
                verifiedByteCount: run.report.verifiedByteCount)
        }
    }

    // MARK: The screen

    /// The table of the worlds.
    func table(width: Int?) -> [StyledText] {
        var table = TableLayout([
            .right("ranks"), .right("files"), .left("verdict"), .left("newest on all ranks"),
            .right("errors"), .right("warnings"), .right("notes"),
        ])
        for world in worldSizes {
            let files = files(of: world)
            let unsound = files.count { !$0.isClean }
            let newest = decision.checkpoints.first { $0.isComplete && $0.worldSize == world }
            table.add(
                [
                    StyledText(world.map { "\($0)" } ?? "?"), "\(files.count)",
                    unsound == 0
                        ? StyledText("all clean", .green)
                        : StyledText("\(unsound) not clean", .red),
                    StyledText(newest.map { "\($0.name)" } ?? "none"),
                ] + [Severity.error, .warning, .info].map { Self.sum($0, files) })
        }
        return table.lines(width: width) + [total]
    }

    private static func sum(_ severity: Severity, _ files: [File]) -> StyledText {
        let count = files.reduce(0) { $0 + $1.counts[severity, default: 0] }
        let style: StyledText.Style? =
            count == 0 ? nil : severity == .error ? .red : severity == .warning ? .yellow : nil
        return StyledText("\(count)", style)
    }

    /// nil stands for files that cannot be used, and whose name names none.
    private var worldSizes: [UInt32?] {
        Set(files.map(\.worldSize)).sorted { ($1 ?? 0) < ($0 ?? 0) }
    }

    private func files(of world: UInt32?) -> [File] { files.filter { $0.worldSize == world } }

    private var total: StyledText {
        let seconds = Double(SystemClock.monotonicTime - beganTime) / 1e9
        var text = "  \(Quantity.plural(files.count, "file"))"
        let byteCount = files.reduce(UInt64(0)) { $0 &+ $1.verifiedByteCount }
        if byteCount > 0 {
            let rate = UInt64(saturating: Double(byteCount) / max(seconds, 1e-6))
            text += "; \(Quantity.bytes(byteCount)) verified at \(Quantity.bytes(rate))/s"
        }
        return StyledText(text)
    }

    /// What is wrong with the files together, and where the job continues.
    func lines(width: Int?) -> [StyledText] {
        let errorCount = findings.count { $0.severity == .error } + files.count { !$0.isClean }
        let verdict =
            errorCount == 0 ? StyledText("clean", .green) : StyledText("damaged", .red)
        let run = decision.run.map { "; run \($0)" } ?? ""
        var lines: [StyledText] = ["\(folder.path, .bold): \(verdict)\(run)"]
        lines += table(width: width)
        for finding in findings { lines += FsckScreen.lines(finding, width: width) }
        let restart = RestartText(decision)
        let label = StyledText("resume", .bold).padded(to: 9, isRight: false)
        lines.append("  \(label)\(restart.head)")
        for detail in restart.details + [folder.note].compactMap({ $0 }) {
            lines += TextWrap.lines(detail, indent: FsckScreen.textIndent, width: width)
        }
        return lines
    }

    var json: JSONValue {
        .dictionary([
            "path": .string(folder.path),
            "exit_status": .count(Int(status.rawValue)),
            "file_count": .count(files.count),
            "clean_count": .count(files.count(where: \.isClean)),
            "verified_byte_count": .integer(files.reduce(0) { $0 &+ $1.verifiedByteCount }),
            "ignored_count": .count(folder.others.count),
            "findings": .array(findings.map(FolderJSON.finding)),
            "decision": decision.json,
        ])
    }
}

extension FsckFolder.File {
    fileprivate var worldSize: UInt32? {
        switch report {
        case .file(let file): file.worldSize
        case .failure(let path, _): RankFileName(path: path)?.worldSize
        }
    }
}

extension CheckReport {
    /// What a check of the file tells the group.
    var groupReport: GroupReport { groupReport(path: path) }

    /// Slots of which a chunk is damaged.
    var slotsWithDamagedPayload: Set<SlotIndex> {
        Set(slots.filter { $0.reason == .payloadDamaged }.map(\.slot))
    }

    /// - Parameter path: the name of the file then.
    func groupReport(path: String) -> GroupReport {
        guard let decision else {
            let why = findings.first { $0.severity == .error }.map { "\($0)" }
            return .failure(path: path, message: why ?? "the file cannot be used")
        }
        return GroupReport(path: path, decision, damaged: slotsWithDamagedPayload)
    }
}
