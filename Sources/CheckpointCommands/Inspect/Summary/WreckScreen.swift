internal import CheckpointFormat
internal import CheckpointRecovery

/// What can still be told of a file whose identity blocks are lost: the blocks that say what they
/// are, wherever they lie.
struct WreckScreen {
    /// The metadata is at the begin; what is further in is payload.
    private static let headByteCount: UInt64 = 64 << 20
    private static let tailByteCount: UInt64 = 1 << 20
    private static let pieceByteCount: UInt64 = 1 << 20
    private static let blockCountMaximum = 200

    private let file: WreckedFile

    init(_ file: WreckedFile) { self.file = file }

    /// Empty when no block is recognised.
    func lines(width: Int?) throws(CheckpointError) -> [StyledText] {
        var table = TableLayout([
            .right("byte"), .left("block"), .left("checksum"), .flexible("records"),
        ])
        let head = min(Self.headByteCount, file.byteCount) / Geometry.block * Geometry.block
        let tail = (file.byteCount - min(Self.tailByteCount, file.byteCount)) / Geometry.block
        for range in [0..<head, max(head, tail * Geometry.block)..<max(head, file.byteCount)] {
            try scan(range, &table)
        }
        if table.rows.isEmpty { return [] }
        let path = file.path
        return [
            "\(path, .bold): no identity block can be used",
            "  Nothing records where slots are; these blocks were found:",
        ] + table.lines(width: width) + [
            "  pcinspect hexdump \(path) --offset BYTE --annotate shows one of them."
        ]
    }

    private func scan(
        _ range: Range<UInt64>, _ table: inout TableLayout
    ) throws(CheckpointError) {
        for start in stride(from: range.lowerBound, to: range.upperBound, by: 1 << 20) {
            try Interruption.check()
            let count = min(Self.pieceByteCount, range.upperBound - start)
            let bytes = try file.bytes(at: start, count: Int(count))
            for position in stride(from: 0, to: bytes.count, by: Limits.blockByteCount) {
                let end = min(position + Limits.blockByteCount, bytes.count)
                guard table.rows.count < Self.blockCountMaximum,
                    let row = row(RawBlock(Array(bytes[position..<end])))
                else { continue }
                table.add(["\(start + UInt64(position))"] + row)
            }
        }
    }

    /// Name, checksum and content of a block that begins with a magic; nil for another.
    private func row(_ block: RawBlock) -> [StyledText]? {
        typealias Header = SlotHeader.Layout
        if block.bytes.starts(with: SlotHeader.magic) {
            let state = SlotState(
                rawValue: UInt32(truncatingIfNeeded: block.integer(Header.state)))
            return [
                "slot \(block.integer(Header.slotIndex))", checksum(block, Header.checksum),
                """
                \(state.map { "\($0)" } ?? "unknown state"), step \(block.integer(Header.step)), \
                sequence \(block.integer(Header.sequence)), \
                \(Quantity.bytes(block.integer(Header.payloadByteCount)))
                """,
            ]
        }
        typealias Super = Superblock.Layout
        if block.bytes.starts(with: Superblock.magic) {
            return [
                "superblock", checksum(block, Super.checksum),
                """
                generation \(block.integer(Super.generation)), slot \
                \(block.integer(Super.slotIndex)), step \(block.integer(Super.step)), sequence \
                \(block.integer(Super.sequence))
                """,
            ]
        }
        typealias Identity = IdentityBlock.Layout
        guard block.bytes.starts(with: IdentityBlock.magic) else { return nil }
        return [
            "identity", checksum(block, Identity.checksum),
            """
            \(block.integer(Identity.slotCount)) slots of \
            \(Quantity.bytes(block.integer(Identity.slotByteCount))), file \
            \(block.identifier(Identity.fileUUID))
            """,
        ]
    }

    private func checksum(_ block: RawBlock, _ field: LayoutField) -> StyledText {
        block.has(field) && block.computedDigest(before: field) == block.digest(field)
            ? StyledText("right", .green) : StyledText("wrong", .red)
    }
}
