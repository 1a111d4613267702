/// Where everything in a checkpoint file is; spec/FORMAT.md section "Regions".
///
/// ```
/// 0         identity block
/// 4096      superblock, head, even generations
/// 8192      superblock, head, odd generations
/// 12288     reserved block
/// 16384     slot metadata areas: slot header, then chunk table; one area per slot
/// …         slot data areas, one per slot
/// end−12288 superblock, tail, even generations
/// end−8192  superblock, tail, odd generations
/// end−4096  identity block, mirror
/// ```
public struct Geometry: Hashable, Sendable {
    public let slotCount: Int
    public let inFlightCount: Int
    public let retainCount: Int
    public let chunkByteCount: Int
    /// How many entries a chunk table has room for.
    public let chunkCapacity: Int
    /// The largest payload a slot can hold.
    public let slotByteCount: UInt64
    public let metadataOffset: UInt64
    public let metadataStride: UInt64
    public let dataOffset: UInt64
    public let dataStride: UInt64
    public let fileByteCount: UInt64

    public static let block = UInt64(Limits.blockByteCount)
    /// Huge-page alignment for slots at least as large.
    static let hugePageByteCount: UInt64 = 2 << 20
    public static let headByteCount = 4 * block
    public static let tailByteCount = 3 * block

    /// The geometry of a new file.
    ///
    /// - Parameters:
    ///   - capacity: largest payload in bytes; rounded up to 4 KiB.
    ///   - fileByteCount: the size of a block device, whose last blocks are the tail; nil for a
    ///     file that is just large enough.
    /// - Throws: `FormatError.invalidField` naming the parameter that is out of range.
    public init(
        capacity: UInt64, inFlight: Int, retain: Int, chunkByteCount: Int,
        fileByteCount: UInt64? = nil
    ) throws(FormatError) {
        try Self.check("in-flight", inFlight, Limits.inFlightCount)
        try Self.check("retain", retain, Limits.retainCount)
        try Self.check("chunk size", chunkByteCount, Limits.chunkByteCount)
        guard chunkByteCount % Limits.leafByteCount == 0 else {
            throw .invalidField(
                "chunk size", found: UInt64(chunkByteCount), expected: "a multiple of 65536")
        }
        guard capacity > 0, capacity <= Limits.slotByteCount.upperBound else {
            throw .invalidField(
                "capacity", found: capacity, expected: "1 to \(Limits.slotByteCount.upperBound)")
        }
        let slotByteCount = capacity.roundedUp(to: Self.block)
        let chunk = UInt64(chunkByteCount)
        let chunkCapacity = Int(slotByteCount.roundedUp(to: chunk) / chunk)
        try Self.check("chunks per slot", chunkCapacity, Limits.chunkCapacity)
        let slotCount = inFlight + retain
        let tableByteCount = UInt64(chunkCapacity * ChunkEntry.Layout.byteCount)
        let alignment =
            slotByteCount >= Self.hugePageByteCount ? Self.hugePageByteCount : Self.block
        let metadataStride = Self.block + tableByteCount.roundedUp(to: Self.block)
        let dataOffset =
            (Self.headByteCount + UInt64(slotCount) * metadataStride).roundedUp(to: alignment)
        let dataStride = slotByteCount.roundedUp(to: alignment)
        // Within the limits above this stays below the limit of a file's size.
        let needed = dataOffset + UInt64(slotCount) * dataStride + Self.tailByteCount
        if let fileByteCount, fileByteCount < needed {
            throw .invalidField(
                "capacity", found: capacity,
                expected: "a file of \(fileByteCount) bytes to hold \(slotCount) slots, which need "
                    + "\(needed) bytes")
        }
        self.slotCount = slotCount
        self.inFlightCount = inFlight
        self.retainCount = retain
        self.chunkByteCount = chunkByteCount
        self.chunkCapacity = chunkCapacity
        self.slotByteCount = slotByteCount
        self.metadataOffset = Self.headByteCount
        self.metadataStride = metadataStride
        self.dataOffset = dataOffset
        self.dataStride = dataStride
        self.fileByteCount = fileByteCount.map { $0 / Self.block * Self.block } ?? needed
    }

    private static func check(
        _ name: String, _ value: Int, _ range: ClosedRange<Int>
    ) throws(FormatError) {
        guard range.contains(value) else {
            throw .invalidField(
                name, found: UInt64(clamping: value),
                expected: "\(range.lowerBound) to \(range.upperBound)")
        }
    }

    public var slots: [SlotIndex] { (0..<slotCount).map { SlotIndex($0) } }
    public var tailOffset: UInt64 { fileByteCount - Self.tailByteCount }
    /// Where the data of the last slot ends: at the tail, except on a block device, whose last
    /// blocks are the tail.
    public var slotsEndOffset: UInt64 { dataOffset + UInt64(slotCount) * dataStride }
    public var identityOffsets: [UInt64] { [0, fileByteCount - Self.block] }
    public var tableCapacityByteCount: Int { Int(metadataStride - Self.block) }

    /// The two offsets, head and tail, of a superblock of this parity.
    public func superblockOffsets(parity: Int) -> [UInt64] {
        let step = UInt64(parity & 1) * Self.block
        return [Self.block + step, tailOffset + step]
    }

    public func headerOffset(_ slot: SlotIndex) -> UInt64 {
        metadataOffset + UInt64(slot.rawValue) * metadataStride
    }

    public func tableOffset(_ slot: SlotIndex) -> UInt64 { headerOffset(slot) + Self.block }

    public func slotDataOffset(_ slot: SlotIndex) -> UInt64 {
        dataOffset + UInt64(slot.rawValue) * dataStride
    }

    /// Decodes and cross-checks every geometry field of an identity block.
    init(_ decoder: BlockDecoder) throws(FormatError) {
        typealias Layout = IdentityBlock.Layout
        let slotCount: UInt32 = decoder.integer(Layout.slotCount)
        let inFlight: UInt32 = decoder.integer(Layout.inFlightCount)
        let retain: UInt32 = decoder.integer(Layout.retainCount)
        let chunkByteCount: UInt32 = decoder.integer(Layout.chunkByteCount)
        let slotByteCount: UInt64 = decoder.integer(Layout.slotByteCount)
        let fileByteCount: UInt64 = decoder.integer(Layout.fileByteCount)
        guard fileByteCount <= Limits.fileByteCountMaximum,
            fileByteCount % Self.block == 0
        else {
            throw .invalidField(
                "file_byte_count", found: fileByteCount,
                expected: "a multiple of 4096 up to \(Limits.fileByteCountMaximum)")
        }
        guard slotByteCount % Self.block == 0 else {
            throw .invalidField(
                "slot_byte_count", found: slotByteCount, expected: "a multiple of 4096")
        }
        // The layout follows from five numbers; the stored offsets must agree with it.
        try self.init(
            capacity: slotByteCount, inFlight: Int(inFlight), retain: Int(retain),
            chunkByteCount: Int(chunkByteCount), fileByteCount: fileByteCount)
        try Self.agree(Layout.slotCount, UInt64(slotCount), UInt64(self.slotCount))
        try Self.agree(
            Layout.chunkCapacity, UInt64(decoder.integer(Layout.chunkCapacity, as: UInt32.self)),
            UInt64(chunkCapacity))
        try Self.agree(
            Layout.metadataOffset, decoder.integer(Layout.metadataOffset), metadataOffset)
        try Self.agree(
            Layout.metadataStride, decoder.integer(Layout.metadataStride), metadataStride)
        try Self.agree(Layout.dataOffset, decoder.integer(Layout.dataOffset), dataOffset)
        try Self.agree(Layout.dataStride, decoder.integer(Layout.dataStride), dataStride)
    }

    private static func agree(
        _ field: LayoutField, _ found: UInt64, _ expected: UInt64
    ) throws(FormatError) {
        guard found == expected else {
            throw .invalidField(field.name, found: found, expected: "\(expected)")
        }
    }
}
