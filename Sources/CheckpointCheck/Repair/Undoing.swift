public import CheckpointFormat
internal import CheckpointRecovery
public import CheckpointStorage

/// Takes a repair back: restores, byte for byte, what its undo file holds.
///
/// A repair writes the records in order, one block and one flush at a time, and an undo restores
/// them in the opposite order. So whenever either was cut short, the file holds new blocks first,
/// then at most one torn block, then old blocks; what else is found was written by somebody since.
/// A torn block has no valid checksum, while whatever a writer puts there has one.
public struct Undoing: Sendable {
    private enum State: String {
        case old, new, torn, changed
    }

    private let undo: UndoFile

    public init(_ undo: UndoFile) { self.undo = undo }

    /// Restores the blocks on `storage`, which must be open for writing.
    ///
    /// - Returns: how many blocks were restored; 0 when the file is already as it was.
    /// - Throws: `invalidArgument` for another file's undo file; `busy` when the file was changed
    ///   since the repair: nothing was written then. `locked`, `inputOutput` as for a repair.
    public func apply(to storage: any Storage) throws(CheckpointError) -> Int {
        try RepairMedium(storage).whileLocked { medium throws(CheckpointError) in
            let image = try MetadataImage.read(from: storage)
            let decision = try SlotSelection.decide(image)
            try check(decision, storage)
            let pending = try unrestored(decision.identity, medium)
            // A crash here leaves a state that the repair itself could have left.
            for record in pending.reversed() {
                try medium.write(record.oldBytes, at: record.byteOffset)
            }
            let appended = storage.byteCount > undo.fileByteCount ? appendedOffsets : []
            // What the repair appended holds again what the file held there, and zeros.
            try medium.resize(to: undo.fileByteCount)
            return Set(pending.map(\.byteOffset)).union(appended).count
        }
    }

    /// Blocks that did not are in the file, or not wholly, before the repair gave it its size.
    private var appendedOffsets: Set<UInt64> {
        Set(undo.records.map(\.byteOffset).filter { $0 + Geometry.block > undo.fileByteCount })
    }

    private func check(
        _ decision: RecoveryDecision, _ storage: any Storage
    ) throws(CheckpointError) {
        let identity = decision.identity
        // Two identity blocks may differ before a repair, and after its undo.
        let isThisFile = decision.identityFindings.contains {
            (try? $0.result.get())?.fileUUID == undo.fileUUID
        }
        guard isThisFile else {
            throw CheckpointError(
                .invalidArgument,
                "\(storage.path) is file \(identity.fileUUID), but the undo file is of file "
                    + "\(undo.fileUUID); give the undo file of this one")
        }
        let geometry = identity.geometry
        let isExtended =
            !appendedOffsets.isEmpty && storage.byteCount == geometry.fileByteCount
        guard storage.byteCount == undo.fileByteCount || isExtended else {
            throw changed(
                storage, "it has \(storage.byteCount) bytes, expected \(undo.fileByteCount)")
        }
        guard decision.highestGeneration <= undo.highestGeneration else {
            throw changed(
                storage,
                "its newest superblock is of generation \(decision.highestGeneration), expected at "
                    + "most \(undo.highestGeneration)")
        }
        // Metadata only: an undo never reaches into payload, nor behind the file.
        let payload = geometry.dataOffset..<geometry.tailOffset
        for record in undo.records
        where payload.contains(record.byteOffset) || record.byteOffset >= geometry.fileByteCount {
            throw CheckpointError(
                .invalidArgument,
                "the undo file names byte \(record.byteOffset), which is payload or behind the "
                    + "file; it was not made by pcfsck or pccheck rescue",
                byteOffset: record.byteOffset)
        }
    }

    private func changed(_ storage: any Storage, _ what: String) -> CheckpointError {
        CheckpointError(
            .busy,
            "\(storage.path) was changed since the repair: \(what); nothing is restored")
    }

    /// The records whose old bytes are not in the file, in the order of the repair.
    private func unrestored(
        _ identity: IdentityBlock, _ medium: RepairMedium
    ) throws(CheckpointError) -> [UndoFile.Record] {
        var pending: [UndoFile.Record] = []
        var last = State.new
        for record in undo.records {
            let state = state(of: record, try medium.read(record.byteOffset), identity)
            let isExpected = state == .old || (last == .new && state != .changed)
            guard isExpected else {
                throw changed(
                    medium.storage,
                    "the block at byte \(record.byteOffset) is neither the old one nor the one "
                        + "that the repair wrote")
            }
            if state != .old { pending.append(record) }
            last = state
        }
        return pending
    }

    private func state(
        of record: UndoFile.Record, _ bytes: [UInt8], _ identity: IdentityBlock
    ) -> State {
        if bytes == record.oldBytes { return .old }
        if Digest(of: bytes) == record.newDigest { return .new }
        // The record of a superblock ends before its block does: what is torn behind it may leave
        // an intact one, of before the repair or of the repair.
        let used = Array(bytes[..<Superblock.recordByteCount])
        let rest = [UInt8](repeating: 0, count: bytes.count - used.count)
        if record.oldBytes.starts(with: used) || Digest(of: used + rest) == record.newDigest {
            return .torn
        }
        return Self.isSealed(bytes, identity) ? .changed : .torn
    }

    /// The block is a intact one of any kind.
    private static func isSealed(_ bytes: [UInt8], _ identity: IdentityBlock) -> Bool {
        if (try? IdentityBlock(decoding: bytes)) != nil { return true }
        let superblock = try? Superblock(
            decoding: bytes, fileUUID: identity.fileUUID,
            slotCount: identity.geometry.slotCount)
        if superblock != nil { return true }
        return identity.geometry.slots.contains {
            (try? SlotHeader(decoding: bytes, slot: $0, identity: identity)) != nil
        }
    }
}
