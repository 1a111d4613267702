internal import CheckpointDevice
internal import CheckpointFormat
internal import CheckpointStorage

// Both legs of the way from a device to the medium: chunks that devices copy, and the time that the
// medium is busy.

extension EngineState {
    // MARK: The device's leg

    /// Devices have their part of a chunk: `device` is the one whose thread waits for all of it.
    ///
    /// - Returns: what of the payload the host reads no more.
    mutating func finishQueueing(
        _ chunk: ArrivingChunk, on device: DeviceName
    ) -> InFlightCheckpoint.Release {
        queueingCount -= 1
        arriving[device, default: []].append(chunk)
        return chunk.copy.checkpoint.release(chunk.copy)
    }

    enum NextArrival {
        case chunk(ArrivingChunk)
        /// No more will come.
        case none
    }

    /// What a device copies first; nil while it copies nothing.
    func nextArrival(_ device: DeviceName) -> NextArrival? {
        if let chunk = arriving[device]?.first { return .chunk(chunk) }
        return isStopped && queueingCount == 0 ? NextArrival.none : nil
    }

    /// A checkpoint failed although its chunks are on their way.
    mutating func failQueued(_ checkpoint: InFlightCheckpoint, _ error: CheckpointError) {
        if inFlight.contains(where: { $0 === checkpoint }) { fail(checkpoint, error) }
    }

    /// The bytes of a chunk are in its buffer.
    ///
    /// - Parameter began: when the copies could have begun, as the bytes were ready.
    mutating func finishArrival(
        of chunk: ArrivingChunk, on device: DeviceName, began: UInt64, now: UInt64
    ) {
        arriving[device]?.removeFirst()
        statistics.deviceLeg.add(byteCount: chunk.byteCount, from: began, to: now)
        arrived.append(chunk.copy)
        if chunk.copy.checkpoint.failure != nil { dropArrived(chunk.copy.checkpoint) }
    }

    /// The bytes of a chunk will not come; `isOver` when none of them is under way.
    mutating func failArrival(
        of chunk: ArrivingChunk, on device: DeviceName, _ error: CheckpointError, isOver: Bool
    ) {
        arriving[device]?.removeFirst()
        isOver ? failCopy(chunk.copy, error) : failUnresolved(chunk.copy, error)
    }

    /// A device refused a chunk, or some of it; `isOver` as above.
    mutating func failQueueing(_ copy: ChunkCopy, _ error: CheckpointError, isOver: Bool) {
        queueingCount -= 1
        isOver ? failCopy(copy, error) : failUnresolved(copy, error)
    }

    /// The device may still write to the buffer: another one takes its place.
    private mutating func failUnresolved(_ copy: ChunkCopy, _ error: CheckpointError) {
        copy.checkpoint.busyCount -= 1
        guard let buffer = copy.buffer else { return fail(copy.checkpoint, error) }
        // Safe: never released, so that its memory is nobody else's while the process lives.
        unsafe _ = Unmanaged.passRetained(buffer)
        guard let other = AlignedBuffer.forTransfers(byteCount: buffer.byteCount) else {
            return stopSaving(error)
        }
        freeBuffers.append(other)
        fail(copy.checkpoint, error)
    }

    /// Nobody digests what has arrived of a checkpoint that failed.
    mutating func dropArrived(_ checkpoint: InFlightCheckpoint) {
        for copy in arrived where copy.checkpoint === checkpoint {
            checkpoint.busyCount -= 1
            if let buffer = copy.buffer { freeBuffers.append(buffer) }
        }
        arrived.removeAll { $0.checkpoint === checkpoint }
        endIfFailed(checkpoint)
    }

    // MARK: The medium's leg

    /// A chunk was copied by a processor.
    mutating func noteCopy(_ copy: ChunkCopy, nanoseconds: UInt64) {
        pace.note(
            byteCount: copy.checkpoint.chunkRange(copy.index).count, nanoseconds: nanoseconds,
            isAlone: copy.isAlone && mediumClock.activeCount == 0, isUrgent: urgency.isUrgent)
    }

    /// Writes leave the memory to copies that somebody waits for, if the pool has room for all of
    /// those. Else the last copy waits for a write, and a pause would only delay it.
    var writesStandBack: Bool {
        guard urgency.isUrgent, !pace.allowsWrites else { return false }
        let count = leftToCopyCount
        return count > 0 && count <= freeBuffers.count
    }

    /// Chunks that are not copied yet: the early ones while there are any, as they come first.
    private var leftToCopyCount: Int {
        let active = inFlight.lazy.filter { $0.failure == nil }
        let early = active.reduce(0) { $0 + $1.earlyLeftCount }
        return early > 0 ? early : active.reduce(0) { $0 + $1.leftCount }
    }

    /// Called at every change of what is being written, or is due.
    mutating func clockMedium() {
        let now = SystemClock.monotonicTime
        let elapsed = now - mediumClock.lastTime
        if mediumClock.activeCount > 0 {
            statistics.mediumLeg.busyNanoseconds += elapsed
        } else if mediumClock.isDue {
            statistics.mediumLeg.stallNanoseconds += elapsed
        }
        mediumClock.lastTime = now
        mediumClock.isDue = inFlight.contains { $0.failure == nil && $0.writesLeft > 0 }
    }

    mutating func beginMediumWrite() {
        clockMedium()
        mediumClock.activeCount += 1
    }

    /// - Parameter byteCount: 0 when it failed.
    mutating func endMediumWrite(byteCount: Int) {
        clockMedium()
        mediumClock.activeCount -= 1
        statistics.mediumLeg.byteCount += UInt64(byteCount)
    }

    mutating func finishCopy(
        _ copy: ChunkCopy, _ done: ChunkCopy.Result
    ) -> InFlightCheckpoint.Release {
        let checkpoint = copy.checkpoint
        checkpoint.busyCount -= 1
        checkpoint.copiedCount += 1
        if checkpoint.failure != nil {
            if let buffer = copy.buffer { freeBuffers.append(buffer) }
            endIfFailed(checkpoint)
            return []
        }
        // The host was done with what devices copied before.
        let released = copy.isOnDevice ? [] : checkpoint.release(copy)
        switch done {
        case .staged(let chunk): enqueue(WriteItem(checkpoint: checkpoint, chunk: chunk))
        case .written(let result):
            if let buffer = copy.buffer { freeBuffers.append(buffer) }
            finishChunk(checkpoint, index: copy.index, result)
        }
        if checkpoint.copiedCount == checkpoint.chunkCount {
            checkpoint.payload = nil
            checkpoint.ticket.markStaged()
        }
        return released
    }

    /// The medium refused a chunk that goes straight to it, or a device did.
    mutating func failCopy(_ copy: ChunkCopy, _ error: CheckpointError) {
        if let buffer = copy.buffer { freeBuffers.append(buffer) }
        copy.checkpoint.busyCount -= 1
        fail(copy.checkpoint, error)
    }
}
