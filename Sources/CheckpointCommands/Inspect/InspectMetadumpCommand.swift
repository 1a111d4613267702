internal import ArgumentParser
internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

#if canImport(Glibc)
    internal import Glibc
#endif

struct InspectMetadumpCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "metadump",
        abstract: "A copy of all metadata without the tensors, to go with a bug report.",
        discussion: """
            OUT is a sparse file of the same size, which pcinspect and pcfsck open as they open \
            FILE: with the same metadata and the same damage in it. Tensors and opaque payloads \
            are holes, so that pcfsck --verify full finds them damaged. Compress it before \
            sending it.

            Chunks that hold the manifest are stored without the tensor bytes behind it, and the \
            digests that cover them are made again; the report counts them.
            """)

    @OptionGroup var options: InspectedFile

    @Option(name: .shortAndLong, help: .of("out", "The file to write."), completion: .file())
    var output: String

    @Flag(
        help: ArgumentHelp(
            "Replace tensor names, metadata, user metadata, fingerprint and creator.",
            discussion: """
                Each word becomes a pseudonym of the same length, the same one wherever it stands, \
                and the digests that cover it are made again. A reader who guesses a word can \
                check it. Steps, times, sizes, shapes, types and identifiers stay.
                """))
    var obfuscateNames = false

    func execute() throws -> ExitStatus {
        let storage = try FileStorage.opened(options.file, .read)
        if let kind = try OutputPath.kind(output, source: options.file), kind != S_IFREG {
            throw CheckpointError(
                .invalidArgument, "\(output) is no regular file; give the name of a new file")
        }
        var file = try NewFile.begun(output, byteCount: 0)
        let report = try Self.write(
            storage, to: file.temporaryPath, output, obfuscatesNames: obfuscateNames)
        try file.finish(replacing: true)
        if options.json {
            Output.standard.write(json(report, storage).bytes)
        } else {
            Output.standard.show { lines(report, storage, width: $0) }
        }
        return .clean
    }

    private static func write(
        _ storage: FileStorage, to path: String, _ name: String, obfuscatesNames: Bool
    ) throws(CheckpointError) -> MetadataDump.Report {
        // Safe: the path is passed as a C string for the call.
        guard unsafe truncate(path, off_t(storage.byteCount)) == 0 else {
            throw CheckpointError(
                .outputFailed,
                "\(name): \(SystemMessage.text(errno)); a file of \(storage.byteCount) bytes, all "
                    + "but its metadata holes, cannot be made there; choose another file system",
                osErrorNumber: errno)
        }
        let target = try FileStorage.opened(path, .write, mode: .buffered, allowsNetwork: true)
        return try MetadataDump.run(storage, obfuscatesNames: obfuscatesNames) {
            offset, bytes throws(CheckpointError) in
            try Interruption.check()
            try withCheckpointErrors { () throws(StorageError) in
                try target.writeBlocks(bytes, at: offset)
            }
        }
    }

    private func lines(
        _ report: MetadataDump.Report, _ storage: FileStorage, width: Int?
    ) -> [StyledText] {
        let size = Quantity.bytes(report.byteCount)
        var lines: [StyledText] = [
            """
            \(output, .bold): \(size) of metadata in a file of \
            \(Quantity.bytes(storage.byteCount))
            """,
            "  tensors and payloads are holes; pcfsck --verify full finds them damaged",
            "  manifests kept: \(report.manifestCount)",
        ]
        let resealed = [
            (report.resealedHeaderCount, "slot header"),
            (report.resealedSuperblockCount, "superblock"),
            (report.resealedIdentityCount, "identity block"),
        ].filter { $0.0 > 0 }.map { Quantity.plural($0.0, $0.1) }
        if !resealed.isEmpty {
            lines.append("  sealed again: \(resealed.joined(separator: ", "))")
        }
        lines.append(
            obfuscateNames
                ? "  names and texts are pseudonyms of the same length"
                : "  names and texts are kept; --obfuscate-names replaces them")
        for omission in report.omissions {
            lines += TextWrap.lines("left out: \(omission)", indent: 2, width: width)
        }
        return lines
    }

    private func json(_ report: MetadataDump.Report, _ storage: FileStorage) -> JSONValue {
        JSONValue.document(
            tool: "pcinspect",
            [
                "path": .string(options.file),
                "output": .string(output),
                "file_byte_count": .integer(storage.byteCount),
                "metadata_byte_count": .integer(report.byteCount),
                "manifest_count": .count(report.manifestCount),
                "resealed_header_count": .count(report.resealedHeaderCount),
                "resealed_superblock_count": .count(report.resealedSuperblockCount),
                "resealed_identity_count": .count(report.resealedIdentityCount),
                "names_are_obfuscated": .bool(obfuscateNames),
                "omissions": .array(report.omissions.map { .string($0) }),
            ])
    }
}
