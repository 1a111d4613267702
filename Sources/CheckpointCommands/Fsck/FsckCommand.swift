internal import ArgumentParser
internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointStorage

#if canImport(Glibc)
    internal import Glibc
#endif

struct FsckCommand: ToolCommand {
    enum Depth: String, ExpressibleByArgument, CaseIterable {
        case metadata, full
    }

    static let configuration = CommandConfiguration(
        commandName: "pcfsck",
        abstract: "Check checkpoint files, and report what a resume would load.",
        usage: """
            pcfsck [-n|-p|-y] [--undo UNDO] [--verify DEPTH]
                   [-q|--json] FILE|DIR...
            pcfsck --apply-undo UNDO FILE
            pcfsck --explain ID|all
            """,
        discussion: """
            Only reads without -p and -y, and reports what each of them would do. -p makes \
            repairs that are proven to lose nothing: it rewrites a damaged copy of a block from \
            its intact twin. -y makes all repairs that have one right answer: new superblocks \
            that name only what was verified in full, empty headers in slots that nothing keeps, \
            copies that the file lost with its end. \
            What would be a choice between data is asked about on a terminal, and else left.

            -y first writes an undo file, from which --apply-undo restores FILE.

            DIR is a folder with the files of the ranks of one job: it checks each of them \
            and all of them together, and reports from which checkpoint the job restarts. It \
            shows only files with errors or warnings. -p and -y repair one file after the other.

            Exit status, bits that may be combined: 0 clean, 1 errors were corrected, 4 errors \
            were left, 8 a file cannot be read, 16 usage, 32 cancelled.
            """,
        version: Tool.version)

    @Flag(name: .customShort("n"), help: "Change nothing (default).")
    var readOnly = false

    @Flag(name: .customShort("p"), help: "Make the repairs that are proven to be safe.")
    var safeRepair = false

    @Flag(
        name: .customShort("y"),
        help: "Make all repairs that do not choose between data; ask about the others.")
    var allRepairs = false

    @Option(
        help: .of(
            "undo",
            "Where to write the undo file (default: FILE.undo-TIME with -y, none with -p)."),
        completion: .file())
    var undo: String?

    @Option(
        help: .of("undo", "Restore FILE, byte for byte, as it was before a repair."),
        completion: .file())
    var applyUndo: String?

    @Option(
        help: .of(
            "metadata|full", "metadata: in milliseconds, whatever the size. full: every chunk too.")
    )
    var verify = Depth.metadata

    @Flag(name: .shortAndLong, help: "Print only the table of the files.")
    var quiet = false

    @Flag(help: "Print JSON for programs.")
    var json = false

    @Option(
        help: .of(
            "id", "Explain a finding and what to do about it; all explains every one."),
        completion: .list(ProblemCatalogue.all.map(\.id) + ["all"]))
    var explain: String?

    @Argument(
        help: "Checkpoint files, block devices, or folders with the files of ranks.",
        completion: .file())
    var files: [String] = []

    func validate() throws {
        if [readOnly, safeRepair, allRepairs].count(where: { $0 }) > 1 {
            throw ValidationError("give one of -n, -p and -y")
        }
        if undo != nil {
            guard safeRepair || allRepairs else {
                throw ValidationError("--undo goes with -p or -y")
            }
            guard files.count == 1, !RankFolder.isFolder(files[0]) else {
                throw ValidationError("--undo is of one file")
            }
        }
        if applyUndo != nil {
            guard !readOnly, !safeRepair, !allRepairs, files.count == 1 else {
                throw ValidationError("--apply-undo takes one file and none of -n, -p and -y")
            }
        }
        if quiet && json { throw ValidationError("give -q or --json, not both") }
        if files.isEmpty && explain == nil {
            throw ValidationError("name a checkpoint file")
        }
        if let explain, explained.isEmpty {
            let known = ProblemCatalogue.all.map { "  \($0.id)  \($0.title)" }
            throw ValidationError(
                "there is no finding \(PrintableText.escaped(explain)); known are\n"
                    + known.joined(separator: "\n"))
        }
    }

    /// What `--explain` asks for: one finding, or all.
    private var explained: [Problem] {
        guard let explain else { return [] }
        if explain == "all" { return ProblemCatalogue.all }
        return ProblemCatalogue.problem(explain.uppercased()).map { [$0] } ?? []
    }

    func execute() throws -> ExitStatus {
        let output = Output.standard
        for problem in explained {
            output.show { FsckScreen.explain(problem, width: $0) }
        }
        if files.isEmpty { return .clean }
        if let applyUndo { return try undoRepair(applyUndo, files[0]) }
        var result = FsckResult(depth: depth, prints: json ? .json : quiet ? .table : .all)
        for (index, file) in files.enumerated() {
            result.separate(from: index)
            if RankFolder.isFolder(file) {
                checkFolder(file, &result)
            } else {
                let place = files.count > 1 ? "\(index + 1) of \(files.count): " : ""
                result.add(Result { () throws(CheckpointError) in try check(file, place) }, file)
            }
        }
        result.finish(fileCount: files.count)
        return result.status
    }

    private func checkFolder(_ path: String, _ result: inout FsckResult) {
        do throws(CheckpointError) {
            var folder = FsckFolder(try RankFolder(path: path))
            let show = { (run: Result<FsckRun, CheckpointError>, path: String) in
                result.add(run, path, isInFolder: true)
            }
            if level == .none {
                folder.check(depth, show: show)
            } else {
                let count = folder.folder.files.count
                folder.repair(
                    { path, index throws(CheckpointError) in
                        try check(path, "\(index + 1) of \(count): ")
                    }, show: show)
            }
            result.add(folder)
        } catch {
            result.add(.failure(error), path)
        }
    }

    private var depth: CheckOptions.Depth { verify == .full ? .full : .metadata }
    private var level: RepairLevel { allRepairs ? .full : safeRepair ? .safe : .none }

    /// Checks one file, repairs it when asked to, and then checks it again.
    ///
    /// - Parameter place: which of the files it is.
    private func check(_ path: String, _ place: String) throws(CheckpointError) -> FsckRun {
        let reader = try FileStorage.opened(path, .read)
        let report = { (storage: FileStorage, isChanged: Bool) in
            self.report(storage, isChanged, place)
        }
        let session = RepairSession(
            level: level, undoPath: undo, isQuiet: json || quiet, check: report)
        let before = report(reader, false)
        var run = FsckRun(
            report: before, fullPlan: session.foresee(before),
            isWriterAtWork: (try? reader.isWriterAtWork) ?? nil)
        if level == .none { return run }
        do throws(CheckpointError) {
            try session.repair(&run)
        } catch {
            // What was found is worth showing though nothing could be done about it.
            run.refusal = error.message
            run.failure = ExitStatus(error.code)
        }
        return run
    }

    private func undoRepair(
        _ undoPath: String, _ path: String
    ) throws(CheckpointError) -> ExitStatus {
        let undo = try UndoFileAccess.read(undoPath)
        let count = try Undoing(undo).apply(to: FileStorage.opened(path, .write))
        if json {
            Output.standard.document(
                "pcfsck",
                [
                    "exit_status": .integer(0), "path": .string(path),
                    "undo_file": .string(undoPath), "restored_block_count": .count(count),
                ])
            return .clean
        }
        let what =
            count == 0
            ? "nothing to restore: it is" : "\(Quantity.plural(count, "block")) restored: it is"
        let line: StyledText = """
            \(path, .bold): \(what) as it was before the repair of \
            \(Quantity.date(undo.createdTime))
            """
        Output.standard.line(line)
        return .clean
    }

    private func report(
        _ storage: FileStorage, _ isChanged: Bool, _ place: String
    ) -> CheckReport {
        storage.check(depth, "\(place)verifying \(storage.path)") { state, progress in
            guard Interruption.isRequested else { return }
            // Checking changes nothing, so that the process may end anywhere in it.
            progress.finish()
            Output.standard.flush()
            let changes = isChanged ? "the repairs above were made" : "nothing was changed"
            Output.diagnostics.line(
                "pcfsck: cancelled in \(storage.path)\(Self.reached(state)); \(changes)")
            Output.diagnostics.flush()
            Glibc.exit(ExitStatus.cancelled.rawValue)
        }
    }

    /// How far a check came that was cancelled.
    private static func reached(_ state: CheckProgress) -> String {
        guard state.totalByteCount > 0 else { return "" }
        return " after \(Quantity.bytes(state.doneByteCount)) of "
            + "\(Quantity.bytes(state.totalByteCount)) were read"
    }
}

/// What pcfsck found in one file, and did to it.
struct FsckRun {
    /// After the repairs.
    var report: CheckReport
    /// What `-y` would do now.
    var fullPlan: RepairPlan
    var repairs: [Repair] = []
    /// What takes the repairs back; nil when nothing does.
    var undoPath: String?
    /// Why nothing was repaired though something could be.
    var refusal: String?
    /// Choices that were left to a person.
    var questions: [RepairQuestion] = []
    /// Why something was left as it is.
    var notes: [String] = []
    /// How a repair failed.
    var failure = ExitStatus.clean
    /// A writer had the file open during the check; nil where there are no locks that show it.
    let isWriterAtWork: Bool?

    init(report: CheckReport, fullPlan: RepairPlan, isWriterAtWork: Bool?) {
        self.report = report
        self.fullPlan = fullPlan
        self.isWriterAtWork = isWriterAtWork
    }

    var status: ExitStatus {
        let found = ExitStatus(rawValue: report.exitCode).union(failure)
        return repairs.isEmpty ? found : found.union(.corrected)
    }
}
