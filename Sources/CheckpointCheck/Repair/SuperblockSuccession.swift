internal import CheckpointFormat
internal import CheckpointRecovery

/// The superblocks that a repair writes: one generation above the newest, so that neither
/// generation nor sequence goes back, and a second one when the pair below would not be intact.
///
/// Order: both copies of the first generation are flushed before the second one begins. A crash
/// before that leaves the old newest superblock untouched, at the other parity, and none, one or
/// two intact copies of the new one: COMMIT.md state C3. From then on the new one is the authority,
/// and what the second generation overwrites is ignored.
struct SuperblockSuccession {
    let image: MetadataImage
    let decision: RecoveryDecision
    let stamp: RepairStamp
    let problem: Problem
    let fixClass: Problem.Fix.Class
    /// Rewrite all four copies.
    var rewritesAll = false

    private var geometry: Geometry { decision.identity.geometry }

    /// Above everything seen and everything that was given and left no trace.
    ///
    /// Without a superblock the limit that the last writer kept to is unknown; it was at most
    /// `sequenceReserve` above the next sequence.
    private var sequenceLimit: UInt64 {
        let next = decision.highestSequence.rawValue + 1
        guard let limit = decision.superblock?.sequenceLimit, limit > 0 else {
            return next + Limits.sequenceReserve
        }
        return max(next, limit)
    }

    /// Numbers that only a hostile or rotten file reaches.
    var hasRoom: Bool {
        let limit = UInt64.max / 2
        return decision.highestGeneration.rawValue < limit
            && decision.highestSequence.rawValue < limit
            && decision.superblock?.sequenceLimit ?? 0 < limit
    }

    /// The new superblocks name `anchor`, and `retained` from newest to oldest.
    func repairs(
        anchor: Candidate?, retained: [Candidate]
    ) -> (repairs: [Repair], generation: Generation) {
        let names =
            anchor.map { "anchors step \($0.step) in slot \($0.slot)" } ?? "names no checkpoint"
        var superblock = first(anchor, retained)
        var repairs = copies(superblock, names)
        let below = decision.superblockFindings.filter {
            $0.parity != superblock.generation.parity
        }
        let isBelowWhole =
            below.allSatisfy { $0.superblock != nil } && Set(below.map(\.digest)).count == 1
        if !isBelowWhole || rewritesAll {
            superblock.parentDigest = superblock.encoded().digest
            superblock.generation = Generation(rawValue: superblock.generation.rawValue + 1)
            repairs += copies(superblock, names)
        }
        return (repairs, superblock.generation)
    }

    private func first(_ anchor: Candidate?, _ retained: [Candidate]) -> Superblock {
        let last = decision.superblock
        return Superblock(
            fileUUID: decision.identity.fileUUID,
            generation: Generation(rawValue: decision.highestGeneration.rawValue + 1),
            anchor: anchor.map { Anchor($0) },
            // A repair has nothing in flight, but whether the last writer had is still worth
            // knowing: it tells damage from what a crash leaves.
            isCleanClose: last?.isCleanClose ?? false,
            parentDigest: decision.superblockDigest ?? .zero, watermark: last?.watermark,
            commitTime: stamp.time, writerBootID: stamp.bootID, writerPID: stamp.processID,
            // The last writer's: with its count of unsafe shutdowns it tells whether what was
            // flushed to persistent memory may be gone.
            storageKind: last?.storageKind ?? .unknown,
            unsafeShutdownCount: last?.unsafeShutdownCount ?? 0,
            retained: retained.map { RetainedSlot(slot: $0.slot, sequence: $0.sequence) },
            sequenceLimit: sequenceLimit, attempt: attempt)
    }

    /// Of a group file whose superblocks are lost, the slots still show the attempt: a lower one
    /// would look as if this rank had never begun it.
    private var attempt: UInt64 {
        let held = decision.slots.compactMap(\.header).filter { $0.state != .empty }
        return max(decision.superblock?.attempt ?? 0, held.map(\.attempt).max() ?? 0)
    }

    private func copies(_ superblock: Superblock, _ names: String) -> [Repair] {
        let bytes = superblock.encoded().bytes
        return geometry.superblockOffsets(parity: superblock.generation.parity).compactMap {
            offset in
            guard let old = image.superblockBytes(at: offset) else { return nil }
            return Repair(
                problem, fixClass, at: offset,
                "write superblock generation \(superblock.generation) at byte \(offset), which "
                    + names, old: old, new: bytes)
        }
    }
}
