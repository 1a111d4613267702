internal import CheckpointFormat
internal import CheckpointRecovery

/// Names the fields of the blocks of a file, by the layout tables of the format.
struct BlockAnnotation {
    let file: WreckedFile

    /// The fields of `block`, whose bytes are `bytes`; empty for a block without fields.
    func fields(_ block: FileBlock, _ bytes: [UInt8]) -> [AnnotatedField] {
        let judge = FieldJudge(block: RawBlock(bytes))
        switch block {
        case .identity(let position): return identity(judge, position)
        case .superblock(_, let parity): return superblock(judge, parity: parity)
        case .reserved:
            return judge.all([LayoutField("reserved_0", 0, Limits.blockByteCount)]) {
                judge.bytes($0)
            }
        case .header(let slot): return header(judge, slot)
        case .table, .chunk: return []
        }
    }

    // MARK: Identity

    private func identity(_ judge: FieldJudge, _ position: Position) -> [AnnotatedField] {
        typealias Layout = IdentityBlock.Layout
        let block = judge.block
        let geometry = try? Geometry(
            capacity: block.integer(Layout.slotByteCount),
            inFlight: Int(block.integer(Layout.inFlightCount)),
            retain: Int(block.integer(Layout.retainCount)),
            chunkByteCount: Int(block.integer(Layout.chunkByteCount)))
        func range(_ range: ClosedRange<Int>) -> ClosedRange<UInt64> {
            UInt64(range.lowerBound)...UInt64(range.upperBound)
        }
        return judge.all(Layout.all) { field in
            switch field {
            case Layout.magic: judge.magic(field, IdentityBlock.magic)
            case Layout.versionMajor:
                judge.number(field, equals: UInt64(FormatVersion.current.major))
            case Layout.blockByteCount: judge.number(field, equals: Geometry.block)
            case Layout.featuresCompatible: features(judge, field, FeatureMasks.known.compatible)
            case Layout.featuresReadOnly:
                features(judge, field, FeatureMasks.known.readOnlyCompatible)
            case Layout.featuresIncompatible:
                features(judge, field, FeatureMasks.known.incompatible)
            case Layout.fileUUID:
                judge.identifier(field, equals: file.identity?.fileUUID)
            case Layout.slotCount:
                judge.number(
                    field,
                    equals: block.integer(Layout.inFlightCount)
                        &+ block.integer(Layout.retainCount))
            case Layout.inFlightCount: judge.number(field, in: range(Limits.inFlightCount))
            case Layout.retainCount: judge.number(field, in: range(Limits.retainCount))
            case Layout.chunkByteCount: judge.number(field, in: range(Limits.chunkByteCount))
            case Layout.chunkCapacity:
                judge.number(field, equals: geometry.map { UInt64($0.chunkCapacity) })
            case Layout.metadataOffset: judge.number(field, equals: Geometry.headByteCount)
            case Layout.metadataStride: judge.number(field, equals: geometry?.metadataStride)
            case Layout.dataOffset: judge.number(field, equals: geometry?.dataOffset)
            case Layout.dataStride: judge.number(field, equals: geometry?.dataStride)
            case Layout.slotByteCount: judge.number(field, in: Limits.slotByteCount)
            default: identityFact(judge, field)
            }
        }
    }

    private func identityFact(_ judge: FieldJudge, _ field: LayoutField) -> AnnotatedField {
        typealias Layout = IdentityBlock.Layout
        let block = judge.block
        switch field {
        case Layout.fileByteCount:
            let found = block.integer(field)
            return judge.judged(
                field, found, found <= file.byteCount,
                expected: "at most \(file.byteCount), which is what the file has")
        case Layout.createdTime: return judge.time(field)
        case Layout.rank:
            let worldSize = block.integer(Layout.worldSize)
            let found = block.integer(field)
            return judge.judged(
                field, found, found < worldSize, expected: "below the world size \(worldSize)")
        case Layout.creator: return judge.text(field)
        case Layout.fingerprintByteCount:
            return judge.number(field, in: 0...UInt64(Limits.fingerprintByteCount))
        case Layout.fingerprint:
            return judge.text(field, count: block.integer(Layout.fingerprintByteCount))
        case Layout.runUUID: return judge.identifier(field, equals: nil)
        case Layout.checksum: return judge.checksum(field)
        default: return judge.number(field)
        }
    }

    private func features(
        _ judge: FieldJudge, _ field: LayoutField, _ known: UInt64
    ) -> AnnotatedField {
        let found = judge.block.integer(field)
        return judge.judged(
            field, "0x\(String(found, radix: 16))", found & ~known == 0,
            expected: "no bit that this version does not know")
    }

    // MARK: Superblock

    private func superblock(_ judge: FieldJudge, parity: Int) -> [AnnotatedField] {
        typealias Layout = Superblock.Layout
        let block = judge.block
        return judge.all(Layout.all) { field in
            switch field {
            case Layout.magic: return judge.magic(field, Superblock.magic)
            case Layout.fileUUID: return judge.identifier(field, equals: file.identity?.fileUUID)
            case Layout.generation:
                let found = block.integer(field)
                let isInPlace = found > 0 && Int(found & 1) == parity
                return judge.judged(
                    field, found, isInPlace,
                    expected: "an \(parity == 0 ? "even" : "odd") number at this place")
            case Layout.slotIndex: return slotIndex(judge, field)
            case Layout.flags:
                return judge.name(field, [0: "not closed", 1: "closed with nothing in flight"])
            case Layout.slotHeaderDigest: return anchor(judge, field)
            case Layout.parentDigest: return parent(judge, field)
            case Layout.watermarkStep:
                let found = block.integer(field)
                return judge.plain(field, found == .max ? "unknown" : "\(found)")
            case Layout.attempt: return judge.number(field, in: 0...Limits.attemptMaximum)
            case Layout.commitTime: return judge.time(field)
            case Layout.writerBootID: return judge.identifier(field, equals: nil)
            case Layout.storageKind:
                let kinds = StorageKind.allCases.map { (UInt64($0.rawValue), $0.name) }
                return judge.name(field, Dictionary(uniqueKeysWithValues: kinds))
            case Layout.retainedCount:
                return judge.number(field, in: 0...UInt64(Superblock.retainedCapacity))
            case Layout.retainedSlots: return retained(judge, field)
            case Layout.sequenceLimit:
                let (found, newest) = (block.integer(field), block.integer(Layout.sequence))
                return judge.judged(
                    field, found, found == 0 || found > newest,
                    expected: "0, or above the sequence \(newest)")
            case Layout.checksum: return judge.checksum(field)
            default: return judge.number(field)
            }
        }
    }

    private func slotIndex(_ judge: FieldJudge, _ field: LayoutField) -> AnnotatedField {
        let found = judge.block.integer(field)
        if judge.block.integer(Superblock.Layout.sequence) == 0 {
            let none = UInt64(SlotIndex.none.rawValue)
            return judge.judged(
                field, found == none ? "none" : "\(found)", found == none,
                expected: "none, as sequence is 0")
        }
        guard let count = file.identity?.geometry.slotCount else { return judge.number(field) }
        return judge.judged(field, found, found < UInt64(count), expected: "below \(count)")
    }

    /// The digest of the header that the superblock names. Older superblocks name headers that may
    /// have been overwritten since.
    private func anchor(_ judge: FieldJudge, _ field: LayoutField) -> AnnotatedField {
        typealias Layout = Superblock.Layout
        let block = judge.block
        let slot = SlotIndex(rawValue: UInt32(truncatingIfNeeded: block.integer(Layout.slotIndex)))
        guard block.integer(Layout.sequence) != 0, let bytes = file.headerBytes(slot) else {
            return judge.digest(field)
        }
        let found = RawBlock(bytes).computedDigest(before: SlotHeader.Layout.checksum)
        let isNewest = file.decision?.superblockDigest == block.digest(Layout.checksum)
        if isNewest || found == block.digest(field) {
            return judge.digest(field, equals: found, of: "the header of slot \(slot)")
        }
        return judge.plain(
            field, block.digest(field),
            note: "slot \(slot) has another header by now, as an older superblock may find")
    }

    private func parent(_ judge: FieldJudge, _ field: LayoutField) -> AnnotatedField {
        let generation = judge.block.integer(Superblock.Layout.generation)
        let parents = file.decision?.superblockFindings.filter {
            generation > 0 && $0.superblock?.generation.rawValue == generation - 1
        }
        if generation == 1 { return judge.digest(field, equals: .zero, of: "nothing") }
        guard let parent = parents?.first?.digest else { return judge.digest(field) }
        return judge.digest(field, equals: parent, of: "generation \(generation - 1)")
    }

    private func retained(_ judge: FieldJudge, _ field: LayoutField) -> AnnotatedField {
        typealias Entry = Superblock.RetainedLayout
        let content = judge.block.content(field)
        let used = judge.block.integer(Superblock.Layout.retainedCount)
        let count = Int(min(used, UInt64(Superblock.retainedCapacity)))
        let entries = (0..<count).map { index in
            RawBlock(Array(content[index * Entry.byteCount..<(index + 1) * Entry.byteCount]))
        }
        let text = entries.map {
            "slot \($0.integer(Entry.slotIndex)) (sequence \($0.integer(Entry.sequence)))"
        }
        let slotCount = UInt64(file.identity?.geometry.slotCount ?? Int.max)
        let isSound = entries.allSatisfy {
            $0.integer(Entry.slotIndex) < slotCount && $0.integer(Entry.sequence) > 0
                && $0.integer(Entry.reserved4) == 0
        }
        let isPadded = content[(count * Entry.byteCount)...].allSatisfy { $0 == 0 }
        return judge.judged(
            field, text.isEmpty ? "none" : text.joined(separator: ", "), isSound && isPadded,
            expected: isSound
                ? "zeros behind entry \(count)" : "slots of this file with a sequence above 0")
    }
}
