internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointRecovery

/// What rescue prints for people.
struct RescueScreen {
    private let rescue: Rescue
    private let path: String

    init(_ rescue: Rescue, _ path: String) {
        self.rescue = rescue
        self.path = path
    }

    /// Before anything is written.
    var plan: [StyledText] {
        let target = rescue.target
        let count = Quantity.plural(rescue.plan.repairs.count, "step")
        let head: StyledText = "\(path, .bold): \(count) to do"
        let width = Output.standard.columnCount
        return [head]
            + TextWrap.lines(
                "loads step \(target.step) from slot \(target.slot) then (sequence "
                    + "\(target.sequence)); every byte of it was verified", indent: 2, width: width)
            + RepairScreen.steps(rescue.plan.repairs, namesProblems: false)
    }

    func result(_ outcome: RescueOutcome) -> [StyledText] {
        var lines: [StyledText] = []
        switch outcome.kind {
        case .dryRun:
            return ["nothing was written: this was a dry run"]
        case .output(let output):
            lines.append("\("✔", .green) \(output, .bold) loads step \(rescue.target.step)")
            if outcome.unreadableBlockCount > 0 {
                let count = Quantity.plural(outcome.unreadableBlockCount, "block")
                lines.append("  \(count) could not be read from \(path) and are zero in it")
            }
        case .inPlace(let undo):
            lines.append("\("✔", .green) \(path, .bold) loads step \(rescue.target.step)")
            lines.append("  pcfsck --apply-undo \(undo) \(path) undoes it")
        }
        if let left = outcome.report?.findings, !left.isEmpty {
            let counts = Dictionary(grouping: left, by: \.id).mapValues(\.count)
            let text = counts.keys.sorted().map { id in
                counts[id] == 1 ? id : "\(id) (\(counts[id] ?? 0) times)"
            }
            lines += TextWrap.lines(
                "pcfsck still finds: \(text.joined(separator: ", "))", indent: 2,
                width: Output.standard.columnCount)
        }
        return lines
    }
}

/// What rescue prints for programs; spec/schemas/pccheck-rescue.json.
enum RescueJSON {
    static func document(
        _ path: String, _ rescue: Rescue, _ outcome: RescueOutcome
    ) -> JSONValue {
        let target = rescue.target
        var output: String?
        var undo: String?
        switch outcome.kind {
        case .dryRun: break
        case .output(let path): output = path
        case .inPlace(let path): undo = path
        }
        let repairs = JSONValue.array(rescue.plan.repairs.map(\.json))
        return .document(
            tool: "pccheck",
            [
                "command": .string("rescue"),
                "path": .string(path),
                "output": .text(output),
                "undo_file": .text(undo),
                "is_dry_run": .bool(outcome.report == nil),
                "slot": .count(target.slot.rawValue),
                "sequence": .integer(target.sequence.rawValue),
                "step": .integer(target.step),
                "payload_byte_count": .integer(target.header.payloadByteCount),
                "slots_set_aside": .array(
                    rescue.setAside.map { .integer(UInt64($0.rawValue)) }),
                "repairs_planned": repairs,
                "repairs_made": outcome.report == nil ? .array([]) : repairs,
                "unreadable_block_count": .count(outcome.unreadableBlockCount),
                "findings_left": .array((outcome.report?.findings ?? []).map(\.jsonName)),
            ])
    }
}

extension Repair {
    var json: JSONValue {
        .dictionary([
            "action": .string(action),
            "byte_offset": .integer(byteOffset),
            "source_byte_offset": .number(sourceByteOffset),
        ])
    }
}

extension Finding {
    /// Which finding it is, without its text.
    var jsonName: JSONValue {
        .dictionary([
            "id": .string(id),
            "severity": .string(severity.rawValue),
            "slot": .number(slot.map { UInt64($0.rawValue) }),
        ])
    }
}
