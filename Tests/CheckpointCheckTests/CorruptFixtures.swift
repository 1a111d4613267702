import CheckpointFormat
import StorageFaults

/// A damaged fixture: how it is made from a valid one, and what pcfsck must find.
struct CorruptFixture: Sendable {
    /// An identifier with its severity, and the slot it is about.
    struct Expected: Sendable {
        let id: String
        let severity: String
        let role: ImageEditor.Role?
    }

    static func error(_ id: String, _ role: ImageEditor.Role? = nil) -> Expected {
        Expected(id: "PCK-" + id, severity: "error", role: role)
    }

    static func warning(_ id: String, _ role: ImageEditor.Role? = nil) -> Expected {
        Expected(id: "PCK-" + id, severity: "warning", role: role)
    }

    static func info(_ id: String, _ role: ImageEditor.Role? = nil) -> Expected {
        Expected(id: "PCK-" + id, severity: "info", role: role)
    }

    /// Which checkpoint a resume loads.
    enum Resume: Sendable {
        case nothing
        case loads(ImageEditor.Role, String)
    }

    static let anchored = Resume.loads(.anchored, "anchored")

    let name: String
    let description: String
    let base: String
    let findings: [Expected]
    /// What `-p` leaves; nil when it changes nothing.
    let leftByRepair: [Expected]?
    let resume: Resume
    let edit: @Sendable (inout ImageEditor) throws -> Void

    init(
        _ name: String, _ description: String, base: String = "safetensors",
        finds findings: [Expected], leaves: [Expected]? = nil, resume: Resume,
        edit: @escaping @Sendable (inout ImageEditor) throws -> Void
    ) {
        self.name = "corrupt/" + name
        self.description = description
        self.base = "valid/v1/" + base
        self.findings = findings
        leftByRepair = leaves
        self.resume = resume
        self.edit = edit
    }

    static var all: [CorruptFixture] {
        identity + superblocks + headers + tables + payload + cross
    }

    // MARK: Identity

    private static let identity: [CorruptFixture] = [
        .init(
            "wrong-magic", "Both identity blocks hold something else.",
            finds: [error("I004")], resume: .nothing
        ) { editor in
            for offset in editor.geometry.identityOffsets {
                editor.builder.put(Array("%PDF-1.7".utf8), at: offset)
            }
        },
        .init(
            "text-mode", "Each CR LF became LF on the way here.",
            finds: [error("I005")], resume: .nothing
        ) { editor in
            editor.builder.bytes = Fixture.convertingLineEnds(editor.builder.bytes)
        },
        .init(
            "newer-major", "Format 2.0.", finds: [error("I006")], resume: .nothing
        ) { editor in editor.editIdentity { $0[8] = 2 } },
        .init(
            "unknown-incompat", "An incompatible feature of the future.",
            finds: [error("I007")], resume: .nothing
        ) { editor in editor.editIdentity { $0[32] = 0x40 } },
        .init(
            "unknown-ro-compat", "A feature that allows reading only.",
            finds: [warning("I009")], resume: anchored
        ) { editor in editor.editIdentity { $0[24] = 1 } },
        .init(
            "unknown-compat", "A feature that may be ignored.",
            finds: [warning("I010")], resume: anchored
        ) { editor in editor.editIdentity { $0[16] = 1 } },
        .init(
            "unknown-compat-damaged",
            "A feature that may be ignored, and a damaged mirror that is therefore not repaired.",
            finds: [error("I001"), warning("I010")], resume: anchored
        ) { editor in
            editor.editIdentity { $0[16] = 1 }
            editor.builder.flip(editor.geometry.identityOffsets[1] + 60)
        },
        .init(
            "truncated-tail", "The last three blocks are missing.",
            finds: [error("I013")], resume: anchored
        ) { editor in editor.builder.bytes.removeLast(3 * 4096) },
        .init(
            "truncated-data", "The data of all slots is missing.",
            finds: [
                error("I008"), error("T003", .anchored), warning("T003", .older),
                warning("T003", .oldest), error("C003", .anchored), error("C003", .anchored),
                error("C003", .anchored), error("C003", .older), error("C003", .older),
                error("C003", .older), error("C003", .oldest), error("C003", .oldest),
                error("C003", .oldest),
            ], resume: .nothing
        ) { editor in
            editor.builder.bytes.removeSubrange(Int(editor.geometry.dataOffset)...)
        },
        .init(
            "appended", "Somebody appended a line.", finds: [warning("I011")], resume: anchored
        ) { editor in
            editor.builder.bytes += [UInt8](repeating: 0x2A, count: 5000)
        },
        .init(
            "identity-lost", "Both identity blocks are damaged.",
            finds: [error("I003")], resume: .nothing
        ) { editor in
            for offset in editor.geometry.identityOffsets { editor.builder.flip(offset + 100) }
        },
        .init(
            "identity-stray", "Superblocks lie where the identity blocks were.",
            finds: [error("I003")], resume: .nothing
        ) { editor in
            for offset in editor.geometry.identityOffsets {
                editor.builder.put(
                    Array(editor.builder.bytes[4096..<8192]), at: offset)
            }
        },
        .init(
            "zeroed", "The whole file is zero.", finds: [error("I003")], resume: .nothing
        ) { editor in
            for offset in editor.geometry.identityOffsets {
                editor.builder.zero(offset, byteCount: 4096)
            }
        },
        .init(
            "identity-head-damaged", "One bit of the head's identity block is wrong.",
            finds: [error("I001")], leaves: [], resume: anchored
        ) { editor in editor.builder.flip(80) },
        .init(
            "identity-tail-damaged", "The mirror of the identity block is zero.",
            finds: [error("I001")], leaves: [], resume: anchored
        ) { editor in
            editor.builder.zero(editor.geometry.identityOffsets[1], byteCount: 4096)
        },
        .init(
            "identity-copies-differ", "The mirror is that of another file.",
            finds: [error("I002")], resume: anchored
        ) { editor in editor.editIdentity(copies: [1]) { $0[40] ^= 0xFF } },
    ]

    // MARK: Superblocks

    private static let superblocks: [CorruptFixture] = [
        .init(
            "superblock-newest-head-damaged", "One bit, newest generation, head.",
            finds: [error("B001")], leaves: [], resume: anchored
        ) { editor in editor.builder.flip(editor.superblockOffsets()[0] + 40) },
        .init(
            "superblock-newest-tail-damaged", "Zeros, newest generation, tail.",
            finds: [error("B001")], leaves: [], resume: anchored
        ) { editor in
            editor.builder.zero(editor.superblockOffsets()[1], byteCount: 4096)
        },
        .init(
            "superblock-previous-head-damaged", "Zeros, previous generation, head.",
            finds: [error("B001")], leaves: [], resume: anchored
        ) { editor in
            editor.builder.zero(editor.superblockOffsets(newest: false)[0], byteCount: 512)
        },
        .init(
            "superblock-previous-tail-damaged",
            "One bit, previous generation, tail, in a file whose writer was killed.",
            base: "killed", finds: [error("B001"), info("B010")], leaves: [info("B010")],
            resume: anchored
        ) { editor in editor.builder.flip(editor.superblockOffsets(newest: false)[1] + 8) },
        .init(
            "superblock-newest-pair-damaged",
            "Both copies of the newest generation: what it anchored is complete but unanchored.",
            base: "killed",
            finds: [warning("B002"), info("B010"), info("S002", .anchored)],
            resume: .loads(.anchored, "unanchored")
        ) { editor in
            for offset in editor.superblockOffsets() { editor.builder.flip(offset + 48) }
        },
        .init(
            "superblock-previous-pair-damaged",
            "Both copies of the previous generation, in a file that was closed.",
            finds: [error("B002")], resume: anchored
        ) { editor in
            for offset in editor.superblockOffsets(newest: false) {
                editor.builder.zero(offset, byteCount: 512)
            }
        },
        .init(
            "superblocks-lost", "All four copies.",
            finds: [
                error("B003"), info("S002", .anchored), info("S002", .oldest),
                info("S002", .older),
            ], resume: .loads(.anchored, "unanchored")
        ) { editor in
            for newest in [true, false] {
                for offset in editor.superblockOffsets(newest: newest) {
                    editor.builder.flip(offset + 500)
                }
            }
        },
        .init(
            "superblock-misplaced", "The newest superblock in the place of the other parity.",
            finds: [error("B007")], leaves: [], resume: anchored
        ) { editor in
            let block = editor.builder.block(at: editor.superblockOffsets()[0])
            editor.builder.put(block, at: editor.superblockOffsets(newest: false)[1])
        },
        .init(
            "superblock-foreign", "A superblock of another file.",
            finds: [error("B007")], leaves: [], resume: anchored
        ) { editor in
            try editor.editSuperblock(copies: [0]) {
                $0.fileUUID = Identifier128(bytes: Array(0x80..<0x90))
            }
        },
        .init(
            "superblock-not-updated", "A crash between the two copies of a superblock.",
            base: "killed", finds: [info("B004"), info("B010")], resume: anchored
        ) { editor in
            try editor.editSuperblock(copies: [1]) {
                $0.generation = Generation(rawValue: $0.generation.rawValue - 2)
            }
        },
        .init(
            "fork", "Two superblocks of one generation that differ.",
            finds: [error("B005")], resume: anchored
        ) { editor in try editor.editSuperblock(copies: [1]) { $0.writerPID += 1 } },
        .init(
            "history-broken", "The newest superblock follows another one than is in the file.",
            finds: [error("B009")], resume: anchored
        ) { editor in try editor.editSuperblock { $0.parentDigest.low ^= 1 } },
        .init(
            "anchor-stale", "The anchored slot's new header was never written.",
            finds: [error("B006", .anchored), error("S008", .anchored)],
            resume: .loads(.older, "older")
        ) { editor in
            try editor.edit(.anchored) { $0.sequence = SequenceNumber(rawValue: 1) }
        },
    ]

    // MARK: Slot headers

    private static let headers: [CorruptFixture] = [
        .init(
            "header-damaged-anchored", "One bit in the header of the anchored slot.",
            finds: [error("B006", .anchored), error("S003", .anchored)],
            resume: .loads(.older, "older")
        ) { editor in editor.builder.flip(editor.headerOffset(.anchored) + 60) },
        .init(
            "header-damaged-older", "One bit in the header of a slot that nothing keeps.",
            finds: [warning("S003", .older)], resume: anchored
        ) { editor in editor.builder.flip(editor.headerOffset(.older) + 4000) },
        .init(
            "header-torn", "A torn header in a file whose writer was killed.",
            base: "killed", finds: [info("B010"), info("S003", .oldest)], resume: anchored
        ) { editor in
            editor.builder.zero(editor.headerOffset(.oldest) + 512, byteCount: 3584)
        },
        .init(
            "header-blank-anchored", "The header of the anchored slot is zero.",
            finds: [error("B006", .anchored), error("S004", .anchored)],
            resume: .loads(.older, "older")
        ) { editor in editor.builder.zero(editor.headerOffset(.anchored), byteCount: 4096) },
        .init(
            "header-foreign", "A header with the UUID of another file.",
            finds: [error("S005", .older)], resume: anchored
        ) { editor in
            try editor.edit(.older) { $0.fileUUID = Identifier128(bytes: Array(0x80..<0x90)) }
        },
        .init(
            "header-misdirected",
            "The header of the anchored slot, written to another one as well.",
            finds: [error("S006", .older)], resume: anchored
        ) { editor in
            let block = editor.builder.block(at: editor.headerOffset(.anchored))
            editor.builder.put(block, at: editor.slot(.older))
        },
        .init(
            "slot-torn", "A checkpoint was being written when the writer was killed.",
            base: "killed", finds: [info("B010"), info("S001", .oldest)], resume: anchored
        ) { editor in
            try editor.edit(.oldest) {
                $0.state = .writing
                $0.sequence = SequenceNumber(rawValue: 5)
                $0.step = 50
                $0.completedTime = 0
            }
            editor.builder.flip(editor.dataOffset(.oldest) + 100)
        },
        .init(
            "slot-unanchored", "A crash between the two barriers.",
            base: "killed", finds: [info("B010"), info("S002", .oldest)],
            resume: .loads(.oldest, "unanchored")
        ) { editor in
            try editor.edit(.oldest) {
                $0.sequence = SequenceNumber(rawValue: 5)
                $0.step = 50
            }
        },
        .init(
            "slot-unanchored-damaged",
            "A complete header whose chunks did not reach the medium before the crash.",
            base: "killed",
            finds: [info("B010"), info("S002", .oldest), info("C001", .oldest)],
            resume: anchored
        ) { editor in
            try editor.edit(.oldest) {
                $0.sequence = SequenceNumber(rawValue: 5)
                $0.step = 50
            }
            editor.builder.flip(editor.dataOffset(.oldest) + 2 * 65536 + 9)
        },
    ]

    // MARK: Tables and manifests

    private static let tables: [CorruptFixture] = [
        .init(
            "table-damaged-anchored", "One bit in the chunk table of the anchored slot.",
            finds: [error("T001", .anchored)], resume: .loads(.older, "older")
        ) { editor in editor.builder.flip(editor.headerOffset(.anchored) + 4096 + 50) },
        .init(
            "table-damaged-older", "One bit in the chunk table of a slot that nothing keeps.",
            finds: [warning("T001", .older)], resume: anchored
        ) { editor in editor.builder.flip(editor.headerOffset(.older) + 4096 + 50) },
        .init(
            "table-overlap", "Two chunks in one place, sealed by a faulty program.",
            finds: [error("T002", .older)], resume: anchored
        ) { editor in
            var table = try editor.builder.table(editor.slot(.older))
            table.entries[1].storedOffset = table.entries[0].storedOffset
            try editor.replaceTable(.older, table)
        },
        .init(
            "manifest-damaged", "One bit in the tensor directory of the anchored slot.",
            finds: [error("T003", .anchored), error("C001", .anchored)],
            resume: .loads(.older, "older")
        ) { editor in editor.builder.flip(editor.dataOffset(.anchored) + 20) },
        .init(
            "manifest-invalid", "Opaque bytes in a slot that says safetensors.",
            base: "opaque", finds: [error("T004", .older)], resume: anchored
        ) { editor in try editor.edit(.older) { $0.payloadKind = .safetensors } },
    ]

    // MARK: Payload

    private static let payload: [CorruptFixture] = [
        .init(
            "chunk-damaged-anchored", "One bit of tensor data in the anchored slot.",
            finds: [error("C001", .anchored)], resume: .loads(.older, "older")
        ) { editor in editor.builder.flip(editor.dataOffset(.anchored) + 70_000) },
        .init(
            "chunk-damaged-older", "One bit of data in a slot that nothing keeps.",
            base: "opaque", finds: [warning("C001", .older)], resume: anchored
        ) { editor in editor.builder.flip(editor.dataOffset(.older) + 7) },
        .init(
            "chunks-damaged-all", "The second chunk of every slot.",
            base: "opaque",
            finds: [
                error("C001", .anchored), warning("C001", .older), warning("C001", .oldest),
                error("X001"),
            ], resume: .nothing
        ) { editor in
            for role in [ImageEditor.Role.anchored, .older, .oldest] {
                editor.builder.flip(editor.dataOffset(role) + 65536)
            }
        },
        .init(
            "chunk-undecodable", "A chunk with the right digest that is no zstd frame.",
            base: "zstd", finds: [error("C002", .older)], resume: anchored
        ) { editor in
            var table = try editor.builder.table(editor.slot(.older))
            let offset = editor.dataOffset(.older) + table.entries[1].storedOffset
            let junk = ImageBuilder.bytes(table.entries[1].storedByteCount, seed: 1)
            editor.builder.put(junk, at: offset)
            table.entries[1].digest = ImageBuilder.treeDigest(junk)
            try editor.replaceTable(.older, table)
        },
        .init(
            "payload-digest-wrong", "A header that records another payload than its chunks hold.",
            finds: [error("C004", .older)], resume: anchored
        ) { editor in try editor.edit(.older) { $0.logicalDigest.high ^= 1 } },
        .init(
            "padding-used", "Bytes behind the last chunk, which belong to nothing.",
            base: "opaque", finds: [], resume: anchored
        ) { editor in editor.builder.put([1, 2, 3], at: editor.dataOffset(.anchored) + 200_000) },
    ]

    // MARK: Cross checks

    private static let cross: [CorruptFixture] = [
        .init(
            "retained-header-damaged", "One bit in the header of a retained slot.",
            base: "retain3", finds: [error("S003", .retained), error("X002", .retained)],
            resume: anchored
        ) { editor in editor.builder.flip(editor.headerOffset(.retained) + 200) },
        .init(
            "retained-chunk-damaged", "One bit of data in a retained slot.",
            base: "retain3", finds: [error("C001", .retained2)], resume: anchored
        ) { editor in editor.builder.flip(editor.dataOffset(.retained2) + 70_000) },
        .init(
            "retained-stale", "A retained slot holds an older checkpoint.",
            base: "retain3", finds: [error("S008", .retained), error("X002", .retained)],
            resume: anchored
        ) { editor in
            try editor.edit(.retained) { $0.sequence = SequenceNumber(rawValue: 1) }
        },
        .init(
            "sequence-repeated", "Two slots with one sequence.",
            finds: [error("X003", .older)], resume: anchored
        ) { editor in
            try editor.edit(.older) { $0.sequence = SequenceNumber(rawValue: 4) }
        },
        .init(
            "step-differs", "Superblock and slot give different steps.",
            finds: [error("X004", .anchored)], resume: anchored
        ) { editor in try editor.editSuperblock { $0.anchor?.step += 1 } },
        .init(
            "reserved-block-used", "Something in the reserved block.",
            finds: [warning("X005")], resume: anchored
        ) { editor in editor.builder.flip(3 * 4096 + 77) },
        .init(
            "nothing-left", "The header of every slot is damaged.",
            finds: [
                error("B006", .anchored), error("S003", .anchored), warning("S003", .oldest),
                warning("S003", .older), error("X001"),
            ], resume: .nothing
        ) { editor in
            for role in [ImageEditor.Role.anchored, .older, .oldest] {
                editor.builder.flip(editor.headerOffset(role) + 3)
            }
        },
        .init(
            "anchored-and-unanchored",
            "The anchored slot is damaged, and a newer complete one was left by the crash.",
            base: "killed",
            finds: [
                info("B010"), info("S002", .oldest), error("C001", .anchored),
            ], resume: .loads(.oldest, "unanchored")
        ) { editor in
            try editor.edit(.oldest) {
                $0.sequence = SequenceNumber(rawValue: 5)
                $0.step = 50
            }
            editor.builder.flip(editor.dataOffset(.anchored) + 100_000)
        },
    ]
}
