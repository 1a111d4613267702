internal import CheckpointFormat
internal import CheckpointRecovery

/// Pass 3: the header of every slot.
///
/// Checks that each is intact and belongs to this place of this file. Damage in a slot that no
/// superblock keeps is what a crash leaves, and is reported as such.
enum Pass3SlotHeaders {
    static func run(_ context: inout CheckContext) {
        context.enter(.headers)
        for report in context.decision?.slots ?? [] { check(report, &context) }
    }

    private static func check(_ report: SlotReport, _ context: inout CheckContext) {
        let found = report.detail.map { "\($0)" } ?? "nothing"
        func finding(
            _ problem: Problem, _ severity: Severity? = nil, found: String, expected: String
        ) -> Finding {
            Finding(
                problem, severity, slot: report.slot, at: report.headerOffset, found: found,
                expected: expected)
        }
        let sequence = report.header.map { "sequence \($0.sequence), step \($0.step)" } ?? ""
        switch report.reason {
        case .anchored, .retained, .older, .empty, .tableDamaged, .payloadDamaged: break
        case .writing:
            context.report(
                finding(
                    ProblemCatalogue.slotWriting,
                    found: report.header?.state == .complete
                        ? "\(sequence), complete, and its writer still has it"
                        : "\(sequence), state writing",
                    expected: "state complete, had it ended"))
        case .unanchored:
            context.report(
                finding(
                    ProblemCatalogue.slotUnanchored, found: "\(sequence), complete",
                    expected: "a superblock that names it"))
        case .stale:
            let named = context.keptSequence(report.slot).map { "sequence \($0)" }
            context.report(
                finding(
                    ProblemCatalogue.headerStale, found: sequence,
                    expected: named ?? "what the superblock names"))
        case .headerDamaged:
            context.report(
                finding(
                    ProblemCatalogue.headerDamaged, context.severity(of: report.slot),
                    found: found, expected: "an intact slot header"))
        case .blank:
            context.report(
                finding(
                    ProblemCatalogue.headerBlank, context.severity(of: report.slot),
                    found: "zeros", expected: "a slot header"))
        case .foreign:
            context.report(
                finding(
                    ProblemCatalogue.headerForeign, found: found,
                    expected: "a header of this file"))
        case .misdirected:
            context.report(
                finding(
                    ProblemCatalogue.headerMisdirected, found: found,
                    expected: "a header of this slot"))
        case .unreadable:
            guard context.isInside(report.headerOffset) else { return }
            context.report(
                finding(
                    ProblemCatalogue.headerUnreadable, found: "an I/O error",
                    expected: "a readable block"))
        }
    }
}
