internal import CPlatformLinux

#if canImport(Glibc)
    internal import Glibc
#endif

/// A file that does not exist under its name until it is complete.
///
/// It grows beside its final path under a temporary name, with its blocks truly reserved, and
/// `publish` makes it durable before it renames it. Dropping it unpublished removes it.
public struct NewFile: ~Copyable {
    public let finalPath: String
    public let temporaryPath: String
    private var isPublished = false

    /// open(2) with O_EXCL, then fallocate(2), so that ENOSPC comes now and not mid-run.
    ///
    /// - Parameter requiresReservation: refuse a file system that cannot reserve blocks.
    /// - Throws: EFBIG for a size that this process may not write.
    public init(
        beside finalPath: String, byteCount: UInt64, requiresReservation: Bool = true
    ) throws(StorageError) {
        self.finalPath = finalPath
        temporaryPath = "\(finalPath).creating-\(UInt32.random(in: .min ... .max))"
        try ProcessLimit.checkFileSize(byteCount, operation: "create", path: finalPath)
        let flags = Int32(PCC_OPEN_WRITE | PCC_OPEN_CREATE)
        // Safe: the path is passed as a C string for the call.
        let descriptor = unsafe pccp_open(temporaryPath, flags)
        guard descriptor >= 0 else {
            throw StorageError(
                operation: "create", path: finalPath, osErrorNumber: -descriptor,
                advice: descriptor == -ENOENT ? "the directory does not exist" : nil)
        }
        defer { pccp_close(descriptor) }
        let result = byteCount == 0 ? 0 : pccp_fallocate(descriptor, byteCount)
        guard result == 0 || (result == -EOPNOTSUPP && !requiresReservation) else {
            // Safe: as above.
            unsafe pccp_unlink(temporaryPath)
            throw StorageError(
                operation: "fallocate", path: finalPath, byteCount: Int(clamping: byteCount),
                osErrorNumber: -result,
                advice: result == -EOPNOTSUPP
                    ? "the file system cannot reserve blocks; use another one" : nil)
        }
    }

    deinit {
        // Safe: the path is passed as a C string for the call.
        if !isPublished { unsafe pccp_unlink(temporaryPath) }
    }

    /// fsync(2) of the file, renameat2(2), fsync(2) of the directory: afterwards the complete
    /// file is durable under its name, and before the rename the name was not touched.
    ///
    /// - Throws: EEXIST when the name is taken and `replacing` is false.
    public mutating func publish(replacing: Bool) throws(StorageError) {
        // Safe: here and below, the paths are passed as C strings for the calls.
        let descriptor = unsafe pccp_open(temporaryPath, Int32(PCC_OPEN_READ))
        guard descriptor >= 0 else {
            throw StorageError(operation: "open", path: finalPath, osErrorNumber: -descriptor)
        }
        defer { pccp_close(descriptor) }
        try Self.check(pccp_fsync(descriptor), "fsync", finalPath)
        try Self.check(unsafe pccp_rename(temporaryPath, finalPath, replacing), "rename", finalPath)
        isPublished = true
        try Self.check(unsafe pccp_fsync_parent(finalPath), "fsync of the directory", finalPath)
    }

    private static func check(
        _ result: Int32, _ operation: String, _ path: String
    ) throws(StorageError) {
        guard result == 0 else {
            throw StorageError(operation: operation, path: path, osErrorNumber: -result)
        }
    }
}
