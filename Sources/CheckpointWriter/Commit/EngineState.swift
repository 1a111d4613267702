internal import CheckpointDevice
internal import CheckpointFormat
internal import CheckpointStorage

/// Everything the engine's threads share, behind one lock.
///
/// Every change of it, and of the checkpoints in flight, is a method here. The other types ask for
/// one with the lock held, and wake the waiting threads afterwards. Between two calls:
///
/// - `inFlight` is ordered by sequence, and sequences only grow, up to what the durable superblock
///   reserved. Each of its checkpoints has a slot of its own, which `slots` calls in flight.
/// - A slot that the durable superblock names is never free: `slots` follows `superblock`, which
///   changes only when its successor is durable.
/// - A staging buffer is in `freeBuffers`, in `writeQueue`, or with a worker or a device that
///   `busyCount` of its checkpoint counts: in `arriving`, `arrived`, or in a thread's hands.
/// - A checkpoint in `written` has all its chunks on the medium, is approved, and has not failed.
/// - A checkpoint that has failed has nothing in `writeQueue` or `written`. It ends, and its slot
///   is free or quarantined, once nothing of it is under way.
/// - After a fail-stop, and once the writer is closing, nothing is begun.
/// - In the file of a group, nothing is begun before an attempt is, or while one is beginning.
///   `group` lists what `superblock` names.
struct EngineState {
    private let storage: any Storage
    private let geometry: Geometry
    let urgency = StagingUrgency()
    private(set) var slots: SlotTable
    /// The newest durable superblock and its digest.
    private(set) var superblock: Superblock
    private(set) var superblockDigest = Digest.zero
    /// nil in a file that belongs to no group.
    private(set) var group: GroupLedger?
    private(set) var nextSequence: UInt64
    /// The last step that this writer was given; nil until the first.
    private var lastStep: UInt64?

    /// Every checkpoint that has not ended, oldest first.
    private(set) var inFlight: [InFlightCheckpoint] = []
    var freeBuffers: [AlignedBuffer]
    /// What devices copy at the moment, in their order.
    var arriving: [DeviceName: [ArrivingChunk]] = [:]
    /// Chunks that a worker is handing to devices: their threads must wait for these.
    var queueingCount = 0
    /// Their bytes are in their buffers; they are to be digested.
    var arrived: [ChunkCopy] = []
    /// Since when the medium has been writing so many things, or waiting for some.
    var mediumClock = (activeCount: 0, isDue: false, lastTime: SystemClock.monotonicTime)
    /// Sorted by `WriteItem.isBefore`.
    private var writeQueue: [WriteItem] = []
    /// All chunks are written; the committer's to take.
    private var written: [InFlightCheckpoint] = []

    private(set) var failStop: CheckpointError?
    /// No new checkpoints; those in flight continue.
    private(set) var isClosing = false
    /// Threads end as soon as they see it.
    private(set) var isStopped = false
    /// Urgent saves that wait for a slot: the others pause until they have one.
    private(set) var urgentWaitCount = 0
    private var slotWaits = SlotWaits()
    /// Set while a save waits for readers.
    private(set) var pinStall: PinStall?
    /// Since when the pool has been the bottleneck.
    private var stallBegan: UInt64?
    var pace = CopyPace()
    /// They decide nothing; each transition adds to them.
    var statistics = WriterStatistics()

    init(
        storage: any Storage, geometry: Geometry, slots: SlotTable, superblock: Superblock,
        nextSequence: UInt64, freeBuffers: [AlignedBuffer], group: GroupLedger? = nil
    ) {
        self.storage = storage
        self.geometry = geometry
        self.slots = slots
        self.superblock = superblock
        self.nextSequence = nextSequence
        self.freeBuffers = freeBuffers
        self.group = group
        statistics.quarantinedSlotCount = slots.quarantinedCount
        statistics.newestDurableStep = superblock.anchor?.step
        statistics.newestDurableSequence = superblock.anchor?.sequence ?? .none
    }

    /// The first superblock of this writer is durable.
    mutating func open(superblockDigest: Digest) { self.superblockDigest = superblockDigest }

    // MARK: Admission

    enum Admission {
        /// - Parameter brokenPin: the slot, when it was taken from readers.
        case begun(CheckpointTicket, brokenPin: SlotIndex?)
        /// Nothing can be taken; so many slots are free, but pinned by readers.
        case noSlot(pinnedCount: Int)
    }

    /// - Throws: `failStop`, `closed`.
    func checkOpen() throws(CheckpointError) {
        if let failStop { throw failStop }
        guard !isClosing else {
            throw CheckpointError(
                .closed, "\(storage.path): this writer is closed; open the file again")
        }
    }

    /// - Throws: `stepBackwards`.
    func checkOrder(_ step: UInt64) throws(CheckpointError) {
        guard let lastStep else { return }
        try group?.checkOrder(step, after: lastStep, storage.path)
        guard step < lastStep else { return }
        throw CheckpointError(
            .stepBackwards,
            "\(storage.path): step \(step) is below step \(lastStep), the last one saved by "
                + "this writer; call rewind first when training really went back")
    }

    /// Training goes back: saves may use any step from `step` on.
    mutating func rewind(to step: UInt64) throws(CheckpointError) {
        try checkOpen()
        try group?.refuseRewind(storage.path)
        lastStep = step
    }

    /// - Throws: `invalidArgument`, `closed`, `failStop`.
    mutating func request(_ attempt: GroupAttempt) throws(CheckpointError) -> AttemptRequest {
        try checkOpen()
        let count = inFlight.count
        let request = try group?.request(attempt, after: superblock, count, storage.path)
        guard let request else { throw GroupLedger.missing(storage.path) }
        return request
    }

    /// The first superblock of the attempt is durable, and names `kept`.
    mutating func finish(
        _ request: AttemptRequest, naming kept: [GroupLedger.Entry], _ next: Superblock,
        digest: Digest
    ) {
        for entry in kept { slots.keep(entry.anchor.slot, sequence: entry.anchor.sequence) }
        publish(next, digest: digest)
        group?.begin(request.attempt, naming: kept)
        lastStep = nil
        settle([]) { _ in }
        group?.end(.success(()))
    }

    mutating func failAttempt(_ error: CheckpointError) { group?.end(.failure(error)) }

    /// What all ranks know of a durable checkpoint.
    mutating func decide(_ sequence: SequenceNumber, isComplete: Bool) {
        group?.decide(sequence, isComplete: isComplete)
    }

    /// No slot is free, and a superblock that names less would free one.
    var needsRelease: Bool {
        failStop == nil && slots.free.isEmpty && group?.canRelease == true
    }

    /// Begins a checkpoint, where there is a slot for it.
    ///
    /// - Parameter patience: how long an urgent one leaves a slot to its readers.
    mutating func admit(
        _ request: SaveRequest, isUrgent: Bool, patience: UInt64
    ) throws(CheckpointError) -> Admission {
        guard let (slot, isPinned) = try takeSlot(request, isUrgent, patience: patience) else {
            return .noSlot(pinnedCount: pinnedCount(isUrgent))
        }
        pinStall = nil
        // Its readers find the mark before the first chunk: COMMIT.md, rules 7 and 8.
        if isPinned { statistics.brokenPinCount += 1 }
        let checkpoint = begin(request, isUrgent: isUrgent, in: slot)
        return .begun(checkpoint.ticket, brokenPin: isPinned ? slot : nil)
    }

    enum Chance {
        /// `admit` would find a slot, or an error.
        case open
        /// As of `Admission`.
        case noSlot(pinnedCount: Int)
    }

    /// What `admit` would find, now.
    mutating func chance(of request: SaveRequest, isUrgent: Bool, patience: UInt64) -> Chance {
        do throws(CheckpointError) {
            guard let (slot, isPinned) = try takeSlot(request, isUrgent, patience: patience) else {
                return .noSlot(pinnedCount: pinnedCount(isUrgent))
            }
            // `admit` takes the lock again at once. A reader that pins the slot in between sends
            // the save back to its wait.
            if !isPinned { try? storage.unlock(.slot(slot)) }
            return .open
        } catch {
            return .open
        }
    }

    /// How many slots are free, but pinned by readers, for a save that found none.
    private mutating func pinnedCount(_ isUrgent: Bool) -> Int {
        // A save that waits for an urgent one has no slot to complain about.
        if standsBack(isUrgent) || group?.request != nil { return 0 }
        let count = inFlight.count >= geometry.inFlightCount ? 0 : slots.free.count
        if count == 0 {
            pinStall = nil
        } else if pinStall == nil {
            pinStall = PinStall()
        }
        return count
    }

    private func standsBack(_ isUrgent: Bool) -> Bool { !isUrgent && urgentWaitCount > 0 }

    /// A free slot that no reader has pinned, with its lock byte, which is held until the
    /// checkpoint ends. An urgent save loses patience with readers, and takes one all the same.
    private func takeSlot(
        _ request: SaveRequest, _ isUrgent: Bool, patience: UInt64
    ) throws(CheckpointError) -> (slot: SlotIndex, isPinned: Bool)? {
        try checkOpen()
        try group?.checkAttempt(storage.path)
        try checkOrder(request.step)
        if group?.request != nil { return nil }
        // Beyond the limit a crash could forget that the number was given.
        guard nextSequence < superblock.sequenceLimit else {
            throw CheckpointError(
                .slotsExhausted,
                "\(storage.path): \(Limits.sequenceReserve) checkpoints in a row did not "
                    + "become durable; check the device, then reopen the file")
        }
        if standsBack(isUrgent) { return nil }
        if slots.free.isEmpty, inFlight.isEmpty, slots.quarantinedCount > 0 {
            throw CheckpointError(
                .slotsExhausted,
                "\(storage.path): \(slots.quarantinedCount) slots are out of use "
                    + "after failed flushes or reads, and none is left; reopen the file, and check "
                    + "the device if that repeats")
        }
        guard inFlight.count < geometry.inFlightCount else { return nil }
        for slot in slots.free {
            do throws(StorageError) {
                if try storage.tryLock(.slot(slot), exclusive: true) { return (slot, false) }
            } catch {
                throw CheckpointError(error, slot: slot)
            }
        }
        guard isUrgent, let pinStall, let slot = slots.free.first,
            SystemClock.monotonicTime - pinStall.beganTime >= patience
        else { return nil }
        return (slot, true)
    }

    private mutating func begin(
        _ request: SaveRequest, isUrgent: Bool, in slot: SlotIndex
    ) -> InFlightCheckpoint {
        let sequence = SequenceNumber(rawValue: nextSequence)
        nextSequence += 1
        lastStep = request.step
        slots.take(slot, for: sequence)
        let checkpoint = InFlightCheckpoint(
            request, isUrgent: isUrgent, sequence: sequence, slot: slot,
            attempt: group?.attempt ?? 0, chunkByteCount: geometry.chunkByteCount, urgency: urgency)
        inFlight.append(checkpoint)
        statistics.savedCount += 1
        clockMedium()
        enqueue(WriteItem(checkpoint: checkpoint, chunk: nil))
        if checkpoint.chunkCount == 0 { checkpoint.ticket.markStaged() }
        return checkpoint
    }

    mutating func beginUrgentWait() { urgentWaitCount += 1 }
    mutating func endUrgentWait() { urgentWaitCount -= 1 }

    mutating func beginWait(now: UInt64) { slotWaits.begin(now: now) }

    mutating func endWait(began: UInt64, now: UInt64) {
        statistics.busyNanoseconds += slotWaits.end(began: began, now: now)
    }

    /// The statistics, with what is in progress now.
    func currentStatistics(now: UInt64) -> WriterStatistics {
        var current = statistics
        current.busyNanoseconds &+= slotWaits.nanoseconds(now: now)
        current.inFlightCount = inFlight.count
        current.group = group?.statistics(freeSlotCount: slots.free.count)
        current.pinnedSlots = pinStall?.pins ?? []
        return current
    }

    /// The slots whose readers are to be looked at now; empty while that is not due.
    mutating func beginPinLook(isFailing: Bool) -> [SlotIndex] {
        pinStall?.beginLook(isFailing: isFailing) == true ? slots.free : []
    }

    mutating func endPinLook(_ pins: [SlotPin], limit: UInt64) -> UInt64? {
        pinStall?.endLook(pins, limit: limit)
    }

    // MARK: Approval

    /// The caller's memory did not change while it was copied. One that has ended, or that needed
    /// no approval, is left alone.
    mutating func approve(_ ticket: CheckpointTicket) {
        guard let checkpoint = awaitingApproval(ticket) else { return }
        checkpoint.needsApproval = false
        if checkpoint.writesLeft == 0, checkpoint.failure == nil { written.append(checkpoint) }
    }

    mutating func reject(_ ticket: CheckpointTicket, because reason: String) {
        guard let checkpoint = awaitingApproval(ticket) else { return }
        fail(checkpoint, CheckpointError(.rejected, reason, slot: checkpoint.slot))
    }

    private func awaitingApproval(_ ticket: CheckpointTicket) -> InFlightCheckpoint? {
        inFlight.first { $0.ticket === ticket && $0.needsApproval }
    }

    // MARK: Copying

    /// The oldest checkpoint with something left to copy; but urgent ones before the others, and
    /// then those with an early part, as their callers wait.
    private var nextToCopy: InFlightCheckpoint? {
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

    /// Chunks to copy come before those that devices have copied: devices need no processor.
    mutating func takeSnapshotWork(isDirect: Bool) -> SnapshotWork? {
        if let copy = takeCopy(isDirect: isDirect) { return .copy(copy) }
        return arrived.isEmpty ? nil : .digest(arrived.removeFirst())
    }

    /// The next chunk to copy, into a buffer of the pool, or straight to the medium behind its
    /// mark. No processor can bring the bytes of a device to the medium: they need a buffer.
    private mutating func takeCopy(isDirect: Bool) -> ChunkCopy? {
        guard let checkpoint = nextToCopy, let payload = checkpoint.payload else { return nil }
        if isDirect && !checkpoint.isMarked { return nil }
        let chunk = checkpoint.nextChunk
        var buffer: AlignedBuffer?
        if !isDirect || chunk.isOnDevice {
            guard let free = takeFreeBuffer(isForDevice: chunk.isOnDevice) else { return nil }
            buffer = free
        }
        if isDirect { checkpoint.hasWritten = true }
        checkpoint.takenCount += 1
        checkpoint.busyCount += 1
        if chunk.isOnDevice { queueingCount += 1 }
        return ChunkCopy(
            checkpoint: checkpoint, payload: payload, index: chunk.index, isEarly: chunk.isEarly,
            isOnDevice: chunk.isOnDevice, isAlone: mediumClock.activeCount == 0, buffer: buffer)
    }

    /// A free buffer of the pool; nil while there is none, which counts as a stall.
    private mutating func takeFreeBuffer(isForDevice: Bool) -> AlignedBuffer? {
        guard let buffer = freeBuffers.popLast() else {
            if stallBegan == nil { stallBegan = SystemClock.monotonicTime }
            return nil
        }
        if let began = stallBegan {
            let stall = SystemClock.monotonicTime - began
            statistics.stagingStallNanoseconds += stall
            if isForDevice { statistics.deviceLeg.stallNanoseconds += stall }
            stallBegan = nil
        }
        return buffer
    }

    // MARK: Writing

    mutating func enqueue(_ item: WriteItem) {
        // Items arrive almost in order, so the search from the end is short.
        var index = writeQueue.endIndex
        while index > 0, WriteItem.isBefore(item, writeQueue[index - 1]) { index -= 1 }
        writeQueue.insert(item, at: index)
        statistics.writeQueueCountMaximum = max(
            statistics.writeQueueCountMaximum, writeQueue.count)
    }

    /// The next write: a mark, or a chunk behind its mark.
    mutating func takeWrite(onlyMarks: Bool) -> WriteItem? {
        let next = writeQueue.firstIndex {
            $0.chunk == nil || !onlyMarks && $0.checkpoint.isMarked
        }
        guard let next else { return nil }
        let item = writeQueue.remove(at: next)
        item.checkpoint.busyCount += 1
        item.checkpoint.hasWritten = true
        beginMediumWrite()
        return item
    }

    /// - Parameter done: of a chunk; nil for a mark.
    mutating func finishWrite(_ item: WriteItem, _ done: ChunkWriter.Result?) {
        endMediumWrite(byteCount: done?.entry.storedByteCount ?? 0)
        release(item)
        if let done, let index = item.chunk?.index {
            finishChunk(item.checkpoint, index: index, done)
        } else {
            item.checkpoint.isMarked = true
            statistics.metadataWriteCount += 1
            finishOne(item.checkpoint)
        }
    }

    mutating func failWrite(_ item: WriteItem, _ error: CheckpointError) {
        endMediumWrite(byteCount: 0)
        release(item)
        fail(item.checkpoint, error)
    }

    /// The write may still be in progress, and would then land in the slot's next checkpoint:
    /// no slot is used again, and the buffer never.
    mutating func stopSaving(unresolved item: WriteItem, _ error: CheckpointError) {
        endMediumWrite(byteCount: 0)
        item.checkpoint.busyCount -= 1
        stopSaving(error)
    }

    private mutating func release(_ item: WriteItem) {
        item.checkpoint.busyCount -= 1
        if let chunk = item.chunk { freeBuffers.append(chunk.buffer) }
    }

    mutating func finishChunk(
        _ checkpoint: InFlightCheckpoint, index: Int, _ done: ChunkWriter.Result
    ) {
        checkpoint.entries[index] = done.entry
        checkpoint.logicalDigest.setLeaves(done.leaves, at: checkpoint.chunkRange(index).offset)
        statistics.chunkWriteCount += 1
        statistics.compressNanoseconds += done.compressNanoseconds
        statistics.writeNanoseconds += done.writeNanoseconds
        finishOne(checkpoint)
    }

    private mutating func finishOne(_ checkpoint: InFlightCheckpoint) {
        guard checkpoint.failure == nil else { return endIfFailed(checkpoint) }
        checkpoint.writesLeft -= 1
        // Joined here: the commit record exists only after every completion has arrived.
        if checkpoint.writesLeft == 0, !checkpoint.needsApproval { written.append(checkpoint) }
    }

    // MARK: Committing

    /// All checkpoints whose chunks are written, oldest first; nil when there are none.
    mutating func takeBatch() -> [InFlightCheckpoint]? {
        if written.isEmpty { return nil }
        let batch = written.sorted { $0.sequence < $1.sequence }
        written = []
        for checkpoint in batch { checkpoint.isCommitting = true }
        return batch
    }

    /// The commit record of one of a batch could not be written.
    mutating func failSeal(_ checkpoint: InFlightCheckpoint, _ error: CheckpointError) {
        checkpoint.isCommitting = false
        fail(checkpoint, error)
    }

    /// F1 failed. The kernel reports a lost write once and then forgets it, so whatever was
    /// written before is lost for good: not only this batch, but also the chunks that younger
    /// checkpoints have already written. Their slots are not used again by this writer.
    mutating func failFlush(_ sealed: [SealedCheckpoint], _ error: CheckpointError) {
        for item in sealed { item.checkpoint.isCommitting = false }
        for checkpoint in inFlight where checkpoint.hasWritten {
            fail(checkpoint, error, isSlotDoubtful: true)
        }
    }

    /// F2 is over: the superblock is durable.
    mutating func publish(
        _ next: Superblock, digest: Digest, _ sealed: [SealedCheckpoint] = []
    ) {
        superblock = next
        superblockDigest = digest
        group?.publish(next, sealed)
        slots.releaseHeld()
    }

    /// Reuses what the durable superblock no longer names, and ends the tickets of a batch.
    ///
    /// - Parameter observe: called for each that is durable.
    mutating func settle(
        _ sealed: [SealedCheckpoint], observe: (WriterStatistics.TimeLine) -> Void
    ) {
        let kept = superblock.keptSlots
        for slot in slots.keptSlots where kept[slot] == nil { slots.release(slot) }
        for item in sealed {
            let checkpoint = item.checkpoint
            checkpoint.isCommitting = false
            statistics.payloadByteCount += checkpoint.payloadByteCount
            statistics.storedByteCount += item.storedByteCount
            if kept[checkpoint.slot] == checkpoint.sequence {
                slots.keep(checkpoint.slot, sequence: checkpoint.sequence)
                statistics.durableCount += 1
                end(checkpoint, .durable)
                let line = WriterStatistics.TimeLine(item)
                statistics.add(line)
                observe(line)
            } else {
                slots.release(checkpoint.slot)
                statistics.supersededCount += 1
                end(checkpoint, .superseded(by: superblock.anchor?.sequence ?? .none))
            }
        }
        statistics.newestDurableStep = superblock.anchor?.step
        statistics.newestDurableSequence = superblock.anchor?.sequence ?? .none
    }

    /// What is on the medium is unknown.
    mutating func stopSaving(_ sealed: [SealedCheckpoint], _ error: CheckpointError) {
        for item in sealed { item.checkpoint.isCommitting = false }
        stopSaving(error)
    }

    // MARK: Ending

    /// No new checkpoints; those that were not approved fail.
    mutating func close() {
        isClosing = true
        for checkpoint in inFlight where checkpoint.needsApproval {
            fail(checkpoint, Self.neverApproved)
        }
    }

    private static let neverApproved = CheckpointError(
        .rejected,
        "the writer was closed before this checkpoint was approved; approve or reject each one "
            + "that asks for it before closing")

    /// Threads end, and everything in flight fails.
    mutating func stop(_ error: CheckpointError) {
        isClosing = true
        isStopped = true
        for checkpoint in inFlight { fail(checkpoint, error) }
        failAttempt(error)
    }

    /// Fail-stop: no slot can be trusted to be free, so everything in flight fails and nothing
    /// more is begun.
    mutating func stopSaving(_ error: CheckpointError) {
        failStop = failStop ?? error
        statistics.isFailStop = true
        for checkpoint in inFlight { fail(checkpoint, error, isSlotDoubtful: true) }
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
            dropArrived(checkpoint)
        }
        endIfFailed(checkpoint)
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

    private mutating func end(_ checkpoint: InFlightCheckpoint, _ outcome: CheckpointOutcome) {
        inFlight.removeAll { $0 === checkpoint }
        checkpoint.payload = nil
        // Lets readers pin the slot again. Failing to unlock only keeps them away.
        if slots.use(checkpoint.slot) != .quarantined {
            try? storage.unlock(.slot(checkpoint.slot))
        }
        checkpoint.ticket.resolve(outcome)
    }
}
