public import CheckpointFormat
public import CheckpointRecovery

/// What a person decided about a file that recovery cannot decide about.
public enum RescueGoal: Hashable, Sendable {
    /// Anchor the checkpoint in this slot, which is complete and newer than the anchor, or was set
    /// aside by an earlier rescue.
    case promote(SlotIndex)
    /// Continue from the older checkpoint in this slot, and set the newer ones aside.
    case backTo(SlotIndex)
    /// Write all superblocks again from the slot headers alone, and both identity blocks from the
    /// one that the rest of the file belongs to.
    case rebuild
}

/// What a rescue writes so that a resume loads the checkpoint that was asked for.
///
/// The new superblocks name it and older checkpoints, all of them verified in full. A newer
/// checkpoint that stands in the way is *set aside*: its header goes back to *writing*, with its
/// sequence, sizes and digests, so that nobody loads it, its sequence is never given again, and
/// `promote` can complete it again while no writer has reused the slot.
///
/// Order of the steps: a header that is completed, then the superblocks, then the headers that are
/// set aside, from the oldest to the newest. A crash before the last one leaves a resume with the
/// newest checkpoint, as before the rescue, and after it with the one that was asked for.
public struct Rescue: Sendable {
    /// The checkpoint that a resume loads afterwards.
    public let target: Candidate
    /// Slots whose checkpoints are set aside.
    public let setAside: [SlotIndex]
    public let plan: RepairPlan
    public let geometry: Geometry

    /// Plans the rescue of what is in `image`.
    ///
    /// - Parameter verify: reads every chunk of a candidate, and throws when a resume would not
    ///   load it.
    /// - Throws: `noCheckpoint` when the slot holds no complete one, `corrupt` when it is damaged,
    ///   `invalidArgument` when the goal does not fit it, `unsupported` for a file that must not
    ///   be changed.
    public init(
        _ goal: RescueGoal, image: MetadataImage, stamp: RepairStamp,
        verify: (Candidate) throws(CheckpointError) -> Void
    ) throws(CheckpointError) {
        var decision = try SlotSelection.decide(image)
        let lost = LostEnd(image, decision)
        let image = lost?.image ?? image
        decision = lost?.decision ?? decision
        if goal == .rebuild, let other = Self.withoutHead(image, decision) { decision = other }
        if let refusal = RepairPlan.refusal(decision) {
            throw CheckpointError(.unsupported, "nothing is rescued: \(refusal)")
        }
        let draft = RescueDraft(goal: goal, image: image, decision: decision, stamp: stamp)
        let (target, completed) = try draft.target(verify)
        try verify(target)
        let isRebuild = goal == .rebuild
        let newer = isRebuild ? [] : try draft.inTheWay(of: target, verify)
        let retained = draft.retained(below: target, verify)
        let succession = SuperblockSuccession(
            image: image, decision: decision, stamp: stamp, problem: draft.problem,
            fixClass: .asked, rewritesAll: isRebuild)
        guard succession.hasRoom else {
            throw CheckpointError(
                .corrupt,
                "the numbers of sequences or generations are used up; extract the "
                    + "checkpoint with pcextract and start a new file")
        }
        let superblocks = succession.repairs(anchor: target, retained: retained)
        var repairs = SafeRepairs.all(image, decision)
        if isRebuild { repairs += draft.identities() }
        repairs += completed + superblocks.repairs + draft.settingAside(newer)
        self.target = target
        geometry = decision.identity.geometry
        setAside = newer.map(\.slot)
        plan = RepairPlan(
            lost?.labelled(repairs) ?? repairs, writes: superblocks.generation, image: image,
            decision: decision, extends: lost?.oldByteCount)
    }

    /// When both identity blocks are intact and differ, and nothing in the file belongs to the
    /// head's: the same file as the mirror describes it.
    private static func withoutHead(
        _ image: MetadataImage, _ decision: RecoveryDecision
    ) -> RecoveryDecision? {
        if SafeRepairs.hasWitness(decision) { return nil }
        var other = image
        other.identityBlocks[0].bytes = nil
        guard let seen = try? SlotSelection.decide(other),
            seen.identity.geometry == decision.identity.geometry, SafeRepairs.hasWitness(seen)
        else { return nil }
        return seen
    }
}

/// The parts of a rescue's plan.
private struct RescueDraft {
    let goal: RescueGoal
    let image: MetadataImage
    let decision: RecoveryDecision
    let stamp: RepairStamp

    private var geometry: Geometry { decision.identity.geometry }

    /// What the plan's steps are filed under.
    var problem: Problem {
        switch goal {
        case .promote: ProblemCatalogue.slotUnanchored
        case .backTo: ProblemCatalogue.anchorMismatch
        case .rebuild: ProblemCatalogue.superblocksLost
        }
    }

    // MARK: The checkpoint to load

    /// The checkpoint that is asked for, and what completes its header when it was set aside.
    func target(
        _ verify: (Candidate) throws(CheckpointError) -> Void
    ) throws(CheckpointError) -> (Candidate, [Repair]) {
        switch goal {
        case .promote(let slot): return try promoted(slot)
        case .backTo(let slot): return (try complete(slot), [])
        case .rebuild: return (try newestWhole(verify), [])
        }
    }

    private func report(_ slot: SlotIndex) throws(CheckpointError) -> SlotReport {
        guard let report = decision.slots.first(where: { $0.slot == slot }) else {
            throw CheckpointError(
                .invalidArgument,
                "there is no slot \(slot); the file has slots 0 to \(geometry.slotCount - 1)")
        }
        return report
    }

    private func complete(_ slot: SlotIndex) throws(CheckpointError) -> Candidate {
        let report = try report(slot)
        guard let candidate = decision.candidates.first(where: { $0.slot == slot }) else {
            throw noCheckpoint(report)
        }
        return candidate
    }

    private func noCheckpoint(_ report: SlotReport) -> CheckpointError {
        let detail = report.detail.map { ", \($0)" } ?? ""
        return CheckpointError(
            .noCheckpoint,
            "slot \(report.slot) holds no complete checkpoint: it is \(report.reason.rawValue)"
                + "\(detail); pcinspect shows which slots do", slot: report.slot,
            byteOffset: report.headerOffset)
    }

    private func promoted(_ slot: SlotIndex) throws(CheckpointError) -> (Candidate, [Repair]) {
        let report = try report(slot)
        switch report.reason {
        case .unanchored: return (try complete(slot), [])
        case .writing: return try completed(report)
        case .anchored:
            throw CheckpointError(
                .invalidArgument,
                "slot \(slot) is anchored already: a resume loads it when it is intact and nothing "
                    + "newer is; check it with pcfsck --verify full",
                slot: slot)
        case .retained, .older, .stale:
            throw CheckpointError(
                .invalidArgument,
                "slot \(slot) holds an older checkpoint than the newest; --back-to \(slot) goes "
                    + "back to it", slot: slot)
        default: throw noCheckpoint(report)
        }
    }

    /// A header that was set aside still has the digest of its chunk table; one that a crash left
    /// has none that fits.
    private func completed(
        _ report: SlotReport
    ) throws(CheckpointError) -> (Candidate, [Repair]) {
        guard var header = report.header, let old = image.headerBytes(report.slot),
            let tableBytes = image.slots.first(where: { $0.slot == report.slot })?.table
        else { throw noCheckpoint(report) }
        header.state = .complete
        header.completedTime = stamp.time
        let table: ChunkTable
        do throws(FormatError) {
            table = try ChunkTable(decoding: tableBytes, header: header, geometry: geometry)
        } catch {
            throw CheckpointError(
                .corrupt,
                "slot \(report.slot) is torn, not set aside: its chunk table does not fit its "
                    + "header (\(error)); the checkpoint in it was never complete",
                slot: report.slot, byteOffset: report.headerOffset)
        }
        let encoded = header.encoded()
        let candidate = Candidate(
            slot: report.slot, header: header, headerDigest: encoded.digest, table: table,
            kind: .unanchored, geometry: geometry)
        let repair = Repair(
            problem, .asked, at: report.headerOffset,
            "complete the header of slot \(report.slot), at byte \(report.headerOffset)",
            old: old, new: encoded.bytes)
        return (candidate, [repair])
    }

    private func newestWhole(
        _ verify: (Candidate) throws(CheckpointError) -> Void
    ) throws(CheckpointError) -> Candidate {
        var damage: CheckpointError?
        for candidate in decision.candidates {
            let isRepeated = decision.candidates.contains {
                $0.slot != candidate.slot && $0.sequence == candidate.sequence
            }
            do throws(CheckpointError) {
                try verify(candidate)
            } catch {
                guard error.code == .corrupt else { throw error }
                damage = damage ?? error
                continue
            }
            if isRepeated {
                throw CheckpointError(
                    .invalidArgument,
                    "two slots hold sequence \(candidate.sequence); name the one you want with "
                        + "--back-to", slot: candidate.slot)
            }
            return candidate
        }
        throw CheckpointError(
            .corrupt,
            "no slot holds an intact checkpoint, so there is nothing to name"
                + (damage.map { ": \($0.message)" } ?? "; pcinspect shows what is left"))
    }

    // MARK: The others

    /// Newer complete checkpoints, from the oldest to the newest, which would be loaded instead.
    ///
    /// - Throws: `invalidArgument` when one is intact and it was not asked to go back.
    func inTheWay(
        of target: Candidate, _ verify: (Candidate) throws(CheckpointError) -> Void
    ) throws(CheckpointError) -> [Candidate] {
        let newer = decision.candidates.filter { candidate in
            candidate.slot != target.slot && candidate.sequence >= target.sequence
        }
        guard case .promote = goal else { return newer.reversed() }
        for candidate in newer where (try? verify(candidate)) != nil {
            throw CheckpointError(
                .invalidArgument,
                "slot \(candidate.slot) holds a newer intact checkpoint, of step "
                    + "\(candidate.step) and sequence \(candidate.sequence); promote that one, or "
                    + "set it aside with --back-to \(target.slot)", slot: candidate.slot)
        }
        return []
    }

    /// As many older ones as the file retains and as are intact.
    func retained(
        below target: Candidate, _ verify: (Candidate) throws(CheckpointError) -> Void
    ) -> [Candidate] {
        var retained: [Candidate] = []
        for candidate in decision.candidates where candidate.slot != target.slot {
            guard retained.count < decision.identity.retainedMaximum else { break }
            guard candidate.sequence < (retained.last ?? target).sequence,
                (try? verify(candidate)) != nil
            else { continue }
            retained.append(candidate)
        }
        return retained
    }

    func settingAside(_ newer: [Candidate]) -> [Repair] {
        newer.compactMap { candidate in
            guard let old = image.headerBytes(candidate.slot) else { return nil }
            var header = candidate.header
            header.state = .writing
            header.completedTime = 0
            return Repair(
                problem, .asked, at: candidate.headerOffset,
                "set aside step \(candidate.step) in slot \(candidate.slot): its header at byte "
                    + "\(candidate.headerOffset) is in state writing again", old: old,
                new: header.encoded().bytes)
        }
    }

    /// Both identity blocks, from the one that is believed.
    func identities() -> [Repair] {
        guard let source = decision.identityFindings.first(where: \.agreesWithChosen),
            let bytes = image.identityBytes(at: source.offset)
        else { return [] }
        return decision.identityFindings.compactMap { report in
            guard let old = image.identityBytes(at: report.offset), old != bytes else {
                return nil
            }
            return .copy(
                ProblemCatalogue.identityDamaged, .asked, at: report.offset, from: source.offset,
                old: old, new: bytes)
        }
    }
}
