public import CheckpointFormat
internal import SystemPackage

/// A failed call to the medium: which call, where, and what the system said.
public struct StorageError: Error, Hashable, Sendable {
    /// The name of the system call, such as `pwrite`.
    public var operation: String
    /// The file's path, or a description of the medium.
    public var path: String
    public var byteOffset: UInt64?
    public var byteCount: Int?
    /// errno; 0 when the call succeeded but moved fewer bytes than asked.
    public var osErrorNumber: Int32
    /// What to do next, when there is something better than the errno's text.
    public var advice: String?

    public init(
        operation: String, path: String, byteOffset: UInt64? = nil, byteCount: Int? = nil,
        osErrorNumber: Int32, advice: String? = nil
    ) {
        self.operation = operation
        self.path = path
        self.byteOffset = byteOffset
        self.byteCount = byteCount
        self.osErrorNumber = osErrorNumber
        self.advice = advice
    }
}

extension StorageError: CustomStringConvertible {
    public var description: String {
        var text = "\(path): \(operation)"
        if let byteCount { text += " of \(byteCount) bytes" }
        if let byteOffset { text += " at byte \(byteOffset)" }
        text +=
            osErrorNumber == 0
            ? " met the end of the file" : " failed: \(Errno(rawValue: osErrorNumber))"
        if let advice = advice ?? defaultAdvice { text += "; \(advice)" }
        return text
    }

    /// The same error. Where there is no room for a file, the advice also names `alternative`: what
    /// else helps depends on what the file is for.
    public func orElse(_ alternative: String) -> StorageError {
        let noRoom: [Errno] = [.noSpace, .diskQuotaExceeded, .fileTooLarge]
        guard noRoom.contains(Errno(rawValue: osErrorNumber)), let advice = advice ?? defaultAdvice
        else { return self }
        var error = self
        error.advice = "\(advice), or \(alternative)"
        return error
    }

    private var defaultAdvice: String? {
        if saysNoLocks {
            return "this file system or kernel has no open-file-description locks, and without "
                + "them nothing keeps a second writer out; move the file to a local file system, "
                + "or let the sandbox allow fcntl with F_OFD_SETLK"
        }
        return switch Errno(rawValue: osErrorNumber) {
        case .noSpace: "free some space"
        case .fileTooLarge: ProcessLimit.fileSizeAdvice
        case .tooManyOpenFiles: ProcessLimit.descriptorAdvice
        case .tooManyOpenFilesInSystem:
            "the system's limit on open files is reached; raise it (sysctl fs.file-max)"
        case .diskQuotaExceeded: "raise the quota"
        case .readOnlyFileSystem:
            "its file system is mounted read-only, or the kernel made it so after an error: check "
                + "the kernel log and the mount options"
        case .permissionDenied, .notPermitted:
            "the file or its file system cannot be written by this user"
        case .resourceBusy: "it is a device that is mounted, or that another writer has open"
        case .ioError: "the device failed; check the kernel log, then run pcfsck --verify full"
        case .noSuchFileOrDirectory, .notDirectory:
            "check the path, or create the file with pccheck create"
        case .fileExists: "choose another path, or replace it explicitly"
        case .fileNameTooLong: "give a shorter name: at most 255 bytes, and 4095 for the whole path"
        default: nil
        }
    }
}

extension StorageError {
    /// What `tryLock`, `unlock` and the query of a lock call themselves.
    package static let lockOperation = "lock"
    package static let unlockOperation = "unlock"
    package static let lockQueryOperation = "lock query"

    /// A lock failed because the file system, the kernel or a filter of system calls has none:
    /// then nobody holds one, and a reader goes on without.
    public var saysNoLocks: Bool {
        guard
            [Self.lockOperation, Self.unlockOperation, Self.lockQueryOperation]
                .contains(operation)
        else { return false }
        let missing: [Errno] = [.invalidArgument, .noLocks, .noFunction, .notSupported]
        return missing.contains(Errno(rawValue: osErrorNumber))
    }
}

extension CheckpointError {
    /// The public form of a storage error.
    public init(_ error: StorageError, slot: SlotIndex? = nil) {
        let code: Code =
            switch Errno(rawValue: error.osErrorNumber) {
            case .noSpace, .diskQuotaExceeded: .noSpace
            case .readOnlyFileSystem, .permissionDenied, .notPermitted: .readOnly
            case .noSuchFileOrDirectory, .notDirectory: .notFound
            case .fileExists: .exists
            case .noMemory: .outOfMemory
            case .fileTooLarge, .tooManyOpenFiles, .tooManyOpenFilesInSystem: .resourceLimit
            case .resourceTemporarilyUnavailable where error.operation == WorkerThread.operation:
                .resourceLimit
            case .notSupported: .unsupported
            case .resourceBusy: .locked
            case _ where error.saysNoLocks: .unsupported
            default: .inputOutput
            }
        self.init(
            code, "\(error)", slot: slot, byteOffset: error.byteOffset,
            osErrorNumber: error.osErrorNumber)
    }
}

/// Runs `body`, and turns its storage errors into the public form.
///
/// - Parameter alternative: see `StorageError.orElse`.
public func withCheckpointErrors<Result: ~Copyable>(
    slot: SlotIndex? = nil, orElse alternative: String? = nil,
    _ body: () throws(StorageError) -> Result
) throws(CheckpointError) -> Result {
    do throws(StorageError) {
        return try body()
    } catch {
        throw CheckpointError(alternative.map(error.orElse) ?? error, slot: slot)
    }
}
