internal import CheckpointStorage

/// Mistakes that a writer can be told to make, so that tests can prove that they would find them.
///
/// `package` access keeps them out of reach: nothing outside this package can ask for one, and a
/// test checks that nothing in `Sources` does.
package enum PlantedBug: String, CaseIterable, Sendable {
    /// The anchor is written before the checkpoint's chunks were flushed.
    case skipF1
    /// Acknowledged when the superblock was written, not when it was flushed.
    case skipF2
    /// The old checkpoint's slot is handed out before the new one's superblock is durable.
    case reuseBeforeF2
    /// A checkpoint that is overtaken by a newer one is published all the same.
    case publishLateOlder
    /// The commit record is written while a chunk is still under way.
    case commitWithoutJoin
    /// A flush that failed is tried once more, and believed when that succeeds.
    case retryFailedFlush
    /// What the page cache says is believed on opening, before it was flushed.
    case trustCacheOnOpen
    /// The checkpoint below an anchored one that was not read is not held.
    case reuseHeld
    /// The digest is of other bytes than those that are written.
    case writeOtherBuffer
}

/// The queue of `commitWithoutJoin`: it calls each write over before it has begun, and begins it
/// when the next one comes.
final class HastyQueue: WriteQueue {
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
        let copy = AlignedBuffer(byteCount: range.count)
        copy.copy(buffer.array(range), to: 0)
        held = (copy, offset)
        completions.append(WriteCompletion(tag: tag, error: nil))
    }

    func waitForOne() -> WriteCompletion { completions.removeFirst() }
}
