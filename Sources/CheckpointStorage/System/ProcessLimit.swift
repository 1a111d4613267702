internal import CPlatformLinux

#if canImport(Glibc)
    internal import Glibc
#endif

/// Limits on this process, and what to say when one is reached.
enum ProcessLimit {
    /// A limit; nil where there is none.
    private static func value(_ kind: pccp_limit_kind) -> UInt64? {
        let found = pccp_limit(kind)
        return found == .max ? nil : found
    }

    /// Refuses a file larger than this process may write: the write that goes beyond would be
    /// SIGXFSZ, which ends a process that neither blocks nor ignores it.
    ///
    /// - Parameter failure: the error of the call that would make it so large, given EFBIG.
    static func checkFileSize(
        _ byteCount: UInt64, _ failure: (Int32) -> StorageError
    ) throws(StorageError) {
        guard let limit = value(PCC_LIMIT_FILE_SIZE), byteCount > limit else { return }
        var error = failure(EFBIG)
        error.byteCount = Int(clamping: byteCount)
        throw error
    }

    static var fileSizeAdvice: String {
        guard let limit = value(PCC_LIMIT_FILE_SIZE) else {
            return "its file system takes no file of that size; choose another file system"
        }
        return "this process may write files of at most \(limit) bytes; raise that limit "
            + "(ulimit -f)"
    }

    static var descriptorAdvice: String {
        let limit = value(PCC_LIMIT_DESCRIPTORS).map { "\($0)" } ?? "no more"
        return "this process may have \(limit) files open, and has; close some, or raise that "
            + "limit (ulimit -n)"
    }

    static var threadAdvice: String {
        let limits: [(kind: pccp_limit_kind, unit: String)] = [
            (PCC_LIMIT_THREADS, "threads of this user (ulimit -u)"),
            (PCC_LIMIT_GROUP_THREADS, "threads of this cgroup (pids.max)"),
            (PCC_LIMIT_ADDRESS_SPACE, "bytes of address space, also for stacks (ulimit -v)"),
        ]
        let found = limits.compactMap { limit in
            value(limit.kind).map { "\($0) \(limit.unit)" }
        }
        guard !found.isEmpty else {
            return "the system has no room for another thread (sysctl kernel.threads-max, "
                + "vm.max_map_count); end some, or ask for fewer workers"
        }
        return "the limits are \(found.joined(separator: ", ")); raise the one that is reached, "
            + "or ask for fewer workers"
    }
}
