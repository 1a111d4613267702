internal import CheckpointFormat
internal import CheckpointRecovery

extension BlockAnnotation {
    // MARK: Slot header

    func header(_ judge: FieldJudge, _ slot: SlotIndex) -> [AnnotatedField] {
        typealias Layout = SlotHeader.Layout
        let geometry = file.identity?.geometry
        let block = judge.block
        return judge.all(Layout.all) { field in
            switch field {
            case Layout.magic: judge.magic(field, SlotHeader.magic)
            case Layout.fileUUID: judge.identifier(field, equals: file.identity?.fileUUID)
            case Layout.ownOffset: judge.number(field, equals: geometry?.headerOffset(slot))
            case Layout.slotIndex: judge.number(field, equals: UInt64(slot.rawValue))
            case Layout.state: judge.name(field, names(SlotState.allCases))
            case Layout.sequence:
                judge.judged(
                    field, block.integer(field),
                    (block.integer(field) == 0) == (block.integer(Layout.state) == 0),
                    expected: "0 exactly in an empty slot")
            case Layout.step: judge.number(field, in: 0...Limits.stepMaximum)
            case Layout.attempt: judge.number(field, in: 0...Limits.attemptMaximum)
            case Layout.beganTime, Layout.completedTime: judge.time(field)
            case Layout.payloadByteCount:
                geometry.map { judge.number(field, in: 0...$0.slotByteCount) }
                    ?? judge.number(field)
            case Layout.storedByteCount, Layout.manifestByteCount:
                judge.number(field, in: 0...block.integer(Layout.payloadByteCount))
            case Layout.chunkCount: chunkCount(judge, field)
            case Layout.codec:
                judge.name(
                    field,
                    Dictionary(
                        uniqueKeysWithValues: Codec.allCases.map { (UInt64($0.rawValue), $0.label) }
                    ))
            case Layout.payloadKind: judge.name(field, names(PayloadKind.allCases))
            case Layout.chunkTableDigest: tableDigest(judge, field, slot)
            case Layout.logicalDigest: judge.digest(field)
            case Layout.userMetadataByteCount:
                judge.number(field, in: 0...UInt64(Limits.userMetadataByteCount))
            case Layout.userMetadata:
                judge.text(field, count: block.integer(Layout.userMetadataByteCount))
            case Layout.checksum: judge.checksum(field)
            default: judge.number(field)
            }
        }
    }

    private func names<Value: RawRepresentable<UInt32>>(_ values: [Value]) -> [UInt64: String] {
        Dictionary(uniqueKeysWithValues: values.map { (UInt64($0.rawValue), "\($0)") })
    }

    private func chunkCount(_ judge: FieldJudge, _ field: LayoutField) -> AnnotatedField {
        typealias Layout = SlotHeader.Layout
        let size = judge.block.integer(Layout.chunkByteCount)
        let payload = judge.block.integer(Layout.payloadByteCount)
        if size == 0 { return judge.number(field) }
        return judge.number(field, equals: payload / size + (payload % size == 0 ? 0 : 1))
    }

    /// The digest of the table behind the header; only a complete slot has one that counts.
    private func tableDigest(
        _ judge: FieldJudge, _ field: LayoutField, _ slot: SlotIndex
    ) -> AnnotatedField {
        guard judge.block.integer(SlotHeader.Layout.state) == UInt64(SlotState.complete.rawValue),
            let computed = computedTableDigest(judge.block, slot)
        else { return judge.digest(field) }
        return judge.digest(field, equals: computed, of: "the chunk table")
    }

    /// The digest of as many entries as the header `block` says, intact or not.
    func computedTableDigest(_ block: RawBlock, _ slot: SlotIndex) -> Digest? {
        guard let geometry = file.identity?.geometry else { return nil }
        let count = block.integer(SlotHeader.Layout.chunkCount)
        guard count <= UInt64(geometry.chunkCapacity) else { return nil }
        let size = Int(count) * ChunkEntry.Layout.byteCount
        if let table = file.image.slots.first(where: { $0.slot == slot })?.table,
            table.count >= size
        {
            return Digest(of: table, 0..<size)
        }
        guard let bytes = try? file.bytes(at: geometry.tableOffset(slot), count: size),
            bytes.count == size
        else { return nil }
        return Digest(of: bytes)
    }

    // MARK: Chunk table

    /// The fields of entry `index` of a table. Their offsets are those in the entry.
    func entry(_ block: RawBlock, _ slot: SlotIndex, _ index: Int) -> [AnnotatedField] {
        typealias Layout = ChunkEntry.Layout
        let judge = FieldJudge(block: block)
        let header = file.header(slot)
        let stride = file.identity?.geometry.dataStride ?? .max
        return judge.all(Layout.all) { field in
            switch field {
            case Layout.storedOffset:
                let found = block.integer(field)
                let count = block.integer(Layout.storedByteCount)
                return judge.judged(
                    field, found,
                    found % Geometry.block == 0 && found <= stride && count <= stride - found,
                    expected: "a multiple of 4096 that keeps the chunk inside the slot")
            case Layout.storedByteCount: return storedByteCount(judge, field)
            case Layout.rawByteCount:
                return judge.number(field, equals: rawByteCount(header, index))
            case Layout.codec:
                let names = Codec.allCases.map { (UInt64($0.rawValue), $0.label) }
                return judge.name(field, Dictionary(uniqueKeysWithValues: names))
            case Layout.planeWidth:
                let hasPlanes = block.integer(Layout.codec) == UInt64(Codec.planesZstd.rawValue)
                let found = block.integer(field)
                return judge.judged(
                    field, found, hasPlanes ? [2, 4, 8].contains(found) : found == 1,
                    expected: hasPlanes ? "2, 4 or 8" : "1")
            default: return judge.digest(field)
            }
        }
    }

    private func storedByteCount(_ judge: FieldJudge, _ field: LayoutField) -> AnnotatedField {
        typealias Layout = ChunkEntry.Layout
        let (found, raw) = (judge.block.integer(field), judge.block.integer(Layout.rawByteCount))
        if judge.block.integer(Layout.codec) == UInt64(Codec.none.rawValue) {
            return judge.number(field, equals: raw)
        }
        return judge.judged(
            field, found, found > 0 && found < raw, expected: "1 or more, and below \(raw)")
    }

    private func rawByteCount(_ header: SlotHeader?, _ index: Int) -> UInt64? {
        guard let header, index < header.chunkCount else { return nil }
        return UInt64(
            ChunkEntry.rawByteCount(
                index: index, payloadByteCount: header.payloadByteCount,
                chunkByteCount: header.chunkByteCount))
    }

    /// The entry of a chunk, whose digest is compared with that of the stored bytes.
    func chunk(
        _ slot: SlotIndex, _ index: Int, stored bytes: [UInt8]
    ) throws(CheckpointError) -> [AnnotatedField] {
        let block = try file.entry(slot, index)
        let judge = FieldJudge(block: block)
        // Safe: the array outlives the closure.
        let computed = unsafe bytes.withUnsafeBytes { buffer in
            // Safe: as above.
            TreeDigest.of(unsafe RawSpan(_unsafeBytes: buffer))
        }
        return entry(block, slot, index).map { annotated in
            annotated.field == ChunkEntry.Layout.digest
                ? judge.digest(annotated.field, equals: computed, of: "the stored bytes")
                : annotated
        }
    }
}
