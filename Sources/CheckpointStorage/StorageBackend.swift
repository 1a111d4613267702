/// How a medium is written.
public enum StorageBackend: String, Sendable, CaseIterable {
    /// O_DIRECT where the file system has it, else buffered.
    case automatic = "auto"
    /// pwrite(2) with O_DIRECT, or an error.
    case direct
    /// pwrite(2) through the page cache.
    case buffered
    /// io_uring, over O_DIRECT where the file system has it; `automatic` where there is no
    /// io_uring, which `OpenedStorage.fallbackReason` then tells.
    case ring = "io_uring"

    /// Opens `path` for writing.
    ///
    /// - Throws: what `FileStorage` throws.
    public func open(
        path: String, allowsNetwork: Bool = false
    ) throws(StorageError) -> OpenedStorage {
        let mode: FileStorage.Mode? =
            switch self {
            case .automatic: .automatic
            case .direct: .direct
            case .buffered: .buffered
            case .ring: nil
            }
        guard let mode else { return try Self.openRing(path: path, allowsNetwork: allowsNetwork) }
        return OpenedStorage(
            storage: try FileStorage(
                path: path, access: .write, mode: mode, allowsNetwork: allowsNetwork))
    }

    private static func openRing(
        path: String, allowsNetwork: Bool
    ) throws(StorageError) -> OpenedStorage {
        if let reason = RingStorage.unavailableReason {
            let other = try automatic.open(path: path, allowsNetwork: allowsNetwork)
            return OpenedStorage(
                storage: other.storage,
                fallbackReason: other.fallbackReason.map { "\(reason); \($0)" } ?? reason)
        }
        return OpenedStorage(
            storage: try RingStorage(path: path, allowsNetwork: allowsNetwork))
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
