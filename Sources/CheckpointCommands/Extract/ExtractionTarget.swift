internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

#if canImport(Glibc)
    internal import Glibc
#endif

/// Where pcextract writes to.
struct ExtractionTarget {
    private enum Kind {
        /// A file that appears under `path` when it is complete.
        case file(path: String)
        /// Standard output, a pipe or a device: cannot be taken back, so everything is verified
        /// before the first byte is written.
        case stream(DescriptorSink)
    }

    /// For messages.
    let name: String
    private let kind: Kind

    /// - Throws: `invalidArgument` when `path` is the source or a directory.
    init(_ path: String, source: String? = nil) throws(CheckpointError) {
        if path == "-" {
            name = "standard output"
            guard !Output.standard.isTerminal else {
                throw CheckpointError(
                    .invalidArgument,
                    "standard output is a terminal; redirect it, or name a file")
            }
            kind = .stream(DescriptorSink(STDOUT_FILENO, name: name))
            return
        }
        name = path
        switch try OutputPath.kind(path, source: source) {
        case nil: kind = .file(path: path)
        case S_IFREG: kind = .file(path: Self.resolved(path))
        case S_IFDIR:
            throw CheckpointError(
                .invalidArgument, "\(path) is a directory; give the name of a file in it")
        default:
            kind = .stream(try DescriptorSink(opening: path, name: path))
        }
    }

    /// Follows symbolic links, so that the file behind one is replaced and not the link.
    private static func resolved(_ path: String) -> String {
        // Safe: realpath returns nil or a C string that the caller frees.
        guard let resolved = unsafe realpath(path, nil) else { return path }
        defer { unsafe free(resolved) }
        return unsafe String(cString: resolved)
    }

    /// The path of a file; nil for a stream.
    var path: String? {
        if case .file(let path) = kind { path } else { nil }
    }

    /// Writes the files of `plan`, or its one file to a stream.
    ///
    /// - Parameters:
    ///   - documents: files that go with them, which appear first.
    ///   - holes: chunks that are known to be damaged; nil when none may be.
    /// - Returns: false when the reader of a stream had enough before the end.
    /// - Throws: `corrupt` or `inputOutput` when the checkpoint cannot be read: then nothing was
    ///   written, unless it changed between verification and copy to a stream. `outputFailed` when
    ///   the target cannot be written.
    func write(
        _ plan: OutputPlan, from selected: SelectedCheckpoint, holes: Set<Int>? = nil,
        documents: [(path: String, bytes: [UInt8])] = []
    ) throws(CheckpointError) -> Bool {
        switch kind {
        case .file:
            try writeFiles(plan, documents) { file, title, sink throws(CheckpointError) in
                _ = try ExtractionCopy(file, title: title, holes: holes)
                    .scatter(selected, to: sink)
            }
        case .stream(let sink):
            guard let file = plan.files.first, plan.files.count == 1 else {
                throw CheckpointError(
                    .invalidArgument, "a stream takes one file; give a name with -o OUT")
            }
            let checksums = try ExtractionCopy(file, title: "verifying", holes: holes)
                .scatter(selected, to: nil, readsAll: true)
            let staged = try documents.map { document throws(CheckpointError) in
                try StagedFile(document.path, bytes: document.bytes)
            }
            for document in staged { try document.publish() }
            do throws(CheckpointError) {
                try ExtractionCopy(file, title: "writing", holes: holes)
                    .stream(selected, checksums: checksums, to: sink)
            } catch {
                if error.code != .readerGone { throw streamFailure(error) }
                return false
            }
        }
        return true
    }

    /// What was written to a stream cannot be taken back: another checkpoint must not follow it.
    private func streamFailure(_ error: CheckpointError) -> CheckpointError {
        guard [.corrupt, .inputOutput, .busy].contains(error.code) else { return error }
        return CheckpointError(
            .outputFailed,
            "the checkpoint changed while it was written to \(name), which is incomplete: "
                + error.message)
    }

    /// All files are complete under temporary names before the first appears; the index, which
    /// loaders look for, is the last.
    ///
    /// - Parameter copy: writes a file at offsets; the text says what it does, for progress.
    func writeFiles(
        _ plan: OutputPlan, _ documents: [(path: String, bytes: [UInt8])] = [],
        copy: (OutputFile, String, DescriptorSink) throws(CheckpointError) -> Void
    ) throws(CheckpointError) {
        var staged = try documents.map { document throws(CheckpointError) in
            try StagedFile(document.path, bytes: document.bytes)
        }
        for (number, file) in plan.files.enumerated() {
            let place = plan.files.count > 1 ? " \(number + 1) of \(plan.files.count) of" : ""
            let new = try StagedFile(
                file.path, byteCount: file.contentByteCount + file.directoryByteCount)
            try copy(file, "extracting\(place)", new.sink)
            staged.append(new)
        }
        if let index = plan.index {
            staged.append(try StagedFile(index.path, bytes: index.bytes))
        }
        try Interruption.check()
        for file in staged { try file.publish() }
    }

    /// - Throws: `outputFailed` when a file cannot be made where this one will appear.
    func checkIsWritable() throws(CheckpointError) {
        guard case .file(let path) = kind else { return }
        let name = path.split(separator: "/", omittingEmptySubsequences: false).last ?? ""
        guard !name.isEmpty, name.utf8.count <= Int(NAME_MAX) else {
            throw CheckpointError(
                .invalidArgument,
                "\(path.isEmpty ? "an empty path" : path) is no name of a file; give another one")
        }
        _ = try withCheckpointErrors { () throws(StorageError) in try NewFile.target(of: path) }
        _ = try StagedFile(path, byteCount: 0)
    }

    /// Writes a document that is no part of a checkpoint. A reader who had enough is no error.
    ///
    /// - Throws: `outputFailed` when the file exists and `replacing` is false.
    func write(document bytes: [UInt8], replacing: Bool = true) throws(CheckpointError) {
        switch kind {
        case .file(let path):
            let file = try StagedFile(path, bytes: bytes)
            try Interruption.check()
            try file.publish(replacing: replacing)
        case .stream(let sink):
            do throws(CheckpointError) {
                try sink.write(bytes)
            } catch {
                if error.code != .readerGone { throw error }
            }
        }
    }
}

/// A file that is written under a temporary name; dropped unpublished, it is removed.
private final class StagedFile {
    private var file: NewFile
    let sink: DescriptorSink

    init(_ path: String, byteCount: UInt64) throws(CheckpointError) {
        do throws(StorageError) {
            file = try NewFile(beside: path, byteCount: byteCount)
        } catch {
            throw Self.outputFailure(error)
        }
        sink = try DescriptorSink(opening: file.temporaryPath, name: path, isRead: true)
        try sink.setByteCount(byteCount)
    }

    convenience init(_ path: String, bytes: [UInt8]) throws(CheckpointError) {
        try self.init(path, byteCount: UInt64(bytes.count))
        try sink.write(bytes, at: 0)
    }

    /// Durable under its name.
    func publish(replacing: Bool = true) throws(CheckpointError) {
        do throws(StorageError) {
            try file.publish(replacing: replacing)
        } catch {
            throw Self.outputFailure(error)
        }
    }

    private static func outputFailure(_ error: StorageError) -> CheckpointError {
        var failure = CheckpointError(error)
        failure.code = .outputFailed
        return failure
    }
}
