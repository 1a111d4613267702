internal import CheckpointFormat
internal import CheckpointRecovery

/// Pass 2: the four superblock copies.
///
/// Checks that each is intact, that the two of one parity say the same, that the newest one was
/// written after the one before it, and that its anchor is where it says.
enum Pass2Superblocks {
    static func run(_ context: inout CheckContext) {
        context.enter(.superblocks)
        guard let decision = context.decision else { return }
        let reports = decision.superblockFindings
        for report in reports where report.isUnreadable && context.isInside(report.offset) {
            context.report(
                Finding(
                    ProblemCatalogue.superblockUnreadable, at: report.offset,
                    found: "an I/O error", expected: "a readable block"))
        }
        guard let newest = decision.superblock else {
            let found = reports.map { "at byte \($0.offset): \(problemText($0))" }
            context.report(
                Finding(
                    ProblemCatalogue.superblocksLost, found: found.joined(separator: "; "),
                    expected: "an intact superblock"))
            return
        }
        for parity in [0, 1] {
            checkPair(reports.filter { $0.parity == parity }, newest, &context)
        }
        checkHistory(decision, &context)
        checkAnchor(decision, &context)
        if !newest.isCleanClose {
            context.report(
                Finding(
                    ProblemCatalogue.notClosed,
                    found: "generation \(newest.generation) by process \(newest.writerPID)",
                    expected: "the mark of a clean close"))
        }
    }

    private static func problemText(_ report: SuperblockReport) -> String {
        switch report.result {
        case .success(let superblock): "generation \(superblock.generation)"
        case .failure(let error): report.isUnreadable ? "unreadable" : "\(error)"
        }
    }

    private static func checkPair(
        _ pair: [SuperblockReport], _ newest: Superblock, _ context: inout CheckContext
    ) {
        let whole = pair.filter { $0.superblock != nil }
        let damaged = pair.filter { $0.superblock == nil && !$0.isUnreadable }
        if whole.count == 2 { return compare(whole[0], whole[1], &context) }
        if let twin = whole.first?.superblock {
            for report in damaged {
                context.report(
                    Finding(
                        isMisplaced(report)
                            ? ProblemCatalogue.superblockMisplaced
                            : ProblemCatalogue.superblockDamaged,
                        at: report.offset, found: problemText(report),
                        expected: "generation \(twin.generation), as its twin",
                        isFixable: context.isFixable(report.offset)))
            }
        } else if let first = damaged.first {
            // After an unclean end this may be the superblock that the crash interrupted.
            context.report(
                Finding(
                    ProblemCatalogue.superblockPairDamaged,
                    newest.isCleanClose ? .error : .warning, at: first.offset,
                    found: damaged.map { "at byte \($0.offset): \(problemText($0))" }
                        .joined(separator: "; "),
                    expected: "an intact copy of generation \(newest.generation.rawValue &+ 1) or "
                        + "\(newest.generation.rawValue &- 1)"))
        }
    }

    private static func isMisplaced(_ report: SuperblockReport) -> Bool {
        guard case .failure(let error) = report.result else { return false }
        switch error {
        case .foreignFile, .misdirected: return true
        default: return false
        }
    }

    private static func compare(
        _ first: SuperblockReport, _ second: SuperblockReport, _ context: inout CheckContext
    ) {
        guard first.digest != second.digest, let one = first.superblock,
            let two = second.superblock
        else { return }
        if one.generation == two.generation {
            context.report(
                Finding(
                    ProblemCatalogue.fork, at: second.offset,
                    found: "generation \(two.generation) with anchor \(anchorText(two)), by "
                        + "process \(two.writerPID)",
                    expected: "the content of its twin: anchor \(anchorText(one)), by process "
                        + "\(one.writerPID)"))
        } else {
            let isFirstOlder = one.generation < two.generation
            let older = isFirstOlder ? first : second
            context.report(
                Finding(
                    ProblemCatalogue.superblockOutdated, at: older.offset,
                    found: "generation \(min(one.generation, two.generation))",
                    expected: "generation \(max(one.generation, two.generation))"))
        }
    }

    private static func anchorText(_ superblock: Superblock) -> String {
        superblock.anchor.map { "sequence \($0.sequence) in slot \($0.slot)" } ?? "none"
    }

    private static func checkHistory(
        _ decision: RecoveryDecision, _ context: inout CheckContext
    ) {
        guard let newest = decision.superblock, let first = decision.otherParent else { return }
        context.report(
            Finding(
                ProblemCatalogue.parentMismatch, at: first.offset,
                found: "parent digest \(newest.parentDigest) in generation \(newest.generation)",
                expected: first.digest.map {
                    "\($0), the digest of generation "
                        + "\(newest.generation.rawValue - 1)"
                } ?? "a digest"))
    }

    private static func checkAnchor(
        _ decision: RecoveryDecision, _ context: inout CheckContext
    ) {
        guard let anchor = decision.superblock?.anchor,
            let slot = decision.slots.first(where: { $0.slot == anchor.slot }),
            slot.headerDigest != anchor.headerDigest || slot.header?.state != .complete
        else { return }
        let found =
            slot.header.map { header in
                "a header with state \(header.state), sequence \(header.sequence)"
                    + (slot.headerDigest.map { ", digest \($0)" } ?? "")
            } ?? "no usable header"
        context.report(
            Finding(
                ProblemCatalogue.anchorMismatch, slot: anchor.slot, at: slot.headerOffset,
                found: found,
                expected: "sequence \(anchor.sequence), digest \(anchor.headerDigest)"))
    }
}

extension RecoveryDecision {
    /// A copy of the generation before the newest one, when none of them is the one that the newest
    /// was written after; nil while the history is as it must be.
    var otherParent: SuperblockReport? {
        guard let newest = superblock, newest.generation.rawValue > 1 else { return nil }
        let previous = superblockFindings.filter {
            $0.superblock?.generation.rawValue == newest.generation.rawValue - 1
        }
        return previous.contains { $0.digest == newest.parentDigest } ? nil : previous.first
    }
}
