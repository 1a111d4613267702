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
        abstract: "Check checkpoint files, and say what a resume would load.",
        usage: """
            pcfsck [-n | -p | -y] [--verify metadata|full] [--json] FILE...
            pcfsck --explain ID
            """,
        discussion: """
            Reads only, unless -p or -y is given. -p makes repairs that are proven to lose \
            nothing: it rewrites a damaged copy of a block from its whole twin. -y makes all \
            repairs; these are the same today.

            Exit status, bits that may be combined: 0 clean, 1 errors were corrected, 4 errors \
            were left, 8 a file cannot be read, 16 usage, 32 cancelled.
            """,
        version: Tool.version)

    @Flag(name: .customShort("n"), help: "Change nothing (default).")
    var readOnly = false

    @Flag(name: .customShort("p"), help: "Make the repairs that are proven to be safe.")
    var safeRepair = false

    @Flag(name: .customShort("y"), help: "Make all repairs.")
    var allRepairs = false

    @Option(
        help: ArgumentHelp(
            "metadata: in milliseconds, whatever the size. full: every chunk too.",
            valueName: "metadata|full"))
    var verify = Depth.metadata

    @Flag(help: "Print JSON for programs.")
    var json = false

    @Option(
        help: ArgumentHelp(
            "Say what a finding means and what to do about it.", valueName: "id"),
        completion: .list(ProblemCatalogue.all.map(\.id)))
    var explain: String?

    @Argument(help: "Checkpoint files or block devices.", completion: .file())
    var files: [String] = []

    func validate() throws {
        if [readOnly, safeRepair, allRepairs].count(where: { $0 }) > 1 {
            throw ValidationError("give one of -n, -p and -y")
        }
        if files.isEmpty && explain == nil {
            throw ValidationError("name a checkpoint file")
        }
        if let explain, ProblemCatalogue.problem(explain.uppercased()) == nil {
            throw ValidationError(
                "there is no finding \(PrintableText.escaped(explain)); known are "
                    + ProblemCatalogue.all.map(\.id).joined(separator: " "))
        }
    }

    func execute() throws -> ExitStatus {
        let output = Output.standard
        if let problem = explain.flatMap({ ProblemCatalogue.problem($0.uppercased()) }) {
            FsckScreen.explain(problem, width: output.columnCount).forEach(output.line)
            if files.isEmpty { return .clean }
        }
        var status = ExitStatus.clean
        var documents: [JSONValue] = []
        for (index, file) in files.enumerated() {
            do throws(CheckpointError) {
                let run = try check(file)
                status.formUnion(run.status)
                if json {
                    documents.append(FsckJSON.file(run))
                } else {
                    if index > 0 { output.line() }
                    FsckScreen(run, width: output.columnCount).lines.forEach(output.line)
                }
            } catch {
                output.flush()
                Output.diagnostics.line("\("pcfsck:", .red) \(error.message)")
                status.formUnion(ExitStatus(error.code))
                documents.append(FsckJSON.failure(file, error))
            }
        }
        if json {
            output.write(
                JSONValue.document(
                    tool: "pcfsck",
                    ["exit_status": .count(Int(status.rawValue)), "files": .array(documents)]
                ).bytes)
        }
        return status
    }

    /// Checks one file, repairs it when asked to, and then checks it again.
    private func check(_ path: String) throws(CheckpointError) -> FsckRun {
        let isRepairing = safeRepair || allRepairs
        let reader = try open(path, .read)
        let before = report(on: reader)
        var run = FsckRun(report: before, isWriterAtWork: isWriterAtWork(reader))
        guard isRepairing else { return run }
        run.refusal = before.plan.refusal
        if before.plan.isEmpty { return run }
        try Interruption.check()
        do throws(CheckpointError) {
            let storage = try open(path, .write)
            run.repairs = try before.plan.apply(to: storage)
            run.report = report(on: storage)
        } catch {
            // What was found is worth showing though nothing could be done about it.
            run.refusal = error.message
            run.failure = ExitStatus(error.code)
        }
        return run
    }

    private func isWriterAtWork(_ storage: FileStorage) -> Bool {
        // A file system without such locks has no writer that holds one.
        (try? storage.isLockedByAnother(.writer)) ?? false
    }

    private func open(
        _ path: String, _ access: FileStorage.Access
    ) throws(CheckpointError) -> FileStorage {
        do throws(StorageError) {
            return try FileStorage(path: path, access: access)
        } catch {
            throw CheckpointError(error)
        }
    }

    private func report(on storage: FileStorage) -> CheckReport {
        let progress = ProgressBar("verifying \(storage.path)", total: 0)
        defer { progress.finish() }
        let options = CheckOptions(depth: verify == .full ? .full : .metadata)
        return FileChecker(storage: storage).run(options: options) { state in
            if Interruption.isRequested {
                // Checking changes nothing, so that the process may end anywhere in it.
                progress.finish()
                Output.standard.flush()
                Output.diagnostics.line("pcfsck: cancelled; nothing was changed")
                Glibc.exit(ExitStatus.cancelled.rawValue)
            }
            if state.stage == .payload, state.totalByteCount > 0 {
                progress.update(state.doneByteCount, of: state.totalByteCount)
            }
        }
    }
}

/// What pcfsck found in one file, and did to it.
struct FsckRun {
    /// After the repairs.
    var report: CheckReport
    var repairs: [Repair] = []
    /// Why nothing was repaired though something could be.
    var refusal: String?
    /// How a repair failed.
    var failure = ExitStatus.clean
    /// A writer had the file open during the check.
    let isWriterAtWork: Bool

    init(report: CheckReport, isWriterAtWork: Bool) {
        self.report = report
        self.isWriterAtWork = isWriterAtWork
    }

    var status: ExitStatus {
        let found = ExitStatus(rawValue: report.exitCode).union(failure)
        return repairs.isEmpty ? found : found.union(.corrected)
    }
}
