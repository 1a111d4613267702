internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

/// What pcfsck prints for people about one file.
struct FsckScreen {
    static let textIndent = 11
    /// Findings of a kind that are shown for one slot.
    private static let groupCount = 4

    private let run: FsckRun
    private let width: Int?
    private var report: CheckReport { run.report }

    init(_ run: FsckRun, width: Int?) {
        self.run = run
        self.width = width
    }

    var lines: [StyledText] {
        var lines = [verdict]
        lines += RepairScreen.outcome(run)
        lines += findings + resume
        return lines + RepairScreen.foreseen(run)
    }

    /// All findings; of many alike in one slot, such as damaged chunks, only the first ones.
    private var findings: [StyledText] {
        var lines: [StyledText] = []
        for group in report.findingGroups {
            for finding in group.prefix(Self.groupCount) { lines += self.lines(finding) }
            if group.count > Self.groupCount {
                let more = Quantity.count(UInt64(group.count - Self.groupCount))
                lines += TextWrap.lines(
                    "… and \(more) more of these in the slot; --json lists all",
                    indent: Self.textIndent, width: width)
            }
        }
        return lines
    }

    private func lines(_ finding: Finding) -> [StyledText] {
        var text = "found \(finding.found), expected \(finding.expected)"
        if finding.isFixable { text += "; pcfsck -p repairs it" }
        return [Self.head(finding.problem, finding.severity, finding.place)]
            + TextWrap.lines(text, indent: Self.textIndent, width: width)
    }

    /// What is wrong with the files of a group together.
    static func lines(_ finding: GroupFinding, width: Int?) -> [StyledText] {
        [head(finding.problem, finding.severity, finding.path ?? "")]
            + TextWrap.lines(finding.text, indent: textIndent, width: width)
    }

    private static func head(
        _ problem: Problem, _ severity: Severity, _ place: String
    ) -> StyledText {
        let style: StyledText.Style =
            switch severity {
            case .error: .red
            case .warning: .yellow
            case .info: .cyan
            }
        let word = StyledText(severity.rawValue, style).padded(to: 9, isRight: false)
        var head: StyledText = "  \(word)\(problem.id)  \(problem.title, .bold)"
        if !place.isEmpty { head.append("  \(place)", .dim) }
        return head
    }

    private var resume: [StyledText] {
        let resume = report.resume
        var lines: [StyledText] = []
        let label = StyledText("resume", .bold).padded(to: 9, isRight: false)
        if let choice = resume.choice {
            let proof =
                resume.isProven
                ? "every byte of it was verified"
                : report.depth == .full
                    ? "it was not verified" : "its tensors were not read; --verify full reads them"
            lines.append(
                """
                  \(label)loads \("step \(choice.step)", .green) from slot \(choice.slot) \
                (sequence \(choice.sequence), \(choice.kind.rawValue))
                """)
            lines += TextWrap.lines(proof, indent: Self.textIndent, width: width)
        } else if report.decision != nil, report.decision?.highestSequence == SequenceNumber.none {
            lines.append("  \(label)starts from the beginning: nothing was saved yet")
        } else {
            lines.append("  \(label)\("loads nothing from this file", .red)")
        }
        if let identity = report.decision?.identity, identity.runUUID != .zero {
            lines += TextWrap.lines(
                "this file is of rank \(identity.rank) of \(identity.worldSize): a restart chooses "
                    + "with the files of all ranks; run pcfsck on their folder",
                indent: Self.textIndent, width: width)
        }
        for rejection in resume.rejected {
            let step = rejection.step.map { "step \($0)" } ?? "the newer checkpoint"
            lines += TextWrap.lines(
                "not \(step) in slot \(rejection.slot): \(rejection.explanation)",
                indent: Self.textIndent, width: width)
        }
        return lines
    }

    private var verdict: StyledText {
        let counts = [
            (Severity.error, "error"), (.warning, "warning"), (.info, "note"),
        ].compactMap { severity, noun -> String? in
            let count = report.count(severity)
            return count == 0 ? nil : Quantity.plural(count, noun)
        }
        let fixable = report.findings.count(where: \.isFixable)
        var text: StyledText = "\(report.path, .bold): \(Self.word(run))"
        if !counts.isEmpty { text.append(", \(counts.joined(separator: ", "))", nil) }
        if !run.repairs.isEmpty {
            text.append("; \(Quantity.plural(run.repairs.count, "repair")) made", nil)
        }
        switch run.isWriterAtWork {
        case true?: text.append("; a writer is at work", .cyan)
        case false?: break
        case nil: text.append("; no locks here show whether a writer is at work", .yellow)
        }
        if fixable > 0, run.refusal == nil {
            text.append("; pcfsck -p repairs \(fixable) of them", nil)
        }
        return text
    }

    /// The verdict in a word or two.
    static func word(_ run: FsckRun) -> StyledText {
        if run.report.isClean { return StyledText("clean", .green) }
        return StyledText(run.report.decision == nil ? "cannot be used" : "damaged", .red)
    }

    /// `--explain`.
    static func explain(_ problem: Problem, width: Int?) -> [StyledText] {
        let head: StyledText = """
            \(problem.id, .bold)  \(problem.title)  \("(\(problem.severity.rawValue))", .dim)
            """
        let fix = problem.fix.map { fix in
            switch fix.class {
            case .safe: "pcfsck -p can repair it: \(fix.action)."
            case .full: "pcfsck -y can repair it: \(fix.action)."
            case .asked: "pcfsck -y asks on a terminal whether to repair it: \(fix.action)."
            }
        }
        return [head] + TextWrap.lines(problem.explanation, indent: 2, width: width)
            + TextWrap.lines(problem.advice, indent: 2, width: width)
            + (fix.map { TextWrap.lines($0, indent: 2, width: width) } ?? [])
    }
}

extension CheckReport {
    /// Findings of one kind in one slot: damaged chunks come by the thousand, and all say the same.
    var findingGroups: [ArraySlice<Finding>] {
        findings.indices.filter { index in
            index == 0 || findings[index].id != findings[index - 1].id
                || findings[index].slot != findings[index - 1].slot
        }.map { start in
            findings[start...].prefix {
                $0.id == findings[start].id && $0.slot == findings[start].slot
            }
        }
    }
}

extension Finding {
    /// `slot 2, chunk 17, byte 24576`; empty for the file.
    var place: String {
        [
            slot.map { "slot \($0)" }, chunk.map { "chunk \($0)" },
            byteOffset.map { "byte \($0)" },
        ].compactMap { $0 }.joined(separator: ", ")
    }
}
