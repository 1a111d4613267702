internal import CheckpointFormat
internal import CheckpointRecovery

/// A block on its way into a dump: only what its layout knows, and sealed again when it changes.
struct DumpedBlock {
    private(set) var bytes: [UInt8]
    /// Its checksum was right.
    let isSealed: Bool
    let hasMagic: Bool
    private let checksum: LayoutField
    private var isChanged = false

    /// What stands in the place of a block that is not one.
    private static let filler = Array("not a block of this kind; left out of the dump".utf8)

    init(_ block: [UInt8], magic: [UInt8], _ layout: [LayoutField], checksum: LayoutField) {
        self.checksum = checksum
        let end = checksum.range.upperBound
        guard block.count >= end else {
            (bytes, isSealed, hasMagic) = ([], false, false)
            return
        }
        bytes = Array(block[..<end])
        hasMagic = bytes.starts(with: magic)
        isSealed =
            hasMagic && Digest(of: bytes, 0..<checksum.offset) == Self.digest(bytes, checksum)
        if isSealed || bytes.allSatisfy({ $0 == 0 }) { return }
        guard hasMagic else {
            // The first bytes tell a text-mode transfer from something else.
            bytes.replaceSubrange(
                magic.count..<end,
                with: Self.filler
                    + [UInt8](repeating: 0, count: end - magic.count - Self.filler.count))
            return
        }
        // A torn write: behind a text that is none, nothing is of this block.
        var isTorn = false
        for field in layout {
            let isText = field.byteCount > 16 && !field.isReserved
            isTorn =
                isTorn || isText && String(validating: bytes[field.range], as: UTF8.self) == nil
            guard field.isReserved || field == checksum || isTorn else { continue }
            for index in field.range where bytes[index] != 0 { bytes[index] = 0xFF }
        }
    }

    private static func digest(_ bytes: [UInt8], _ field: LayoutField) -> Digest {
        func half(_ offset: Int) -> UInt64 {
            bytes[offset..<offset + 8].reversed().reduce(0) { $0 << 8 | UInt64($1) }
        }
        return Digest(low: half(field.offset), high: half(field.offset + 8))
    }

    func content(_ field: LayoutField) -> [UInt8] {
        bytes.count < field.range.upperBound ? [] : Array(bytes[field.range])
    }

    func integer(_ field: LayoutField) -> UInt64 {
        content(field).reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }

    func digest(_ field: LayoutField) -> Digest {
        bytes.count < field.range.upperBound ? .zero : Self.digest(bytes, field)
    }

    mutating func put(_ content: [UInt8], _ field: LayoutField) {
        precondition(content.count == field.byteCount, "the content of \(field.name)")
        if Array(bytes[field.range]) == content { return }
        bytes.replaceSubrange(field.range, with: content)
        isChanged = true
    }

    mutating func put(_ digest: Digest, _ field: LayoutField) {
        put(LittleEndian.bytes(digest), field)
    }

    mutating func put(_ value: UInt64, _ field: LayoutField) {
        put(LittleEndian.bytes(value, count: field.byteCount), field)
    }

    /// Makes the checksum fit again, when it did before: what it was, and what it is now. nil when
    /// nothing changed, or the block was damaged and stays so.
    mutating func reseal() -> (old: Digest, new: Digest)? {
        guard isSealed, isChanged else { return nil }
        let (old, new) = (digest(checksum), Digest(of: bytes, 0..<checksum.offset))
        bytes.replaceSubrange(checksum.range, with: LittleEndian.bytes(new))
        isChanged = false
        return (old, new)
    }
}

/// The disk form of numbers.
enum LittleEndian {
    static func bytes(_ value: UInt64, count: Int = 8) -> [UInt8] {
        (0..<count).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
    }

    static func bytes(_ digest: Digest) -> [UInt8] { bytes(digest.low) + bytes(digest.high) }
}

/// A chunk table on its way into a dump.
struct DumpedTable {
    private(set) var bytes: [UInt8]
    private(set) var storedByteCount: UInt64
    /// Whether the header must be told a new digest.
    private(set) var isChanged = false

    private static let compressionLevel: Int32 = 19

    init(_ table: [UInt8], _ header: SlotHeader) {
        bytes = table
        storedByteCount = header.storedByteCount
        if Digest(of: table) == header.chunkTableDigest { return }
        // Something else may lie there: only what can be an entry is kept.
        let size = ChunkEntry.Layout.byteCount
        for start in stride(from: 0, to: bytes.count, by: size)
        where start + size <= bytes.count && !isEntry(at: start, header) {
            for index in start..<start + size { bytes[index] = 0xFF }
        }
    }

    private func integer(_ start: Int, _ field: LayoutField) -> UInt64 {
        let offset = start + field.offset
        return bytes[offset..<offset + field.byteCount].reversed().reduce(0) {
            $0 << 8 | UInt64($1)
        }
    }

    private func isEntry(at start: Int, _ header: SlotHeader) -> Bool {
        typealias Layout = ChunkEntry.Layout
        let raw = integer(start, Layout.rawByteCount)
        return integer(start, Layout.storedOffset) % Geometry.block == 0
            && raw <= UInt64(header.chunkByteCount)
            && integer(start, Layout.storedByteCount) <= raw
            && integer(start, Layout.codec) <= UInt64(Codec.planesZstd.rawValue)
            && integer(start, Layout.planeWidth) <= 8
            && integer(start, Layout.reserved18) == 0 && integer(start, Layout.reserved40) == 0
    }

    /// Lets chunk `index` hold `part` and then zeros.
    ///
    /// - Parameters:
    ///   - isKept: `part` is what the chunk begins with.
    ///   - dataByteCount: of the slot's whole data area.
    /// - Returns: the bytes to be stored; empty when those of the file can stay; nil when they
    ///   would not fit.
    mutating func replace(
        _ index: Int, with part: [UInt8], _ candidate: Candidate, isKept: Bool,
        dataByteCount: UInt64
    ) -> [UInt8]? {
        var entry = candidate.table.entries[index]
        if isKept && part.count == entry.rawByteCount { return [] }
        let raw = part + [UInt8](repeating: 0, count: entry.rawByteCount - part.count)
        let old = entry.storedByteCount
        let stored = Self.encode(raw, &entry)
        // Pseudonyms may compress worse than names do.
        if UInt64(stored.count) > UInt64(old).roundedUp(to: Geometry.block) {
            let next = candidate.table.entries.map(\.storedOffset)
                .filter { $0 > entry.storedOffset }.min()
            guard UInt64(stored.count) <= (next ?? dataByteCount) - entry.storedOffset else {
                return nil
            }
        }
        // Safe: the array outlives the closure.
        entry.digest = unsafe stored.withUnsafeBytes { buffer in
            // Safe: as above.
            TreeDigest.of(unsafe RawSpan(_unsafeBytes: buffer))
        }
        entry.storedByteCount = stored.count
        storedByteCount = storedByteCount - UInt64(old) + UInt64(stored.count)
        let encoded = ChunkTable(entries: [entry]).encoded().bytes
        let start = index * ChunkEntry.Layout.byteCount
        bytes.replaceSubrange(
            start..<start + ChunkEntry.Layout.byteCount,
            with: encoded[..<ChunkEntry.Layout.byteCount])
        isChanged = true
        return stored
    }

    /// `raw` with the entry's codec; as it is when it does not shrink.
    private static func encode(_ raw: [UInt8], _ entry: inout ChunkEntry) -> [UInt8] {
        if entry.codec == .none { return raw }
        let compressor = ChunkCompressor(level: compressionLevel, chunkByteCount: raw.count)
        var output = [UInt8](repeating: 0, count: raw.count)
        let (codec, width) = (entry.codec, entry.planeWidth)
        // Safe: both arrays have the same size and outlive the call.
        let size = unsafe raw.withUnsafeBytes { source in
            unsafe output.withUnsafeMutableBytes { target in
                unsafe compressor.encode(source, codec: codec, planeWidth: width, into: target)
            }
        }
        guard let size else {
            (entry.codec, entry.planeWidth) = (.none, 1)
            return raw
        }
        return Array(output[..<size])
    }
}
