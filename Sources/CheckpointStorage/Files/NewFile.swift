internal import CPlatformLinux

#if canImport(Glibc)
    internal import Glibc
#endif

/// A file that does not exist under its name until it is complete.
///
/// It grows beside its final path under a temporary name, with its blocks truly reserved, and
/// `publish` makes it durable before it renames it. Dropping it unpublished removes it.
///
/// A lock says that the creation lives: `init` removes what earlier creations of the same path left
/// that nobody holds a lock on, because their processes were killed.
public struct NewFile: ~Copyable {
    public let finalPath: String
    public let temporaryPath: String
    /// Every block is reserved, so that ENOSPC cannot come later; false on a file system that
    /// reserves none, and for a file whose size was not known.
    public let isReserved: Bool
    /// Holds the lock.
    private let descriptor: Int32
    private var isPublished = false

    /// open(2) with O_EXCL, then fallocate(2), so that ENOSPC comes now and not mid-run.
    ///
    /// A size above the free space that statvfs(3) reports is refused before fallocate(2), which
    /// would fill the disk for everybody until it fails.
    ///
    /// - Parameters:
    ///   - byteCount: what gets its blocks.
    ///   - finalByteCount: how long the file becomes, where that is more.
    /// - Throws: ENOSPC, EACCES, ENOENT and whatever else those say, and EFBIG for a size that this
    ///   process may not write; nothing is left then.
    public init(
        beside finalPath: String, byteCount: UInt64, finalByteCount: UInt64 = 0
    ) throws(StorageError) {
        try ProcessLimit.checkFileSize(max(byteCount, finalByteCount)) {
            .create(errno: $0, path: finalPath)
        }
        // First: what they take may be what this one needs.
        Self.removeLeftovers(beside: finalPath)
        let claim = try Self.claim(finalPath)
        let result = byteCount == 0 ? -EOPNOTSUPP : pccp_reserve(claim.descriptor, byteCount)
        guard result == 0 || result == -EOPNOTSUPP else {
            // Safe: the path is passed as a C string for the call.
            unsafe pccp_unlink(claim.path)
            pccp_close(claim.descriptor)
            throw StorageError.allocate(
                errno: -result, path: finalPath, byteCount: Int(clamping: byteCount))
        }
        self.finalPath = finalPath
        temporaryPath = claim.path
        descriptor = claim.descriptor
        isReserved = result == 0
    }

    deinit {
        // Before the lock goes with the descriptor: nobody else removes it then.
        // Safe: the path is passed as a C string for the call.
        if !isPublished { unsafe pccp_unlink(temporaryPath) }
        pccp_close(descriptor)
    }

    /// Removes what killed programs left of files that they were making at `finalPath`.
    public static func removeLeftovers(beside finalPath: String) {
        // Safe: the path is passed as a C string for the call.
        unsafe pccp_remove_leftovers(stem(of: finalPath))
    }

    /// What temporary names begin with, short enough for the mark and any number.
    private static func stem(of finalPath: String) -> String {
        SiblingPath.stem(
            of: finalPath, suffixByteCount: PCC_CREATION_MARK.utf8.count + "\(UInt32.max)".count)
    }

    /// A new file under a temporary name, locked as being created.
    private static func claim(
        _ finalPath: String
    ) throws(StorageError) -> (path: String, descriptor: Int32) {
        while true {
            let number = UInt32.random(in: .min ... .max)
            let path = "\(stem(of: finalPath))\(PCC_CREATION_MARK)\(number)"
            // Safe: the path is passed as a C string for the call.
            let descriptor = unsafe pccp_open(path, Int32(PCC_OPEN_WRITE | PCC_OPEN_CREATE))
            guard descriptor >= 0 else {
                throw StorageError.create(errno: -descriptor, path: finalPath)
            }
            // Without locks on this file system nobody removes leftovers on it either.
            let isTaken =
                pccp_lock(descriptor, LockByte.creation.byteOffset, 1, true) == -EAGAIN
            if !isTaken, pccp_has_name(descriptor) { return (path, descriptor) }
            // Another creation took it for a leftover before it was locked.
            pccp_close(descriptor)
        }
    }

    /// Opens it under its temporary name.
    public func open(allowsNetwork: Bool = false) throws(StorageError) -> FileStorage {
        try FileStorage(path: temporaryPath, access: .write, allowsNetwork: allowsNetwork)
    }

    /// The file that a new one at `path` replaces: behind symbolic links, which stay as they are.
    ///
    /// - Throws: ENOENT for a link to a file that does not exist.
    public static func target(of path: String) throws(StorageError) -> String {
        // Safe: realpath returns nil or a C string that the caller frees.
        if let found = unsafe realpath(path, nil) {
            defer { unsafe free(found) }
            return unsafe String(cString: found)
        }
        let failure = errno
        var facts = stat()
        // Safe: the path is passed as a C string, and the facts are filled during the call.
        guard unsafe lstat(path, &facts) == 0, facts.st_mode & S_IFMT == S_IFLNK else {
            return path
        }
        throw StorageError(
            operation: "realpath", path: path, osErrorNumber: failure,
            advice: "it is a symbolic link that leads to no file; give the name of a file, or "
                + "remove the link")
    }

    /// Gives it the owner and the permissions of the file that it is to replace.
    public func copyAccess(of file: FileStorage) throws(StorageError) {
        let path = finalPath
        try Self.check(pccp_copy_access(file.descriptor, descriptor)) {
            .copyAccess(errno: $0, path: path)
        }
    }

    /// fsync(2) of the file, renameat2(2), fsync(2) of the directory: afterwards the complete
    /// file is durable under its name, and before the rename the name was not touched.
    ///
    /// - Throws: EEXIST when the name is taken and `replacing` is false.
    public mutating func publish(replacing: Bool) throws(StorageError) {
        let path = finalPath
        try Self.check(pccp_fsync(descriptor)) {
            .flush(errno: $0, operation: "fsync", path: path)
        }
        // Safe: as above, twice.
        try Self.check(unsafe pccp_rename(temporaryPath, path, replacing)) {
            .rename(errno: $0, path: path)
        }
        isPublished = true
        try Self.check(unsafe pccp_fsync_parent(path)) {
            .flush(errno: $0, operation: "fsync of the directory", path: path)
        }
    }

    private static func check(
        _ result: Int32, _ failure: (Int32) -> StorageError
    ) throws(StorageError) {
        if result != 0 { throw failure(-result) }
    }
}
