/// How a medium is written.
public enum StorageBackend: String, Sendable, CaseIterable {
    /// O_DIRECT where the file system has it, else buffered.
    case automatic = "auto"
    /// pwrite(2) with O_DIRECT, or an error.
    case direct
    /// pwrite(2) through the page cache.
    case buffered

    /// Opens `path` for writing.
    ///
    /// - Throws: what `FileStorage` throws.
    public func open(
        path: String, allowsNetwork: Bool = false
    ) throws(StorageError) -> OpenedStorage {
        let mode: FileStorage.Mode =
            switch self {
            case .automatic: .automatic
            case .direct: .direct
            case .buffered: .buffered
            }
        return OpenedStorage(
            storage: try FileStorage(
                path: path, access: .write, mode: mode, allowsNetwork: allowsNetwork))
    }
}

/// A medium that was opened, and why it is not reached as asked.
public struct OpenedStorage: Sendable {
    public let storage: any Storage
    /// Set when a slower way had to be taken: what was not to be had, and why.
    public let fallbackReason: String?

    public init(storage: any Storage, fallbackReason: String? = nil) {
        self.storage = storage
        self.fallbackReason = fallbackReason
    }
}
