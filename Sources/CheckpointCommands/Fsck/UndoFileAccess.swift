internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointStorage

#if canImport(Glibc)
    internal import Glibc
#endif

/// Undo files on disk; spec/UNDO.md says what is in them.
enum UndoFileAccess {
    /// `run.pcc.undo-20261123T211422Z`, or with a number behind it when that is taken.
    static func freePath(beside path: String, time: UInt64) -> String {
        let date = Quantity.date(time).filter { $0.isNumber || $0 == " " }
        let parts = date.split(separator: " ")
        let suffix = ".undo-\(parts.joined(separator: "T"))Z"
        let paths = ([""] + (2..<100).map { "-\($0)" }).lazy.map {
            SiblingPath.path(beside: path, suffix: suffix + $0)
        }
        return paths.first { !exists($0) } ?? paths[0]
    }

    private static func exists(_ path: String) -> Bool {
        // Safe: the path is passed as a C string for the call.
        unsafe access(path, F_OK) == 0
    }

    /// The file is complete and durable under its name, with its directory, when this returns.
    ///
    /// - Throws: `exists` when the name is taken; nothing is overwritten.
    static func write(_ undo: UndoFile, to path: String) throws(CheckpointError) {
        let bytes = undo.encoded()
        do throws(StorageError) {
            var file = try NewFile(
                beside: path, byteCount: UInt64(bytes.count))
            let storage = try FileStorage(
                path: file.temporaryPath, access: .write, mode: .buffered, allowsNetwork: true)
            try storage.writeBlocks(bytes, at: 0)
            try file.publish(replacing: false)
        } catch {
            var failure = CheckpointError(error)
            failure.message =
                "the undo file cannot be written, so nothing is changed: "
                + "\(failure.message)"
            throw failure
        }
    }

    static func read(_ path: String) throws(CheckpointError) -> UndoFile {
        let storage = try FileStorage.opened(path, .read, mode: .buffered)
        let count = storage.byteCount
        let block = UInt64(Limits.blockByteCount)
        guard count <= UInt64(UndoFile.byteCountMaximum), count > 0, count % block == 0 else {
            throw CheckpointError(
                .invalidArgument,
                "\(path) is no undo file: it has \(count) bytes, expected a multiple of 4096 up to "
                    + "\(UndoFile.byteCountMaximum); nothing is restored")
        }
        let bytes = try withCheckpointErrors { () throws(StorageError) in
            try storage.readBlocks(at: 0, count: Int(count))
        }
        do throws(FormatError) {
            return try UndoFile(decoding: bytes)
        } catch {
            throw CheckpointError(
                .invalidArgument,
                "\(path) is no undo file, or is damaged: \(error); nothing is restored")
        }
    }
}
