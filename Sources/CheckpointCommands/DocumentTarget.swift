internal import CheckpointFormat

#if canImport(Glibc)
    internal import Glibc
#endif

/// A file that a command writes beside what it prints, or standard output.
struct DocumentTarget {
    private let target: ExtractionTarget
    private let replaces: Bool
    /// Nothing else may be written there.
    let isOnStandardOutput: Bool

    /// Refuses a place that cannot take the document, before the work for it is done.
    ///
    /// - Parameter sources: files that the command reads.
    init(_ path: String, replaces: Bool, sources: [String]) throws(CheckpointError) {
        target = try ExtractionTarget(path)
        self.replaces = replaces
        isOnStandardOutput = path == "-"
        for source in sources {
            _ = try OutputPath.kind(path, source: source, meaning: "a file that is read")
        }
        if !isOnStandardOutput, try OutputPath.kind(path) == S_IFREG, !replaces {
            throw CheckpointError(
                .exists, "\(path) exists already; choose another name, or give --replace")
        }
        try target.checkIsWritable()
    }

    /// The file appears under its name when it is complete, or not at all.
    func write(_ bytes: [UInt8]) throws(CheckpointError) {
        try target.write(document: bytes, replacing: replaces)
    }
}
