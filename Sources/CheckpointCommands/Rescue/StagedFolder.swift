internal import CheckpointFormat
internal import CheckpointStorage

#if canImport(Glibc)
    internal import Glibc
#endif

/// A folder that appears under its name when all of it is complete: some files of a job without
/// the others look like an older state of the job. Dropped unpublished, it is removed.
final class StagedFolder {
    private let finalPath: String
    /// Where its files are made.
    let temporaryPath: String
    private var isPublished = false

    /// - Throws: `exists` when `path` is taken.
    init(_ path: String) throws(CheckpointError) {
        var trimmed = path[...]
        while trimmed.count > 1, trimmed.hasSuffix("/") { trimmed.removeLast() }
        finalPath = String(trimmed)
        temporaryPath = "\(finalPath).creating-\(UInt32.random(in: .min ... .max))"
        // Safe: the paths are passed as C strings for the calls.
        guard unsafe access(finalPath, F_OK) != 0 else {
            throw CheckpointError(
                .exists, "\(finalPath) exists; choose another name for the new folder")
        }
        guard unsafe mkdir(temporaryPath, 0o777) == 0 else { throw failure("mkdir") }
    }

    deinit { if !isPublished { remove() } }

    func file(_ name: String) -> String { "\(temporaryPath)/\(name)" }

    /// Where a file is once the folder is published.
    func finalFile(_ name: String) -> String { "\(finalPath)/\(name)" }

    /// The folder gets its name, and that is durable. Its files are durable already.
    ///
    /// A crash before the rename leaves the temporary name, which no restart looks at.
    func publish() throws(CheckpointError) {
        try withCheckpointErrors { () throws(StorageError) in
            try NewFolder.publish(temporaryPath, as: finalPath)
        }
        isPublished = true
    }

    private func failure(_ operation: String) -> CheckpointError {
        let number = errno
        return CheckpointError(
            number == ENOSPC ? .noSpace : .inputOutput,
            "\(finalPath): \(operation): \(SystemMessage.text(number))", osErrorNumber: number)
    }

    private func remove() {
        for name in (try? RankFolder.names(in: temporaryPath)) ?? [] {
            // Safe: the path is passed as a C string for the call.
            unsafe _ = unlink(file(name))
        }
        // Safe: as above.
        unsafe _ = rmdir(temporaryPath)
    }
}
