internal import CheckpointFormat
internal import CheckpointStorage
internal import Logging

/// The two barriers. One thread, so that superblock writes are serialised.
///
/// The state names are those of spec/COMMIT.md.
extension Engine {
    func runCommitter() {
        while let batch = nextBatch() {
            commit(batch)
            monitor.wakeAll()
        }
    }

    /// All checkpoints whose chunks are written: one F1 serves them all.
    private func nextBatch() -> [InFlightCheckpoint]? {
        monitor.waitFor { state -> [InFlightCheckpoint]?? in
            if state.isStopped { return .some(nil) }
            guard !state.written.isEmpty else { return nil }
            let batch = state.written.sorted { $0.sequence < $1.sequence }
            state.written = []
            for checkpoint in batch { checkpoint.isCommitting = true }
            return batch
        }
    }

    private func commit(_ batch: [InFlightCheckpoint]) {
        // A crash here leaves the slots "writing" or with a torn record: COMMIT.md state C1.
        let sealed = batch.compactMap { seal($0) }
        guard !sealed.isEmpty else { return }
        do throws(CheckpointError) {
            try flush("F1")
        } catch {
            return failAfterFlush(sealed, error)
        }
        // A crash here leaves complete slots that no superblock names: COMMIT.md state C2.
        publish(sealed)
    }

    private struct Sealed {
        let checkpoint: InFlightCheckpoint
        let headerDigest: Digest
        let storedByteCount: UInt64
    }

    /// Writes a slot's header and chunk table, which lie side by side, in one call.
    private func seal(_ checkpoint: InFlightCheckpoint) -> Sealed? {
        let record = monitor.withLock { _ in
            checkpoint.commitRecord(identity: identity, codec: options.codec)
        }
        let header = record.header.encoded()
        do throws(StorageError) {
            try storage.writeBlocks(
                header.bytes + record.table.encoded().bytes, at: record.header.ownOffset)
        } catch {
            let error = CheckpointError(error, slot: checkpoint.slot)
            options.logger.error("a commit record failed", metadata: ["error": "\(error)"])
            monitor.withLock { state in
                checkpoint.isCommitting = false
                state.fail(checkpoint, error)
            }
            return nil
        }
        monitor.withLock { $0.statistics.metadataWriteCount += 1 }
        return Sealed(
            checkpoint: checkpoint, headerDigest: header.digest,
            storedByteCount: record.header.storedByteCount)
    }

    /// fdatasync, once. Its failure is final for everything written before it.
    private func flush(_ name: String) throws(CheckpointError) {
        let began = SystemClock.monotonicTime
        do throws(StorageError) {
            try storage.flush()
        } catch {
            var public_ = CheckpointError(error)
            public_.message = "\(name): " + public_.message
            throw public_
        }
        let elapsed = SystemClock.monotonicTime - began
        monitor.withLock { state in
            state.statistics.flushCount += 1
            state.statistics.flushNanoseconds += elapsed
        }
    }

    /// F1 failed. The kernel reports a lost write once and then forgets it, so whatever was
    /// written before is lost for good: not only this batch, but also the chunks that younger
    /// checkpoints have already written. Their slots are not used again by this writer.
    private func failAfterFlush(_ sealed: [Sealed], _ error: CheckpointError) {
        options.logger.error("a flush failed", metadata: ["error": "\(error)"])
        monitor.withLock { state in
            for item in sealed { item.checkpoint.isCommitting = false }
            for checkpoint in state.inFlight where checkpoint.hasWritten {
                state.fail(checkpoint, error, isSlotDoubtful: true)
            }
        }
    }

    // MARK: F2

    /// Decides what the next superblock says: the newest of the batch, unless something newer is
    /// durable already, and as many older ones as the file retains.
    private func plan(_ sealed: [Sealed], _ state: EngineState) -> Superblock? {
        let current = state.superblock.anchor
        let newer = sealed.filter { $0.checkpoint.sequence > current?.sequence ?? .none }
        guard let newest = newer.last else { return nil }
        var older = newer.dropLast().map {
            RetainedSlot(slot: $0.checkpoint.slot, sequence: $0.checkpoint.sequence)
        }
        if let current {
            older.append(RetainedSlot(slot: current.slot, sequence: current.sequence))
        }
        older += state.superblock.retained
        older.sort { $0.sequence > $1.sequence }
        var next = nextSuperblock(state)
        next.anchor = Anchor(
            slot: newest.checkpoint.slot, sequence: newest.checkpoint.sequence,
            step: newest.checkpoint.step, headerDigest: newest.headerDigest)
        next.retained = Array(older.prefix(geometry.retainCount - 1))
        return next
    }

    /// The successor of the current superblock, naming the same checkpoints.
    func nextSuperblock(_ state: EngineState) -> Superblock {
        var next = state.superblock
        next.generation = Generation(rawValue: next.generation.rawValue + 1)
        next.parentDigest = state.superblockDigest
        next.isCleanClose = false
        next.sequenceLimit = state.nextSequence + Limits.sequenceReserve
        next.commitTime = SystemClock.wallTime
        next.writerBootID = ThisMachine.bootID
        next.writerPID = ThisProcess.id
        next.storageKind = storage.kind
        return next
    }

    private func publish(_ sealed: [Sealed]) {
        guard let next = monitor.withLock({ plan(sealed, $0) }) else {
            // Late: a newer checkpoint is durable already. Never published, so that the anchor
            // cannot go back.
            return monitor.withLock { settle(sealed, &$0) }
        }
        do throws(CheckpointError) {
            let digest = try writeSuperblock(next)
            monitor.withLock { state in
                state.superblock = next
                state.superblockDigest = digest
                // A crash here leaves what the new superblock anchors: COMMIT.md state C4.
                state.slots.releaseHeld()
                settle(sealed, &state)
            }
        } catch {
            failStop(sealed, error)
        }
    }

    /// Both copies, one flush, and a read-back: F2.
    ///
    /// A crash before the flush ends leaves zero, one or two whole copies: COMMIT.md state C3.
    func writeSuperblock(_ superblock: Superblock) throws(CheckpointError) -> Digest {
        let encoded = superblock.encoded()
        let offsets = geometry.superblockOffsets(parity: superblock.generation.parity)
        try withCheckpointErrors { () throws(StorageError) in
            for offset in offsets { try storage.writeBlocks(encoded.bytes, at: offset) }
        }
        try flush("F2")
        for offset in offsets { try readBack(encoded.bytes, at: offset) }
        monitor.withLock { $0.statistics.metadataWriteCount += 2 }
        return encoded.digest
    }

    private func readBack(_ expected: [UInt8], at offset: UInt64) throws(CheckpointError) {
        try withCheckpointErrors { () throws(StorageError) in
            let found = try storage.readBlocks(at: offset, count: expected.count)
            guard found == expected else {
                throw StorageError(
                    operation: "read-back of the superblock", path: storage.path,
                    byteOffset: offset, byteCount: expected.count, osErrorNumber: 5,
                    advice: "the medium returned other bytes than were written; replace it")
            }
        }
    }

    /// The superblock is durable: reuse what it no longer names, and end the tickets.
    private func settle(_ sealed: [Sealed], _ state: inout EngineState) {
        let anchor = state.superblock.anchor
        var kept: [SlotIndex: SequenceNumber] = [:]
        if let anchor { kept[anchor.slot] = anchor.sequence }
        for entry in state.superblock.retained { kept[entry.slot] = entry.sequence }
        for slot in state.slots.keptSlots where kept[slot] == nil { state.slots.release(slot) }
        for item in sealed {
            let checkpoint = item.checkpoint
            checkpoint.isCommitting = false
            state.statistics.payloadByteCount += checkpoint.payloadByteCount
            state.statistics.storedByteCount += item.storedByteCount
            if kept[checkpoint.slot] == checkpoint.sequence {
                state.slots.keep(checkpoint.slot, sequence: checkpoint.sequence)
                state.statistics.durableCount += 1
                state.end(checkpoint, .durable)
                record(item, &state)
            } else {
                state.slots.release(checkpoint.slot)
                state.statistics.supersededCount += 1
                state.end(checkpoint, .superseded(by: anchor?.sequence ?? .none))
            }
        }
        state.statistics.newestDurableStep = anchor?.step
        state.statistics.newestDurableSequence = anchor?.sequence ?? .none
    }

    private func record(_ item: Sealed, _ state: inout EngineState) {
        let ticket = item.checkpoint.ticket
        let line = WriterStatistics.TimeLine(
            step: ticket.step, sequence: ticket.sequence,
            payloadByteCount: item.checkpoint.payloadByteCount,
            storedByteCount: item.storedByteCount, stagedNanoseconds: ticket.stagedNanoseconds,
            durableNanoseconds: ticket.durableNanoseconds)
        state.statistics.add(line)
        commitObserver.observe(line)
    }

    /// A superblock could not be committed. What is on the medium is unknown, so nothing is
    /// written any more: reopening the file finds the truth.
    private func failStop(_ sealed: [Sealed], _ cause: CheckpointError) {
        var error = cause
        error.code = .failStop
        error.message +=
            "; this writer accepts no more checkpoints, because it cannot know which superblock "
            + "is on the medium: reopen the file to go on from what is"
        options.logger.critical("fail-stop", metadata: ["error": "\(error)"])
        monitor.withLock { state in
            for item in sealed { item.checkpoint.isCommitting = false }
            state.stopSaving(error)
        }
    }
}
