public import CheckpointFormat

/// What all ranks of a group agreed on when they started, restarted or went back: GROUP.md,
/// "Restart".
public struct GroupAttempt: Sendable {
    /// Above every attempt that any rank has seen; or that of the file, to continue with it after
    /// a resize.
    public var number: UInt64
    /// The checkpoint that the attempt continues from; nil when there is none.
    public var base: GroupCheckpointName?
    /// Of the base in this file; none when it is in other files.
    public var baseSequence = SequenceNumber.none
    /// Of older checkpoints in this file that are complete, too.
    public var completeSequences: Set<SequenceNumber> = []

    public init(number: UInt64, base: GroupCheckpointName? = nil) {
        self.number = number
        self.base = base
    }
}

/// An attempt that a caller waits for the committer to begin.
// Unchecked: only methods of `EngineState` change it, with its lock held.
final class AttemptRequest: @unchecked Sendable {
    let attempt: GroupAttempt
    var result: Result<Void, CheckpointError>?

    init(_ attempt: GroupAttempt) { self.attempt = attempt }
}
