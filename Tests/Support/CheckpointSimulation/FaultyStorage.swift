package import CheckpointFormat
package import CheckpointStorage
internal import Synchronization

/// Mistakes of the world below a writer, so that tests can prove that they would find them.
///
/// The writer does everything right; the medium or the queue that it writes through does not.
/// Mistakes that only the writer can make are patches of its sources: Tests/Mutation/planted.json.
package enum PlantedBug: String, CaseIterable, Sendable {
    /// The flush between a checkpoint's chunks and its superblock does nothing.
    case skipF1
    /// The flush after a superblock does nothing.
    case skipF2
    /// A write is reported as ended before it has begun.
    case commitWithoutJoin
    /// A flush that failed is tried once more, and reported as good when that succeeds.
    case retryFailedFlush
    /// The first flush of an opener does nothing, so that it reads what only the page cache has.
    case trustCacheOnOpen
    /// Other bytes are written than those that were digested.
    case writeOtherBuffer
}

/// A storage with a planted bug, over one without.
package final class FaultyStorage: Storage {
    private struct Writes {
        var hasWritten = false
        /// Since the last flush.
        var hasSuperblock = false
    }

    private let storage: any Storage
    private let bug: PlantedBug
    private let writes = Mutex(Writes())

    package init(_ storage: any Storage, _ bug: PlantedBug) {
        self.storage = storage
        self.bug = bug
    }

    /// `storage` itself where no bug is planted.
    package static func plant(_ bug: PlantedBug?, in storage: any Storage) -> any Storage {
        bug.map { FaultyStorage(storage, $0) } ?? storage
    }

    package func flush() throws(StorageError) {
        if isSkipped() { return }
        do throws(StorageError) {
            try storage.flush()
        } catch {
            guard bug == .retryFailedFlush else { throw error }
            try storage.flush()
        }
    }

    /// Which of the writer's flushes this is, its earlier writes tell.
    private func isSkipped() -> Bool {
        writes.withLock { writes in
            defer { writes.hasSuperblock = false }
            return switch bug {
            case .skipF1: writes.hasWritten && !writes.hasSuperblock
            case .skipF2: writes.hasSuperblock
            case .trustCacheOnOpen: !writes.hasWritten
            case .commitWithoutJoin, .retryFailedFlush, .writeOtherBuffer: false
            }
        }
    }

    package func write(
        _ buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64
    ) throws(StorageError) {
        let start = buffer.array(range.lowerBound..<range.lowerBound + Superblock.magic.count)
        writes.withLock { writes in
            writes.hasWritten = true
            if start == Superblock.magic { writes.hasSuperblock = true }
        }
        try storage.write(buffer, range, at: offset)
    }

    package func makeWriteQueue(
        depth: Int, pool: StagingMemory?
    ) throws(StorageError) -> any WriteQueue {
        let queue = try storage.makeWriteQueue(depth: depth, pool: pool)
        return switch bug {
        case .commitWithoutJoin: HastyQueue(queue)
        case .writeOtherBuffer: SpoilingQueue(queue)
        case .skipF1, .skipF2, .retryFailedFlush, .trustCacheOnOpen: queue
        }
    }

    // MARK: What goes through as it is

    package var path: String { storage.path }
    package var kind: StorageKind { storage.kind }
    package var byteCount: UInt64 { storage.byteCount }

    package func read(
        into buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64
    ) throws(StorageError) {
        try storage.read(into: buffer, range, at: offset)
    }

    package func discardCache() { storage.discardCache() }

    package func tryLock(_ byte: LockByte, exclusive: Bool) throws(StorageError) -> Bool {
        try storage.tryLock(byte, exclusive: exclusive)
    }

    package func unlock(_ byte: LockByte) throws(StorageError) { try storage.unlock(byte) }
}

/// The queue of `commitWithoutJoin`: it calls each write over before it has begun, and begins it
/// when the next one comes.
private final class HastyQueue: WriteQueue {
    private let queue: any WriteQueue
    private var held: (buffer: AlignedBuffer, offset: UInt64)?
    private var completions: [WriteCompletion] = []

    init(_ queue: any WriteQueue) { self.queue = queue }

    var depth: Int { queue.depth }
    var pendingCount: Int { completions.count }

    func submit(_ buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64, tag: Int) {
        if let held {
            queue.submit(held.buffer, 0..<held.buffer.byteCount, at: held.offset, tag: 0)
            _ = queue.waitForOne()
        }
        held = (buffer.copy(of: range), offset)
        completions.append(WriteCompletion(tag: tag, error: nil))
    }

    func waitForOne() -> WriteCompletion { completions.removeFirst() }
}

/// The queue of `writeOtherBuffer`: one bit changes between the digest and the write.
private final class SpoilingQueue: WriteQueue {
    private let queue: any WriteQueue
    /// By tag, what is under way.
    private var spoiled: [Int: AlignedBuffer] = [:]

    init(_ queue: any WriteQueue) { self.queue = queue }

    var depth: Int { queue.depth }
    var pendingCount: Int { queue.pendingCount }

    func submit(_ buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64, tag: Int) {
        let copy = buffer.copy(of: range)
        copy.copy([copy.array(0..<1)[0] ^ 1], to: 0)
        spoiled[tag] = copy
        queue.submit(copy, 0..<range.count, at: offset, tag: tag)
    }

    func waitForOne() -> WriteCompletion {
        let completion = queue.waitForOne()
        spoiled[completion.tag] = nil
        return completion
    }
}

extension AlignedBuffer {
    fileprivate func copy(of range: Range<Int>) -> AlignedBuffer {
        let copy = AlignedBuffer(byteCount: range.count)
        copy.copy(array(range), to: 0)
        return copy
    }
}
