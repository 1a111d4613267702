internal import ArgumentParser
internal import CheckpointFormat
internal import CheckpointRecovery

struct InspectHexdumpCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "hexdump",
        abstract: "The bytes of a block, and with --annotate every field of it.",
        usage: """
            pcinspect hexdump FILE [BLOCK] [--annotate] [--length SIZE] [--json]
            pcinspect hexdump FILE --offset N [--length SIZE] [--json]
            """,
        discussion: "BLOCK is one of: \(FileBlock.help). Without one: identity.")

    @OptionGroup var options: InspectedFile

    @Argument(help: .of("block", "Which block to show."))
    var block: [String] = []

    @Flag(help: "Name every field, with its value and whether that is right.")
    var annotate = false

    @Option(help: .of("byte", "Begin at this byte of the file instead."))
    var offset: UInt64?

    @Option(
        help: .of(
            "size",
            "Show so many bytes, such as 512 or 64K; 256 with --offset, else the whole block."))
    var length: ByteSize?

    /// Fields and digests are compared in memory; more is left to pcfsck.
    private static let byteCountLimit = UInt64(Limits.chunkByteCount.upperBound)
    /// In JSON, bytes are text that is built in memory.
    private static let jsonByteCountLimit: UInt64 = 16 << 20

    func validate() throws {
        if !block.isEmpty && offset != nil {
            throw ValidationError("give a block or --offset, not both")
        }
        if !block.isEmpty && FileBlock(words: block) == nil {
            throw ValidationError(
                "there is no block '\(PrintableText.escaped(block.joined(separator: " ")))'; "
                    + "blocks are \(FileBlock.help)")
        }
    }

    func execute() throws -> ExitStatus {
        let file = try WreckedFile(path: options.file)
        let (named, place) = try chosen(file)
        let shown = length.map { min($0.byteCount, offset == nil ? place.byteCount : .max) }
        let inside = file.byteCount - min(place.offset, file.byteCount)
        let dump = HexdumpRange(
            file: file, block: named, offset: place.offset, byteCount: place.byteCount,
            shownByteCount: min(shown ?? place.byteCount, inside))
        guard inside > 0 else {
            throw CheckpointError(
                file.byteCount == 0
                    ? .notACheckpointFile : offset == nil ? .corrupt : .invalidArgument,
                "\(options.file): byte \(place.offset) is behind the end of the file, which has "
                    + file.size, byteOffset: place.offset)
        }
        let groups = annotate ? try fields(dump) : []
        if options.json {
            try writeJSON(dump, groups)
        } else {
            try HexdumpScreen(dump, isAnnotated: annotate).write(groups, to: Output.standard)
        }
        return groups.contains { $0.fields.contains(where: \.isWrong) } ? .uncorrected : .clean
    }

    /// The block that was named, or that lies where it was asked for; and its place.
    private func chosen(
        _ file: WreckedFile
    ) throws(CheckpointError) -> (block: FileBlock?, place: (offset: UInt64, byteCount: UInt64)) {
        guard let offset else {
            let block = FileBlock(words: block.isEmpty ? ["identity"] : block) ?? .identity(.head)
            return (block, try file.place(block))
        }
        if annotate, length == nil, let block = try file.recognized(at: offset) {
            return (block, (offset, Geometry.block))
        }
        return (nil, (offset, 256))
    }

    /// The fields of the block, in groups: one, or one per entry of a table.
    private func fields(_ dump: HexdumpRange) throws(CheckpointError) -> [FieldGroup] {
        let annotation = BlockAnnotation(file: dump.file)
        switch dump.block {
        case nil: return []
        case .table(let slot)?:
            return try tableGroups(dump, slot, annotation)
        case .chunk(let slot, let index)?:
            let isSmall = dump.byteCount <= Self.byteCountLimit
            let bytes =
                isSmall ? try dump.file.bytes(at: dump.offset, count: Int(dump.byteCount)) : []
            return [
                FieldGroup(
                    title: "entry \(index) of the chunk table of slot \(slot)", offset: nil,
                    fields: try annotation.chunk(slot, index, stored: bytes))
            ]
        case let block?:
            let bytes = try dump.file.bytes(at: dump.offset, count: Int(dump.byteCount))
            return [
                FieldGroup(
                    title: nil, offset: dump.offset, fields: annotation.fields(block, bytes))
            ]
        }
    }

    /// The entries that are in what is shown.
    private func tableGroups(
        _ dump: HexdumpRange, _ slot: SlotIndex, _ annotation: BlockAnnotation
    ) throws(CheckpointError) -> [FieldGroup] {
        let size = ChunkEntry.Layout.byteCount
        let used = dump.file.header(slot).map { $0.chunkCount } ?? 0
        let count = min(Int(dump.shownByteCount) / size, used)
        var groups: [FieldGroup] = []
        for index in 0..<count {
            if index % 1024 == 0 { try Interruption.check() }
            let offset = dump.offset + UInt64(index * size)
            let block = RawBlock(try dump.file.bytes(at: offset, count: size))
            groups.append(
                FieldGroup(
                    title: "chunk \(index)", offset: offset,
                    fields: annotation.entry(block, slot, index)))
        }
        return groups
    }

    private func writeJSON(_ dump: HexdumpRange, _ groups: [FieldGroup]) throws(CheckpointError) {
        guard dump.shownByteCount <= Self.jsonByteCountLimit else {
            throw CheckpointError(
                .invalidArgument,
                "\(options.file): \(dump.shownByteCount) bytes are too many for JSON, which takes "
                    + "at most \(Self.jsonByteCountLimit); give --length")
        }
        let bytes = try dump.file.bytes(at: dump.offset, count: Int(dump.shownByteCount))
        let digits = bytes.map { $0.digits(2, radix: 16) }.joined()
        Output.standard.document(
            "pcinspect",
            [
                "file": .dictionary([
                    "path": .string(options.file),
                    "byte_count": .integer(dump.file.byteCount),
                    "has_identity": .bool(dump.file.identity != nil),
                    "error": .text(dump.file.failure?.message),
                ]),
                "block": .text(dump.block?.name),
                "byte_offset": .integer(dump.offset),
                "byte_count": .count(bytes.count),
                "region": .string(dump.file.region(at: dump.offset)),
                "bytes": .string(digits),
                "groups": .array(groups.map(\.json)),
            ])
    }
}

/// What a hexdump is of.
struct HexdumpRange {
    let file: WreckedFile
    /// nil for bytes that were asked for by their offset.
    let block: FileBlock?
    let offset: UInt64
    /// Of the whole block.
    let byteCount: UInt64
    /// Of what is shown of it, inside the file.
    let shownByteCount: UInt64
}

/// Fields that belong together: those of a block, or of an entry of a table.
struct FieldGroup {
    let title: String?
    /// Where the group lies; nil when its bytes are not those that are shown.
    let offset: UInt64?
    let fields: [AnnotatedField]

    var json: JSONValue {
        .dictionary([
            "title": .text(title),
            "byte_offset": .number(offset),
            "fields": .array(
                fields.map { field in
                    let (isRight, expected): (JSONValue, JSONValue) =
                        switch field.verdict {
                        case .right: (.bool(true), .null)
                        case .wrong(let expected): (.bool(false), .string(expected))
                        case .unchecked: (.null, .null)
                        }
                    return .dictionary([
                        "name": .string(field.field.name),
                        "offset": .count(field.field.offset),
                        "byte_count": .count(field.field.byteCount),
                        "value": .string(field.value),
                        "is_right": isRight,
                        "expected": expected,
                        "note": .text(field.note),
                    ])
                }),
        ])
    }
}
