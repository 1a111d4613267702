public import CheckpointFormat

/// Composes checkpoint files in memory block by block, in any state a crash or a fault can leave:
/// for tests that need states which the writer itself never leaves behind.
///
/// Everything is a function of its arguments: the same calls give the same bytes.
public struct ImageBuilder: Sendable {
    /// What `complete` puts in a slot.
    public struct Content: Sendable {
        public var kind: PayloadKind
        public var bytes: [UInt8]
        public var manifestByteCount: UInt64

        public init(kind: PayloadKind, bytes: [UInt8], manifestByteCount: UInt64) {
            self.kind = kind
            self.bytes = bytes
            self.manifestByteCount = manifestByteCount
        }

        /// `byteCount` bytes that follow from `seed`.
        public static func opaque(byteCount: Int, seed: UInt64) -> Content {
            Content(
                kind: .opaque, bytes: ImageBuilder.bytes(byteCount, seed: seed),
                manifestByteCount: 0)
        }

        /// A safetensors payload of F32 tensors with these element counts, whose values are small
        /// integers, so that they compress.
        public static func tensors(
            _ elementCounts: [Int], metadata: [(key: String, value: String)], seed: UInt64
        ) throws(FormatError) -> Content {
            guard let type = ElementType(name: "F32") else {
                preconditionFailure("F32 is an element type")
            }
            let tensors = elementCounts.enumerated().map { index, count in
                TensorDescription(
                    name: "layer.\(index).weight", elementType: type, shape: [UInt64(count)])
            }
            let encoded = try SafetensorsManifest.encode(tensors, metadata: metadata)
            var bytes = encoded.bytes
            var random = SplitMix64(seed: seed)
            for _ in 0..<elementCounts.reduce(0, +) {
                let value = Float(random.next() % 8).bitPattern
                for shift in stride(from: 0, to: 32, by: 8) {
                    bytes.append(UInt8(truncatingIfNeeded: value >> UInt32(shift)))
                }
            }
            return Content(
                kind: .safetensors, bytes: bytes, manifestByteCount: UInt64(encoded.bytes.count))
        }
    }

    /// A fixed identifier: images are the same in every run.
    public static let uuid = Identifier128(bytes: Array(0x10..<0x20))
    public static let time: UInt64 = 1_700_000_000_000_000_000

    public let identity: IdentityBlock
    public var bytes: [UInt8]
    public var geometry: Geometry { identity.geometry }

    /// A file with empty slots, both identity blocks, and no superblock.
    public init(
        inFlight: Int = 2, retain: Int = 1, capacity: UInt64 = 128 << 10,
        chunkByteCount: Int = 64 << 10, fileUUID: Identifier128 = Self.uuid,
        fingerprint: String = "", rank: UInt32 = 0, worldSize: UInt32 = 1,
        runUUID: Identifier128 = .zero
    ) throws(FormatError) {
        let geometry = try Geometry(
            capacity: capacity, inFlight: inFlight, retain: retain,
            chunkByteCount: chunkByteCount)
        identity = try IdentityBlock(
            fileUUID: fileUUID, geometry: geometry, createdTime: Self.time,
            rank: rank, worldSize: worldSize, creator: "pccheck image", fingerprint: fingerprint,
            runUUID: runUUID)
        bytes = [UInt8](repeating: 0, count: Int(geometry.fileByteCount))
        for offset in geometry.identityOffsets { put(identity.encoded(), at: offset) }
        for slot in geometry.slots { put(emptyHeader(slot).encoded().bytes, at: slot) }
    }

    /// Goes on from an existing file, whose head identity must be whole.
    public init(editing bytes: [UInt8]) throws(FormatError) {
        identity = try IdentityBlock(decoding: Array(bytes.prefix(Limits.blockByteCount)))
        self.bytes = bytes
    }

    public func block(at offset: UInt64) -> [UInt8] {
        Array(bytes[Int(offset)..<Int(offset) + Limits.blockByteCount])
    }

    /// The header in `slot`, which must be whole.
    public func header(_ slot: SlotIndex) throws(FormatError) -> SlotHeader {
        try SlotHeader(
            decoding: block(at: geometry.headerOffset(slot)), slot: slot, identity: identity)
    }

    public func table(_ slot: SlotIndex) throws(FormatError) -> ChunkTable {
        let start = Int(geometry.tableOffset(slot))
        return try ChunkTable(
            decoding: Array(bytes[start..<start + geometry.tableCapacityByteCount]),
            header: header(slot), geometry: geometry)
    }

    /// The superblock copy at `offset`, which must be whole.
    public func superblock(at offset: UInt64) throws(FormatError) -> Superblock {
        try Superblock(
            decoding: block(at: offset), fileUUID: identity.fileUUID,
            slotCount: geometry.slotCount)
    }

    /// Changes the header in `slot` and seals it again.
    public mutating func edit(
        _ slot: SlotIndex, _ change: (inout SlotHeader) -> Void
    ) throws(FormatError) {
        var header = try header(slot)
        change(&header)
        put(header.encoded().bytes, at: slot)
    }

    public mutating func put(_ content: [UInt8], at offset: UInt64) {
        bytes.replaceSubrange(Int(offset)..<Int(offset) + content.count, with: content)
    }

    public mutating func put(_ header: [UInt8], at slot: SlotIndex) {
        put(header, at: geometry.headerOffset(slot))
    }

    /// Flips one bit.
    public mutating func flip(_ offset: UInt64, bit: UInt8 = 0) {
        bytes[Int(offset)] ^= 1 << bit
    }

    public mutating func zero(_ offset: UInt64, byteCount: Int) {
        put([UInt8](repeating: 0, count: byteCount), at: offset)
    }

    public func emptyHeader(_ slot: SlotIndex) -> SlotHeader {
        SlotHeader(emptySlot: slot, fileUUID: identity.fileUUID, geometry: geometry)
    }

    public func header(
        _ state: SlotState, slot: SlotIndex, sequence: UInt64, step: UInt64
    ) -> SlotHeader {
        var header = emptyHeader(slot)
        header.state = state
        header.sequence = SequenceNumber(rawValue: sequence)
        header.step = step
        header.beganTime = Self.time &+ sequence &* 1_000_000_000
        return header
    }

    /// Marks a slot as taken by a checkpoint that never completed.
    public mutating func writing(slot: Int, sequence: UInt64, step: UInt64? = nil) {
        let slot = SlotIndex(slot)
        let header = header(.writing, slot: slot, sequence: sequence, step: step ?? sequence * 10)
        put(header.encoded().bytes, at: slot)
    }

    /// Writes a whole checkpoint: chunks, chunk table, header. Returns the anchor for it.
    @discardableResult
    public mutating func complete(
        slot: Int, sequence: UInt64, step: UInt64? = nil, content: Content? = nil,
        codec: Codec = .none, userMetadata: String = ""
    ) -> Anchor {
        let slot = SlotIndex(slot)
        let content = content ?? .opaque(byteCount: 100_000, seed: sequence)
        var header = header(.complete, slot: slot, sequence: sequence, step: step ?? sequence * 10)
        header.completedTime = header.beganTime + 500_000_000
        header.payloadKind = content.kind
        header.manifestByteCount = content.manifestByteCount
        header.payloadByteCount = UInt64(content.bytes.count)
        header.codec = codec
        header.userMetadata = userMetadata
        let table = putChunks(content, slot: slot, codec: codec)
        header.chunkCount = table.entries.count
        header.storedByteCount = table.entries.reduce(0) { $0 + UInt64($1.storedByteCount) }
        let encodedTable = table.encoded()
        header.chunkTableDigest = encodedTable.digest
        header.logicalDigest = Self.treeDigest(content.bytes)
        put(encodedTable.bytes, at: geometry.tableOffset(slot))
        let encoded = header.encoded()
        put(encoded.bytes, at: slot)
        return Anchor(
            slot: slot, sequence: header.sequence, step: header.step,
            headerDigest: encoded.digest)
    }

    private mutating func putChunks(
        _ content: Content, slot: SlotIndex, codec: Codec
    ) -> ChunkTable {
        var entries: [ChunkEntry] = []
        let compressor = ChunkCompressor(level: 3, chunkByteCount: geometry.chunkByteCount)
        for start in stride(from: 0, to: content.bytes.count, by: geometry.chunkByteCount) {
            let end = min(start + geometry.chunkByteCount, content.bytes.count)
            let raw = Array(content.bytes[start..<end])
            var stored = raw
            let width = codec == .planesZstd ? 4 : 1
            // Safe: both arrays outlive the call and have the same size.
            let size = unsafe raw.withUnsafeBytes { source in
                unsafe stored.withUnsafeMutableBytes { target in
                    unsafe compressor.encode(source, codec: codec, planeWidth: width, into: target)
                }
            }
            let isEncoded = size != nil
            if let size { stored.removeSubrange(size...) } else { stored = raw }
            put(stored, at: geometry.slotDataOffset(slot) + UInt64(start))
            entries.append(
                ChunkEntry(
                    storedOffset: UInt64(start), storedByteCount: stored.count,
                    rawByteCount: raw.count, codec: isEncoded ? codec : .none,
                    planeWidth: isEncoded ? width : 1, digest: Self.treeDigest(stored)))
        }
        return ChunkTable(entries: entries)
    }

    public static func treeDigest(_ bytes: [UInt8]) -> Digest {
        let leaves = stride(from: 0, to: bytes.count, by: Limits.leafByteCount).map { start in
            Digest(of: bytes, start..<min(start + Limits.leafByteCount, bytes.count))
        }
        return TreeDigest.combine(leaves, byteCount: UInt64(bytes.count))
    }

    public func superblock(
        generation: UInt64, anchor: Anchor?, retained: [(slot: Int, sequence: UInt64)] = [],
        parent: Digest = .zero, isCleanClose: Bool = false
    ) -> Superblock {
        Superblock(
            fileUUID: identity.fileUUID, generation: Generation(rawValue: generation),
            anchor: anchor, isCleanClose: isCleanClose, parentDigest: parent,
            commitTime: Self.time + generation * 1_000_000_000, writerPID: 4242,
            storageKind: .direct,
            retained: retained.map {
                RetainedSlot(
                    slot: SlotIndex($0.slot), sequence: SequenceNumber(rawValue: $0.sequence))
            })
    }

    /// Writes both copies of a superblock and returns its digest.
    @discardableResult
    public mutating func commit(_ superblock: Superblock) -> Digest {
        let encoded = superblock.encoded()
        for offset in geometry.superblockOffsets(parity: superblock.generation.parity) {
            put(encoded.bytes, at: offset)
        }
        return encoded.digest
    }

    public func storage(path: String = "memory") -> MemoryStorage {
        MemoryStorage(contents: bytes, path: path)
    }

    /// `count` bytes that follow from `seed` and do not compress.
    public static func bytes(_ count: Int, seed: UInt64) -> [UInt8] {
        var random = SplitMix64(seed: seed)
        var bytes: [UInt8] = []
        bytes.reserveCapacity(count + 8)
        while bytes.count < count {
            let word = random.next()
            for shift in stride(from: 0, to: 64, by: 8) {
                bytes.append(UInt8(truncatingIfNeeded: word >> UInt64(shift)))
            }
        }
        return Array(bytes[..<count])
    }
}

/// Sebastiano Vigna's splitmix64: a small generator whose whole state is its seed.
public struct SplitMix64: RandomNumberGenerator, Sendable {
    private var state: UInt64

    public init(seed: UInt64) { state = seed }

    public mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var word = state
        word = (word ^ (word >> 30)) &* 0xBF58_476D_1CE4_E5B9
        word = (word ^ (word >> 27)) &* 0x94D0_49BB_1331_11EB
        return word ^ (word >> 31)
    }
}
