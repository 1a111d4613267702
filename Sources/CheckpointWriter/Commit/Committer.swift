internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage
internal import Logging

/// The two barriers. One thread, so that superblock writes are serialised.
///
/// The state names are those of spec/COMMIT.md.
extension Engine {
    func runCommitter() {
        while let work = nextWork() {
            switch work {
            case .batch(let batch): commit(batch)
            case .release: publish([])
            case .attempt(let request): begin(request)
            }
            monitor.wakeAll()
        }
    }

    private enum CommitWork {
        /// All checkpoints whose chunks are written: one F1 serves them all.
        case batch([InFlightCheckpoint])
        /// A save waits for a slot that only the superblock still names.
        case release
        case attempt(AttemptRequest)
    }

    private func nextWork() -> CommitWork? {
        monitor.waitFor { state -> CommitWork?? in
            if state.isStopped { return .some(nil) }
            if let batch = state.takeBatch() { return .batch(batch) }
            if let request = state.group?.request { return .attempt(request) }
            return state.needsRelease ? .release : nil
        }
    }

    private func commit(_ batch: [InFlightCheckpoint]) {
        // A crash here leaves the slots "writing" or with a torn record: COMMIT.md state C1.
        let sealed = batch.compactMap { seal($0) }
        guard !sealed.isEmpty else { return }
        do throws(CheckpointError) {
            try flush("F1")
        } catch {
            options.logger.error("a flush failed", metadata: ["error": "\(error)"])
            return monitor.withLock { $0.failFlush(sealed, error) }
        }
        // A crash here leaves complete slots that no superblock names: COMMIT.md state C2.
        publish(sealed)
    }

    /// Writes a slot's header and chunk table, which lie side by side, in one call.
    private func seal(_ checkpoint: InFlightCheckpoint) -> SealedCheckpoint? {
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
            monitor.withLock { $0.failSeal(checkpoint, error) }
            return nil
        }
        monitor.withLock { $0.statistics.metadataWriteCount += 1 }
        return SealedCheckpoint(
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

    // MARK: F2

    /// Decides what the next superblock names: the newest of the batch, unless something newer is
    /// durable already, and as many older ones as the file retains.
    private func plan(_ sealed: [SealedCheckpoint], _ state: EngineState) -> Superblock? {
        if let group = state.group {
            return nextSuperblock(state, naming: group.kept(adding: sealed))
        }
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
        next.anchor = Anchor(newest)
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
        if let group = state.group, group.attempt != 0 {
            next.attempt = group.attempt
            next.watermark = group.watermark
        }
        return next
    }

    private func nextSuperblock(
        _ state: EngineState, naming kept: [GroupLedger.Entry]
    ) -> Superblock {
        var next = nextSuperblock(state)
        next.anchor = kept.first?.anchor
        next.retained = kept.dropFirst().map {
            RetainedSlot(slot: $0.anchor.slot, sequence: $0.anchor.sequence)
        }
        return next
    }

    private func publish(_ sealed: [SealedCheckpoint]) {
        guard let next = monitor.withLock({ plan(sealed, $0) }) else {
            // Late: a newer checkpoint is durable already. Never published, so that the anchor
            // cannot go back.
            return monitor.withLock { settle(sealed, &$0) }
        }
        do throws(CheckpointError) {
            let digest = try writeSuperblock(next)
            monitor.withLock { state in
                // A crash here leaves what the new superblock anchors: COMMIT.md state C4.
                state.publish(next, digest: digest, sealed)
                settle(sealed, &state)
            }
        } catch {
            failStop(sealed, error)
        }
    }

    /// Both copies, one flush, and a read-back: F2.
    ///
    /// A crash before the flush ends leaves zero, one or two intact copies: COMMIT.md state C3.
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

    // MARK: Attempts

    /// The first superblock of an attempt: the base as anchor, and the watermark.
    ///
    /// A crash before F2 leaves the attempt before: GROUP.md, "Restart", step 4.
    private func begin(_ request: AttemptRequest) {
        let attempt = request.attempt
        do throws(CheckpointError) {
            let base = attempt.baseSequence == .none ? nil : try findBase(attempt)
            let (kept, next) = monitor.withLock { state in
                let kept = state.group?.kept(from: base, attempt) ?? []
                var next = nextSuperblock(state, naming: kept)
                next.attempt = attempt.number
                next.watermark = attempt.base
                return (kept, next)
            }
            do throws(CheckpointError) {
                let digest = try writeSuperblock(next)
                monitor.withLock { $0.finish(request, naming: kept, next, digest: digest) }
            } catch {
                failStop([], error)
                throw error
            }
        } catch {
            monitor.withLock { $0.failAttempt(error) }
        }
    }

    /// One that the superblock does not name is verified in full before it does.
    private func findBase(
        _ attempt: GroupAttempt
    ) throws(CheckpointError) -> GroupLedger.Entry {
        let named = monitor.withLock { $0.group?.named ?? [] }
            .first { $0.anchor.sequence == attempt.baseSequence }
        if let named, named.name == attempt.base { return named }
        let decision = try SlotSelection.decide(MetadataImage.read(from: storage))
        let candidate = decision.candidates.first {
            $0.sequence == attempt.baseSequence && $0.header.groupName == attempt.base
        }
        guard let candidate, monitor.withLock({ $0.slots.isUnused(candidate.slot) }) else {
            let base = attempt.base.map { "\($0)" } ?? "a checkpoint without a name"
            throw CheckpointError(
                .noCheckpoint,
                "\(storage.path): it does not hold \(base) with sequence "
                    + "\(attempt.baseSequence); agree with the other ranks again")
        }
        try SlotVerifier.verify(candidate, in: storage)
        return GroupLedger.Entry(candidate, .complete)
    }

    private func settle(_ sealed: [SealedCheckpoint], _ state: inout EngineState) {
        state.settle(sealed) { commitObserver.observe($0) }
    }

    /// A superblock could not be committed. What is on the medium is unknown, so nothing is
    /// written any more: reopening the file finds the truth.
    private func failStop(_ sealed: [SealedCheckpoint], _ cause: CheckpointError) {
        var error = cause
        error.code = .failStop
        error.message +=
            "; this writer accepts no more checkpoints, because it cannot know which superblock "
            + "is on the medium: reopen the file to continue from what is"
        options.logger.critical("fail-stop", metadata: ["error": "\(error)"])
        monitor.withLock { $0.stopSaving(sealed, error) }
    }
}
