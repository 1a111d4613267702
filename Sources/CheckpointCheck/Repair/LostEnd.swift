internal import CheckpointFormat
internal import CheckpointRecovery

/// A file of which only copies behind the slots are missing, as it is once it has its size again:
/// the copies are zero then, or cut short, and repaired like any that are damaged.
struct LostEnd {
    let image: MetadataImage
    let decision: RecoveryDecision
    /// The file's size as it is.
    let oldByteCount: UInt64

    /// - Returns: nil for a file that lost nothing, or more than the copies: one that was made on a
    ///   device may be far smaller than that, and its size is a person's to give.
    init?(_ image: MetadataImage, _ decision: RecoveryDecision) {
        guard decision.hasLostEnd, image.fileByteCount >= decision.identity.geometry.tailOffset
        else { return nil }
        oldByteCount = image.fileByteCount
        self.image = image.extended(to: decision.identity.geometry)
        guard let decision = try? SlotSelection.decide(self.image) else { return nil }
        self.decision = decision
    }

    /// The steps of a plan, of which those behind the end answer to what is reported: that it is
    /// missing. The mirror's is always among them, even where the zeros that come with the size are
    /// all that it lacked: no step, no undo file.
    func labelled(_ repairs: [Repair]) -> [Repair] {
        guard SafeRepairs.hasWitness(decision) else { return [] }
        let mirror = SafeRepairs.identityCopies(image, decision) { !isThere($0.offset) }
        return (mirror + repairs).map { isThere($0.byteOffset) ? $0 : labelled($0) }
    }

    private func labelled(_ repair: Repair) -> Repair {
        let action = repair.sourceByteOffset.map { source in
            "restore the block at byte \(repair.byteOffset), where the file has lost its end, from "
                + "the intact copy at byte \(source)"
        }
        return Repair(
            ProblemCatalogue.endLost, .full, at: repair.byteOffset, from: repair.sourceByteOffset,
            action ?? repair.action, old: repair.oldBytes, new: repair.bytes)
    }

    private func isThere(_ offset: UInt64) -> Bool { offset + Geometry.block <= oldByteCount }
}
