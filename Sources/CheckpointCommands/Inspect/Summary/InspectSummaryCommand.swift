internal import ArgumentParser
internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointGroup
internal import CheckpointRecovery
internal import CheckpointStorage

struct InspectSummaryCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "summary", abstract: "The slot map, and what a resume would load (default).",
        discussion: """
            For a folder: which ranks have which checkpoints, and from which one the job restarts.
            """)

    @OptionGroup var options: InspectedFile

    @Option(
        help: .of("report.html", "Write a report page to this file instead; - is standard output."),
        completion: .file())
    var html: String?

    @Option(
        help: .of(
            "metadata|full", "With --html: full reads every chunk and compares it with its digest.")
    )
    var verify: FsckCommand.Depth?

    func validate() throws {
        if html == nil, verify != nil { throw ValidationError("--verify goes with --html") }
        if html != nil, options.json { throw ValidationError("give --html or --json, not both") }
    }

    func execute() throws -> ExitStatus {
        if RankFolder.isFolder(options.file) { return try showFolder() }
        if let html {
            return try ReportFile.write(
                html, of: options.file, depth: verify == .full ? .full : .metadata)
        }
        let inspection: Inspection
        do throws(CheckpointError) {
            inspection = try Inspection(path: options.file)
        } catch {
            if !options.json { try showWreck() }
            throw error
        }
        if options.json {
            Output.standard.document(
                "pcinspect",
                [
                    "file": InspectionJSON.file(inspection),
                    "identity": InspectionJSON.identity(inspection),
                    "identity_copies": InspectionJSON.identityCopies(inspection),
                    "superblocks": InspectionJSON.superblocks(inspection),
                    "slots": InspectionJSON.slots(inspection),
                    "candidates": InspectionJSON.candidates(inspection.decision),
                    "rates": SlotRates(inspection.decision.slots).json,
                ])
        } else {
            Output.standard.show(SummaryScreen(inspection).lines(width:))
        }
        return inspection.status
    }

    private func showFolder() throws(CheckpointError) -> ExitStatus {
        guard verify == nil else {
            throw CheckpointError(
                .invalidArgument,
                "\(options.file) is a folder, of which a page shows the metadata; pcfsck --verify "
                    + "full reads its files")
        }
        let inspection = try FolderInspection(path: options.file)
        if let html { return try FolderPage.write(html, of: inspection) }
        guard options.json else {
            Output.standard.show(FolderScreen(inspection).lines(width:))
            return inspection.status
        }
        JSONValue.document(
            tool: "pcinspect",
            [
                "path": .string(options.file),
                "ignored_count": .count(inspection.folder.others.count),
                "decision": inspection.decision.json,
                "findings": .array(inspection.findings.map(FolderJSON.finding)),
            ]
        ).write(to: .standard, listing: "files", inspection.files.lazy.map(FolderJSON.file))
        return inspection.status
    }

    /// What is left of a file that cannot be opened as one, when there is anything.
    private func showWreck() throws(CheckpointError) {
        guard let file = try? WreckedFile(path: options.file) else { return }
        try Output.standard.show(WreckScreen(file).lines(width:))
    }
}
