internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

/// What the passes share.
struct CheckContext {
    let storage: any Storage
    let options: CheckOptions
    let image: MetadataImage
    /// nil when no identity block is usable: then only the first pass has something to look at.
    let decision: RecoveryDecision?
    let plan: RepairPlan
    let progress: (@Sendable (CheckProgress) -> Void)?

    var findings: [Finding] = []
    var hasMediumFailure: Bool
    /// Something could not be looked at, though neither the file nor the medium is to blame.
    var isIncomplete = false
    /// Slots of which every chunk was read and is intact.
    var verified: Set<SlotIndex> = []
    var damagedChunkCounts: [SlotIndex: Int] = [:]
    /// Candidates that a resume would reject, and why.
    var unloadable: [SlotIndex: String] = [:]
    /// The reserved block behind the head superblocks, when it is not zero.
    var usedReservedBlock: [UInt8]?

    init(
        storage: any Storage, options: CheckOptions, image: MetadataImage,
        decision: RecoveryDecision?, plan: RepairPlan,
        progress: (@Sendable (CheckProgress) -> Void)?
    ) {
        self.storage = storage
        self.options = options
        self.image = image
        self.decision = decision
        self.plan = plan
        self.progress = progress
        hasMediumFailure = !image.readFailures.isEmpty
    }

    mutating func report(_ finding: Finding) { findings.append(finding) }

    /// There was no memory for a chunk of `candidate`; reports it once.
    mutating func reportNoMemory(_ candidate: Candidate, _ error: CheckpointError) {
        isIncomplete = true
        let isKnown = findings.contains {
            $0.id == ProblemCatalogue.notVerified.id && $0.slot == candidate.slot
        }
        if isKnown { return }
        report(
            Finding(
                ProblemCatalogue.notVerified, slot: candidate.slot, at: candidate.headerOffset,
                found: error.message,
                expected: "memory for \(candidate.header.chunkByteCount) bytes"))
    }

    func enter(_ stage: CheckProgress.Stage) {
        progress?(CheckProgress(stage: stage, doneByteCount: 0, totalByteCount: 0))
    }

    /// `-p` would rewrite the block at `offset`.
    func isFixable(_ offset: UInt64) -> Bool {
        plan.repairs.contains { $0.byteOffset == offset }
    }

    /// The block lies inside the file as it is, so that a missing one is the medium's fault.
    func isInside(_ offset: UInt64) -> Bool {
        offset + UInt64(Limits.blockByteCount) <= image.fileByteCount
    }

    /// What the newest superblock records is in `slot`, when it keeps it.
    func keptSequence(_ slot: SlotIndex) -> SequenceNumber? {
        guard let superblock = decision?.superblock else { return nil }
        if let anchor = superblock.anchor, anchor.slot == slot { return anchor.sequence }
        return superblock.retained.first { $0.slot == slot }?.sequence
    }

    /// How bad damage in `slot` is: what is kept must be intact; what is not may be torn by a
    /// crash, which a clean close excludes.
    func severity(of slot: SlotIndex) -> Severity {
        guard let superblock = decision?.superblock else { return .warning }
        if keptSequence(slot) != nil { return .error }
        return superblock.isCleanClose ? .warning : .info
    }
}
