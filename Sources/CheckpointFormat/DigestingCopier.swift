internal import CDigest

/// Copies bytes and digests them in one pass over memory.
///
/// What is digested is what is written, even if somebody changes the source meanwhile: every byte
/// is read from it once. The copy goes past the caches. One thread at a time.
@safe public final class DigestingCopier {
    @unsafe private let copier: OpaquePointer

    public init() {
        // Safe: NULL or a copier, which deinit frees.
        guard let copier = unsafe pccp_copier_create() else {
            preconditionFailure("out of memory for a page")
        }
        unsafe self.copier = copier
    }

    deinit {
        // Safe: created in init, freed once.
        unsafe pccp_copier_destroy(copier)
    }

    /// Copies `source` to memory of as many bytes that does not overlap it.
    @unsafe public func copy(
        _ source: UnsafeRawBufferPointer, to target: UnsafeMutableRawPointer
    ) {
        guard let start = source.baseAddress else { return }
        // Safe: the caller vouches for both sides.
        unsafe pccp_copier_copy(copier, target, start, source.count)
    }

    /// XXH3-128 of all that was copied since the last call.
    public func takeDigest() -> Digest {
        // Safe: the copier lives as long as self.
        let digest = unsafe pccp_copier_digest(copier)
        return Digest(low: digest.low, high: digest.high)
    }
}
