import Foundation
import Testing

@testable import CheckpointFormat

/// The column *bad value* of spec/FORMAT.md and spec/UNDO.md is what the decoders do: each field is
/// filled with values that may be bad, the checksum is made to fit, and the block is decoded.
@Suite struct SpecVerdictTests {
    /// A structure in whose `field` other bytes are put: throws when that is refused.
    private typealias Trial = (_ field: LayoutField, _ bytes: [UInt8]) throws -> Void

    private func check(_ table: SpecTableTests.Table, _ trial: Trial) throws {
        for field in table.fields {
            let size = field.byteCount
            var candidates = [
                [UInt8](repeating: 0, count: size), [UInt8](repeating: 0xFF, count: size),
            ]
            candidates += [1, 2, 3, 9].map { number in
                [number] + [UInt8](repeating: 0, count: size - 1)
            }
            candidates.append([UInt8](repeating: 0, count: size - 1) + [0x80])
            let refusals = candidates.filter { bytes in
                do {
                    try trial(field, bytes)
                    return false
                } catch {
                    return true
                }
            }
            #expect(
                refusals.isEmpty == (table.isRefused[field.name] == false),
                "\(table.section), \(field.name): \(refusals.count) values are refused")
        }
    }

    private func changed(_ block: [UInt8], _ field: LayoutField, _ bytes: [UInt8]) -> [UInt8] {
        var block = block
        block.replaceSubrange(field.range, with: bytes)
        return block
    }

    private func table(_ index: Int) throws -> SpecTableTests.Table {
        try SpecTableTests.tables()[index]
    }

    /// Where the checksum itself is changed, it is not made to fit again.
    private func sealed(
        _ block: [UInt8], _ checksum: LayoutField, after field: LayoutField
    ) -> [UInt8] {
        field == checksum ? block : Samples.resealed(block, checksum)
    }

    @Test func identityBlock() throws {
        let block = try Samples.identity().encoded()
        try check(table(0)) { field, bytes in
            _ = try IdentityBlock(
                decoding: sealed(
                    changed(block, field, bytes), IdentityBlock.Layout.checksum, after: field))
        }
    }

    private func decodeSuperblock(_ bytes: [UInt8], after field: LayoutField) throws {
        _ = try Superblock(
            decoding: sealed(bytes, Superblock.Layout.checksum, after: field),
            fileUUID: Samples.uuid, slotCount: Samples.geometry().slotCount)
    }

    @Test func superblock() throws {
        let block = Samples.superblock().encoded().bytes
        var other = Samples.superblock()
        // Its attempt may then be no number but 0.
        other.watermark = nil
        let blocks = [block, other.encoded().bytes]
        try check(table(1)) { field, bytes in
            for block in blocks {
                try decodeSuperblock(changed(block, field, bytes), after: field)
            }
        }
        try check(table(2)) { field, bytes in
            let start = Superblock.Layout.retainedSlots.offset
            let place = LayoutField(field.name, start + field.offset, field.byteCount)
            try decodeSuperblock(changed(block, place, bytes), after: place)
        }
    }

    @Test func slotHeader() throws {
        let header = try Samples.header()
        let identity = try Samples.identity()
        let block = header.encoded().bytes
        try check(table(3)) { field, bytes in
            _ = try SlotHeader(
                decoding: sealed(
                    changed(block, field, bytes), SlotHeader.Layout.checksum, after: field),
                slot: header.slot, identity: identity)
        }
    }

    /// An empty header is checked like any other, and its fields need not be zero.
    @Test func emptySlotHeader() throws {
        var header = try Samples.header()
        header.state = .empty
        header.sequence = .none
        let decoded = try SlotHeader(
            decoding: header.encoded().bytes, slot: header.slot, identity: Samples.identity())
        #expect(decoded.state == .empty && decoded.step == 1200)
        header.step = UInt64.max
        #expect(throws: FormatError.self) {
            try SlotHeader(
                decoding: header.encoded().bytes, slot: header.slot, identity: Samples.identity())
        }
    }

    @Test func chunkTable() throws {
        var header = try Samples.header()
        let geometry = try Samples.geometry()
        let bytes = Samples.table().encoded().bytes
        let end = header.tableByteCount
        try check(table(4)) { field, content in
            let changed = changed(bytes, ChunkEntry.field(field, at: 1), content)
            header.chunkTableDigest = Digest(of: changed, 0..<end)
            _ = try ChunkTable(decoding: changed, header: header, geometry: geometry)
        }
    }

    @Test func undoFile() throws {
        let bytes = UndoFileTests.sample.encoded()
        let tables = try SpecTableTests.tables(
            SpecTableTests.spec.deletingLastPathComponent().appending(path: "UNDO.md"))
        try check(tables[0]) { field, content in
            let head = changed(bytes, field, content)
            _ = try UndoFile(
                decoding: sealed(
                    Array(head[..<4096]), UndoFile.Layout.checksum, after: field)
                    + head[4096...])
        }
        try check(tables[1]) { field, content in
            let place = LayoutField(field.name, 4096 + field.offset, field.byteCount)
            let body = Array(changed(bytes, place, content)[4096...])
            var encoder = BlockEncoder(byteCount: 16)
            encoder.put(Digest(of: body), LayoutField("digest", 0, 16))
            let head = changed(
                Array(bytes[..<4096]), UndoFile.Layout.recordsDigest, encoder.bytes)
            _ = try UndoFile(
                decoding: Samples.resealed(head, UndoFile.Layout.checksum) + body)
        }
    }
}
