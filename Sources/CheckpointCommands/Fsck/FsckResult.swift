internal import CheckpointCheck
internal import CheckpointFormat

/// What one run of pcfsck found so far, and what it prints of that.
struct FsckResult {
    enum Printing { case all, table, json }

    private(set) var status = ExitStatus.clean
    private var documents: [JSONValue] = []
    private var groups: [JSONValue] = []
    private var summary: FsckSummary
    private let printing: Printing
    private var output: Output { .standard }

    init(depth: CheckOptions.Depth, prints printing: Printing) {
        summary = FsckSummary(isFull: depth == .full)
        self.printing = printing
    }

    /// An empty line before every argument but the first.
    func separate(from index: Int) {
        if index > 0, printing == .all { output.line() }
    }

    /// - Parameter isInFolder: the summary of its folder counts the file.
    mutating func add(
        _ result: Result<FsckRun, CheckpointError>, _ path: String, isInFolder: Bool = false
    ) {
        switch result {
        case .success(let run):
            status.formUnion(run.status)
            if !isInFolder { summary.add(run) }
            switch printing {
            case .json: documents.append(FsckJSON.file(run))
            case .table: break
            case .all: FsckScreen(run, width: output.columnCount).lines.forEach(output.line)
            }
        case .failure(let error):
            output.flush()
            Output.diagnostics.line("\("pcfsck:", .red) \(error.message)")
            status.formUnion(ExitStatus(error.code))
            if !isInFolder { summary.addFailure(path) }
            documents.append(FsckJSON.failure(path, error))
        }
        if isInFolder, printing == .all { output.line() }
    }

    mutating func add(_ folder: FsckFolder) {
        status.formUnion(folder.status)
        switch printing {
        case .json: groups.append(folder.json)
        case .table: output.show(folder.table(width:))
        case .all: output.show(folder.lines(width:))
        }
    }

    /// - Parameter fileCount: how many arguments there were.
    func finish(fileCount: Int) {
        if printing == .json {
            output.document(
                "pcfsck",
                [
                    "exit_status": .count(Int(status.rawValue)), "files": .array(documents),
                    "groups": .array(groups),
                ])
        } else if !summary.isEmpty, printing == .table || fileCount > 1 {
            if printing == .all { output.line() }
            output.show(summary.lines(width:))
        }
    }
}
