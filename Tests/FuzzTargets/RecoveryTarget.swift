import CheckpointFormat
import CheckpointRecovery
import StorageFaults

/// Recovery decides about an image, and what it loads is backed by every digest.
enum RecoveryTarget {
    static func problem(in image: [UInt8]) -> String? {
        let storage = MemoryStorage(contents: image)
        if let metadata = try? MetadataImage.read(from: storage),
            let wreck = try? SlotSelection.decide(metadata, allowsTruncation: true)
        {
            if wreck.slots.count != wreck.identity.geometry.slotCount {
                return "\(wreck.slots.count) slots are judged"
            }
            if let problem = orderProblem(wreck) { return problem }
        }
        return Outcome(storage).problem(in: image)
    }

    /// Candidates go by sequence, newest first, and nothing is above the highest sequence.
    private static func orderProblem(_ decision: RecoveryDecision) -> String? {
        let sequences = decision.candidates.map(\.sequence)
        if sequences != sequences.sorted(by: >) { return "candidates are out of order" }
        if let newest = sequences.first, newest > decision.highestSequence {
            return "sequence \(newest) lies above the highest"
        }
        return nil
    }
}
