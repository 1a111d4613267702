public import CheckpointFormat
public import CheckpointStorage

/// The buffers in which one worker reads and restores chunks of one checkpoint.
final class ChunkBuffers: Sendable {
    let stored: AlignedBuffer
    /// nil when no chunk is compressed.
    let raw: AlignedBuffer?

    /// - Returns: nil when the system has no room for them.
    convenience init?(for table: ChunkTable) {
        self.init(
            storedByteCount: table.entries.map(\.paddedByteCount).max() ?? 0,
            rawByteCount: table.entries.filter { $0.codec != .none }.map(\.rawByteCount).max())
    }

    init?(storedByteCount: Int, rawByteCount: Int?) {
        guard let stored = AlignedBuffer.forTransfers(byteCount: storedByteCount) else {
            return nil
        }
        self.stored = stored
        guard let rawByteCount else {
            raw = nil
            return
        }
        guard let raw = AlignedBuffer.forTransfers(byteCount: rawByteCount) else { return nil }
        self.raw = raw
    }
}

extension ChunkEntry {
    /// The data area is a multiple of 4096 long and the chunk starts on one, so the padding that
    /// O_DIRECT needs lies inside it.
    var paddedByteCount: Int {
        Int(UInt64(storedByteCount).roundedUp(to: Geometry.block))
    }
}

/// A chunk whose stored bytes matched their digest, with what they restore to.
public struct VerifiedChunk: Sendable {
    public let index: Int
    public let entry: ChunkEntry
    /// Byte offset in the payload.
    public let payloadOffset: UInt64
    /// Its first `entry.storedByteCount` bytes, and zeros up to `paddedByteCount`.
    public let stored: AlignedBuffer
    /// Its first `entry.rawByteCount` bytes.
    public let restored: AlignedBuffer
    /// Known already when the chunk was stored as it is.
    fileprivate let storedLeaves: [Digest]?

    /// `entry.storedByteCount` rounded up to a multiple of 4096.
    public var paddedByteCount: Int { entry.paddedByteCount }

    /// The leaf digests of the restored bytes.
    var leaves: [Digest] {
        storedLeaves ?? restored.withBytes(0..<entry.rawByteCount) { TreeDigest.leaves(of: $0) }
    }
}

/// Reads chunks of one candidate; every byte that leaves it was verified.
struct PayloadReader: Sendable {
    let storage: any Storage
    let candidate: Candidate
    let workerCount: Int

    var entries: [ChunkEntry] { candidate.table.entries }

    /// Reads, verifies and restores chunk `index` in `buffers`.
    func load(_ index: Int, into buffers: ChunkBuffers) throws(ChunkDamage) -> VerifiedChunk {
        let entry = entries[index]
        let offset = candidate.dataOffset + entry.storedOffset
        do throws(StorageError) {
            try storage.read(into: buffers.stored, 0..<entry.paddedByteCount, at: offset)
        } catch {
            throw ChunkDamage(index: index, byteOffset: offset, cause: .unreadable(error))
        }
        let leaves = buffers.stored.withBytes(0..<entry.storedByteCount) {
            TreeDigest.leaves(of: $0)
        }
        let found = TreeDigest.combine(leaves, byteCount: UInt64(entry.storedByteCount))
        guard found == entry.digest else {
            throw ChunkDamage(
                index: index, byteOffset: offset,
                cause: .digest(found: found, expected: entry.digest))
        }
        guard entry.codec != .none, let raw = buffers.raw else {
            return chunk(index, buffers.stored, buffers.stored, leaves)
        }
        do throws(FormatError) {
            // Safe: both views lie inside buffers that this worker alone uses.
            try unsafe ChunkCompression.decode(
                entry,
                stored: UnsafeRawBufferPointer(
                    start: buffers.stored.baseAddress, count: entry.storedByteCount),
                into: UnsafeMutableRawBufferPointer(
                    start: raw.baseAddress, count: entry.rawByteCount))
        } catch {
            throw ChunkDamage(index: index, byteOffset: offset, cause: .codec(error))
        }
        return chunk(index, buffers.stored, raw, nil)
    }

    private func chunk(
        _ index: Int, _ stored: AlignedBuffer, _ restored: AlignedBuffer, _ leaves: [Digest]?
    ) -> VerifiedChunk {
        let entry = entries[index]
        stored.fillWithZeros(entry.storedByteCount..<entry.paddedByteCount)
        return VerifiedChunk(
            index: index, entry: entry,
            payloadOffset: UInt64(index) * UInt64(candidate.header.chunkByteCount),
            stored: stored, restored: restored, storedLeaves: leaves)
    }

    /// The public form of a chunk's damage: `busy` when a writer has taken the slot meanwhile.
    func error(_ damage: ChunkDamage) -> CheckpointError {
        taken ?? publicForm(damage)
    }

    private func publicForm(_ damage: ChunkDamage) -> CheckpointError {
        if case .unreadable(let cause) = damage.cause {
            return CheckpointError(cause, slot: candidate.slot)
        }
        return CheckpointError(
            .corrupt,
            "\(storage.path): slot \(candidate.slot) at byte \(damage.byteOffset): \(damage); run "
                + "pcfsck --verify full to see what else is damaged",
            slot: candidate.slot, byteOffset: damage.byteOffset)
    }

    /// That a writer has taken the slot for another checkpoint; nil while the header is the
    /// candidate's.
    ///
    /// A chunk that does not match is then no damage. The writer marks the header before it writes
    /// any chunk (COMMIT.md, rule 7), so this is right when it is asked after the chunk was read.
    var taken: CheckpointError? {
        guard
            let header = try? storage.readBlocks(
                at: candidate.headerOffset, count: Limits.blockByteCount),
            Digest(of: header, 0..<SlotHeader.Layout.checksum.offset) != candidate.headerDigest
        else { return nil }
        return candidate.taken(in: storage.path)
    }

    /// Loads the chunks `indices` by several threads, and hands each to `body`, with a view of its
    /// restored bytes that is valid during the call. Both closures run on any of the threads.
    ///
    /// - Parameters:
    ///   - inOrder: one at a time, in the order of `indices`, while other threads read ahead.
    ///   - isInBackground: the threads, the calling one among them, give way to others from now on.
    ///   - damaged: gets the damage of a chunk instead of `body`; nil throws it.
    /// - Throws: the error of the first of `indices` that failed; all before it were handed out.
    ///   `busy` when a writer took the slot meanwhile, which is no damage.
    func forEachChunk(
        _ indices: [Int], inOrder: Bool = false, isInBackground: Bool = false,
        _ body: @escaping @Sendable (VerifiedChunk, RawSpan) throws(CheckpointError) -> Void,
        damaged: (@Sendable (ChunkDamage) throws(CheckpointError) -> Void)? = nil
    ) throws(CheckpointError) {
        let turn = inOrder ? Turn() : nil
        try forEach(indices.count, workerCount: workerCount) {
            if isInBackground { WorkerThread.yieldToOthers(nice: 10) }
            guard let buffers = ChunkBuffers(for: candidate.table) else { return nil }
            return { position throws(CheckpointError) in
                let result = Result { () throws(ChunkDamage) in
                    try load(indices[position], into: buffers)
                }
                // After an error nothing is handed out.
                if turn?.begin(position) == false { return }
                do throws(CheckpointError) {
                    try handOut(result, body, damaged)
                    turn?.end(position)
                } catch {
                    turn?.stop()
                    throw error
                }
            }
        }
    }

    private func handOut(
        _ result: Result<VerifiedChunk, ChunkDamage>,
        _ body: (VerifiedChunk, RawSpan) throws(CheckpointError) -> Void,
        _ damaged: ((ChunkDamage) throws(CheckpointError) -> Void)?
    ) throws(CheckpointError) {
        switch result {
        case .success(let chunk):
            try chunk.restored.withBytes(0..<chunk.entry.rawByteCount) {
                bytes throws(CheckpointError) in try body(chunk, bytes)
            }
        case .failure(let damage):
            if let taken { throw taken }
            guard let damaged else { throw publicForm(damage) }
            try damaged(damage)
        }
    }

    /// Calls what `makeWorker` returns, once per thread, with each number below `count`. They begin
    /// in order. A thread for which it returns nil, because memory is short, takes no part.
    ///
    /// - Throws: the error of the lowest number that failed; none is begun after an error.
    ///   `outOfMemory` when there is room for no thread at all.
    func forEach(
        _ count: Int, workerCount: Int,
        _ makeWorker: @escaping @Sendable () -> ((Int) throws(CheckpointError) -> Void)?
    ) throws(CheckpointError) {
        struct Progress {
            var next = 0
            var failures: [Int: CheckpointError] = [:]
        }
        let progress = Monitor(Progress())
        let claim: @Sendable () -> Int? = {
            progress.withLock { progress in
                guard progress.failures.isEmpty, progress.next < count else { return nil }
                progress.next += 1
                return progress.next - 1
            }
        }
        let work: @Sendable ((Int) throws(CheckpointError) -> Void) -> Void = { process in
            while let claimed = claim() {
                let outcome = Result { () throws(CheckpointError) in
                    try process(claimed)
                }
                if case .failure(let error) = outcome {
                    progress.withLock { $0.failures[claimed] = error }
                }
            }
        }
        // The caller works too, and comes first to the memory. A system that has no room for more
        // threads gets fewer.
        guard let process = makeWorker() else { throw noRoom }
        let threads = (1..<max(1, min(workerCount, count))).compactMap {
            try? WorkerThread(name: "pcc-read-\($0)") {
                if let process = makeWorker() { work(process) }
            }
        }
        work(process)
        for thread in threads { thread.join() }
        let failures = progress.withLock { $0.failures }
        if let first = failures.min(by: { $0.key < $1.key }) { throw first.value }
    }

    /// Chunks are as large as the file says, and there is no memory for one of them.
    var noRoom: CheckpointError {
        let byteCount = UInt64(candidate.header.chunkByteCount)
        return CheckpointError(
            .outOfMemory,
            "\(storage.path): slot \(candidate.slot) has chunks of \(byteCount) bytes, and this "
                + "process cannot have the memory to hold one; raise its limit (ulimit -v), or use "
                + "a machine with more", slot: candidate.slot)
    }
}

/// Lets threads continue one at a time, in the order of their numbers.
private final class Turn: Sendable {
    /// nil after an error.
    private let next = Monitor<Int?>(0)

    /// Waits until every lower number has ended; false after an error.
    func begin(_ number: Int) -> Bool {
        next.waitFor { next in
            guard let next else { return false }
            return next == number ? true : nil
        }
    }

    func end(_ number: Int) { set(number + 1) }
    func stop() { set(nil) }

    private func set(_ number: Int?) {
        next.withLock { $0 = number }
        next.wakeAll()
    }
}
