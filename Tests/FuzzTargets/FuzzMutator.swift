import CheckpointFormat
import StorageFaults

/// Makes an input of another one: changes fields and blocks, and then mostly gives what it
/// touched the digests that fit, so that mutants get past the checksums.
public struct FuzzMutator {
    /// Bytes that are mutated and sealed as a whole.
    struct Region {
        enum Kind: Hashable { case identity, superblock, header, table, data }

        let kind: Kind
        let range: Range<Int>
        /// Which slot's; 0 for what belongs to none.
        var slot = 0
        var fields: [LayoutField] = []
    }

    /// Changes bytes at will, and may make them longer up to a limit.
    public typealias ByteMutator = (_ bytes: [UInt8], _ byteCountMaximum: Int) -> [UInt8]

    private static let fallback = DecoderTarget.identity.geometry
    private static let block = Limits.blockByteCount

    private var random: SplitMix64
    private let mutateBytes: ByteMutator
    private let isSealing: Bool

    /// - Parameter isSealing: false leaves every digest as the mutation left it.
    public init(seed: UInt64, isSealing: Bool = true, mutateBytes: @escaping ByteMutator) {
        random = SplitMix64(seed: seed)
        self.isSealing = isSealing
        self.mutateBytes = mutateBytes
    }

    public mutating func mutate(
        _ input: [UInt8], for target: FuzzTarget, byteCountMaximum: Int
    ) -> [UInt8] {
        // The encoding itself, now and then: sizes, offsets and runs.
        if input.count < 4 || chance(1, in: 32) { return mutateBytes(input, byteCountMaximum) }
        let output: [UInt8]
        if target == .decoder {
            let image = SparseImage.decode(Array(input.dropFirst()))
            let kind = DecoderTarget.kind(of: input)
            output = [kind.rawValue] + SparseImage.encode(mutateBlock(image, kind))
        } else {
            output = SparseImage.encode(mutateFile(SparseImage.decode(input)))
        }
        return output.count <= byteCountMaximum ? output : input
    }

    private mutating func chance(_ part: Int, in whole: Int) -> Bool {
        Int.random(in: 0..<whole, using: &random) < part
    }

    // MARK: One block

    private mutating func mutateBlock(_ image: [UInt8], _ kind: DecoderTarget.Kind) -> [UInt8] {
        if chance(1, in: 16) { return cut(image, kind) }
        var image = image
        switch kind {
        case .manifest, .chunk:
            return mutateBytes(image, image.count + 256)
        case .identity:
            guard image.count >= Self.block else { return mutateBytes(image, Self.block) }
            change(&image, Self.identity(at: 0))
            if seals() {
                Sealing.sealBlock(&image, at: 0, checksum: IdentityBlock.Layout.checksum)
            }
        case .superblock:
            guard image.count >= Self.block else { return mutateBytes(image, Self.block) }
            change(&image, Self.superblock(at: 0))
            if seals() {
                Sealing.sealBlock(&image, at: 0, checksum: Superblock.Layout.checksum)
            }
        case .slot:
            guard image.count >= Self.block else { return mutateBytes(image, Self.block) }
            let regions =
                [Self.header(at: 0)] + Self.tables(at: Self.block, upTo: image.count, slot: 0)
            for _ in 0..<Int.random(in: 1...3, using: &random) {
                if let region = regions.randomElement(using: &random) { change(&image, region) }
            }
            if seals() { Sealing.sealTable(&image, header: 0) }
        }
        return image
    }

    /// Ends somewhere; of a slot's blocks mostly inside the table, which its header vouches for.
    private mutating func cut(_ image: [UInt8], _ kind: DecoderTarget.Kind) -> [UInt8] {
        var end = Int.random(in: 0...image.count, using: &random)
        if kind == .slot,
            let entry = Self.tables(at: Self.block, upTo: image.count, slot: 0)
                .randomElement(using: &random)
        {
            end = Int.random(in: entry.range, using: &random)
        }
        return Array(image.prefix(end))
    }

    private mutating func seals() -> Bool { isSealing && chance(7, in: 8) }

    // MARK: A whole file

    private mutating func mutateFile(_ original: [UInt8]) -> [UInt8] {
        var image = original
        let geometry = Self.geometry(of: original)
        let regions = Self.regions(geometry, byteCount: image.count)
        guard !regions.isEmpty else { return mutateBytes(image, image.count + Self.block) }
        var touched: [Region] = []
        for _ in 0..<Int.random(in: 1...4, using: &random) {
            guard let region = regions.randomElement(using: &random),
                let other = regions.randomElement(using: &random)
            else { continue }
            touched.append(region)
            switch Int.random(in: 0..<16, using: &random) {
            case 0:
                let zeros = repeatElement(UInt8(0), count: region.range.count)
                image.replaceSubrange(region.range, with: zeros)
            case 1, 2:
                let count = min(region.range.count, other.range.count)
                let copy = image[other.range.prefix(count)]
                image.replaceSubrange(region.range.prefix(count), with: copy)
            default: change(&image, region)
            }
        }
        if seals() { seal(&image, touched, geometry) }
        if chance(1, in: 32) { resize(&image) }
        return image
    }

    private mutating func resize(_ image: inout [UInt8]) {
        let step = chance(1, in: 2) ? Self.block : 1
        let count = Int.random(in: 1...4, using: &random) * step
        if chance(1, in: 2), count < image.count {
            image.removeLast(count)
        } else {
            image += [UInt8](repeating: 0, count: count)
        }
    }

    private static func geometry(of image: [UInt8]) -> Geometry {
        let ends = [0, image.count / block * block - block]
        let found = ends.lazy.filter { $0 >= 0 && $0 + block <= image.count }.compactMap {
            try? IdentityBlock(decoding: Array(image[$0..<$0 + block]))
        }
        return found.first?.geometry ?? fallback
    }

    private static func regions(_ geometry: Geometry, byteCount: Int) -> [Region] {
        var regions = geometry.identityOffsets.map { identity(at: Int(clamping: $0)) }
        for parity in [0, 1] {
            regions += geometry.superblockOffsets(parity: parity).map {
                superblock(at: Int(clamping: $0))
            }
        }
        for slot in geometry.slots {
            let number = Int(slot.rawValue)
            let offset = Int(clamping: geometry.headerOffset(slot))
            regions.append(header(at: offset, slot: number))
            let end = min(offset + Int(clamping: geometry.metadataStride), byteCount)
            regions += tables(at: offset + block, upTo: end, slot: number).prefix(2)
            let data = Int(clamping: geometry.slotDataOffset(slot))
            regions.append(Region(kind: .data, range: data..<data + block, slot: number))
        }
        return regions.filter { $0.range.upperBound <= byteCount }
    }

    private static func identity(at offset: Int) -> Region {
        Region(
            kind: .identity, range: offset..<offset + block, fields: IdentityBlock.Layout.all)
    }

    private static func superblock(at offset: Int) -> Region {
        let entries = (0..<4).flatMap { index in
            Superblock.RetainedLayout.all.map {
                let base = Superblock.Layout.retainedSlots.offset
                let entry = index * Superblock.RetainedLayout.byteCount
                return LayoutField($0.name, base + entry + $0.offset, $0.byteCount)
            }
        }
        return Region(
            kind: .superblock, range: offset..<offset + block,
            fields: Superblock.Layout.all + entries)
    }

    private static func header(at offset: Int, slot: Int = 0) -> Region {
        Region(
            kind: .header, range: offset..<offset + block, slot: slot,
            fields: SlotHeader.Layout.all)
    }

    /// One region per entry of a chunk table.
    private static func tables(at offset: Int, upTo end: Int, slot: Int) -> [Region] {
        let size = ChunkEntry.Layout.byteCount
        return stride(from: offset, through: end - size, by: size).prefix(4).map {
            Region(
                kind: .table, range: $0..<$0 + size, slot: slot, fields: ChunkEntry.Layout.all)
        }
    }

    // MARK: Changing

    private mutating func change(_ image: inout [UInt8], _ region: Region) {
        var range = region.range
        if let field = region.fields.randomElement(using: &random), chance(7, in: 8) {
            let start = region.range.lowerBound + field.offset
            range = start..<start + min(field.byteCount, 64)
        } else if range.count > 64 {
            let start = range.lowerBound + Int.random(in: 0..<range.count - 64, using: &random)
            range = start..<start + Int.random(in: 1...64, using: &random)
        }
        let old = Array(image[range])
        var new = old
        if range.count <= 8, chance(1, in: 2) {
            new = changedInteger(old)
        } else {
            new = mutateBytes(old, old.count)
            new += repeatElement(0, count: max(0, old.count - new.count))
        }
        image.replaceSubrange(range, with: new.prefix(old.count))
    }

    /// A number beside the old one, or one at an edge.
    private mutating func changedInteger(_ bytes: [UInt8]) -> [UInt8] {
        var value = bytes.reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        switch Int.random(in: 0..<6, using: &random) {
        case 0: value = UInt64.random(in: 0...4, using: &random)
        case 1: value = .max
        case 2: value = 1 << UInt64.random(in: 0..<64, using: &random)
        case 3: value &+= UInt64(Self.block)
        case 4: value &+= 1
        default: value &-= 1
        }
        return bytes.indices.map { UInt8(truncatingIfNeeded: value >> (8 * UInt64($0))) }
    }

    // MARK: Sealing

    /// Gives the touched blocks their digests, and now and then also what names them theirs.
    private mutating func seal(
        _ image: inout [UInt8], _ touched: [Region], _ geometry: Geometry
    ) {
        for region in touched {
            let offset = region.range.lowerBound
            let header = Int(clamping: geometry.headerOffset(SlotIndex(region.slot)))
            switch region.kind {
            case .identity:
                Sealing.sealBlock(&image, at: offset, checksum: IdentityBlock.Layout.checksum)
                if chance(1, in: 2) { mirror(&image, region, geometry) }
            case .superblock:
                Sealing.sealBlock(&image, at: offset, checksum: Superblock.Layout.checksum)
            case .header:
                Sealing.sealBlock(&image, at: offset, checksum: SlotHeader.Layout.checksum)
                anchor(&image, region.slot, geometry)
            case .table:
                Sealing.sealTable(&image, header: header)
                anchor(&image, region.slot, geometry)
            case .data:
                let data = Int(clamping: geometry.slotDataOffset(SlotIndex(region.slot)))
                Sealing.sealChunk(&image, 0, header: header, data: data)
                anchor(&image, region.slot, geometry)
            }
        }
    }

    /// The other copy of the identity follows.
    private func mirror(_ image: inout [UInt8], _ region: Region, _ geometry: Geometry) {
        for offset in geometry.identityOffsets.map({ Int(clamping: $0) })
        where offset <= image.count - Self.block && offset != region.range.lowerBound {
            image.replaceSubrange(offset..<offset + Self.block, with: Array(image[region.range]))
        }
    }

    /// Superblocks that name the slot follow its new header.
    private mutating func anchor(_ image: inout [UInt8], _ slot: Int, _ geometry: Geometry) {
        guard chance(3, in: 4) else { return }
        let header = Int(clamping: geometry.headerOffset(SlotIndex(slot)))
        for parity in [0, 1] {
            for offset in geometry.superblockOffsets(parity: parity).map({ Int(clamping: $0) })
            where offset <= image.count - Self.block {
                let named = Sealing.integer(image, offset, Superblock.Layout.slotIndex)
                if named == UInt64(slot) {
                    Sealing.anchor(&image, superblock: offset, header: header)
                }
            }
        }
    }
}
