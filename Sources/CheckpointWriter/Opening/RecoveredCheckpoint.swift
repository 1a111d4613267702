public import CheckpointRecovery

/// The checkpoint that a writer continued from when it was opened.
public struct RecoveredCheckpoint: Sendable {
    public let candidate: Candidate
    /// Every chunk of it was read and matched its digest. False with `WriterOptions.trustsAnchor`:
    /// a load then finds out, and falls back where it must.
    public let isVerified: Bool
}
