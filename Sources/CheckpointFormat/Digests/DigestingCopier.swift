internal import CDigest

/// Memory that bytes are copied to. Its owner decides how long it is safe to use.
@unsafe public struct CopyTarget {
    /// A way to store that the memory needs; see `pccp_store`.
    public typealias Function =
        @convention(c) (
            UnsafeMutableRawPointer?, UnsafeMutableRawPointer?, UnsafeRawPointer?, Int
        ) -> Void

    public let start: UnsafeMutableRawPointer
    public let byteCount: Int
    let store: (function: Function, context: UnsafeMutableRawPointer)?

    public init(
        start: UnsafeMutableRawPointer, byteCount: Int,
        store: (function: Function, context: UnsafeMutableRawPointer)? = nil
    ) {
        // Safe: pointers are kept, not followed.
        unsafe self.start = start
        unsafe self.byteCount = byteCount
        unsafe self.store = store
    }
}

/// Copies bytes and digests them in one pass over memory.
///
/// The digest covers the written bytes, even if somebody changes the source meanwhile: the copier
/// reads every byte of the source once. The copy goes past the caches. One thread at a time.
@safe public final class DigestingCopier {
    @unsafe private let copier: OpaquePointer?

    public init() {
        // Safe: NULL or a copier, which deinit frees.
        unsafe copier = pccp_copier_create()
        unsafe precondition(copier != nil, "out of memory for a page")
    }

    deinit {
        // Safe: created in init, freed once.
        unsafe pccp_copier_destroy(copier)
    }

    /// Copies `source` to the bytes of `target` from `offset`, which do not overlap it.
    @unsafe public func copy(
        _ source: UnsafeRawBufferPointer, to target: CopyTarget, at offset: Int
    ) {
        // Safe: only the target's size is read.
        unsafe precondition(
            offset >= 0 && source.count <= target.byteCount - offset, "inside the target")
        guard let start = source.baseAddress else { return }
        // Safe: the range was checked, and the caller vouches for the memory of both sides.
        if let store = unsafe target.store {
            unsafe pccp_copier_copy_with(
                copier, store.function, store.context, target.start + offset, start, source.count)
        } else {
            unsafe pccp_copier_copy(copier, target.start + offset, start, source.count)
        }
    }

    /// XXH3-128 of all that was copied since the last call.
    public func takeDigest() -> Digest {
        // Safe: the copier lives as long as self.
        let digest = unsafe pccp_copier_digest(copier)
        return Digest(low: digest.low, high: digest.high)
    }
}
