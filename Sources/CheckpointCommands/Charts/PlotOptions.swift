internal import ArgumentParser
internal import CheckpointFormat

/// Where a command draws its figures, and whether what it writes may replace files.
struct PlotOptions: ParsableArguments {
    @Option(
        help: .of(
            "file.svg",
            "Draw the figures into this file too; - is standard output, in place of the text."),
        completion: .file())
    var plot: String?

    @Flag(help: "Replace a file that an option of this command writes, if it exists.")
    var replace = false

    /// Refuses a place that cannot take the drawing, before anything is computed.
    ///
    /// - Parameter sources: the files that the command reads.
    /// - Returns: nil when no drawing is asked for.
    func target(isJSON: Bool, sources: [String]) throws(CheckpointError) -> DocumentTarget? {
        guard let plot else { return nil }
        if plot == "-", isJSON {
            throw CheckpointError(
                .invalidArgument, "--json and --plot - both ask for standard output; name a file")
        }
        return try DocumentTarget(plot, replaces: replace, sources: sources)
    }
}
