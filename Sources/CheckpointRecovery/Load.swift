public import CheckpointFormat
internal import CheckpointStorage

/// One search for a checkpoint to use: the only way in.
///
/// `next` pins the newest candidate that fits, proves it where nothing vouches for it, and returns
/// it. A caller that cannot use it calls `reject`, and `next` continues to an older one. When a
/// writer takes a slot meanwhile, the search starts over: something newer exists by then.
/// The rules are in spec/RECOVERY.md.
///
/// One user at a time.
public final class Load {
    /// A candidate that could not be used, and why.
    public struct Rejection: Sendable {
        public let candidate: Candidate
        public let error: CheckpointError
    }

    /// Those before the last one that `next` returned, newest first.
    public private(set) var rejections: [Rejection] = []

    private let reader: CheckpointReader
    private let proof: Proof
    private let progress: SlotVerifier.Progress?
    private let request: String
    private let isWanted: (Candidate) -> Bool
    private let pause: () -> Void
    private var decision: RecoveryDecision
    private var pending: [Candidate]
    private var attemptsLeft = WriterPatience.attemptCount - 1
    private var current: SelectedCheckpoint?

    /// Begins a search among what the reader's last look at the file found.
    ///
    /// - Parameters:
    ///   - proof: `waived` for tools that show a checkpoint and do not use it.
    ///   - progress: called with the bytes verified so far of a candidate that must be proven.
    ///   - request: what `isWanted` asks for, for errors: a checkpoint "of step 10".
    ///   - pause: lets time pass for a writer that waits for a flush.
    public init(
        _ reader: CheckpointReader, proof: Proof = .demanded,
        progress: SlotVerifier.Progress? = nil,
        request: String = "that fits the request",
        where isWanted: @escaping (Candidate) -> Bool = { _ in true },
        pause: @escaping () -> Void = WriterPatience.pause
    ) {
        self.reader = reader
        self.proof = proof
        self.progress = progress
        self.request = request
        self.isWanted = isWanted
        self.pause = pause
        decision = reader.decision
        pending = decision.candidates.filter(isWanted)
    }

    /// Pins the next candidate, and proves it unless that is waived.
    ///
    /// - Returns: the checkpoint; its pin lasts until it is closed or rejected.
    /// - Throws: `noCheckpoint` when there is no candidate, or only what a crash left of a first
    ///   checkpoint; `busy` when a writer is still at work on every one; `corrupt` when all were
    ///   rejected otherwise. The message names every slot and why. `inputOutput` and others when
    ///   the metadata cannot be read again, `outOfMemory`.
    public func next() throws(CheckpointError) -> SelectedCheckpoint {
        // One at a time is pinned.
        current?.close()
        current = nil
        while let candidate = try nextPending() {
            do throws(CheckpointError) {
                let selected = try reader.select(candidate, proof: proof)
                // Held already, so that no writer takes the slot while it is verified.
                current = selected
                try selected.prove(progress: progress)
                return selected
            } catch {
                try reject(candidate, error)
            }
        }
        throw nothingLoads
    }

    private func nextPending() throws(CheckpointError) -> Candidate? {
        // There is nothing else, and its writer may let go of it in a moment.
        while pending.isEmpty, attemptsLeft > 0, decision.inHand.contains(where: isWanted) {
            pause()
            try startOver()
        }
        return pending.isEmpty ? nil : pending.removeFirst()
    }

    /// Says that the checkpoint that `next` returned cannot be used.
    ///
    /// - Throws: `error` itself, when it says nothing against the checkpoint; only `corrupt`,
    ///   `inputOutput` and `busy` do. The search has ended then.
    public func reject(_ error: CheckpointError) throws(CheckpointError) {
        guard let candidate = current?.candidate else {
            preconditionFailure("there is nothing to reject before next() returned it")
        }
        try reject(candidate, error)
    }

    private func reject(
        _ candidate: Candidate, _ error: CheckpointError
    ) throws(CheckpointError) {
        current?.close()
        current = nil
        switch error.code {
        case .corrupt, .inputOutput: break
        case .busy where attemptsLeft > 0:
            try startOver()
            // Its writer has not taken the slot for something newer, but waits for a flush of it.
            if pending.contains(where: { $0.isSame(as: candidate) }) { pause() }
            return
        case .busy: break
        default: throw error
        }
        rejections.append(Rejection(candidate: candidate, error: error))
    }

    /// A slot was taken under the search. What was rejected for damage stays so while its header
    /// is the same, and is not read again.
    private func startOver() throws(CheckpointError) {
        attemptsLeft -= 1
        decision = try reader.refresh()
        rejections.removeAll { old in
            !decision.candidates.contains { $0.isSame(as: old.candidate) }
        }
        pending = decision.candidates.filter { candidate in
            isWanted(candidate) && !rejections.contains { $0.candidate.isSame(as: candidate) }
        }
    }

    private var nothingLoads: CheckpointError {
        let path = reader.storage.path
        if decision.slots.allSatisfy({ $0.reason == .empty }) {
            return CheckpointError(.noCheckpoint, "\(path): the file holds no checkpoint")
        }
        let wasUnfinished =
            !decision.mayHoldDurable && rejections.allSatisfy { $0.error.code == .corrupt }
        if wasUnfinished, !rejections.isEmpty {
            return CheckpointError(
                .noCheckpoint,
                "\(path): the file holds no checkpoint that was finished (\(everySlot))")
        }
        guard let first = rejections.first else {
            if decision.inHand.contains(where: isWanted) {
                return CheckpointError(
                    .busy,
                    "\(path): every checkpoint \(request) is in the hands of a writer; try again "
                        + "(\(everySlot))")
            }
            return CheckpointError(
                .noCheckpoint, "\(path) holds no checkpoint \(request) (\(everySlot))")
        }
        if rejections.count == 1, first.error.code != .busy {
            // The only one that fits: its own error says more than a list of all slots.
            return first.error.about(path)
        }
        // What a writer has in hand may be intact again in a moment.
        let isBusy = rejections.contains { $0.error.code == .busy }
        let isUnreadable = rejections.allSatisfy { $0.error.code == .inputOutput }
        let state =
            isBusy
            ? "damaged, or in the hands of a writer; try again"
            : isUnreadable ? "unreadable" : "damaged"
        return CheckpointError(
            isBusy ? .busy : .corrupt,
            "\(path): every checkpoint \(request) is \(state) (\(everySlot))",
            slot: first.candidate.slot, byteOffset: first.error.byteOffset)
    }

    /// What became of every slot: those that were tried first, as messages may be cut.
    private var everySlot: String {
        let tried = rejections.map(\.candidate.slot)
        let others = decision.slots.filter { !tried.contains($0.slot) }
        let first = tried.compactMap { slot in decision.slots.first { $0.slot == slot } }
        return (first + others).map(described).joined(separator: "; ")
    }

    private func described(_ report: SlotReport) -> String {
        var text = "slot \(report.slot): \(report.reason.rawValue)"
        if let header = report.header, header.state != .empty {
            text += ", sequence \(header.sequence), step \(header.step)"
        }
        if let error = rejections.first(where: { $0.candidate.slot == report.slot })?.error {
            let path = reader.storage.path + ": "
            let message = error.message
            text +=
                ", " + (message.hasPrefix(path) ? String(message.dropFirst(path.count)) : message)
        } else if decision.candidates.contains(where: { $0.slot == report.slot && !isWanted($0) }) {
            text += ", not what was asked for"
        } else if let detail = report.detail {
            text += ", \(detail)"
        }
        return text
    }
}

/// Whether bytes of a checkpoint that no superblock vouches for are handed out before all of it
/// was verified.
public enum Proof: Sendable {
    /// Nothing says that its chunks reached the medium: every chunk is verified before the first
    /// byte is handed out.
    case demanded
    /// Each chunk is verified alone: for tools that show what is left of a file.
    case waived
}

extension CheckpointReader {
    /// Gives the newest checkpoint that `isWanted` accepts to `use`, and falls back to the next
    /// one when it turns out damaged.
    ///
    /// - Parameter use: reads what it needs. When it throws `corrupt`, `inputOutput` or `busy`, the
    ///   next candidate is tried; another error ends the search.
    /// - Returns: what `use` returned, its candidate, and those rejected before it.
    /// - Throws: what `Load.next` throws.
    public func loadNewest<Value>(
        proof: Proof = .demanded, where isWanted: @escaping (Candidate) -> Bool = { _ in true },
        _ use: (SelectedCheckpoint) throws(CheckpointError) -> Value
    ) throws(CheckpointError) -> (value: Value, candidate: Candidate, rejected: [Load.Rejection]) {
        let load = Load(self, proof: proof, where: isWanted)
        while true {
            let selected = try load.next()
            do throws(CheckpointError) {
                let value = try use(selected)
                selected.close()
                return (value, selected.candidate, load.rejections)
            } catch {
                try load.reject(error)
            }
        }
    }
}
