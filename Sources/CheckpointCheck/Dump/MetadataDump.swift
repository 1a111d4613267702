public import CheckpointFormat
internal import CheckpointRecovery
public import CheckpointStorage

/// The metadata of a file without its tensors: for a report to somebody who must not see them.
///
/// What is written has its place in a file of the same size; the rest are holes. It can be opened
/// like the file: the same identity, superblocks, slot headers, chunk tables and manifests are
/// there, with the same damage. A chunk that holds the manifest and tensor bytes keeps only the
/// manifest; its digest, those of its table and header, and those in the superblocks that name the
/// header are made again, or nothing could read the manifest. Every other digest stays.
///
/// Nothing is copied that is not known to be metadata: a block without its magic, and what a
/// damaged block has in reserved bytes, are replaced by fillers that are as wrong.
public struct MetadataDump {
    /// What was done.
    public struct Report: Sendable {
        /// Bytes of metadata, without what is zero.
        public fileprivate(set) var byteCount: UInt64 = 0
        public fileprivate(set) var manifestCount = 0
        public fileprivate(set) var resealedHeaderCount = 0
        public fileprivate(set) var resealedSuperblockCount = 0
        public fileprivate(set) var resealedIdentityCount = 0
        /// What could not be kept, and why.
        public fileprivate(set) var omissions: [String] = []
    }

    private let storage: any Storage
    private let image: MetadataImage
    private let decision: RecoveryDecision?
    private let write: (UInt64, [UInt8]) throws(CheckpointError) -> Void
    /// nil when names are kept.
    private var scrubber: NameScrubber?
    private var report = Report()
    /// Digests of headers and superblocks that were sealed again: what stood for them before.
    private var renewed: [Digest: Digest] = [:]

    /// Copies the metadata of `storage` block by block to `write`, which gets byte offsets and
    /// whole blocks, in any order.
    ///
    /// - Parameter obfuscatesNames: replace the names of tensors, strings of `__metadata__`, user
    ///   metadata, fingerprint and creator by pseudonyms of the same length.
    public static func run(
        _ storage: any Storage, obfuscatesNames: Bool,
        write: @escaping (UInt64, [UInt8]) throws(CheckpointError) -> Void
    ) throws(CheckpointError) -> Report {
        let image = try MetadataImage.readSettled(from: storage)
        let decision = try? SlotSelection.decide(image, allowsTruncation: true)
        let key = decision?.identity.fileUUID.bytes ?? []
        var dump = MetadataDump(
            storage: storage, image: image, decision: decision, write: write,
            scrubber: obfuscatesNames ? NameScrubber(key: key) : nil)
        if let decision {
            for slot in decision.slots { try dump.copySlot(slot, decision) }
        }
        try dump.copySuperblocks()
        try dump.copyIdentities()
        try dump.copyReservedBlock()
        return dump.report
    }

    private init(
        storage: any Storage, image: MetadataImage, decision: RecoveryDecision?,
        write: @escaping (UInt64, [UInt8]) throws(CheckpointError) -> Void,
        scrubber: NameScrubber?
    ) {
        self.storage = storage
        self.image = image
        self.decision = decision
        self.write = write
        self.scrubber = scrubber
    }

    /// Writes the blocks of `bytes`, padded with zeros, that are not all zero.
    private mutating func put(_ bytes: [UInt8], at offset: UInt64) throws(CheckpointError) {
        let block = Limits.blockByteCount
        var start = 0
        while start < bytes.count {
            var content = Array(bytes[start..<min(start + block, bytes.count)])
            if content.contains(where: { $0 != 0 }) {
                content += [UInt8](repeating: 0, count: block - content.count)
                try write(offset + UInt64(start), content)
                report.byteCount += UInt64(block)
            }
            start += block
        }
    }

    // MARK: Head and tail

    private mutating func copyIdentities() throws(CheckpointError) {
        typealias Layout = IdentityBlock.Layout
        for copy in image.identityBlocks {
            guard let bytes = copy.bytes else { continue }
            var block = DumpedBlock(
                bytes, magic: IdentityBlock.magic, Layout.all, checksum: Layout.checksum)
            if scrub(&block, [Layout.creator, Layout.fingerprint]) {
                report.resealedIdentityCount += 1
            }
            try put(block.bytes, at: copy.offset)
        }
    }

    private mutating func copySuperblocks() throws(CheckpointError) {
        typealias Layout = Superblock.Layout
        let blocks = image.superblocks.compactMap { copy in
            copy.bytes.map {
                (
                    offset: copy.offset,
                    block: DumpedBlock(
                        Array($0.prefix(Superblock.recordByteCount)), magic: Superblock.magic,
                        Layout.all, checksum: Layout.checksum)
                )
            }
        }
        // A parent before its child, whose record of it may have to follow.
        for (offset, original) in blocks.sorted(by: {
            $0.block.integer(Layout.generation) < $1.block.integer(Layout.generation)
        }) {
            var block = original
            for field in [Layout.slotHeaderDigest, Layout.parentDigest] {
                if block.isSealed, let digest = renewed[block.digest(field)] {
                    block.put(digest, field)
                }
            }
            if let (old, new) = block.reseal() {
                renewed[old] = new
                report.resealedSuperblockCount += 1
            }
            try put(block.bytes, at: offset)
        }
    }

    /// The block behind the head's superblocks, which is zero.
    private mutating func copyReservedBlock() throws(CheckpointError) {
        let offset = 3 * Geometry.block
        guard offset + Geometry.block <= image.fileByteCount,
            let bytes = try? storage.readBlocks(at: offset, count: Limits.blockByteCount)
        else { return }
        try put(bytes.map { $0 == 0 ? 0 : 0xFF }, at: offset)
    }

    /// Replaces the words of `fields`; true when the block had to be sealed again.
    private mutating func scrub(_ block: inout DumpedBlock, _ fields: [LayoutField]) -> Bool {
        guard var scrubber, block.hasMagic else { return false }
        for field in fields { block.put(scrubber.text(block.content(field)), field) }
        self.scrubber = scrubber
        return block.reseal() != nil
    }

    // MARK: Slots

    private mutating func copySlot(
        _ slot: SlotReport, _ decision: RecoveryDecision
    ) throws(CheckpointError) {
        typealias Layout = SlotHeader.Layout
        let geometry = decision.identity.geometry
        guard let blocks = image.slots.first(where: { $0.slot == slot.slot }),
            let bytes = blocks.header
        else { return }
        var header = DumpedBlock(
            bytes, magic: SlotHeader.magic, Layout.all, checksum: Layout.checksum)
        if let found = slot.header, found.state == .complete,
            let table = table(of: blocks, found, geometry)
        {
            var dumped = DumpedTable(table, found)
            if let candidate = decision.candidates.first(where: { $0.slot == slot.slot }),
                let digest = try copyManifest(candidate, decision, &dumped)
            {
                header.put(digest, Layout.logicalDigest)
            }
            if dumped.isChanged {
                header.put(Digest(of: dumped.bytes), Layout.chunkTableDigest)
                header.put(dumped.storedByteCount, Layout.storedByteCount)
            }
            try put(dumped.bytes, at: geometry.tableOffset(slot.slot))
        }
        if var scrubber, header.hasMagic {
            header.put(scrubber.text(header.content(Layout.userMetadata)), Layout.userMetadata)
            self.scrubber = scrubber
        }
        if let (old, new) = header.reseal() {
            // A copy of a header in another slot is not what a superblock names.
            if slot.header != nil { renewed[old] = new }
            report.resealedHeaderCount += 1
        }
        try put(header.bytes, at: slot.headerOffset)
    }

    /// The slot's chunk table as it is in the file; a large one is not kept in the image.
    private func table(
        of blocks: MetadataImage.SlotBlocks, _ header: SlotHeader, _ geometry: Geometry
    ) -> [UInt8]? {
        let count = Int(UInt64(header.tableByteCount).roundedUp(to: Geometry.block))
        let offset = geometry.tableOffset(blocks.slot)
        let bytes = blocks.table ?? (try? storage.readBlocks(at: offset, count: count))
        return bytes.map { Array($0.prefix(header.tableByteCount)) }
    }

    /// The chunks that the manifest is in, without what follows it.
    ///
    /// - Returns: a new digest of the payload, where these chunks are all of it.
    private mutating func copyManifest(
        _ candidate: Candidate, _ decision: RecoveryDecision, _ table: inout DumpedTable
    ) throws(CheckpointError) -> Digest? {
        let header = candidate.header
        let byteCount = header.manifestByteCount
        guard header.payloadKind == .safetensors, byteCount > 0,
            byteCount <= UInt64(Limits.manifestByteCount) + 8
        else { return nil }
        let count = Int(byteCount)
        let chunkByteCount = header.chunkByteCount
        let found = Monitor<[UInt8]>([])
        let reader = CheckpointReader(storage: storage, decision: decision, workerCount: 1)
        do throws(CheckpointError) {
            let selected = try reader.select(candidate, proof: .waived)
            defer { selected.close() }
            let chunks = Array(0...(count - 1) / chunkByteCount)
            try selected.forEachChunk(chunks, inOrder: true) { chunk, _ throws(CheckpointError) in
                found.withLock { $0 += chunk.restored.array(0..<chunk.entry.rawByteCount) }
            }
        } catch {
            report.omissions.append("the manifest of slot \(candidate.slot): \(error.message)")
            if found.withLock({ $0.isEmpty }) { return nil }
        }
        let bytes = found.withLock { $0 }
        var manifest = Array(bytes.prefix(count))
        // What follows the manifest in its last chunk.
        let rest = bytes.dropFirst(count)
        // One that does not match before must not match behind.
        let isAll = UInt64(manifest.count + rest.count) == header.payloadByteCount
        let isRight = isAll && Self.treeDigest(manifest + rest) == header.logicalDigest
        let isWhole = manifest.count == count
        if var scrubber {
            scrubber.json(&manifest, min(8, manifest.count)..<manifest.count)
            self.scrubber = scrubber
        }
        for start in stride(from: 0, to: manifest.count, by: chunkByteCount) {
            let index = start / chunkByteCount
            let part = Array(manifest[start..<min(start + chunkByteCount, manifest.count)])
            guard
                let stored = table.replace(
                    index, with: part, candidate, isKept: scrubber == nil,
                    dataByteCount: decision.identity.geometry.dataStride)
            else {
                report.omissions.append(
                    "the manifest of slot \(candidate.slot): with pseudonyms it compresses worse "
                        + "and does not fit its place")
                return nil
            }
            let offset = candidate.dataOffset + candidate.table.entries[index].storedOffset
            try put(stored.isEmpty ? storedBytes(candidate, index) : stored, at: offset)
        }
        if isWhole { report.manifestCount += 1 }
        guard isRight else { return nil }
        return Self.treeDigest(manifest + [UInt8](repeating: 0, count: rest.count))
    }

    private static func treeDigest(_ bytes: [UInt8]) -> Digest {
        // Safe: the array outlives the closure.
        unsafe bytes.withUnsafeBytes { buffer in
            // Safe: as above.
            TreeDigest.of(unsafe RawSpan(_unsafeBytes: buffer))
        }
    }

    /// A chunk that is metadata from end to end, as it is stored.
    private func storedBytes(
        _ candidate: Candidate, _ index: Int
    ) throws(CheckpointError) -> [UInt8] {
        let entry = candidate.table.entries[index]
        return try withCheckpointErrors(slot: candidate.slot) { () throws(StorageError) in
            let padded = UInt64(entry.storedByteCount).roundedUp(to: Geometry.block)
            let bytes = try storage.readBlocks(
                at: candidate.dataOffset + entry.storedOffset, count: Int(padded))
            return Array(bytes.prefix(entry.storedByteCount))
        }
    }
}
