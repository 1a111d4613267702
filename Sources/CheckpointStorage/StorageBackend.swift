/// How a medium is written.
public enum StorageBackend: String, Sendable, CaseIterable {
    /// Persistent memory where the file is in it, else O_DIRECT where the file system has it,
    /// else buffered.
    case automatic = "auto"
    /// pwrite(2) with O_DIRECT, or an error.
    case direct
    /// pwrite(2) through the page cache.
    case buffered
    /// io_uring, over O_DIRECT where the file system has it; `automatic` where there is no
    /// io_uring, which `OpenedStorage.fallbackReason` then tells.
    case ring = "io_uring"
    /// Stores into a mapping, through libpmem2, or an error.
    case persistentMemory = "pmem"

    /// Opens `path` for writing.
    ///
    /// - Parameter isDeepFlushing: see `PersistentMemoryStorage`; nothing to other media.
    /// - Throws: what `FileStorage` and `PersistentMemoryStorage` throw.
    public func open(
        path: String, allowsNetwork: Bool = false, isDeepFlushing: Bool = false
    ) throws(StorageError) -> OpenedStorage {
        let mode: FileStorage.Mode
        switch self {
        case .automatic: mode = .automatic
        case .direct: mode = .direct
        case .buffered: mode = .buffered
        case .ring: return try Self.openRing(path: path, allowsNetwork: allowsNetwork)
        case .persistentMemory:
            return OpenedStorage(
                storage: try PersistentMemoryStorage(
                    path: path, allowsNetwork: allowsNetwork, isDeepFlushing: isDeepFlushing))
        }
        let file = try FileStorage(
            path: path, access: .write, mode: mode, allowsNetwork: allowsNetwork)
        guard self == .automatic, file.isDAX, !file.isBlockDevice else {
            return OpenedStorage(storage: file)
        }
        return Self.preferPersistentMemory(
            to: file, allowsNetwork: allowsNetwork, isDeepFlushing: isDeepFlushing)
    }

    /// The mapping of a DAX file; where that is not available, `file`, and why.
    static func preferPersistentMemory(
        to file: FileStorage, allowsNetwork: Bool = false, isDeepFlushing: Bool = false,
        library: String = PersistentMemoryStorage.library
    ) -> OpenedStorage {
        do throws(StorageError) {
            return OpenedStorage(
                storage: try PersistentMemoryStorage(
                    path: file.path, allowsNetwork: allowsNetwork, isDeepFlushing: isDeepFlushing,
                    library: library))
        } catch {
            return OpenedStorage(
                storage: file, fallbackReason: "the file is on a DAX file system, but \(error)")
        }
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
    /// Set when a slower way had to be taken: what was not available, and why.
    public let fallbackReason: String?

    public init(storage: any Storage, fallbackReason: String? = nil) {
        self.storage = storage
        self.fallbackReason = fallbackReason
    }
}
