internal import CheckpointFormat
internal import CheckpointRecovery

/// What the file of a group keeps: every durable checkpoint until the ranks have decided on it, and
/// the newest complete ones (GROUP.md, "What a rank keeps").
struct GroupLedger {
    enum Verdict { case undecided, complete, void }

    struct Entry {
        let anchor: Anchor
        let name: GroupCheckpointName
        var verdict: Verdict
    }

    private let retainCount: Int
    /// 0 until this writer takes part in an attempt.
    private(set) var attempt: UInt64 = 0
    /// The newest checkpoint that is known to be durable on all ranks.
    private(set) var watermark: GroupCheckpointName?
    /// An attempt that is to begin: nothing else begins meanwhile.
    private(set) var request: AttemptRequest?
    /// The checkpoints that the durable superblock names, newest first.
    private(set) var named: [Entry]

    /// - Parameters:
    ///   - superblock: the first one of this writer.
    ///   - candidates: among them those that it names.
    init(_ superblock: Superblock, _ candidates: [Candidate], retainCount: Int) {
        self.retainCount = retainCount
        watermark = superblock.watermark
        let kept = superblock.keptSlots
        named = candidates.filter { kept[$0.slot] == $0.sequence }
            .sorted { $0.sequence > $1.sequence }
            .map { Self.entry($0, superblock) }
    }

    /// The medium has the watermark, and no other verdict of the attempt that is under way: a
    /// caller that continues it records them again.
    private static func entry(_ candidate: Candidate, _ superblock: Superblock) -> Entry {
        let name = candidate.header.groupName
        let isDecided = name.attempt != superblock.attempt || name == superblock.watermark
        return Entry(candidate, isDecided ? .complete : .undecided)
    }

    var undecidedCount: Int { named.count { $0.verdict == .undecided } }

    /// What the next superblock names, newest first.
    func kept(adding sealed: [SealedCheckpoint] = []) -> [Entry] {
        var completeLeft = retainCount
        return all(adding: sealed).filter { entry in
            switch entry.verdict {
            case .undecided: return true
            case .void: return false
            case .complete:
                completeLeft -= 1
                return completeLeft >= 0
            }
        }
    }

    /// Whether a superblock that names less would free a slot.
    var canRelease: Bool { kept().count < named.count }

    private func all(adding sealed: [SealedCheckpoint]) -> [Entry] {
        (named + sealed.map { Entry($0) })
            .sorted { $0.anchor.sequence > $1.anchor.sequence }
    }

    /// The superblock is durable. A verdict that came meanwhile stays.
    mutating func publish(_ superblock: Superblock, _ sealed: [SealedCheckpoint]) {
        let kept = superblock.keptSlots
        named = all(adding: sealed).filter { kept[$0.anchor.slot] == $0.anchor.sequence }
    }

    /// One that was decided on before, or that is not durable, is left alone.
    mutating func decide(_ sequence: SequenceNumber, isComplete: Bool) {
        guard
            let index = named.firstIndex(where: {
                $0.anchor.sequence == sequence && $0.verdict == .undecided
            })
        else { return }
        named[index].verdict = isComplete ? .complete : .void
        if isComplete { watermark = max(watermark ?? named[index].name, named[index].name) }
    }

    /// What the first superblock of an attempt names: its base, and older complete ones.
    func kept(from base: Entry?, _ request: GroupAttempt) -> [Entry] {
        guard let base else { return [] }
        let older = named.filter {
            $0.anchor.sequence < base.anchor.sequence
                && request.completeSequences.contains($0.anchor.sequence)
        }
        return [base] + older.prefix(retainCount - 1)
    }

    /// The first superblock of the attempt, which names `kept`, is durable.
    mutating func begin(_ request: GroupAttempt, naming kept: [Entry]) {
        attempt = request.number
        watermark = request.base
        named = kept.map { Entry(anchor: $0.anchor, name: $0.name, verdict: .complete) }
    }

    // MARK: Attempts

    /// - Parameter superblock: the durable one.
    /// - Throws: `invalidArgument`.
    mutating func request(
        _ attempt: GroupAttempt, after superblock: Superblock, _ inFlightCount: Int,
        _ path: String
    ) throws(CheckpointError) -> AttemptRequest {
        guard inFlightCount == 0 else {
            throw CheckpointError(
                .invalidArgument,
                "\(path): \(inFlightCount) checkpoints are in flight; wait for them before a new "
                    + "attempt begins")
        }
        let last = superblock.attempt
        // The attempt continues in a file that was opened again.
        let isSame = attempt.number == last && attempt.base == nil
        guard request == nil, attempt.number > last || isSame,
            (1...Limits.attemptMaximum).contains(attempt.number)
        else {
            throw CheckpointError(
                .invalidArgument,
                "\(path): the attempt is \(attempt.number), expected more than \(last), the "
                    + "last one of this file, and one call at a time")
        }
        let asked = AttemptRequest(attempt)
        request = asked
        if isSame {
            self.attempt = last
            end(.success(()))
        }
        return asked
    }

    static func missing(_ path: String) -> CheckpointError {
        CheckpointError(
            .invalidArgument, "\(path): it belongs to no group; create it with a run UUID")
    }

    mutating func end(_ result: Result<Void, CheckpointError>) {
        request?.result = result
        request = nil
    }

    /// - Throws: `invalidArgument`.
    func checkAttempt(_ path: String) throws(CheckpointError) {
        guard attempt == 0 else { return }
        throw CheckpointError(
            .invalidArgument,
            "\(path): it belongs to a group, and no attempt has begun; agree with the other ranks "
                + "first, as pccheck.distributed does")
    }

    /// - Throws: `stepBackwards`.
    func checkOrder(_ step: UInt64, after last: UInt64, _ path: String) throws(CheckpointError) {
        guard step <= last else { return }
        throw CheckpointError(
            .stepBackwards,
            "\(path): step \(step) is not above step \(last), the last one of this attempt, in "
                + "which a step names one checkpoint; save a later step, or go back with all "
                + "ranks, which begins a new attempt")
    }

    /// - Throws: `invalidArgument`.
    func refuseRewind(_ path: String) throws(CheckpointError) {
        throw CheckpointError(
            .invalidArgument,
            "\(path): it belongs to a group, whose ranks go back together; begin a new attempt")
    }

    func statistics(freeSlotCount: Int) -> WriterStatistics.Group {
        WriterStatistics.Group(
            attempt: attempt, watermark: watermark, undecidedCount: undecidedCount,
            freeSlotCount: freeSlotCount)
    }
}

extension GroupLedger.Entry {
    init(_ candidate: Candidate, _ verdict: GroupLedger.Verdict) {
        self.init(
            anchor: Anchor(candidate), name: candidate.header.groupName, verdict: verdict)
    }

    fileprivate init(_ sealed: SealedCheckpoint) {
        let checkpoint = sealed.checkpoint
        self.init(
            anchor: Anchor(sealed),
            name: GroupCheckpointName(attempt: checkpoint.attempt, step: checkpoint.step),
            verdict: .undecided)
    }
}

extension Anchor {
    init(_ sealed: SealedCheckpoint) {
        self.init(
            slot: sealed.checkpoint.slot, sequence: sealed.checkpoint.sequence,
            step: sealed.checkpoint.step, headerDigest: sealed.headerDigest)
    }
}
