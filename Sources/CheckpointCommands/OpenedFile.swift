internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointStorage

#if canImport(Glibc)
    internal import Glibc
#endif

extension FileStorage {
    /// Opens a file for a command.
    static func opened(
        _ path: String, _ access: Access, mode: Mode = .automatic, allowsNetwork: Bool = false
    ) throws(CheckpointError) -> FileStorage {
        do throws(CheckpointError) {
            return try withCheckpointErrors { () throws(StorageError) in
                try FileStorage(
                    path: path, access: access, mode: mode, allowsNetwork: allowsNetwork)
            }
        } catch {
            guard RankFolder.isFolder(path) else { throw error }
            var failure = error
            failure.message =
                "\(path): this is a folder, and the command is about one file; name it, such as "
                + "rank-00000-of-00008.pcc in it"
            throw failure
        }
    }

    /// Whether a writer has the file open; nil where there are no locks that show it.
    var isWriterAtWork: Bool? {
        get throws(CheckpointError) {
            try withCheckpointErrors { () throws(StorageError) in try isLockedByAnother(.writer) }
        }
    }

    /// All passes of pcfsck, with a progress bar.
    func check(
        _ depth: CheckOptions.Depth, _ title: String,
        whileRunning: @escaping @Sendable (CheckProgress, ProgressBar) -> Void = { _, _ in }
    ) -> CheckReport {
        let progress = ProgressBar(title, total: 0)
        defer { progress.finish() }
        return FileChecker(storage: self).run(options: CheckOptions(depth: depth)) { state in
            whileRunning(state, progress)
            if state.totalByteCount > 0 {
                progress.update(state.doneByteCount, of: state.totalByteCount)
            }
        }
    }
}

extension NewFile {
    /// The file beside `path` that becomes it.
    static func begun(_ path: String, byteCount: UInt64) throws(CheckpointError) -> NewFile {
        do throws(StorageError) {
            return try NewFile(beside: path, byteCount: byteCount)
        } catch {
            throw CheckpointError(error)
        }
    }

    /// Durable under its name.
    mutating func finish(replacing: Bool) throws(CheckpointError) {
        do throws(StorageError) {
            try publish(replacing: replacing)
        } catch {
            throw CheckpointError(error)
        }
    }
}

/// What stat(2) reports of a path that a command is to write.
enum OutputPath {
    /// - Returns: the kind of file that is there, as in st_mode; nil when nothing is.
    /// - Throws: `invalidArgument` when `path` is the file `source` itself, which `meaning` names.
    static func kind(
        _ path: String, source: String? = nil, meaning: String = "the checkpoint file itself"
    ) throws(CheckpointError) -> mode_t? {
        var (target, other) = (stat(), stat())
        // Safe: stat fills the structs that it is given; the paths are passed as C strings.
        guard unsafe stat(path, &target) == 0 else { return nil }
        if let source, unsafe stat(source, &other) == 0, target.st_dev == other.st_dev,
            target.st_ino == other.st_ino
        {
            throw CheckpointError(
                .invalidArgument, "\(path) is \(meaning); choose another name")
        }
        return target.st_mode & S_IFMT
    }

    /// Whether two names are one file, also one that does not exist yet.
    static func areSame(_ path: String, _ other: String) -> Bool {
        func place(_ path: String) -> (folder: String, name: Substring)? {
            let parts = path.split(separator: "/", omittingEmptySubsequences: false)
            guard let name = parts.last else { return nil }
            let folder = parts.count > 1 ? parts.dropLast().joined(separator: "/") + "/" : "."
            // Safe: realpath returns nil or a C string that the caller frees.
            guard let resolved = unsafe realpath(folder, nil) else { return nil }
            defer { unsafe free(resolved) }
            return (unsafe String(cString: resolved), name)
        }
        guard let first = place(path), let second = place(other) else { return path == other }
        return first == second
    }
}
