internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

/// A file of which nothing need be intact: what can be said of its bytes all the same.
struct WreckedFile {
    let path: String
    let storage: FileStorage
    let image: MetadataImage
    /// nil when no identity block can be decoded.
    let decision: RecoveryDecision?
    /// Why there is no decision.
    let failure: CheckpointError?

    /// Reads through the page cache, so that a file may end anywhere, not only on a block.
    init(path: String) throws(CheckpointError) {
        self.path = path
        storage = try .opened(path, .read, mode: .buffered)
        image = try MetadataImage.readSettled(from: storage)
        do throws(CheckpointError) {
            decision = try SlotSelection.decide(image, allowsTruncation: true)
            failure = nil
        } catch {
            decision = nil
            failure = error
        }
    }

    var byteCount: UInt64 { storage.byteCount }
    var identity: IdentityBlock? { decision?.identity }

    /// The end of the last whole block: where the tail of a file without identity would lie.
    private var end: UInt64 {
        identity?.geometry.fileByteCount ?? byteCount / Geometry.block * Geometry.block
    }

    /// Where `block` lies, and how long it is; beyond the file's end in a truncated one.
    func place(_ block: FileBlock) throws(CheckpointError) -> (offset: UInt64, byteCount: UInt64) {
        let size = Geometry.block
        switch block {
        case .identity(.head): return (0, size)
        case .identity(.tail): return (try tail(1, block), size)
        case .superblock(.head, let parity): return (size + UInt64(parity) * size, size)
        case .superblock(.tail, let parity):
            return (try tail(parity == 0 ? 3 : 2, block), size)
        case .reserved: return (3 * size, size)
        case .header(let slot):
            // The first slot's header has the same place in every file.
            if identity == nil, slot.rawValue == 0 { return (Geometry.headByteCount, size) }
            return (try geometry(slot, block).headerOffset(slot), size)
        case .table(let slot):
            let geometry = try geometry(slot, block)
            let room = UInt64(geometry.tableCapacityByteCount)
            let used = header(slot).map { UInt64($0.tableByteCount) } ?? 0
            return (geometry.tableOffset(slot), used > 0 ? min(used, room) : min(size, room))
        case .chunk(let slot, let chunk):
            let geometry = try geometry(slot, block)
            let entry = try entry(slot, chunk)
            let stored = entry.integer(ChunkEntry.Layout.storedOffset)
            let (offset, overflow) = geometry.slotDataOffset(slot)
                .addingReportingOverflow(stored)
            guard !overflow, offset < byteCount else {
                throw CheckpointError(
                    .corrupt,
                    "\(path): chunk \(chunk) of slot \(slot) should be \(stored) bytes into the "
                        + "slot's data, which is behind the file's end at byte \(byteCount); "
                        + "look at its entry with: pcinspect hexdump --annotate FILE table "
                        + "\(slot)", slot: slot)
            }
            return (offset, entry.integer(ChunkEntry.Layout.storedByteCount))
        }
    }

    /// Its size in words.
    var size: String { byteCount == 1 ? "1 byte" : "\(byteCount) bytes" }

    private func tail(_ blockCount: UInt64, _ block: FileBlock) throws(CheckpointError) -> UInt64 {
        let distance = blockCount * Geometry.block
        guard end >= distance else {
            throw CheckpointError(
                .notACheckpointFile,
                "\(path): the file has \(size), so that there is no \(block.name); "
                    + "show any bytes with --offset and --length")
        }
        return end - distance
    }

    private func geometry(
        _ slot: SlotIndex, _ block: FileBlock
    ) throws(CheckpointError) -> Geometry {
        guard let geometry = identity?.geometry else {
            let why = failure.map { ": \($0.message)" } ?? ""
            throw CheckpointError(
                .corrupt,
                "\(path): only an identity block records where \(block.name) is, and neither copy "
                    + "can be decoded\(why); show any bytes with --offset and --length",
                slot: slot)
        }
        guard Int(slot.rawValue) < geometry.slotCount else {
            throw CheckpointError(
                .invalidArgument,
                "\(path): there is no slot \(slot); slots are 0 to \(geometry.slotCount - 1)")
        }
        return geometry
    }

    /// The block that the bytes at `offset` say that they are, wherever they lie.
    func recognized(at offset: UInt64) throws(CheckpointError) -> FileBlock? {
        let block = RawBlock(try bytes(at: offset, count: Limits.blockByteCount))
        if block.bytes.starts(with: IdentityBlock.magic) { return .identity(.head) }
        if block.bytes.starts(with: Superblock.magic) {
            let generation = block.integer(Superblock.Layout.generation)
            return .superblock(.head, parity: Int(generation & 1))
        }
        guard block.bytes.starts(with: SlotHeader.magic) else { return nil }
        let slot = block.integer(SlotHeader.Layout.slotIndex)
        return .header(SlotIndex(rawValue: UInt32(truncatingIfNeeded: slot)))
    }

    /// The slot's header, when it can be decoded.
    func header(_ slot: SlotIndex) -> SlotHeader? {
        decision?.slots.first { $0.slot == slot }?.header
    }

    /// The header block as it is.
    func headerBytes(_ slot: SlotIndex) -> [UInt8]? {
        image.slots.first { $0.slot == slot }?.header
    }

    /// The table entry of a chunk as it is, whether or not the table is intact.
    func entry(_ slot: SlotIndex, _ chunk: Int) throws(CheckpointError) -> RawBlock {
        let geometry = try geometry(slot, .table(slot))
        let size = ChunkEntry.Layout.byteCount
        let count = header(slot)?.chunkCount ?? geometry.chunkCapacity
        guard chunk < count else {
            throw CheckpointError(
                .invalidArgument,
                "\(path): slot \(slot) has no chunk \(chunk); "
                    + (count == 0 ? "it has none" : "its chunks are 0 to \(count - 1)"),
                slot: slot)
        }
        let offset = geometry.tableOffset(slot) + UInt64(chunk * size)
        return RawBlock(try bytes(at: offset, count: size))
    }

    /// The bytes of [offset, offset + count) that lie inside the file.
    ///
    /// - Throws: `inputOutput` when the medium fails, or the file became shorter meanwhile.
    func bytes(at offset: UInt64, count: Int) throws(CheckpointError) -> [UInt8] {
        let inside = Int(min(UInt64(count), byteCount - min(byteCount, offset)))
        if inside == 0 { return [] }
        let buffer = AlignedBuffer(byteCount: inside)
        try withCheckpointErrors { () throws(StorageError) in
            try storage.read(into: buffer, 0..<inside, at: offset)
        }
        return buffer.array(0..<inside)
    }

    /// In words, what is at `offset`.
    func region(at offset: UInt64) -> String {
        if offset >= byteCount { return "behind the end of the file" }
        guard let geometry = identity?.geometry else {
            return "no identity block can be decoded, so that nothing is known of this place"
        }
        let named = Self.fixedBlocks.first {
            (try? place($0)).map { $0.offset <= offset && offset < $0.offset + $0.byteCount }
                ?? false
        }
        if let named { return "\(named.name), +\(offset - ((try? place(named).offset) ?? 0))" }
        let metadataEnd =
            geometry.metadataOffset + UInt64(geometry.slotCount) * geometry.metadataStride
        if geometry.metadataOffset <= offset, offset < metadataEnd {
            let inside = offset - geometry.metadataOffset
            let slot = inside / geometry.metadataStride
            let position = inside % geometry.metadataStride
            return position < Geometry.block
                ? "slot \(slot), +\(position)" : "table \(slot), +\(position - Geometry.block)"
        }
        let dataEnd = geometry.dataOffset + UInt64(geometry.slotCount) * geometry.dataStride
        guard geometry.dataOffset <= offset, offset < dataEnd else {
            return "between regions: bytes without a meaning"
        }
        let inside = offset - geometry.dataOffset
        let slot = SlotIndex(Int(inside / geometry.dataStride))
        return data(slot, at: inside % geometry.dataStride)
    }

    private static let fixedBlocks: [FileBlock] =
        [.identity(.head), .identity(.tail), .reserved] + FileBlock.superblocks

    private func data(_ slot: SlotIndex, at position: UInt64) -> String {
        let table = decision?.slots.first { $0.slot == slot }?.table
        let chunk = table?.entries.firstIndex {
            $0.storedOffset <= position
                && position < $0.storedOffset + UInt64($0.storedByteCount)
        }
        guard let table, let chunk else { return "the data of slot \(slot), +\(position)" }
        let offset = position - table.entries[chunk].storedOffset
        return "chunk \(slot) \(chunk), +\(offset) (the data of slot \(slot), +\(position))"
    }
}
