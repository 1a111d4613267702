internal import CheckpointFormat
internal import CheckpointStorage

/// A chunk that was copied out of the caller's memory.
struct StagedChunk {
    let index: Int
    let buffer: AlignedBuffer
    /// The digests of its leaves, taken while it was copied.
    let leaves: [Digest]
}

/// One piece of work for a writer worker.
struct WriteItem {
    let checkpoint: InFlightCheckpoint
    /// nil for the "writing" header.
    let chunk: StagedChunk?

    /// Urgent ones, then the oldest checkpoint first; its header before its chunks, in order.
    static func isBefore(_ left: WriteItem, _ right: WriteItem) -> Bool { left.rank < right.rank }

    private var rank: (Int, UInt64, Int) {
        (checkpoint.isUrgent ? 0 : 1, checkpoint.sequence.rawValue, chunk?.index ?? -1)
    }
}

/// Everything the engine's threads share, behind one lock.
struct EngineState {
    let storage: any Storage
    var slots: SlotTable
    /// The newest durable superblock and its digest.
    var superblock: Superblock
    var superblockDigest: Digest
    var nextSequence: UInt64
    /// The last step that this writer was given; nil until the first.
    var lastStep: UInt64?

    /// Every checkpoint that has not ended, oldest first.
    var inFlight: [InFlightCheckpoint] = []
    var freeBuffers: [AlignedBuffer]
    /// Sorted by `WriteItem.isBefore`.
    var writeQueue: [WriteItem] = []
    /// All chunks are written; the committer's to take.
    var written: [InFlightCheckpoint] = []

    var failStop: CheckpointError?
    /// No new checkpoints; those in flight go on.
    var isClosing = false
    /// Threads end as soon as they see it.
    var isStopped = false
    /// Urgent saves that wait for a slot: the others stand back until they have one.
    var urgentWaitCount = 0
    /// Set while a save waits for readers.
    var pinStall: PinStall?
    /// Since when the pool has been the bottleneck.
    var stallBegan: UInt64?
    var statistics = WriterStatistics()

    /// State is being copied, and the pool does not hold that up.
    var isCopying: Bool { nextToCopy != nil && !freeBuffers.isEmpty }

    /// The place in the queue of the next write: a mark, or a chunk behind its mark.
    func nextWriteIndex(onlyMarks: Bool) -> Int? {
        writeQueue.firstIndex { $0.chunk == nil || !onlyMarks && $0.checkpoint.isMarked }
    }

    /// The checkpoint of a ticket, while the caller's word on it is awaited.
    func awaitingApproval(_ ticket: CheckpointTicket) -> InFlightCheckpoint? {
        inFlight.first { $0.ticket === ticket && $0.needsApproval }
    }

    /// The oldest checkpoint with something left to copy; but urgent ones before the others, and
    /// then those with an early part, as their callers wait.
    var nextToCopy: InFlightCheckpoint? {
        var next: InFlightCheckpoint?
        var early: InFlightCheckpoint?
        for checkpoint in inFlight
        where checkpoint.failure == nil && checkpoint.hasMoreToCopy {
            if checkpoint.isUrgent { return checkpoint }
            if checkpoint.hasEarlyToCopy { early = early ?? checkpoint }
            next = next ?? checkpoint
        }
        return early ?? next
    }

    /// A free buffer of the pool; nil while there is none, which counts as a stall.
    mutating func takeFreeBuffer() -> AlignedBuffer? {
        guard let buffer = freeBuffers.popLast() else {
            if stallBegan == nil { stallBegan = SystemClock.monotonicTime }
            return nil
        }
        if let began = stallBegan {
            statistics.stagingStallNanoseconds += SystemClock.monotonicTime - began
            stallBegan = nil
        }
        return buffer
    }

    mutating func enqueue(_ item: WriteItem) {
        // Items arrive almost in order, so the search from the end is short.
        var index = writeQueue.endIndex
        while index > 0, WriteItem.isBefore(item, writeQueue[index - 1]) { index -= 1 }
        writeQueue.insert(item, at: index)
        statistics.writeQueueCountMaximum = max(
            statistics.writeQueueCountMaximum, writeQueue.count)
    }

    /// Marks a checkpoint as failed, takes its work out of the queue, and ends it as soon as
    /// nothing of it is under way.
    mutating func fail(
        _ checkpoint: InFlightCheckpoint, _ error: CheckpointError, isSlotDoubtful: Bool = false
    ) {
        if isSlotDoubtful { checkpoint.isSlotDoubtful = true }
        if checkpoint.failure == nil {
            checkpoint.failure = error
            statistics.lastError = error.message
            for item in writeQueue where item.checkpoint === checkpoint {
                if let chunk = item.chunk { freeBuffers.append(chunk.buffer) }
            }
            writeQueue.removeAll { $0.checkpoint === checkpoint }
            written.removeAll { $0 === checkpoint }
        }
        endIfFailed(checkpoint)
    }

    /// Fail-stop: no slot can be trusted to be free, so everything in flight fails and nothing
    /// more is begun.
    mutating func stopSaving(_ error: CheckpointError) {
        failStop = failStop ?? error
        statistics.isFailStop = true
        for checkpoint in inFlight { fail(checkpoint, error, isSlotDoubtful: true) }
    }

    /// Ends a failed checkpoint once no thread reads its memory or writes its slot.
    mutating func endIfFailed(_ checkpoint: InFlightCheckpoint) {
        guard let failure = checkpoint.failure, checkpoint.busyCount == 0,
            !checkpoint.isCommitting, inFlight.contains(where: { $0 === checkpoint })
        else { return }
        if checkpoint.isSlotDoubtful {
            slots.quarantine(checkpoint.slot)
            statistics.quarantinedSlotCount = slots.quarantinedCount
        } else {
            slots.release(checkpoint.slot)
        }
        statistics.failedCount += 1
        end(checkpoint, .failed(failure))
    }

    mutating func end(_ checkpoint: InFlightCheckpoint, _ outcome: CheckpointOutcome) {
        inFlight.removeAll { $0 === checkpoint }
        checkpoint.payload = nil
        // Lets readers pin the slot again. Failing to unlock only keeps them away.
        if slots.use(checkpoint.slot) != .quarantined {
            try? storage.unlock(.slot(checkpoint.slot))
        }
        checkpoint.ticket.resolve(outcome)
    }
}
