internal import CheckpointFormat
internal import CheckpointRecovery

/// What the passes found out that a repair must know beyond the metadata.
struct RepairFacts: Sendable {
    var image: MetadataImage
    /// Slots whose bytes are known to be damaged, and the problem that reports it.
    let damaged: [SlotIndex: Problem]
    /// Slots whose bytes are as they were saved, but whose manifest no reader accepts.
    let invalid: Set<SlotIndex>
    let verified: Set<SlotIndex>
    let hasMediumFailure: Bool
    /// The block behind the head superblocks, when it is not zero.
    let usedReservedBlock: [UInt8]?
    let problems: Set<String>

    init(_ context: CheckContext) {
        image = context.image
        let damage = [
            ProblemCatalogue.manifestDamaged, ProblemCatalogue.chunkDamaged,
            ProblemCatalogue.chunkUndecodable, ProblemCatalogue.logicalDigestMismatch,
        ]
        var damaged: [SlotIndex: Problem] = [:]
        for finding in context.findings where damage.contains(finding.problem) {
            if let slot = finding.slot, damaged[slot] == nil { damaged[slot] = finding.problem }
        }
        self.damaged = damaged
        invalid = Set(
            context.findings.filter { $0.problem == ProblemCatalogue.manifestInvalid }
                .compactMap(\.slot))
        verified = context.verified
        hasMediumFailure = context.hasMediumFailure
        usedReservedBlock = context.usedReservedBlock
        problems = Set(context.findings.map(\.id))
    }

    func has(_ problem: Problem) -> Bool { problems.contains(problem.id) }
}

/// All repairs that have one right answer, and the questions whose answer is a choice.
///
/// Order of the steps, and why a crash between them does no harm:
/// 1. copies of followed blocks over ignored ones (`SafeRepairs`): recovery decides the same;
/// 2. new superblocks (`SuperblockSuccession`), which name only what was verified in full, and a
///    sequence limit above everything seen: recovery continues from what it continued from before;
/// 3. empty headers over headers that recovery cannot use, in slots that no superblock keeps by
///    then: what they might have told of sequences, the limit tells;
/// 4. the reserved block, which nobody reads.
struct FullRepairs {
    private let facts: RepairFacts
    private let decision: RecoveryDecision
    private let stamp: RepairStamp
    private let consents: Set<String>
    private let verify: (Candidate) throws(CheckpointError) -> Void

    private var repairs: [Repair] = []
    private var questions: [RepairQuestion] = []
    private var notes: [String] = []
    private var generation = Generation(rawValue: 0)
    /// Slots that the newest superblock will name.
    private var kept: Set<SlotIndex>
    private var isLimitEnough: Bool
    private var verdicts: [SlotIndex: Bool] = [:]

    /// - Parameters:
    ///   - consents: identifiers of the problems whose question was answered with yes.
    ///   - verify: reads every chunk of a candidate and throws when it is not whole.
    static func plan(
        _ facts: RepairFacts, _ decision: RecoveryDecision, stamp: RepairStamp,
        consents: Set<String>, verify: @escaping (Candidate) throws(CheckpointError) -> Void
    ) -> RepairPlan {
        let lost = LostEnd(facts.image, decision)
        var facts = facts
        facts.image = lost?.image ?? facts.image
        let decision = lost?.decision ?? decision
        var planner = FullRepairs(facts, decision, stamp, consents, verify)
        do throws(CheckpointError) {
            if !decision.hasLostEnd { try planner.run() }
        } catch {
            // What cannot be read now may be read tomorrow: nothing is given up for it.
            planner = FullRepairs(facts, decision, stamp, consents, verify)
            planner.repairs = SafeRepairs.all(facts.image, decision)
            planner.notes.append("only safe repairs are made: \(error.message)")
        }
        return RepairPlan(
            lost?.labelled(planner.repairs) ?? planner.repairs, questions: planner.questions,
            notes: planner.notes, writes: planner.generation, image: facts.image,
            decision: decision, extends: lost?.oldByteCount)
    }

    private init(
        _ facts: RepairFacts, _ decision: RecoveryDecision, _ stamp: RepairStamp,
        _ consents: Set<String>, _ verify: @escaping (Candidate) throws(CheckpointError) -> Void
    ) {
        self.facts = facts
        self.decision = decision
        self.stamp = stamp
        self.consents = consents
        self.verify = verify
        kept = Set(decision.superblock?.retained.map(\.slot) ?? [])
        if let anchor = decision.superblock?.anchor { kept.insert(anchor.slot) }
        isLimitEnough =
            decision.superblock?.sequenceLimit ?? 0 > decision.highestSequence.rawValue
    }

    private mutating func run() throws(CheckpointError) {
        repairs = SafeRepairs.all(facts.image, decision)
        if facts.hasMediumFailure {
            notes.append(
                "only safe repairs are made: the medium did not return every block; copy the file "
                    + "to another medium first")
            return
        }
        let isAgreed = settleIdentity()
        let isUndisputed = askAboutSuperblocks()
        if isAgreed && isUndisputed {
            try renewSuperblocks()
            emptyHeaders()
        }
        askAboutSequences()
        clearReservedBlock()
    }

    private mutating func isAllowed(_ problem: Problem, _ text: String) -> Bool {
        if consents.contains(problem.id) { return true }
        questions.append(RepairQuestion(problem: problem, text: text))
        return false
    }

    // MARK: Identity

    /// Two intact identity blocks that differ: which file is this?
    private mutating func settleIdentity() -> Bool {
        guard
            let other = decision.identityFindings.first(where: {
                (try? $0.result.get()) != nil && !$0.agreesWithChosen
            }), let old = facts.image.identityBytes(at: other.offset),
            let source = decision.identityFindings.first(where: \.agreesWithChosen),
            let bytes = facts.image.identityBytes(at: source.offset)
        else { return true }
        guard SafeRepairs.hasWitness(decision) else {
            notes.append("no superblock and no slot header belongs to the identity block in use")
            return false
        }
        let question =
            "Is this file \(decision.identity.fileUUID), as byte \(source.offset), the "
            + "superblocks and the slots say? The identity block at byte \(other.offset) is "
            + "rewritten then."
        guard isAllowed(ProblemCatalogue.identityCopiesDiffer, question) else { return false }
        repairs.append(
            .copy(
                ProblemCatalogue.identityCopiesDiffer, .asked, at: other.offset,
                from: source.offset, old: old, new: bytes))
        return true
    }

    // MARK: Superblocks

    /// Two writers were at work: what the newest superblock names may not be what is wanted.
    private mutating func askAboutSuperblocks() -> Bool {
        let names =
            decision.superblock?.anchor.map { "step \($0.step) in slot \($0.slot)" }
            ?? "no checkpoint"
        if decision.isFork {
            return isAllowed(
                ProblemCatalogue.fork,
                "Continue from what a resume follows now, which names \(names)? The other "
                    + "superblock of generation \(decision.highestGeneration) is overwritten then.")
        }
        // Asked of the decision, not of what was found: a cut block may count once it is intact.
        if decision.otherParent != nil {
            return isAllowed(
                ProblemCatalogue.parentMismatch,
                "Continue from the newest superblock, which names \(names)? Traces of another "
                    + "writer are overwritten then.")
        }
        return true
    }

    private mutating func renewSuperblocks() throws(CheckpointError) {
        repairs += outdatedCopies()
        guard let problem = superblockProblem else { return }
        let fixClass: Problem.Fix.Class = problem.fix?.class == .asked ? .asked : .full
        let succession = SuperblockSuccession(
            image: facts.image, decision: decision, stamp: stamp, problem: problem,
            fixClass: fixClass)
        guard succession.hasRoom else {
            notes.append("the numbers of sequences or generations are used up; nothing is written")
            return
        }
        guard let (anchor, retained) = try choose() else {
            kept = Set(decision.slots.map(\.slot))
            return
        }
        if anchor == nil && decision.mayHoldDurable {
            notes.append(
                "no checkpoint is intact, so the superblocks stay as they are; extract what is "
                    + "left with pcextract")
            kept = Set(decision.slots.map(\.slot))
            return
        }
        let isNews = isNews(anchor, retained)
        // An unanchored checkpoint that does not verify is no reason to write anything.
        if problem == ProblemCatalogue.slotUnanchored, !isNews { return }
        let written = succession.repairs(anchor: anchor, retained: retained)
        repairs += written.repairs
        generation = written.generation
        kept = Set(([anchor].compactMap { $0 } + retained).map(\.slot))
        isLimitEnough = true
    }

    /// A crash came between the two copies of a superblock. The older one is not followed by
    /// anybody while its twin is intact.
    private func outdatedCopies() -> [Repair] {
        [0, 1].compactMap { parity in
            let pair = decision.superblockFindings.filter { $0.parity == parity }
            guard let one = pair.first, let two = pair.last,
                let first = one.superblock, let second = two.superblock,
                first.generation != second.generation
            else { return nil }
            let (old, new) = first.generation < second.generation ? (one, two) : (two, one)
            guard let bytes = facts.image.superblockBytes(at: new.offset),
                let oldBytes = facts.image.superblockBytes(at: old.offset)
            else { return nil }
            return .copy(
                ProblemCatalogue.superblockOutdated, .full, at: old.offset, from: new.offset,
                old: oldBytes, new: bytes)
        }
    }

    /// Why the newest superblock should have a successor; nil when it should not.
    private var superblockProblem: Problem? {
        guard let superblock = decision.superblock else { return ProblemCatalogue.superblocksLost }
        if decision.isFork { return ProblemCatalogue.fork }
        if decision.otherParent != nil { return ProblemCatalogue.parentMismatch }
        if facts.has(ProblemCatalogue.superblockPairDamaged) {
            return ProblemCatalogue.superblockPairDamaged
        }
        if let anchor = superblock.anchor {
            guard let candidate = decision.candidates.first(where: \.isAnchored) else {
                return lossOf(anchor.slot, else: ProblemCatalogue.anchorMismatch)
            }
            if let problem = facts.damaged[anchor.slot] { return problem }
            if candidate.step != anchor.step { return ProblemCatalogue.stepDiffers }
        }
        for entry in superblock.retained {
            if let problem = facts.damaged[entry.slot] { return problem }
            let isThere = decision.candidates.contains {
                $0.slot == entry.slot && $0.kind == .retained
            }
            if !isThere { return lossOf(entry.slot, else: ProblemCatalogue.retainedLost) }
        }
        let isNewerThere = decision.candidates.contains {
            $0.kind == .unanchored && facts.damaged[$0.slot] == nil
                && !facts.invalid.contains($0.slot)
        }
        if isNewerThere { return ProblemCatalogue.slotUnanchored }
        return isLimitEnough ? nil : headerToEmpty
    }

    private func lossOf(_ slot: SlotIndex, else problem: Problem) -> Problem {
        let reason = decision.slots.first { $0.slot == slot }?.reason
        return reason == .tableDamaged ? ProblemCatalogue.tableDamaged : problem
    }

    /// Emptying a header takes away what it may tell of sequences, so a limit must tell it first.
    private var headerToEmpty: Problem? {
        decision.slots.first { Self.problem(of: $0.reason) != nil && !kept.contains($0.slot) }
            .flatMap { Self.problem(of: $0.reason) }
    }

    /// The checkpoint to anchor, and those to retain: as a writer chooses when it opens the file.
    ///
    /// - Returns: nil when it would be a choice between data.
    private mutating func choose() throws(CheckpointError) -> (Candidate?, [Candidate])? {
        var anchor: Candidate?
        var retained: [Candidate] = []
        let limit = decision.identity.retainedMaximum
        for candidate in decision.candidates {
            guard let newest = anchor else {
                if try isWhole(candidate) { anchor = candidate }
                continue
            }
            guard retained.count < limit else { break }
            // Two slots with one sequence are a choice that is not made here.
            guard candidate.sequence < (retained.last ?? newest).sequence else { continue }
            if try isWhole(candidate) { retained.append(candidate) }
        }
        if let anchor, !anchor.isAnchored, isRepeated(anchor) {
            notes.append(
                "two slots hold sequence \(anchor.sequence), so none is anchored; pccheck rescue "
                    + "--back-to chooses one")
            return nil
        }
        return (anchor, retained)
    }

    private func isRepeated(_ candidate: Candidate) -> Bool {
        decision.candidates.contains {
            $0.slot != candidate.slot && $0.sequence == candidate.sequence
        }
    }

    private mutating func isWhole(_ candidate: Candidate) throws(CheckpointError) -> Bool {
        if let known = verdicts[candidate.slot] { return known }
        let isKept = candidate.kind == .anchored || candidate.kind == .retained
        var verdict = facts.damaged[candidate.slot] == nil
        // What is kept stays kept: its bytes are what was saved, whatever they are.
        if facts.invalid.contains(candidate.slot), !isKept { verdict = false }
        if verdict, !facts.verified.contains(candidate.slot) {
            do throws(CheckpointError) {
                try verify(candidate)
            } catch {
                guard error.code == .corrupt else { throw error }
                verdict = false
            }
        }
        verdicts[candidate.slot] = verdict
        return verdict
    }

    private func isNews(_ anchor: Candidate?, _ retained: [Candidate]) -> Bool {
        anchor?.sequence != decision.superblock?.anchor?.sequence
            || retained.map(\.slot) != decision.superblock?.retained.map(\.slot) ?? []
    }

    // MARK: Slots and the rest

    private static func problem(of reason: SlotReason) -> Problem? {
        switch reason {
        case .headerDamaged: ProblemCatalogue.headerDamaged
        case .blank: ProblemCatalogue.headerBlank
        case .foreign: ProblemCatalogue.headerForeign
        case .misdirected: ProblemCatalogue.headerMisdirected
        default: nil
        }
    }

    /// Such a header holds no checkpoint for anybody.
    private mutating func emptyHeaders() {
        guard isLimitEnough else { return }
        for report in decision.slots where !kept.contains(report.slot) {
            guard let problem = Self.problem(of: report.reason) else { continue }
            repairs += emptying(report, problem, .full)
        }
    }

    private func emptying(
        _ report: SlotReport, _ problem: Problem, _ fixClass: Problem.Fix.Class
    ) -> [Repair] {
        guard let old = facts.image.headerBytes(report.slot) else { return [] }
        let header = SlotHeader(
            emptySlot: report.slot, fileUUID: decision.identity.fileUUID,
            geometry: decision.identity.geometry)
        return [
            Repair(
                problem, fixClass, at: report.headerOffset,
                "write an empty header into slot \(report.slot), at byte \(report.headerOffset)",
                old: old, new: header.encoded().bytes)
        ]
    }

    /// Of two slots with one sequence, one of which is kept, the other may be given up.
    private mutating func askAboutSequences() {
        guard isLimitEnough else { return }
        for report in decision.slots where !kept.contains(report.slot) {
            guard let header = report.header, header.state != .empty,
                let twin = decision.slots.first(where: {
                    kept.contains($0.slot) && $0.header?.sequence == header.sequence
                }),
                isAllowed(
                    ProblemCatalogue.sequenceRepeated,
                    "Give up the checkpoint in slot \(report.slot) (step \(header.step)), and keep "
                        + "the one in slot \(twin.slot) (step \(twin.header?.step ?? 0))? Both "
                        + "have sequence \(header.sequence).")
            else { continue }
            repairs += emptying(report, ProblemCatalogue.sequenceRepeated, .asked)
        }
    }

    private mutating func clearReservedBlock() {
        guard let old = facts.usedReservedBlock else { return }
        repairs.append(
            Repair(
                ProblemCatalogue.reservedBlockUsed, .full, at: 3 * Geometry.block,
                "write zeros into the reserved block at byte \(3 * Geometry.block)", old: old,
                new: [UInt8](repeating: 0, count: Limits.blockByteCount)))
    }
}
