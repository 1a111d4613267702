internal import CheckpointFormat
internal import CheckpointRecovery

/// Pass 1: the two identity blocks and the size of the file.
///
/// Checks that both copies are intact and equal, that their features are known, and that the file
/// is as long as they say. When neither copy is usable it says why, and no other pass runs.
enum Pass1Identity {
    static func run(_ context: inout CheckContext) {
        context.enter(.identity)
        guard let decision = context.decision else { return explainLoss(&context) }
        for report in decision.identityFindings { check(report, decision, &context) }
        checkSize(decision, &context)
        checkFeatures(decision.identity.features, &context)
    }

    private static func check(
        _ report: IdentityReport, _ decision: RecoveryDecision, _ context: inout CheckContext
    ) {
        switch report.result {
        case .success where report.agreesWithChosen: break
        case .success(let other):
            context.report(
                Finding(
                    ProblemCatalogue.identityCopiesDiffer, at: report.offset,
                    found: "a block of file \(other.fileUUID)",
                    expected: "the same block as the other copy, of file "
                        + "\(decision.identity.fileUUID)"))
        case .failure where report.isUnreadable:
            // What lies beyond the end is reported with the file's size.
            guard context.isInside(report.offset) else { return }
            context.report(
                Finding(
                    ProblemCatalogue.identityUnreadable, at: report.offset,
                    found: "an I/O error", expected: "a readable block"))
        case .failure(let error):
            context.report(
                Finding(
                    ProblemCatalogue.identityDamaged, at: report.offset, found: "\(error)",
                    expected: "the same block as the other copy",
                    isFixable: context.isFixable(report.offset)))
        }
    }

    private static func checkSize(
        _ decision: RecoveryDecision, _ context: inout CheckContext
    ) {
        let found = context.image.fileByteCount
        let expected = decision.identity.geometry.fileByteCount
        if decision.end != .whole {
            context.report(
                Finding(
                    decision.isTruncated ? ProblemCatalogue.truncated : ProblemCatalogue.endLost,
                    at: found, found: "\(found) bytes", expected: "\(expected) bytes"))
        } else if found / Geometry.block * Geometry.block > expected {
            context.report(
                Finding(
                    ProblemCatalogue.fileTooLong, at: expected, found: "\(found) bytes",
                    expected: "\(expected) bytes"))
        }
    }

    private static func checkFeatures(_ features: FeatureMasks, _ context: inout CheckContext) {
        func text(_ mask: UInt64) -> String { "bits 0x" + String(mask, radix: 16) }
        if features.unknownReadOnlyCompatible != 0 {
            context.report(
                Finding(
                    ProblemCatalogue.unknownReadOnly, at: 0,
                    found: text(features.unknownReadOnlyCompatible), expected: "known bits"))
        }
        if features.unknownCompatible != 0 {
            context.report(
                Finding(
                    ProblemCatalogue.unknownCompatible, at: 0,
                    found: text(features.unknownCompatible), expected: "known bits"))
        }
    }

    /// One finding for both copies: the error that says most about the file.
    private static func explainLoss(_ context: inout CheckContext) {
        var errors: [(offset: UInt64, error: FormatError)] = []
        for copy in context.image.identityBlocks {
            guard copy.bytes != nil else {
                if context.isInside(copy.offset), context.hasMediumFailure {
                    context.report(
                        Finding(
                            ProblemCatalogue.identityUnreadable, at: copy.offset,
                            found: "an I/O error", expected: "a readable block"))
                }
                continue
            }
            do throws(FormatError) {
                _ = try copy.authority()
            } catch {
                errors.append((copy.offset, error))
            }
        }
        let ranked = errors.map { ($0, problem(for: $0.error)) }
            .sorted { $0.1.rank > $1.1.rank }
        guard let (best, verdict) = ranked.first else {
            if context.findings.isEmpty {
                context.report(
                    Finding(
                        ProblemCatalogue.wrongMagic, at: 0,
                        found: "\(context.image.fileByteCount) bytes",
                        expected: "at least 28672 bytes"))
            }
            return
        }
        context.report(
            Finding(
                verdict.problem, at: best.offset,
                found: errors.map { "at byte \($0.offset): \($0.error)" }.joined(separator: "; "),
                expected: "an identity block of format \(FormatVersion.current.major).x"))
    }

    private static func problem(for error: FormatError) -> (problem: Problem, rank: Int) {
        switch error {
        case .unsupportedVersion: (ProblemCatalogue.newerVersion, 5)
        case .unknownIncompatibleFeatures: (ProblemCatalogue.unknownIncompatible, 5)
        case .textModeDamage: (ProblemCatalogue.textModeDamage, 4)
        case .wrongMagic: (ProblemCatalogue.wrongMagic, 2)
        case .blank, .truncated: (ProblemCatalogue.identityLost, 1)
        default: (ProblemCatalogue.identityLost, 3)
        }
    }
}
