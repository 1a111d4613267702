internal import CheckpointFormat
internal import CheckpointRecovery

/// The provably safe repairs: what is written is a copy of a block that recovery already follows,
/// over a block that recovery already ignores. So recovery decides the same before, during and
/// after each of them, whenever a crash interrupts it.
enum SafeRepairs {
    static func all(_ image: MetadataImage, _ decision: RecoveryDecision) -> [Repair] {
        identity(image, decision) + superblocks(image, decision)
    }

    /// The chosen copy must be this file's: some other block has to carry its UUID.
    static func hasWitness(_ decision: RecoveryDecision) -> Bool {
        decision.superblock != nil || decision.slots.contains { $0.header != nil }
    }

    private static func identity(
        _ image: MetadataImage, _ decision: RecoveryDecision
    ) -> [Repair] {
        guard hasWitness(decision) else { return [] }
        return identityCopies(image, decision) { report in
            if case .failure = report.result { !report.isUnreadable } else { false }
        }
    }

    /// Those copies of the identity block that `isWanted` accepts, from the one that is used.
    static func identityCopies(
        _ image: MetadataImage, _ decision: RecoveryDecision,
        where isWanted: (IdentityReport) -> Bool
    ) -> [Repair] {
        guard let source = decision.identityFindings.first(where: \.agreesWithChosen),
            let bytes = image.identityBytes(at: source.offset)
        else { return [] }
        return decision.identityFindings.filter(isWanted).compactMap { report in
            guard let old = image.identityBytes(at: report.offset) else { return nil }
            return .copy(
                ProblemCatalogue.identityDamaged, .safe, at: report.offset, from: source.offset,
                old: old, new: bytes)
        }
    }

    private static func superblocks(
        _ image: MetadataImage, _ decision: RecoveryDecision
    ) -> [Repair] {
        decision.superblockFindings.compactMap { report in
            guard case .failure(let error) = report.result, !report.isUnreadable,
                let twin = decision.superblockFindings.first(where: {
                    $0.parity == report.parity && $0.position != report.position
                }), twin.superblock != nil,
                let bytes = image.superblockBytes(at: twin.offset),
                let old = image.superblockBytes(at: report.offset)
            else { return nil }
            let isMisplaced =
                switch error {
                case .foreignFile, .misdirected: true
                default: false
                }
            return .copy(
                isMisplaced
                    ? ProblemCatalogue.superblockMisplaced : ProblemCatalogue.superblockDamaged,
                .safe, at: report.offset, from: twin.offset, old: old, new: bytes)
        }
    }
}

extension MetadataImage {
    func identityBytes(at offset: UInt64) -> [UInt8]? {
        identityBlocks.first { $0.offset == offset }?.bytes
    }

    func superblockBytes(at offset: UInt64) -> [UInt8]? {
        superblocks.first { $0.offset == offset }?.bytes
    }

    func headerBytes(_ slot: SlotIndex) -> [UInt8]? {
        slots.first { $0.slot == slot }?.header
    }

    /// Of every metadata block but the chunk tables and those in `excluded`: whether anything moved
    /// between planning a repair and carrying it out.
    func digest(geometry: Geometry, excluding excluded: Set<UInt64>) -> Digest {
        var blocks = identityBlocks.map { ($0.offset, $0.bytes) }
        blocks += superblocks.map { ($0.offset, $0.bytes) }
        blocks += slots.map { (geometry.headerOffset($0.slot), $0.header) }
        var digests: [UInt8] = []
        for (offset, bytes) in blocks where !excluded.contains(offset) {
            let digest = bytes.map { Digest(of: $0) } ?? .zero
            for number in [offset, digest.low, digest.high] {
                digests += (0..<8).map { UInt8(truncatingIfNeeded: number >> (8 * $0)) }
            }
        }
        return Digest(of: digests)
    }
}
