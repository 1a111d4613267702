internal import CPlatformLinux

/// A folder that is made under a temporary name, as `NewFile` is.
public enum NewFolder {
    /// renameat2(2), and fsync(2) of the directory around it: afterwards the folder is durable
    /// under its name. Its files are durable already.
    ///
    /// - Throws: EEXIST when the name is taken.
    public static func publish(
        _ temporaryPath: String, as path: String
    ) throws(StorageError) {
        // Safe, twice: the paths are passed as C strings for the calls.
        let renamed = unsafe pccp_rename(temporaryPath, path, false)
        guard renamed == 0 else { throw .rename(errno: -renamed, path: path) }
        let flushed = unsafe pccp_fsync_parent(path)
        guard flushed == 0 else {
            throw .flush(errno: -flushed, operation: "fsync of the directory", path: path)
        }
    }
}
