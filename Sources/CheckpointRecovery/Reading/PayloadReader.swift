internal import CheckpointFormat
internal import CheckpointStorage

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

/// A chunk whose stored bytes matched their digest, restored in a buffer.
struct LoadedChunk: Sendable {
    let index: Int
    /// Byte offset in the payload.
    let payloadOffset: UInt64
    let buffer: AlignedBuffer
    let byteCount: Int
    /// Known already when the chunk was stored as it is.
    fileprivate let storedLeaves: [Digest]?

    /// The leaf digests of the restored bytes.
    var leaves: [Digest] {
        storedLeaves ?? buffer.withBytes(0..<byteCount) { TreeDigest.leaves(of: $0) }
    }
}

/// Reads chunks of one candidate; every byte that leaves it was verified.
struct PayloadReader: Sendable {
    let storage: any Storage
    let candidate: Candidate
    let workerCount: Int

    var entries: [ChunkEntry] { candidate.table.entries }

    /// Reads, verifies and restores chunk `index` in `buffers`.
    func load(_ index: Int, into buffers: ChunkBuffers) throws(ChunkDamage) -> LoadedChunk {
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
            return loaded(index, buffers.stored, leaves)
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
        return loaded(index, raw, nil)
    }

    private func loaded(
        _ index: Int, _ buffer: AlignedBuffer, _ leaves: [Digest]?
    ) -> LoadedChunk {
        LoadedChunk(
            index: index,
            payloadOffset: UInt64(index) * UInt64(candidate.header.chunkByteCount),
            buffer: buffer, byteCount: entries[index].rawByteCount, storedLeaves: leaves)
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

    /// Loads `indices`, in any order and by several threads, and hands each to `body`.
    ///
    /// - Throws: the error of the lowest index that failed; all chunks before it were handed out.
    func loadAll(
        _ indices: [Int],
        _ body: @escaping @Sendable (LoadedChunk) throws(CheckpointError) -> Void
    ) throws(CheckpointError) {
        try tryAll(indices) { _, result throws(CheckpointError) in
            switch result {
            case .success(let chunk): try body(chunk)
            case .failure(let damage): throw publicForm(damage)
            }
        }
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

    /// The same, but hands damage to `body` too, which decides whether to go on. A slot that was
    /// taken is none, and ends it with `busy`.
    func tryAll(
        _ indices: [Int],
        _ body:
            @escaping @Sendable (Int, Result<LoadedChunk, ChunkDamage>) throws(CheckpointError)
            -> Void
    ) throws(CheckpointError) {
        try forEach(indices, workerCount: workerCount) {
            guard let buffers = ChunkBuffers(for: candidate.table) else { return nil }
            return { index throws(CheckpointError) in
                let chunk = Result { () throws(ChunkDamage) in try load(index, into: buffers) }
                if case .failure = chunk, let taken { throw taken }
                try body(index, chunk)
            }
        }
    }

    /// Calls what `makeWorker` returns, once per thread, with each of `indices`, in any order and
    /// by several threads. Those for which it returns nil, for want of memory, take no part.
    ///
    /// - Throws: the error of the lowest index that failed; none is begun after an error.
    ///   `outOfMemory` when there is room for no thread at all.
    func forEach(
        _ indices: [Int], workerCount: Int,
        _ makeWorker: @escaping @Sendable () -> ((Int) throws(CheckpointError) -> Void)?
    ) throws(CheckpointError) {
        struct Progress {
            var next = 0
            /// By position in `indices`.
            var failures: [Int: CheckpointError] = [:]
        }
        let progress = Monitor(Progress())
        let claim: @Sendable () -> Int? = {
            progress.withLock { progress in
                guard progress.failures.isEmpty, progress.next < indices.count else { return nil }
                progress.next += 1
                return progress.next - 1
            }
        }
        let work: @Sendable ((Int) throws(CheckpointError) -> Void) -> Void = { process in
            while let claimed = claim() {
                let outcome = Result { () throws(CheckpointError) in
                    try process(indices[claimed])
                }
                if case .failure(let error) = outcome {
                    progress.withLock { $0.failures[claimed] = error }
                }
            }
        }
        // The caller works too, and comes first to the memory. A system that has no room for more
        // threads gets fewer.
        guard let process = makeWorker() else { throw noRoom }
        let threads = (1..<max(1, min(workerCount, indices.count))).compactMap {
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

    /// Buffers of one's own.
    func makeBuffers() throws(CheckpointError) -> ChunkBuffers {
        guard let buffers = ChunkBuffers(for: candidate.table) else { throw noRoom }
        return buffers
    }

    /// `load` with the public error.
    func load(_ index: Int, _ buffers: ChunkBuffers) throws(CheckpointError) -> LoadedChunk {
        do throws(ChunkDamage) {
            return try load(index, into: buffers)
        } catch {
            throw self.error(error)
        }
    }

    /// Loads the chunks `indices`, several at once, and hands them to `body` on this thread in that
    /// order.
    func loadInOrder(
        _ indices: [Int], _ body: (LoadedChunk) throws(CheckpointError) -> Void
    ) throws(CheckpointError) {
        let count = indices.count
        let threadCount = workerCount > 1 ? min(workerCount, count) : 0
        let buffers = (0...threadCount).compactMap { _ in ChunkBuffers(for: candidate.table) }
        if buffers.isEmpty { throw noRoom }
        let queue = OrderedQueue(count: count, buffers)
        let loadNext: @Sendable () -> Bool = {
            guard let (position, buffers) = queue.claim() else { return false }
            let result = Result { () throws(CheckpointError) in
                try load(indices[position], buffers)
            }
            queue.deliver(position, result, buffers)
            return true
        }
        // A system that has no room for more threads gets fewer.
        let threads = (0..<threadCount).compactMap { number in
            try? WorkerThread(name: "pcc-read-\(number)") { while loadNext() {} }
        }
        defer {
            queue.stop()
            for thread in threads { thread.join() }
        }
        for position in 0..<count {
            if threads.isEmpty { _ = loadNext() }
            let (result, buffers) = queue.take(position)
            try body(try result.get())
            queue.giveBack(buffers)
        }
    }
}

/// Hands chunk numbers to workers in order, and their results to one consumer in order.
private final class OrderedQueue: Sendable {
    typealias Delivery = (result: Result<LoadedChunk, CheckpointError>, buffers: ChunkBuffers)

    private struct State {
        var next = 0
        var free: [ChunkBuffers]
        var delivered: [Int: Delivery] = [:]
        var isStopped = false
    }

    private enum Claim { case work(Int, ChunkBuffers), end }

    private let count: Int
    private let state: Monitor<State>

    /// - Parameter buffers: one at least; as many chunks are under way at once.
    init(count: Int, _ buffers: [ChunkBuffers]) {
        self.count = count
        state = Monitor(State(free: buffers))
    }

    /// The next chunk and buffers for it; nil at the end. Numbers are given in order, so the one
    /// that the consumer waits for always has buffers.
    func claim() -> (Int, ChunkBuffers)? {
        let claim = state.waitFor { state -> Claim? in
            if state.isStopped || state.next == count { return .end }
            guard let buffers = state.free.popLast() else { return nil }
            state.next += 1
            return .work(state.next - 1, buffers)
        }
        guard case .work(let index, let buffers) = claim else { return nil }
        return (index, buffers)
    }

    func deliver(
        _ index: Int, _ result: Result<LoadedChunk, CheckpointError>, _ buffers: ChunkBuffers
    ) {
        state.withLock { $0.delivered[index] = (result, buffers) }
        state.wakeAll()
    }

    func take(_ index: Int) -> Delivery {
        state.waitFor { $0.delivered.removeValue(forKey: index) }
    }

    func giveBack(_ buffers: ChunkBuffers) {
        state.withLock { $0.free.append(buffers) }
        state.wakeAll()
    }

    func stop() {
        state.withLock { $0.isStopped = true }
        state.wakeAll()
    }
}
