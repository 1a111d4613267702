internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointGroup

/// What `pccheck rescue DIR` prints for people.
struct FolderRescueScreen {
    private static let labelColumnCount = 9

    private let rescue: FolderRescue

    init(_ rescue: FolderRescue) { self.rescue = rescue }

    func lines(width: Int?) -> [StyledText] {
        let lost = rescue.files.count { (try? $0.result.get()) == nil }
        let count = Quantity.plural(rescue.files.count - lost, "file")
        var lines: [StyledText] = [
            """
            \(rescue.folder.path, .bold): \(count) rescued into \(rescue.output, .bold)\
            \(lost > 0 ? ", \(lost) not" : "")
            """
        ]
        for file in rescue.files { lines += Self.lines(file, width) }
        for world in rescue.decision.worlds {
            lines.append("")
            lines += RankMatrix(world, rescue.decision).lines(width: width)
        }
        if !rescue.decision.checkpoints.isEmpty { lines += [""] + RankMatrix.legend }
        lines.append("")
        for finding in rescue.findings { lines += FsckScreen.lines(finding, width: width) }
        let restart = RestartText(rescue.decision)
        let label = StyledText("restart", .bold).padded(to: Self.labelColumnCount, isRight: false)
        lines.append("  \(label)\(restart.head)")
        var details = restart.details
        // The repairs took away what showed it.
        if let lost = rescue.lost, lost != rescue.decision.lost {
            details.append("\(lost), which may have been durable on all ranks, is lost")
        }
        for detail in details {
            lines += TextWrap.lines(detail, indent: FsckScreen.textIndent, width: width)
        }
        return lines
    }

    /// What is worth saying of a file: nothing of one that was intact.
    private static func lines(_ file: FolderRescue.File, _ width: Int?) -> [StyledText] {
        let (mark, facts) = facts(file)
        if facts.isEmpty { return [] }
        var list = TableLayout([.left(""), .left("")])
        list.add([mark, "\(file.name): \(facts.joined(separator: "; "))"])
        return list.wrappedLines(width: width)
    }

    private static func facts(_ file: FolderRescue.File) -> (mark: StyledText, facts: [String]) {
        switch file.result {
        case .failure(let error):
            return (StyledText("✘", .red), ["nothing can be rescued: \(error.message)"])
        case .success(let rescued):
            var facts = rescued.note.map { [$0] } ?? []
            if !rescued.repairs.isEmpty {
                facts.append("\(Quantity.plural(rescued.repairs.count, "block")) repaired")
            }
            if rescued.unreadableBlockCount > 0 {
                let count = Quantity.plural(rescued.unreadableBlockCount, "block")
                facts.append("\(count) could not be read and are zero in it")
            }
            let left = Dictionary(
                rescued.findings.filter { $0.severity == .error }.map { ($0.id, 1) },
                uniquingKeysWith: +)
            if !left.isEmpty {
                let ids = left.sorted { $0.key < $1.key }.map { id, count in
                    count == 1 ? id : "\(id) (\(count) times)"
                }
                facts.append("pcfsck still finds: \(ids.joined(separator: ", "))")
            }
            let mark = left.isEmpty ? StyledText("✔", .green) : StyledText("✘", .red)
            return (mark, facts)
        }
    }
}

/// What it prints for programs; spec/schemas/pccheck-rescue-group.json.
enum FolderRescueJSON {
    static func document(_ rescue: FolderRescue) -> JSONValue {
        .document(
            tool: "pccheck",
            [
                "command": .string("rescue"),
                "path": .string(rescue.folder.path),
                "output": .string(rescue.output),
                "files": .array(rescue.files.map(file)),
                "findings": .array(rescue.findings.map(FolderJSON.finding)),
                "decision": rescue.decision.json,
                "lost": rescue.lost.map(InspectionJSON.groupName) ?? .null,
            ])
    }

    private static func file(_ file: FolderRescue.File) -> JSONValue {
        switch file.result {
        case .failure(let error):
            return .dictionary([
                "path": .string(file.path), "output": .null, "error": .string(error.message),
            ])
        case .success(let rescued):
            return .dictionary([
                "path": .string(file.path),
                "output": .string(rescued.path),
                "error": .null,
                "note": .text(rescued.note),
                "repairs_made": .array(rescued.repairs.map(\.json)),
                "unreadable_block_count": .count(rescued.unreadableBlockCount),
                "findings_left": .array(rescued.findings.map(\.jsonName)),
            ])
        }
    }
}
