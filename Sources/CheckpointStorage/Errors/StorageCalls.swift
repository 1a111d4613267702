internal import CheckpointFormat
internal import SystemPackage

/// One factory for each system call: what an errno means there, and what to do about it.
extension StorageError {
    /// open(2) of a file that is to exist.
    public static func open(errno number: Int32, path: String) -> StorageError {
        let advice: String? =
            switch Errno(rawValue: number) {
            case .noSuchFileOrDirectory, .notDirectory:
                "check the path, or create the file with pccheck create"
            case .permissionDenied, .notPermitted:
                "this user may not open it; check its owner and its permissions"
            case .resourceBusy: "it is a device that is mounted, or that another writer has open"
            case .fileTooLarge: ProcessLimit.fileSizeAdvice
            case .readOnlyFileSystem: Advice.readOnly
            case .ioError: Advice.device
            case let other: Advice.name(other) ?? Advice.descriptors(other)
            }
        return StorageError(operation: "open", path: path, osErrorNumber: number, advice: advice)
    }

    /// open(2) with O_CREAT.
    public static func create(errno number: Int32, path: String) -> StorageError {
        let advice: String? =
            switch Errno(rawValue: number) {
            case .noSuchFileOrDirectory: "the directory does not exist"
            case .notDirectory: "a part of the path is a file; give the path of a directory"
            case .permissionDenied, .notPermitted:
                "this user may not create files there; check the owner and the permissions of the "
                    + "directory"
            case .readOnlyFileSystem: Advice.readOnly
            case let other: Advice.name(other) ?? Advice.descriptors(other) ?? Advice.room(other)
            }
        return StorageError(operation: "create", path: path, osErrorNumber: number, advice: advice)
    }

    /// fstat(2) and statx(2).
    public static func stat(errno number: Int32, path: String) -> StorageError {
        StorageError(
            operation: "fstat", path: path, osErrorNumber: number,
            advice: Errno(rawValue: number) == .ioError ? Advice.device : nil)
    }

    /// fallocate(2) of a new file.
    public static func allocate(errno number: Int32, path: String, byteCount: Int) -> StorageError {
        StorageError(
            operation: "fallocate", path: path, byteCount: byteCount, osErrorNumber: number,
            advice: Advice.writing(number))
    }

    /// ftruncate(2).
    public static func truncate(errno number: Int32, path: String) -> StorageError {
        StorageError(
            operation: "ftruncate", path: path, osErrorNumber: number,
            advice: Advice.writing(number))
    }

    /// pread(2); 0 when it met the end of the file.
    public static func read(
        errno number: Int32, path: String, byteOffset: UInt64?, byteCount: Int?
    ) -> StorageError {
        StorageError(
            operation: "pread", path: path, byteOffset: byteOffset, byteCount: byteCount,
            osErrorNumber: number,
            advice: Errno(rawValue: number) == .ioError ? Advice.device : nil)
    }

    /// pwrite(2), or the write of a ring.
    public static func write(
        errno number: Int32, operation: String = "pwrite", path: String, byteOffset: UInt64,
        byteCount: Int
    ) -> StorageError {
        StorageError(
            operation: operation, path: path, byteOffset: byteOffset, byteCount: byteCount,
            osErrorNumber: number, advice: Advice.writing(number))
    }

    /// fdatasync(2), or fsync(2).
    public static func flush(
        errno number: Int32, operation: String = "fdatasync", path: String
    ) -> StorageError {
        StorageError(
            operation: operation, path: path, osErrorNumber: number, advice: Advice.writing(number))
    }

    /// renameat2(2) to `path`.
    public static func rename(errno number: Int32, path: String) -> StorageError {
        let advice: String? =
            switch Errno(rawValue: number) {
            case .fileExists: "choose another path, or replace it explicitly"
            case .permissionDenied, .notPermitted:
                "this user may not replace it; check the owner and the permissions of the directory"
            case let other: Advice.name(other) ?? Advice.writing(number)
            }
        return StorageError(operation: "rename", path: path, osErrorNumber: number, advice: advice)
    }

    /// fchown(2) and fchmod(2) of a file that is to replace `path`.
    public static func copyAccess(errno number: Int32, path: String) -> StorageError {
        let isForbidden = Errno(rawValue: number) == .notPermitted
        return StorageError(
            operation: "fchmod", path: path, osErrorNumber: number,
            advice: isForbidden
                ? "this user may not give a new file the owner and the permissions of the old one; "
                    + "do it as the owner of the file" : Advice.writing(number))
    }

    /// fcntl(2) with F_OFD_SETLK or F_OFD_GETLK.
    public static func lock(
        errno number: Int32, operation: String = "lock", path: String, byteOffset: UInt64
    ) -> StorageError {
        let missing: [Errno] = [.invalidArgument, .noLocks, .noFunction, .notSupported]
        var error = StorageError(
            operation: operation, path: path, byteOffset: byteOffset, byteCount: 1,
            osErrorNumber: number)
        if missing.contains(Errno(rawValue: number)) {
            error.saysNoLocks = true
            error.ownCode = .unsupported
            error.advice =
                "this file system or kernel has no open-file-description locks, and without them "
                + "nothing keeps a second writer out; move the file to a local file system, or let "
                + "the sandbox allow fcntl with F_OFD_SETLK"
        }
        return error
    }

    /// pthread_create(3).
    static func startThread(errno number: Int32, name: String) -> StorageError {
        var error = StorageError(
            operation: "pthread_create", path: "thread \(name)", osErrorNumber: number,
            advice: ProcessLimit.threadAdvice)
        if Errno(rawValue: number) == .resourceTemporarilyUnavailable {
            error.ownCode = .resourceLimit
        }
        return error
    }
}

/// What several calls have in common.
private enum Advice {
    static let readOnly =
        "its file system is mounted read-only, or the kernel made it so after an error: check the "
        + "kernel log and the mount options"
    static let device = "the device failed; check the kernel log, then run pcfsck --verify full"

    static func room(_ error: Errno) -> String? {
        switch error {
        case .noSpace: "free some space"
        case .diskQuotaExceeded: "raise the quota"
        case .fileTooLarge: ProcessLimit.fileSizeAdvice
        default: nil
        }
    }

    /// For calls that change a file that is open.
    static func writing(_ number: Int32) -> String? {
        switch Errno(rawValue: number) {
        case .ioError: device
        case .readOnlyFileSystem: readOnly
        case .permissionDenied, .notPermitted:
            "the file or its file system cannot be written by this user"
        case let other: room(other)
        }
    }

    static func descriptors(_ error: Errno) -> String? {
        switch error {
        case .tooManyOpenFiles: ProcessLimit.descriptorAdvice
        case .tooManyOpenFilesInSystem:
            "the system's limit on open files is reached; raise it (sysctl fs.file-max)"
        default: nil
        }
    }

    static func name(_ error: Errno) -> String? {
        error == .fileNameTooLong
            ? "give a shorter name: at most 255 bytes, and 4095 for the whole path" : nil
    }
}
