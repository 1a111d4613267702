import CheckpointFormat
import CheckpointRecovery
import CheckpointSimulation
import StorageFaults

/// One changed byte of the metadata at a time, each in place and taken back.
///
/// What one such byte may cost:
/// - of an identity block or a superblock: nothing, as each has a copy;
/// - of a slot's header, or of the entries of its chunk table: the checkpoint in that slot, so that
///   the one before it loads;
/// - of what follows a sealed part up to the end of its block: nothing, and nothing is noticed.
struct SingleFaults {
    private struct Loaded {
        let candidate: Candidate
        let digest: Digest?
    }

    /// A prime, so that it falls on every offset and every bit in turn.
    private static let decisionInterval = 23

    let base: MutationBase
    private var image: MetadataImage
    private let reader: CheckpointReader
    private var loaded: [Loaded] = []
    private(set) var count = 0
    private(set) var detectedCount = 0
    private(set) var decisionCount = 0
    private(set) var fallbackCount = 0

    init(_ base: MutationBase) {
        self.base = base
        image = base.image
        reader = CheckpointReader(
            storage: MemoryStorage(contents: base.bytes), decision: base.decision, workerCount: 1)
    }

    /// Why the image with this fault breaks an invariant; nil when it keeps them all.
    ///
    /// Every block is decoded as recovery does it. The whole decision, and what it loads, is gone
    /// through for each n-th: all else that recovery sees of a damaged block is that it is one.
    mutating func problem(_ block: MetadataBlock, at offset: Int, mask: UInt8) -> String? {
        change(block.kind, offset, mask)
        defer { change(block.kind, offset, mask) }
        count += 1
        let isSealed = offset < block.sealedByteCount
        let isRefused = isRefused(block)
        if isRefused { detectedCount += 1 }
        if isSealed && !isRefused { return "I2: the damaged block is taken for whole" }
        if !isSealed && block.sealedByteCount > 0 && isRefused {
            return "I1: padding spoils its block"
        }
        if count % Self.decisionInterval != 0 { return nil }
        decisionCount += 1
        return decisionProblem(block, isSealed: isSealed)
    }

    /// The block does not decode.
    private func isRefused(_ block: MetadataBlock) -> Bool {
        let identity = base.decision.identity
        do throws(FormatError) {
            switch block.kind {
            case .identity(let index):
                _ = try IdentityBlock(decoding: image.identityBlocks[index].bytes ?? [])
            case .superblock(let index):
                _ = try Superblock(
                    decoding: image.superblocks[index].bytes ?? [], fileUUID: identity.fileUUID,
                    slotCount: identity.geometry.slotCount)
            case .header(let index):
                _ = try SlotHeader(
                    decoding: image.slots[index].header ?? [], slot: SlotIndex(index),
                    identity: identity)
            case .table(let index):
                // Without a complete header there is no table, whatever lies there.
                guard let header = base.decision.slots[index].header, header.state == .complete
                else { return false }
                _ = try ChunkTable(
                    decoding: image.slots[index].table ?? [], header: header,
                    geometry: identity.geometry)
            case .reserved: break
            }
            return false
        } catch {
            return true
        }
    }

    private mutating func decisionProblem(
        _ block: MetadataBlock, isSealed: Bool
    ) -> String? {
        do throws(CheckpointError) {
            let decision = try SlotSelection.decide(image)
            if isSealed {
                guard Self.isRejected(block.kind, decision) else {
                    return "the damaged block was taken for whole"
                }
            } else if decision.candidates != base.candidates
                || decision.superblockDigest != base.decision.superblockDigest
            {
                return "padding decides what is loaded"
            }
            return numbersProblem(decision) ?? resumeProblem(decision, block, isSealed: isSealed)
        } catch {
            return "I1: one fault, and recovery gives up: \(error)"
        }
    }

    private mutating func change(_ kind: MetadataBlock.Kind, _ offset: Int, _ mask: UInt8) {
        switch kind {
        case .identity(let index): image.identityBlocks[index].bytes?[offset] ^= mask
        case .superblock(let index): image.superblocks[index].bytes?[offset] ^= mask
        case .header(let index): image.slots[index].header?[offset] ^= mask
        case .table(let index): image.slots[index].table?[offset] ^= mask
        // Recovery does not read it.
        case .reserved: break
        }
    }

    private static func isRejected(
        _ kind: MetadataBlock.Kind, _ decision: RecoveryDecision
    ) -> Bool {
        switch kind {
        case .identity(let index):
            (try? decision.identityFindings[index].result.get()) == nil
        case .superblock(let index): decision.superblockFindings[index].superblock == nil
        case .header(let index): decision.slots[index].header == nil
        case .table(let index):
            decision.slots[index].reason == .tableDamaged && decision.slots[index].table == nil
        case .reserved: false
        }
    }

    private func numbersProblem(_ decision: RecoveryDecision) -> String? {
        if decision.highestGeneration != base.decision.highestGeneration {
            return "I3: generation \(decision.highestGeneration), expected "
                + "\(base.decision.highestGeneration)"
        }
        let anchor = base.decision.superblock?.anchor?.sequence ?? .none
        if decision.highestSequence < anchor {
            return "I3: highest sequence \(decision.highestSequence), expected \(anchor)"
        }
        if decision.isFork { return "one fault looks like two writers" }
        return nil
    }

    private mutating func resumeProblem(
        _ decision: RecoveryDecision, _ block: MetadataBlock, isSealed: Bool
    ) -> String? {
        let expected = base.candidates.first { candidate in
            let slot = Int(candidate.slot.rawValue)
            return !isSealed || block.kind != .header(slot) && block.kind != .table(slot)
        }
        if expected?.sequence != base.candidates.first?.sequence { fallbackCount += 1 }
        for candidate in decision.candidates {
            guard let digest = load(candidate) else { continue }
            if digest != base.payloads[candidate.sequence.rawValue] {
                return "I2: the bytes of sequence \(candidate.sequence) are not what was saved"
            }
            return candidate.sequence == expected?.sequence
                ? nil
                : "I1: sequence \(candidate.sequence) loads, expected "
                    + "\(expected?.sequence ?? .none)"
        }
        return "I1: nothing loads, expected \(expected?.sequence ?? .none)"
    }

    /// The payload's digest; what a candidate loads follows from it alone, as no payload changes.
    private mutating func load(_ candidate: Candidate) -> Digest? {
        if let known = loaded.first(where: { $0.candidate == candidate }) { return known.digest }
        let digest = try? read(candidate)
        loaded.append(Loaded(candidate: candidate, digest: digest))
        return digest
    }

    private func read(_ candidate: Candidate) throws(CheckpointError) -> Digest {
        let selected = try reader.select(candidate)
        defer { selected.close() }
        if candidate.kind == .unanchored { try selected.verify() }
        return try ResumeTrial.load(selected)
    }
}
