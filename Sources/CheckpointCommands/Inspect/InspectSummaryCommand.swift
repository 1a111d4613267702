internal import ArgumentParser
internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

struct InspectSummaryCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "summary", abstract: "The slot map, and what a resume would load (default).")

    @OptionGroup var options: InspectedFile

    func execute() throws -> ExitStatus {
        let inspection = try Inspection(path: options.file)
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
}
