internal import ArgumentParser
internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

struct InspectSummaryCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "summary", abstract: "The slot map, and what a resume would load (default).")

    @OptionGroup var options: InspectedFile

    func execute() throws -> ExitStatus {
        let inspection: Inspection
        do throws(CheckpointError) {
            inspection = try Inspection(path: options.file)
        } catch {
            if !options.json { try showWreck() }
            throw error
        }
        if options.json {
            Output.standard.write(
                JSONValue.document(
                    tool: "pcinspect",
                    [
                        "file": InspectionJSON.file(inspection),
                        "identity": InspectionJSON.identity(inspection),
                        "identity_copies": InspectionJSON.identityCopies(inspection),
                        "superblocks": InspectionJSON.superblocks(inspection),
                        "slots": InspectionJSON.slots(inspection),
                        "candidates": InspectionJSON.candidates(inspection.decision),
                        "rates": SlotRates(inspection.decision.slots).json,
                    ]
                ).bytes)
        } else {
            let output = Output.standard
            SummaryScreen(inspection).lines(width: output.columnCount).forEach(output.line)
        }
        return inspection.status
    }

    /// What is left of a file that cannot be opened as one, when there is anything.
    private func showWreck() throws(CheckpointError) {
        let output = Output.standard
        guard let file = try? WreckedFile(path: options.file) else { return }
        try WreckScreen(file).lines(width: output.columnCount).forEach(output.line)
    }
}
