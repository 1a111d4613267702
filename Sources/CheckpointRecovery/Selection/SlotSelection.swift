public import CheckpointFormat

/// Recovery's decision: which checkpoints can be tried, in which order, and why not the others.
///
/// Pure: bytes in, decision out. The rules, each with its crash state, are in spec/RECOVERY.md.
///
/// Invariants:
/// - every slot is reported, whatever is in it;
/// - candidates are ordered by sequence, newest first, because *newest* means begun last: the step
///   goes back when a user goes back;
/// - a slot in state `writing` is never a candidate;
/// - the highest sequence covers everything seen, so that no number is given twice.
public enum SlotSelection {
    /// Judges `image`.
    ///
    /// A file that lost only its end is judged like any other: `hasLostEnd` reports it,
    /// and a caller that writes to it asks for that first.
    ///
    /// - Parameter allowsTruncation: decode what is left of a truncated file instead of refusing
    ///   it; for tools that show wrecks.
    /// - Throws: `notACheckpointFile`, `unsupported` or `corrupt` when no identity block is
    ///   usable; `notACheckpointFile` for a truncated file, whose slots are not all there.
    public static func decide(
        _ image: MetadataImage, allowsTruncation: Bool = false
    ) throws(CheckpointError) -> RecoveryDecision {
        let (identity, identityFindings) = try IdentitySelection.choose(image)
        let geometry = identity.geometry
        let end = FileEnd(image.fileByteCount, geometry)
        if end == .truncated && !allowsTruncation {
            throw CheckpointError(
                .notACheckpointFile,
                "the file is truncated: it has \(image.fileByteCount) bytes, expected "
                    + "\(geometry.fileByteCount); copy it again, or let pcinspect show what is "
                    + "left",
                byteOffset: image.fileByteCount)
        }
        let slots = image.slots.map { DecodedSlot($0, identity: identity) }
        let superblocks = image.superblocks.map {
            judge($0, identity: identity, slots: slots)
        }
        let whole = newestFirst(superblocks)
        let keeper = KeptSlots(whole.first?.superblock)
        let reports = slots.map { $0.report(keeper, geometry: geometry) }
        return RecoveryDecision(
            identity: identity,
            identityFindings: identityFindings,
            superblockFindings: superblocks,
            superblock: whole.first?.superblock,
            superblockDigest: whole.first?.digest,
            isFork: isFork(whole),
            slots: reports,
            candidates: candidates(reports, geometry: geometry),
            highestSequence: highestSequence(whole, slots: slots, identity: identity),
            highestGeneration: whole.first?.superblock?.generation ?? Generation(rawValue: 0),
            end: end, fileByteCount: image.fileByteCount)
    }

    /// How much speaks for a copy among those of its generation. One whose checkpoint is there was
    /// written after it. One whose checkpoint is not there still says that one was acknowledged.
    /// One that names nothing vouches for nothing.
    private static func weight(_ report: SuperblockReport) -> Int {
        switch report.target {
        case .matches: 2
        case .differs: 1
        case .nothing, nil: 0
        }
    }

    /// Decodes one superblock copy and compares its anchor with the slot that it names.
    private static func judge(
        _ copy: MetadataImage.SuperblockCopy, identity: IdentityBlock, slots: [DecodedSlot]
    ) -> SuperblockReport {
        let result = Result { () throws(FormatError) -> Superblock in
            guard let bytes = copy.bytes else {
                throw .truncated(found: 0, expected: UInt64(Superblock.recordByteCount))
            }
            let superblock = try Superblock(
                decoding: bytes, fileUUID: identity.fileUUID,
                slotCount: identity.geometry.slotCount)
            guard superblock.generation.parity == copy.parity else {
                let offsets = identity.geometry.superblockOffsets(
                    parity: superblock.generation.parity)
                throw .misdirected(
                    foundOffset: offsets[copy.position == .head ? 0 : 1],
                    expectedOffset: copy.offset)
            }
            return superblock
        }
        let superblock = try? result.get()
        return SuperblockReport(
            position: copy.position, parity: copy.parity, offset: copy.offset, result: result,
            digest: superblock == nil ? nil : copy.bytes.map(Superblock.digest),
            isUnreadable: copy.bytes == nil,
            target: superblock.map { target(of: $0, slots: slots) })
    }

    private static func target(
        of superblock: Superblock, slots: [DecodedSlot]
    ) -> SuperblockReport.Target {
        guard let anchor = superblock.anchor else { return .nothing }
        let slot = slots.first { $0.slot == anchor.slot }
        return slot?.matches(anchor) == true ? .matches : .differs(found: slot?.header?.sequence)
    }

    /// Whole superblocks: highest generation first; within one, by `weight`. The sort is stable, so
    /// that the head comes before the tail.
    private static func newestFirst(_ reports: [SuperblockReport]) -> [SuperblockReport] {
        let whole = reports.compactMap { report in
            report.superblock.map { (report: report, rank: ($0.generation, weight(report))) }
        }
        return whole.sorted { $0.rank > $1.rank }.map(\.report)
    }

    private static func isFork(_ whole: [SuperblockReport]) -> Bool {
        zip(whole, whole.dropFirst()).contains { first, second in
            first.superblock?.generation == second.superblock?.generation
                && first.digest != second.digest
        }
    }

    private static func candidates(
        _ reports: [SlotReport], geometry: Geometry
    ) -> [Candidate] {
        let found = reports.compactMap { report -> Candidate? in
            guard let kind = kind(of: report.reason), let header = report.header,
                let digest = report.headerDigest, let table = report.table
            else { return nil }
            return Candidate(
                slot: report.slot, header: header, headerDigest: digest, table: table, kind: kind,
                geometry: geometry)
        }
        // Equal sequences are damage; the one that an anchor vouches for goes first.
        let order: [Candidate.Kind] = [.anchored, .retained, .unanchored, .older]
        func rank(_ candidate: Candidate) -> Int {
            order.firstIndex(of: candidate.kind) ?? order.count
        }
        return found.sorted {
            ($1.sequence, rank($0), $0.slot) < ($0.sequence, rank($1), $1.slot)
        }
    }

    private static func kind(of reason: SlotReason) -> Candidate.Kind? {
        switch reason {
        case .anchored: .anchored
        case .retained: .retained
        case .unanchored: .unanchored
        case .older, .stale: .older
        case .empty, .writing, .blank, .headerDamaged, .tableDamaged, .foreign, .misdirected,
            .unreadable, .payloadDamaged:
            nil
        }
    }

    /// A damaged header's sequence counts when it is at most this far above every sound one: a
    /// torn header gives a believable number, rot would burn the number space.
    static let believableSequenceDistance: UInt64 = 1 << 20

    private static func highestSequence(
        _ superblocks: [SuperblockReport], slots: [DecodedSlot], identity: IdentityBlock
    ) -> SequenceNumber {
        var highest = SequenceNumber.none
        for superblock in superblocks.compactMap(\.superblock) {
            highest = max(highest, superblock.anchor?.sequence ?? .none)
            for entry in superblock.retained { highest = max(highest, entry.sequence) }
        }
        for slot in slots { highest = max(highest, slot.header?.sequence ?? .none) }
        let (limit, overflow) = highest.rawValue.addingReportingOverflow(
            believableSequenceDistance)
        let believable = slots.compactMap { $0.tornSequence(identity) }
            .filter { $0.rawValue <= (overflow ? .max : limit) }
        return max(highest, believable.max() ?? .none)
    }
}

/// What the newest intact superblock records must be kept.
///
/// An older one is no authority: what it anchored may have been released since, and overwritten
/// by chunks whose `writing` header did not reach the medium. Such a checkpoint is a candidate all
/// the same, but one that is verified before it is trusted.
struct KeptSlots {
    let anchor: Anchor?
    let retained: [SlotIndex: SequenceNumber]

    init(_ newest: Superblock?) {
        anchor = newest?.anchor
        retained = Dictionary(
            (newest?.retained ?? []).map { ($0.slot, $0.sequence) },
            uniquingKeysWith: { first, _ in first })
    }
}

/// The blocks of a slot, decoded as far as they go.
struct DecodedSlot {
    let slot: SlotIndex
    private let headerBytes: [UInt8]?
    private let decodedHeader: Result<SlotHeader, FormatError>
    private let headerDigest: Digest?
    private let table: Result<ChunkTable, FormatError>?
    private let isInHand: Bool

    var header: SlotHeader? { try? decodedHeader.get() }

    init(_ blocks: MetadataImage.SlotBlocks, identity: IdentityBlock) {
        slot = blocks.slot
        isInHand = blocks.isInHand
        headerBytes = blocks.header
        decodedHeader = Result { () throws(FormatError) -> SlotHeader in
            guard let bytes = blocks.header else {
                throw .truncated(found: 0, expected: UInt64(Limits.blockByteCount))
            }
            return try SlotHeader(decoding: bytes, slot: blocks.slot, identity: identity)
        }
        guard let header = try? decodedHeader.get(), let bytes = blocks.header else {
            headerDigest = nil
            table = nil
            return
        }
        headerDigest = Digest(of: bytes, 0..<SlotHeader.Layout.checksum.offset)
        guard header.state == .complete else {
            table = nil
            return
        }
        table =
            blocks.decodedTable
            ?? Result { () throws(FormatError) -> ChunkTable in
                guard let bytes = blocks.table else {
                    throw .truncated(found: 0, expected: UInt64(header.tableByteCount))
                }
                return try ChunkTable(decoding: bytes, header: header, geometry: identity.geometry)
            }
    }

    /// The header is complete and the one that `anchor` was written for.
    func matches(_ anchor: Anchor) -> Bool {
        header?.state == .complete && header?.sequence == anchor.sequence
            && headerDigest == anchor.headerDigest
    }

    /// The sequence in a damaged header, when the fields around it are those of this slot.
    func tornSequence(_ identity: IdentityBlock) -> SequenceNumber? {
        guard case .failure = decodedHeader, let bytes = headerBytes,
            bytes.count >= Limits.blockByteCount
        else { return nil }
        let expected = SlotHeader(
            emptySlot: slot, fileUUID: identity.fileUUID, geometry: identity.geometry
        ).encoded().bytes
        typealias Layout = SlotHeader.Layout
        // Magic, UUID, own offset and slot index lie before the state.
        guard bytes[..<Layout.state.offset] == expected[..<Layout.state.offset] else {
            return nil
        }
        return SequenceNumber(
            rawValue: bytes[Layout.sequence.range].reversed().reduce(0) { $0 << 8 | UInt64($1) })
    }

    func report(_ keeper: KeptSlots, geometry: Geometry) -> SlotReport {
        let (reason, detail) = judge(keeper)
        return SlotReport(
            slot: slot, headerOffset: geometry.headerOffset(slot), header: header,
            headerDigest: headerDigest, table: table.flatMap { try? $0.get() }, reason: reason,
            detail: detail)
    }

    private func judge(_ keeper: KeptSlots) -> (SlotReason, FormatError?) {
        let header: SlotHeader
        switch decodedHeader {
        case .success(let decoded): header = decoded
        case .failure(let error): return (headerReason(error), error)
        }
        switch header.state {
        case .empty: return (.empty, nil)
        case .writing: return (.writing, nil)
        case .complete: break
        }
        let reason = completeReason(header, keeper)
        // Its writer waits for a flush: it is not durable, and nothing is lost without it.
        if isInHand && reason == .unanchored { return (.writing, nil) }
        if case .failure(let error) = table { return (.tableDamaged, error) }
        return (reason, nil)
    }

    private func headerReason(_ error: FormatError) -> SlotReason {
        switch error {
        case .blank: .blank
        case .foreignFile: .foreign
        case .misdirected, .wrongSlot: .misdirected
        default: headerBytes == nil ? .unreadable : .headerDamaged
        }
    }

    private func completeReason(_ header: SlotHeader, _ keeper: KeptSlots) -> SlotReason {
        guard let anchor = keeper.anchor else { return .unanchored }
        if anchor.slot == slot && matches(anchor) { return .anchored }
        if header.sequence > anchor.sequence { return .unanchored }
        if anchor.slot == slot { return .stale }
        guard let kept = keeper.retained[slot] else { return .older }
        return kept == header.sequence ? .retained : .stale
    }
}
