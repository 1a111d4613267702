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

    private var defaultAdvice: String? {
        switch Errno(rawValue: osErrorNumber) {
        case .noSpace: "free some space, or choose a smaller capacity"
        case .diskQuotaExceeded: "raise the quota, or choose a smaller capacity"
        case .readOnlyFileSystem, .permissionDenied, .notPermitted:
            "the file or its file system cannot be written by this user"
        case .resourceBusy: "it is a device that is mounted, or that another writer has open"
        case .ioError: "the device failed; check the kernel log, then run pcfsck --verify full"
        case .noSuchFileOrDirectory: "check the path, or create the file with pccheck create"
        case .fileExists: "choose another path, or replace it explicitly"
        default: nil
        }
    }
}

extension CheckpointError {
    /// The public form of a storage error.
    public init(_ error: StorageError, slot: SlotIndex? = nil) {
        let code: Code =
            switch Errno(rawValue: error.osErrorNumber) {
            case .noSpace, .diskQuotaExceeded: .noSpace
            case .readOnlyFileSystem, .permissionDenied, .notPermitted: .readOnly
            case .noSuchFileOrDirectory: .notFound
            case .fileExists: .exists
            case .noMemory: .outOfMemory
            case .notSupported: .unsupported
            case .resourceBusy: .locked
            default: .inputOutput
            }
        self.init(
            code, "\(error)", slot: slot, byteOffset: error.byteOffset,
            osErrorNumber: error.osErrorNumber)
    }
}

/// Runs `body`, and turns its storage errors into the public form.
public func withCheckpointErrors<Result>(
    slot: SlotIndex? = nil, _ body: () throws(StorageError) -> Result
) throws(CheckpointError) -> Result {
    do throws(StorageError) {
        return try body()
    } catch {
        throw CheckpointError(error, slot: slot)
    }
}
