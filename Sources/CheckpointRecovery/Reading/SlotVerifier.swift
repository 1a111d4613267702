public import CheckpointFormat
public import CheckpointStorage

/// Proves that a checkpoint is intact.
public enum SlotVerifier {
    /// Called with the payload bytes verified so far, in increasing order, from any of the threads.
    /// What it throws ends the verification.
    public typealias Progress = @Sendable (UInt64) throws(CheckpointError) -> Void

    /// Reads every chunk of `candidate`, compares it with its digest, restores it, and compares
    /// the digest of the whole payload with the header's.
    ///
    /// - Throws: `corrupt` for the first chunk that does not match, or for the payload's digest;
    ///   `inputOutput` when the medium fails.
    public static func verify(
        _ candidate: Candidate, in storage: any Storage,
        workerCount: Int = CheckpointReader.defaultWorkerCount, progress: Progress? = nil
    ) throws(CheckpointError) {
        let reader = PayloadReader(
            storage: storage, candidate: candidate, workerCount: workerCount)
        let report = try reader.check(progress: progress, stopsAtDamage: true)
        if let found = report.logicalDigest { try reader.checkLogicalDigest(found) }
    }

    /// Checks what a resume asks for beyond the digests: that the manifest of a safetensors
    /// payload keeps the rules. Bytes that are as they were saved need not be one.
    ///
    /// - Throws: `corrupt` when it does not, and what `verify` throws for the chunks it lies in.
    public static func verifyManifest(
        _ candidate: Candidate, in storage: any Storage
    ) throws(CheckpointError) {
        let header = candidate.header
        guard header.payloadKind == .safetensors else { return }
        let reader = PayloadReader(storage: storage, candidate: candidate, workerCount: 1)
        let byteCount = min(header.manifestByteCount, UInt64(Limits.manifestByteCount) + 8)
        let bytes = try reader.leadingBytes(byteCount)
        do throws(FormatError) {
            _ = try SafetensorsManifest(decoding: bytes, header: header)
        } catch {
            throw CheckpointError(
                .corrupt, "\(storage.path): slot \(candidate.slot): \(error)",
                slot: candidate.slot, byteOffset: candidate.dataOffset)
        }
    }
}

extension PayloadReader {
    /// See `SelectedCheckpoint.leadingBytes`.
    func leadingBytes(_ byteCount: UInt64) throws(CheckpointError) -> [UInt8] {
        let chunkByteCount = UInt64(candidate.header.chunkByteCount)
        let count = (byteCount + chunkByteCount - 1) / chunkByteCount
        let bytes = Monitor<[UInt8]>([])
        try forEachChunk(
            Array(0..<min(Int(count), entries.count)), inOrder: true
        ) { chunk, _ throws(CheckpointError) in
            // Not all of a chunk, which may be large.
            bytes.withLock {
                let wanted = min(chunk.entry.rawByteCount, Int(byteCount) - $0.count)
                $0 += chunk.restored.array(0..<wanted)
            }
        }
        return bytes.withLock { $0 }
    }

    /// The digest of the whole payload, once every chunk is known to match its own.
    func checkLogicalDigest(_ found: Digest) throws(CheckpointError) {
        let expected = candidate.header.logicalDigest
        guard found == expected else {
            throw CheckpointError(
                .corrupt,
                "\(storage.path): slot \(candidate.slot): every chunk matches its digest, but the "
                    + "payload has digest \(found), expected \(expected); the file was made by "
                    + "a faulty program",
                slot: candidate.slot, byteOffset: candidate.headerOffset)
        }
    }

    /// Reads every chunk.
    ///
    /// - Parameter stopsAtDamage: throw the first damage instead of collecting all of it.
    func check(
        progress: SlotVerifier.Progress?, stopsAtDamage: Bool
    ) throws(CheckpointError) -> PayloadReport {
        struct State {
            var digest: TreeDigest
            var byteCount: UInt64 = 0
            var damage: [ChunkDamage] = []
        }
        let state = Monitor(
            State(digest: TreeDigest(byteCount: candidate.header.payloadByteCount)))
        let take: @Sendable (Int, Result<[Digest], ChunkDamage>) throws(CheckpointError) -> Void = {
            index, result throws(CheckpointError) in
            var leaves: [Digest] = []
            switch result {
            case .success(let found):
                leaves = found
            case .failure(let damage):
                if stopsAtDamage { throw error(damage) }
                if let taken { throw taken }
                state.withLock { $0.damage.append(damage) }
            }
            let offset = UInt64(index) * UInt64(candidate.header.chunkByteCount)
            try state.withLock { state throws(CheckpointError) in
                state.digest.setLeaves(leaves, at: offset)
                state.byteCount += UInt64(entries[index].rawByteCount)
                try progress?(state.byteCount)
            }
        }
        let needs = ChunkExaminer.Needs(entries)
        try forEach(entries.count, workerCount: needs.workerCount(atMost: workerCount)) {
            guard let examiner = ChunkExaminer(self, needs) else { return nil }
            return { index throws(CheckpointError) in
                try take(index, Result { () throws(ChunkDamage) in try examiner.leaves(index) })
            }
        }
        return state.withLock {
            PayloadReport(
                damage: $0.damage.sorted { $0.index < $1.index },
                logicalDigest: $0.damage.isEmpty ? $0.digest.finish() : nil)
        }
    }
}
