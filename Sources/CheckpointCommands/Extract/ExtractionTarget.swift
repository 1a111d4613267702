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
    init(_ path: String, source: String) throws(CheckpointError) {
        if path == "-" {
            name = "standard output"
            guard !Output.standard.isTerminal else {
                throw CheckpointError(
                    .invalidArgument,
                    "standard output is a terminal; redirect it, or name a file with -o")
            }
            kind = .stream(DescriptorSink(STDOUT_FILENO, name: name))
            return
        }
        name = path
        var facts = stat()
        // Safe: stat fills the struct that it is given; the path is passed as a C string.
        guard unsafe stat(path, &facts) == 0 else {
            kind = .file(path: path)
            return
        }
        var sourceFacts = stat()
        // Safe: as above.
        if unsafe stat(source, &sourceFacts) == 0, facts.st_dev == sourceFacts.st_dev,
            facts.st_ino == sourceFacts.st_ino
        {
            throw CheckpointError(
                .invalidArgument, "\(path) is the checkpoint file itself; choose another name")
        }
        switch facts.st_mode & S_IFMT {
        case S_IFREG:
            kind = .file(path: Self.resolved(path))
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

    /// - Returns: false when the reader of a stream had enough before the end.
    /// - Throws: `corrupt` or `inputOutput` when the checkpoint cannot be read: then nothing was
    ///   written, unless it changed between verification and copy to a stream. `outputFailed` when
    ///   the target cannot be written.
    func write(
        _ content: ExtractedContent, from selected: SelectedCheckpoint
    ) throws(CheckpointError) -> Bool {
        switch kind {
        case .file(let path):
            // Nothing says that the chunks of an unanchored slot reached the medium, so a part
            // of it is good only when all of it is.
            if selected.candidate.kind == .unanchored && !content.isWholePayload {
                try ExtractionCopy(content: .whole(selected), title: "verifying").run(selected, nil)
            }
            try writeFile(content, path, from: selected)
        case .stream(let sink):
            try ExtractionCopy(content: .whole(selected), title: "verifying").run(selected, nil)
            do throws(CheckpointError) {
                try ExtractionCopy(content: content, title: "writing").run(selected, sink)
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

    private func writeFile(
        _ content: ExtractedContent, _ path: String, from selected: SelectedCheckpoint
    ) throws(CheckpointError) {
        var file: NewFile
        do throws(StorageError) {
            file = try NewFile(
                beside: path, byteCount: content.byteCount, requiresReservation: false)
        } catch {
            throw outputFailure(error)
        }
        let sink = try DescriptorSink(opening: file.temporaryPath, name: path)
        try ExtractionCopy(content: content, title: "extracting").run(selected, sink)
        do throws(StorageError) {
            try file.publish(replacing: true)
        } catch {
            throw outputFailure(error)
        }
    }

    /// Writes a whole small document.
    func write(_ bytes: [UInt8]) throws(CheckpointError) {
        switch kind {
        case .stream(let sink): try sink.write(bytes)
        case .file(let path):
            var file: NewFile
            do throws(StorageError) {
                file = try NewFile(beside: path, byteCount: 0, requiresReservation: false)
            } catch {
                throw outputFailure(error)
            }
            try DescriptorSink(opening: file.temporaryPath, name: path).write(bytes)
            do throws(StorageError) {
                try file.publish(replacing: true)
            } catch {
                throw outputFailure(error)
            }
        }
    }

    private func outputFailure(_ error: StorageError) -> CheckpointError {
        var failure = CheckpointError(error)
        failure.code = .outputFailed
        return failure
    }
}
