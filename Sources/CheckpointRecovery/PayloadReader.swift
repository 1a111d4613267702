internal import CheckpointFormat
internal import CheckpointStorage

/// The buffers in which one worker reads and restores chunks of one checkpoint.
final class ChunkBuffers: Sendable {
    let stored: AlignedBuffer
    /// nil when no chunk is compressed.
    let raw: AlignedBuffer?

    init(for table: ChunkTable) {
        let block = Limits.blockByteCount
        let largest = table.entries.map(\.storedByteCount).max() ?? 0
        stored = AlignedBuffer(byteCount: (largest + block - 1) / block * block)
        let largestRaw = table.entries.filter { $0.codec != .none }.map(\.rawByteCount).max()
        raw = largestRaw.map { AlignedBuffer(byteCount: $0) }
    }
}

/// A chunk whose stored bytes matched their digest, restored in a buffer.
struct LoadedChunk: Sendable {
    let index: Int
    /// Byte offset in the payload.
    let payloadOffset: UInt64
    let buffer: AlignedBuffer
    let byteCount: Int
}

/// Reads chunks of one candidate; every byte that leaves it was verified.
struct PayloadReader: Sendable {
    let storage: any Storage
    let candidate: Candidate
    let workerCount: Int

    var entries: [ChunkEntry] { candidate.table.entries }

    /// Reads, verifies and restores chunk `index` in `buffers`.
    func load(_ index: Int, into buffers: ChunkBuffers) throws(CheckpointError) -> LoadedChunk {
        let entry = entries[index]
        let offset = candidate.dataOffset + entry.storedOffset
        let block = Limits.blockByteCount
        // The data area is a multiple of 4096 long and the chunk starts on one, so the padding
        // that O_DIRECT needs lies inside it.
        let padded = (entry.storedByteCount + block - 1) / block * block
        do throws(StorageError) {
            try storage.read(into: buffers.stored, 0..<padded, at: offset)
        } catch {
            throw CheckpointError(error, slot: candidate.slot)
        }
        let found = buffers.stored.withBytes(0..<entry.storedByteCount) { Digest(of: $0) }
        guard found == entry.digest else {
            throw damage(
                index, "chunk \(index) has digest \(found), expected \(entry.digest)")
        }
        guard entry.codec != .none, let raw = buffers.raw else {
            return loaded(index, buffers.stored)
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
            throw damage(index, "chunk \(index) cannot be restored: \(error)")
        }
        return loaded(index, raw)
    }

    private func loaded(_ index: Int, _ buffer: AlignedBuffer) -> LoadedChunk {
        LoadedChunk(
            index: index,
            payloadOffset: UInt64(index) * UInt64(candidate.header.chunkByteCount),
            buffer: buffer, byteCount: entries[index].rawByteCount)
    }

    private func damage(_ index: Int, _ what: String) -> CheckpointError {
        let offset = candidate.dataOffset + entries[index].storedOffset
        return CheckpointError(
            .corrupt,
            "\(storage.path): slot \(candidate.slot) at byte \(offset): \(what); run pcfsck "
                + "--verify full to see what else is damaged",
            slot: candidate.slot, byteOffset: offset)
    }

    /// Loads `indices`, in any order and by several threads, and hands each to `body`.
    ///
    /// - Throws: the error of the lowest index that failed; all chunks before it were handed out.
    func loadAll(
        _ indices: [Int],
        _ body: @escaping @Sendable (LoadedChunk) throws(CheckpointError) -> Void
    ) throws(CheckpointError) {
        struct Progress {
            var next = 0
            var failure: (position: Int, error: CheckpointError)?
        }
        let progress = Monitor(Progress())
        let work: @Sendable () -> Void = {
            let buffers = ChunkBuffers(for: candidate.table)
            while true {
                let claimed = progress.withLock { progress -> Int? in
                    guard progress.failure == nil, progress.next < indices.count else {
                        return nil
                    }
                    progress.next += 1
                    return progress.next - 1
                }
                guard let claimed else { return }
                do throws(CheckpointError) {
                    try body(try load(indices[claimed], into: buffers))
                } catch {
                    progress.withLock {
                        if claimed < $0.failure?.position ?? .max {
                            $0.failure = (claimed, error)
                        }
                    }
                }
            }
        }
        // The caller works too. A system that has no room for more threads gets fewer.
        let threads = (1..<max(1, min(workerCount, indices.count))).compactMap {
            try? WorkerThread(name: "pcc-read-\($0)", work)
        }
        work()
        for thread in threads { thread.join() }
        if let failure = progress.withLock({ $0.failure }) { throw failure.error }
    }

    /// Loads all chunks, several at once, and hands them to `body` on this thread in order.
    func loadInOrder(
        _ body: (LoadedChunk) throws(CheckpointError) -> Void
    ) throws(CheckpointError) {
        let count = entries.count
        guard workerCount > 1, count > 1 else {
            let buffers = ChunkBuffers(for: candidate.table)
            for index in 0..<count { try body(try load(index, into: buffers)) }
            return
        }
        let queue = OrderedQueue(count: count, depth: min(workerCount + 1, count), candidate)
        let threads = (0..<min(workerCount, count)).compactMap { number in
            try? WorkerThread(name: "pcc-read-\(number)") {
                while let (index, buffers) = queue.claim() {
                    let result = Result { () throws(CheckpointError) in
                        try load(index, into: buffers)
                    }
                    queue.deliver(index, result, buffers)
                }
            }
        }
        defer {
            queue.stop()
            for thread in threads { thread.join() }
        }
        guard !threads.isEmpty else {
            throw CheckpointError(
                .outOfMemory,
                "no thread could be started to read \(storage.path); raise ulimit -u")
        }
        for index in 0..<count {
            let (result, buffers) = queue.take(index)
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

    init(count: Int, depth: Int, _ candidate: Candidate) {
        self.count = count
        state = Monitor(State(free: (0..<depth).map { _ in ChunkBuffers(for: candidate.table) }))
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
        guard let delivery = state.waitFor({ $0.delivered.removeValue(forKey: index) }) else {
            preconditionFailure("a wait without a deadline returns a value")
        }
        return delivery
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
