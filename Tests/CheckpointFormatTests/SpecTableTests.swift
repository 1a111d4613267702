import Foundation
import Testing

@testable import CheckpointFormat

/// spec/FORMAT.md and the layout enums must say the same.
@Suite struct SpecTableTests {
    private static let folder = URL(filePath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        .appending(path: "spec")
    static let spec = folder.appending(path: "FORMAT.md")

    struct Table {
        var section: String
        var fields: [LayoutField]
        /// Of each field, what the column *bad value* says.
        var isRefused: [String: Bool] = [:]
    }

    /// The offset tables of the page, in order.
    static func tables(_ spec: URL = spec) throws -> [Table] {
        let text = try String(contentsOf: spec, encoding: .utf8)
        var tables: [Table] = []
        var section = ""
        var isInside = false
        for line in text.split(separator: "\n", omittingEmptySubsequences: false) {
            if line.hasPrefix("## ") { section = String(line.dropFirst(3)) }
            if line == "| offset | size | field | bad value | meaning |" {
                tables.append(Table(section: section, fields: []))
                isInside = true
            } else if !line.hasPrefix("|") {
                isInside = false
            } else if isInside, !line.hasPrefix("|---") {
                let cells = line.split(separator: "|", omittingEmptySubsequences: false)
                    .map { $0.trimmingCharacters(in: .whitespaces) }
                let offset = try #require(Int(cells[1]), "offset in: \(line)")
                let byteCount = try #require(Int(cells[2]), "size in: \(line)")
                try #require(cells.count == 7 && !cells[5].isEmpty, "a meaning in: \(line)")
                #expect(["refused", "ignored"].contains(cells[4]), "a verdict in: \(line)")
                tables[tables.count - 1].fields.append(LayoutField(cells[3], offset, byteCount))
                tables[tables.count - 1].isRefused[cells[3]] = cells[4] == "refused"
            }
        }
        return tables
    }

    static let expected: [(section: String, fields: [LayoutField], byteCount: Int)] = [
        ("3. Identity block", IdentityBlock.Layout.all, 4096),
        ("4. Superblock", Superblock.Layout.all, 512),
        ("4. Superblock", Superblock.RetainedLayout.all, 16),
        ("5. Slot header", SlotHeader.Layout.all, 4096),
        ("6. Chunk table and chunks", ChunkEntry.Layout.all, 48),
    ]

    @Test func tablesAgreeWithTheCode() throws {
        let tables = try Self.tables()
        try #require(tables.count == Self.expected.count)
        for (table, expected) in zip(tables, Self.expected) {
            #expect(table.section == expected.section)
            #expect(table.fields == expected.fields, "\(table.section)")
        }
    }

    @Test func tablesOfTheUndoFileAgreeWithTheCode() throws {
        let tables = try Self.tables(Self.folder.appending(path: "UNDO.md"))
        #expect(tables.map(\.fields) == [UndoFile.Layout.all, UndoFile.RecordLayout.all])
        for fields in tables.map(\.fields) {
            var end = 0
            for field in fields {
                #expect(field.offset == end, "\(field.name)")
                end = field.range.upperBound
            }
            #expect(end == Limits.blockByteCount)
        }
    }

    @Test func layoutsAreGapless() {
        for (section, fields, byteCount) in Self.expected {
            var end = 0
            for field in fields {
                #expect(field.offset == end, "\(section): \(field.name)")
                #expect(!field.isReserved || field.name == "reserved_\(field.offset)")
                end = field.range.upperBound
            }
            #expect(end == byteCount, "\(section)")
        }
        #expect(ChunkEntry.Layout.byteCount == 48)
        #expect(Superblock.recordByteCount == 512)
        #expect(
            Superblock.RetainedLayout.byteCount * Superblock.retainedCapacity
                == Superblock.Layout.retainedSlots.byteCount)
    }

    @Test func elementTypesAgreeWithTheCode() throws {
        let text = try String(contentsOf: Self.spec, encoding: .utf8)
        let start = try #require(text.range(of: "| dtype | bits |"))
        var found: [String: Int] = [:]
        for line in text[start.upperBound...].split(separator: "\n").drop(while: {
            !$0.hasPrefix("| `")
        }).prefix(while: { $0.hasPrefix("| `") }) {
            let cells = line.split(separator: "|")
            let bits = try #require(Int(cells[1].trimmingCharacters(in: .whitespaces)))
            for name in cells[0].split(separator: " ") where name.hasPrefix("`") {
                found[name.trimmingCharacters(in: ["`"])] = bits
            }
        }
        let known = Dictionary(
            uniqueKeysWithValues: ElementType.all.map { ($0.name, $0.bitCount) })
        #expect(found == known)
    }

    /// The first bytes of the table in section 3 are those that the decoder knows, and no others.
    @Test func textModeFormsAgreeWithTheCode() throws {
        let text = try String(contentsOf: Self.spec, encoding: .utf8)
        let start = try #require(text.range(of: "| first bytes | what happened |"))
        let rows = text[start.upperBound...].split(separator: "\n").drop {
            !$0.hasPrefix("| `")
        }.prefix { $0.hasPrefix("| `") }
        #expect(rows.count == 3)
        func error(_ bytes: [UInt8]) -> FormatError? {
            let rest = [UInt8](repeating: 7, count: Limits.blockByteCount - bytes.count)
            return #expect(throws: FormatError.self) { try IdentityBlock(decoding: bytes + rest) }
        }
        for row in rows {
            let hexadecimal = try #require(row.split(separator: "`").dropFirst().first)
            let bytes = hexadecimal.split(separator: " ").compactMap { UInt8($0, radix: 16) }
            #expect(error(bytes) == .textModeDamage, "\(row)")
            #expect(error(Array(bytes.dropLast())) != .textModeDamage, "\(row)")
            var changed = bytes
            changed[changed.count - 1] ^= 1
            #expect(error(changed) != .textModeDamage, "\(row)")
        }
    }

    @Test func digestVectorsOfThePageHold() throws {
        let text = try String(contentsOf: Self.spec, encoding: .utf8)
        for content in ["", "abc"] {
            let digest = Digest(of: Array(content.utf8))
            var encoder = BlockEncoder(byteCount: 16)
            encoder.put(digest, LayoutField("digest", 0, 16))
            let disk = encoder.bytes.map { String(format: "%02x", $0) }.joined(separator: " ")
            #expect(text.contains("| `\(digest)` | `\(disk)` |"), "\"\(content)\"")
        }
    }
}
