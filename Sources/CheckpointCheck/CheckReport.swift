public import CheckpointFormat
public import CheckpointRecovery

/// How deep to look.
public struct CheckOptions: Hashable, Sendable {
    public enum Depth: String, Hashable, Sendable, CaseIterable {
        /// Everything but the tensor data: the time does not depend on its size.
        case metadata
        /// Every chunk of every checkpoint that could be loaded.
        case full
    }

    public var depth: Depth
    /// Threads that read and verify payload.
    public var workerCount: Int

    public init(depth: Depth = .metadata, workerCount: Int = CheckpointReader.defaultWorkerCount) {
        self.depth = depth
        self.workerCount = workerCount
    }
}

/// What is being done, and how far it is.
public struct CheckProgress: Hashable, Sendable {
    public enum Stage: String, Hashable, Sendable, CaseIterable {
        case identity, superblocks, headers, tables, payload, cross
    }

    public let stage: Stage
    /// Payload bytes verified; 0 in other stages.
    public let doneByteCount: UInt64
    /// Payload bytes to verify; 0 in other stages.
    public let totalByteCount: UInt64
}

/// What the check found in one slot.
public struct SlotCheck: Hashable, Sendable {
    public let slot: SlotIndex
    /// Recovery's reason, or `payload-damaged` when reading it found damage.
    public let reason: SlotReason
    public let sequence: SequenceNumber?
    public let step: UInt64?
    public let payloadByteCount: UInt64?
    /// Every chunk of it was read and is intact.
    public let isVerified: Bool
    public let damagedChunkCount: Int
}

/// Which checkpoint a resume would load, and why not a newer one.
public struct ResumeVerdict: Hashable, Sendable {
    public struct Choice: Hashable, Sendable {
        public let slot: SlotIndex
        public let sequence: SequenceNumber
        public let step: UInt64
        public let kind: Candidate.Kind
    }

    public struct Rejection: Hashable, Sendable {
        public let slot: SlotIndex
        /// nil when the header does not say.
        public let sequence: SequenceNumber?
        public let step: UInt64?
        public let reason: SlotReason
        /// One sentence.
        public let explanation: String
    }

    /// nil: a resume starts from the beginning, or refuses the file.
    public let choice: Choice?
    /// Every chunk of it was verified; otherwise a damaged chunk makes a resume fall back.
    public let isProven: Bool
    /// Newer checkpoints, or slots that may have held one, newest first.
    public let rejected: [Rejection]
}

/// Everything that one run of the checker found.
public struct CheckReport: Sendable {
    public let path: String
    public let fileByteCount: UInt64
    public let depth: CheckOptions.Depth
    /// nil when no identity block is usable.
    public let decision: RecoveryDecision?
    /// In the order of the passes.
    public let findings: [Finding]
    /// Every slot, by index; empty when no identity block is usable.
    public let slots: [SlotCheck]
    public let resume: ResumeVerdict
    /// The medium refused a read inside the file.
    public let hasMediumFailure: Bool
    /// There was no memory to verify something.
    public let isIncomplete: Bool
    /// What `-p` would do.
    public let plan: RepairPlan
    let facts: RepairFacts

    public var identity: IdentityBlock? { decision?.identity }

    /// Payload of checkpoints that were read to the end and found intact.
    public var verifiedByteCount: UInt64 {
        slots.reduce(0) { $0 + ($1.isVerified ? $1.payloadByteCount ?? 0 : 0) }
    }

    public func count(_ severity: Severity) -> Int {
        findings.count { $0.severity == severity }
    }

    /// Nothing is wrong that a person or `-p` should act on.
    public var isClean: Bool { count(.error) == 0 }

    /// The bits of fsck(8): 0 clean, 4 errors left, 8 the medium failed, or memory ran out.
    ///
    /// After a repair, add 1 to the code of a fresh report.
    public var exitCode: Int32 { (isClean ? 0 : 4) | (hasMediumFailure || isIncomplete ? 8 : 0) }

    /// What `-y` would do.
    ///
    /// - Parameters:
    ///   - stamp: goes into the superblocks that are written.
    ///   - consents: identifiers of problems whose question a person has answered with yes.
    ///   - verify: reads every chunk of a candidate that the check has not verified, and throws
    ///     when it is not whole. Without it, the plan is what would be done were all of them whole,
    ///     and must not be carried out.
    public func fullPlan(
        stamp: RepairStamp, consents: Set<String> = [],
        verify: @escaping (Candidate) throws(CheckpointError) -> Void = { _ in }
    ) -> RepairPlan {
        guard let decision else { return plan }
        return FullRepairs.plan(facts, decision, stamp: stamp, consents: consents, verify: verify)
    }
}
