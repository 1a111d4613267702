public import CheckpointFormat
public import CheckpointStorage

/// Proves that a checkpoint is whole.
public enum SlotVerifier {
    /// Reads every chunk of `candidate`, compares it with its digest, restores it, and compares
    /// the digest of the whole payload with the header's.
    ///
    /// - Parameter progress: called with the payload bytes verified so far, in increasing order,
    ///   from any of the threads.
    /// - Throws: `corrupt` for the first chunk that does not match, or for the payload's digest;
    ///   `inputOutput` when the medium fails.
    public static func verify(
        _ candidate: Candidate, in storage: any Storage, workerCount: Int = 2,
        progress: (@Sendable (UInt64) -> Void)? = nil
    ) throws(CheckpointError) {
        struct State {
            var digest: LogicalDigest
            var byteCount: UInt64 = 0
        }
        let header = candidate.header
        let state = Monitor(
            State(digest: LogicalDigest(payloadByteCount: header.payloadByteCount)))
        let reader = PayloadReader(
            storage: storage, candidate: candidate, workerCount: workerCount)
        try reader.loadAll(Array(reader.entries.indices)) { chunk throws(CheckpointError) in
            let leaves = chunk.buffer.withBytes(0..<chunk.byteCount) {
                LogicalDigest.leaves(of: $0)
            }
            state.withLock {
                $0.digest.setLeaves(leaves, at: chunk.payloadOffset)
                $0.byteCount += UInt64(chunk.byteCount)
                progress?($0.byteCount)
            }
        }
        let found = state.withLock { $0.digest.finish() }
        guard found == header.logicalDigest else {
            throw CheckpointError(
                .corrupt,
                "\(storage.path): slot \(candidate.slot): every chunk matches its digest, but the "
                    + "payload has digest \(found), expected \(header.logicalDigest); the file "
                    + "was made by a faulty program",
                slot: candidate.slot, byteOffset: candidate.headerOffset)
        }
    }
}
