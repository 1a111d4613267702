public import CheckpointFormat

/// What the users of one writer saw, and whether one order of commits explains all of it.
public struct CommitHistory: Sendable {
    public enum Event: Hashable, Sendable {
        /// `save` returned a ticket; the digest is of what was saved.
        case saved(SequenceNumber, Digest)
        /// `save` found every slot taken and was told to skip.
        case skipped
        /// `save` was refused because the writer is closed.
        case refused
        /// A ticket ended.
        case durable(SequenceNumber)
        case superseded(SequenceNumber, by: SequenceNumber)
        /// A ticket was looked at and had not ended.
        case pending(SequenceNumber)
        /// What the statistics call the newest durable one; `.none` while there is none.
        case newest(SequenceNumber)
        /// What a reader found that opened the file; `.none` when there was no checkpoint.
        case loaded(SequenceNumber, Digest)
        case closed
    }

    /// An event, and between which two times it happened.
    public struct Operation: Hashable, Sendable {
        public let invoked: UInt64
        public let responded: UInt64
        public let event: Event

        public init(_ invoked: UInt64, _ responded: UInt64, _ event: Event) {
            self.invoked = invoked
            self.responded = responded
            self.event = event
        }
    }

    public let operations: [Operation]
    /// What the file keeps after the close, newest first.
    public let kept: [SequenceNumber]
    public let retainCount: Int

    public init(operations: [Operation], kept: [SequenceNumber], retainCount: Int) {
        self.operations = operations
        self.kept = kept
        self.retainCount = retainCount
    }

    /// Why no order of commits explains the history; nil when one does.
    ///
    /// A commit makes a sequence the newest durable one. The order exists when sequences were
    /// given in the order of saves and no observation of the newest durable sequence lies below
    /// one that was over before it began: commits can then be placed in the order of their
    /// sequences, each between its save and the first observation of it or of a newer one.
    public var violation: String? {
        sequenceViolation ?? endViolation ?? orderViolation ?? closeViolation ?? keptViolation
    }

    // MARK: Saves

    private var saves: [(sequence: SequenceNumber, digest: Digest, operation: Operation)] {
        operations.compactMap {
            guard case .saved(let sequence, let digest) = $0.event else { return nil }
            return (sequence, digest, $0)
        }
    }

    /// Sequences are given once, and in the order of saves that do not overlap.
    private var sequenceViolation: String? {
        let ordered = saves.sorted { $0.sequence < $1.sequence }
        for (first, second) in zip(ordered, ordered.dropFirst())
        where first.sequence == second.sequence {
            return "sequence \(first.sequence) was given twice"
        }
        // Every lower sequence was asked for before a higher one had been given.
        var earliest = UInt64.max
        for save in ordered.reversed() {
            if earliest < save.operation.invoked {
                return "sequence \(save.sequence) was given after a higher one"
            }
            earliest = min(earliest, save.operation.responded)
        }
        return nil
    }

    // MARK: Ends

    /// Each checkpoint ends in one way, and what supersedes it is newer and durable.
    private var endViolation: String? {
        let given = Dictionary(
            saves.map { ($0.sequence, $0.operation) }, uniquingKeysWith: { first, _ in first })
        let durable = durableSequences
        for operation in operations {
            switch operation.event {
            case .durable(let sequence):
                guard let save = given[sequence], save.invoked < operation.responded else {
                    return "sequence \(sequence) ended before it began"
                }
            case .superseded(let sequence, let newer):
                guard given[sequence] != nil else { return "sequence \(sequence) never began" }
                if newer <= sequence { return "\(sequence) was superseded by \(newer)" }
                if durable.contains(sequence) { return "sequence \(sequence) ended in two ways" }
                guard let save = given[newer], save.invoked < operation.responded,
                    durable.contains(newer)
                else { return "\(sequence) was superseded by \(newer), which is not durable" }
            case .newest(let sequence) where sequence != .none && !durable.contains(sequence):
                return "the newest durable sequence is \(sequence), which never became durable"
            default: break
            }
        }
        return pendingViolation
    }

    /// What had ended for one observer had ended for every later one.
    private var pendingViolation: String? {
        var ended: [SequenceNumber: UInt64] = [:]
        for operation in operations {
            switch operation.event {
            case .durable(let sequence), .superseded(let sequence, _):
                ended[sequence] = min(ended[sequence] ?? .max, operation.responded)
            default: break
            }
        }
        for operation in operations {
            if case .pending(let sequence) = operation.event,
                ended[sequence] ?? .max < operation.invoked
            {
                return "sequence \(sequence) was pending again after its end"
            }
        }
        return nil
    }

    private var durableSequences: Set<SequenceNumber> {
        Set(
            operations.compactMap {
                guard case .durable(let sequence) = $0.event else { return nil }
                return sequence
            })
    }

    // MARK: Order

    /// What an operation proves to be durable at its end.
    private static func proven(_ event: Event) -> SequenceNumber? {
        switch event {
        case .durable(let sequence), .superseded(_, by: let sequence), .newest(let sequence):
            sequence
        case .loaded, .saved, .skipped, .refused, .pending, .closed: nil
        }
    }

    /// What is observed is never older than what was proven before the observation began, and
    /// a reader finds the bytes that were saved.
    private var orderViolation: String? {
        let ends = operations.compactMap { operation in
            Self.proven(operation.event).map { (time: operation.responded, sequence: $0) }
        }.sorted { $0.time < $1.time }
        // A reader may find what is complete and not durable yet; the next one finds no less.
        let loads = operations.compactMap {
            operation -> (time: UInt64, sequence: SequenceNumber)? in
            guard case .loaded(let sequence, _) = operation.event else { return nil }
            return (operation.responded, sequence)
        }.sorted { $0.time < $1.time }
        let digests = Dictionary(
            saves.map { ($0.sequence, $0.digest) }, uniquingKeysWith: { first, _ in first })
        for operation in operations {
            func floor(_ list: [(time: UInt64, sequence: SequenceNumber)]) -> SequenceNumber {
                list.prefix { $0.time < operation.invoked }.map(\.sequence).max() ?? .none
            }
            switch operation.event {
            case .newest(let sequence):
                let floor = floor(ends)
                if sequence < floor {
                    return "the newest durable sequence is \(sequence), after \(floor) was durable"
                }
            case .loaded(let sequence, let digest):
                let floor = max(floor(ends), floor(loads))
                if sequence < floor { return "\(sequence) is loaded, after \(floor) was there" }
                if sequence != .none, digests[sequence] != digest {
                    return "sequence \(sequence) loads other bytes than were saved"
                }
            default: break
            }
        }
        return nil
    }

    // MARK: The end

    /// A close comes after every end, and nothing begins after it.
    private var closeViolation: String? {
        guard let close = operations.first(where: { $0.event == .closed }) else { return nil }
        for operation in operations {
            switch operation.event {
            case .saved(let sequence, _) where operation.invoked > close.responded:
                return "sequence \(sequence) began after the close"
            case .pending(let sequence) where operation.invoked > close.responded:
                return "sequence \(sequence) is pending after the close"
            case .refused where operation.responded < close.invoked:
                return "a save was refused before the close"
            default: break
            }
        }
        return nil
    }

    /// The sequential specification: after all commits in order, the newest durable checkpoints
    /// are kept, as many as the file retains.
    private var keptViolation: String? {
        let expected = Array(durableSequences.sorted(by: >).prefix(retainCount))
        return kept == expected ? nil : "the file keeps \(kept), expected \(expected)"
    }
}
