package import CheckpointFormat
internal import CheckpointRecovery
package import CheckpointStorage
package import StorageFaults

/// What recovery found.
package struct Recovered: Hashable {
    package let sequence: SequenceNumber
    package let digest: Digest
}

/// What the file owes its user.
package struct Promise: Sendable {
    /// The newest sequence that a caller was told is durable.
    package let sequence: SequenceNumber
    /// The newest generation that a completed flush covers.
    package let generation: Generation
    /// Unless a writer could not read that checkpoint, and went on from an older one.
    package let isAnchored: Bool

    package init(sequence: SequenceNumber, generation: Generation, isAnchored: Bool = true) {
        self.sequence = sequence
        self.generation = generation
        self.isAnchored = isAnchored
    }

    /// Why the image breaks an invariant, found out as a resume would; nil when it keeps them all.
    package func problem(_ image: any Storage, _ payloads: [UInt64: Set<Digest>]) -> String? {
        do throws(CheckpointError) {
            let reader = try CheckpointReader(storage: image, workerCount: 1)
            let newest = try reader.loadNewest { selected throws(CheckpointError) in
                let count = selected.candidate.header.payloadByteCount
                let bytes = try selected.readBytes(0..<count)
                return Recovered(
                    sequence: selected.candidate.sequence, digest: Digest(of: bytes))
            }.value
            return problem(
                reader.decision, newest, payloads[newest.sequence.rawValue, default: []])
        } catch {
            let isEmpty = error.code == .noCheckpoint || error.code == .corrupt
            return isEmpty && sequence == .none
                ? nil : "I1: nothing was recovered, but \(sequence) was durable: \(error)"
        }
    }

    func problem(
        _ decision: RecoveryDecision, _ found: Recovered?, _ saved: Set<Digest>
    ) -> String? {
        if decision.highestGeneration < generation {
            return "I3: generation \(decision.highestGeneration), expected at least \(generation)"
        }
        if decision.highestSequence < sequence {
            return "I3: highest sequence \(decision.highestSequence), but \(sequence) was durable"
        }
        let anchor = decision.superblock?.anchor?.sequence ?? .none
        if isAnchored, anchor < sequence {
            return "durable means anchored: the anchor is \(anchor), but \(sequence) was durable"
        }
        guard let found else {
            return sequence == .none ? nil : "I1: nothing recovered, but \(sequence) was durable"
        }
        if found.sequence < sequence {
            return "I1: sequence \(found.sequence) recovered, but \(sequence) was durable"
        }
        if !saved.contains(found.digest) {
            return "I2: the bytes of sequence \(found.sequence) are not those that were saved"
        }
        return nil
    }
}

/// Recovery with its results kept by content: what it decides follows from the metadata's bytes
/// alone, and what a slot holds from its own, so that a state costs only what it changed.
package final class RecoveryMemo {
    private struct SlotKey: Hashable {
        let headerDigest: Digest
        let data: Digest
        let slot: SlotIndex
    }

    private var decisions: [Digest: Result<RecoveryDecision, CheckpointError>] = [:]
    private var slots: [SlotKey: Recovered?] = [:]
    private var geometry: Geometry?

    package init() {}

    package func problem(
        _ image: MemoryStorage, _ promise: Promise, _ saved: [UInt64: Set<Digest>]
    ) -> String? {
        do throws(CheckpointError) {
            let decision = try decide(image)
            geometry = decision.identity.geometry
            if let problem = anchorProblem(decision, image) { return problem }
            for candidate in decision.candidates {
                guard let found = load(candidate, image, decision.identity.geometry) else {
                    continue
                }
                return promise.problem(decision, found, saved[found.sequence.rawValue, default: []])
            }
            return promise.problem(decision, nil, [])
        } catch {
            return "recovery threw: \(error)"
        }
    }

    /// What the newest whole superblock names was flushed before that, and is not overwritten while
    /// it is named. Recovery does not rest on it, as it verifies; reports and `trust_anchor` do.
    private func anchorProblem(_ decision: RecoveryDecision, _ image: MemoryStorage) -> String? {
        guard let anchor = decision.superblock?.anchor else { return nil }
        guard let candidate = decision.candidates.first(where: \.isAnchored) else {
            return "A: the anchored slot \(anchor.slot) does not hold sequence \(anchor.sequence)"
        }
        for named in [candidate] + decision.candidates.filter({ $0.kind == .retained })
        where load(named, image, decision.identity.geometry) == nil {
            return "A: slot \(named.slot) is named by the superblock, and damaged"
        }
        return nil
    }

    private func decide(_ image: MemoryStorage) throws(CheckpointError) -> RecoveryDecision {
        guard let geometry else {
            return try SlotSelection.decide(MetadataImage.read(from: image))
        }
        var bytes = image.bytes(in: 0..<Int(geometry.dataOffset))
        bytes += image.bytes(in: Int(geometry.tailOffset)..<Int(geometry.fileByteCount))
        let key = Digest(of: bytes)
        if let known = decisions[key] { return try known.get() }
        let result = Result { () throws(CheckpointError) in
            try SlotSelection.decide(MetadataImage.read(from: image))
        }
        decisions[key] = result
        return try result.get()
    }

    private func load(
        _ candidate: Candidate, _ image: MemoryStorage, _ geometry: Geometry
    ) -> Recovered? {
        let start = Int(candidate.dataOffset)
        let data = image.bytes(in: start..<start + Int(geometry.slotByteCount))
        let key = SlotKey(
            headerDigest: candidate.headerDigest, data: Digest(of: data), slot: candidate.slot)
        if let known = slots[key] { return known }
        let found = try? read(candidate, image)
        slots[key] = .some(found)
        return found
    }

    private func read(
        _ candidate: Candidate, _ image: MemoryStorage
    ) throws(CheckpointError) -> Recovered {
        try SlotVerifier.verify(candidate, in: image, workerCount: 1)
        let reader = try CheckpointReader(storage: image, workerCount: 1)
        let selected = try reader.select(candidate)
        defer { selected.close() }
        let bytes = try selected.readBytes(0..<candidate.header.payloadByteCount)
        return Recovered(sequence: candidate.sequence, digest: Digest(of: bytes))
    }
}
