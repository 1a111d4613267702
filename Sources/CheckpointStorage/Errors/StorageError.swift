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
    /// What to do next, where that is known.
    public var advice: String?
    /// A lock failed because the file system, the kernel or a filter of system calls has none:
    /// then nobody holds one, and a reader continues without.
    public internal(set) var saysNoLocks = false
    /// Where the errno alone does not tell.
    var ownCode: CheckpointError.Code?

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
        if let advice { text += "; \(advice)" }
        return text
    }

    /// The same error. Where there is no room for a file, the advice also names `alternative`: what
    /// else helps depends on what the file is for.
    public func orElse(_ alternative: String) -> StorageError {
        let noRoom: [Errno] = [.noSpace, .diskQuotaExceeded, .fileTooLarge]
        guard noRoom.contains(Errno(rawValue: osErrorNumber)), let advice else { return self }
        var error = self
        error.advice = "\(advice), or \(alternative)"
        return error
    }

    /// The code of the public error.
    var code: CheckpointError.Code {
        if let ownCode { return ownCode }
        return switch Errno(rawValue: osErrorNumber) {
        case .noSpace, .diskQuotaExceeded: .noSpace
        case .readOnlyFileSystem, .permissionDenied, .notPermitted: .readOnly
        case .noSuchFileOrDirectory, .notDirectory: .notFound
        case .fileExists: .exists
        case .noMemory: .outOfMemory
        case .fileTooLarge, .tooManyOpenFiles, .tooManyOpenFilesInSystem: .resourceLimit
        case .notSupported: .unsupported
        case .resourceBusy: .locked
        default: .inputOutput
        }
    }
}

extension CheckpointError {
    /// The public form of a storage error.
    public init(_ error: StorageError, slot: SlotIndex? = nil) {
        self.init(
            error.code, "\(error)", slot: slot, byteOffset: error.byteOffset,
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
