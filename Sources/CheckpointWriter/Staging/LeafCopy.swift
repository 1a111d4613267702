internal import CheckpointFormat

/// Copies pieces of memory, one behind the other, and takes the digest of each leaf on the way.
@safe struct LeafCopy {
    @unsafe private let target: CopyTarget
    private let count: Int
    private let copier: DigestingCopier
    private var done = 0
    /// As `TreeDigest` wants them.
    private(set) var digests: [Digest] = []

    /// - Parameter count: how many bytes will be appended.
    @unsafe init(to target: CopyTarget, count: Int, with copier: DigestingCopier) {
        // Safe: it is only kept here; the caller vouches for the memory.
        unsafe self.target = unsafe target
        self.count = count
        self.copier = copier
        digests.reserveCapacity((count + Limits.leafByteCount - 1) / Limits.leafByteCount)
    }

    @unsafe mutating func append(_ memory: UnsafeRawBufferPointer) {
        let leaf = Limits.leafByteCount
        var taken = 0
        while taken < memory.count {
            let step = min(memory.count - taken, leaf - done % leaf)
            // Safe: the range lies in the memory, and the copier checks that of the target.
            unsafe copier.copy(
                UnsafeRawBufferPointer(rebasing: memory[taken..<taken + step]), to: target,
                at: done)
            taken += step
            done += step
            if done % leaf == 0 || done == count { digests.append(copier.takeDigest()) }
        }
    }
}
