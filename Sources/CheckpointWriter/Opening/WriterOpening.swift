internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage
internal import Logging

/// Opening for writing: lock, flush, recover, anchor.
struct WriterOpening {
    let storage: any Storage
    let options: WriterOptions
    /// Follows each checkpoint that is verified.
    var progress: SlotVerifier.Progress?

    /// What the engine starts from.
    struct Result {
        let identity: IdentityBlock
        let superblock: Superblock
        let kept: [SlotIndex: SequenceNumber]
        /// Not to be overwritten before the first save is durable.
        let held: [SlotIndex: SequenceNumber]
        /// The checkpoint that it continues from; nil in a file without one.
        let recovered: RecoveredCheckpoint?
        /// They hold newer checkpoints that could not be read: not to be overwritten.
        let unreadable: [SlotIndex]
        let nextSequence: UInt64
        /// nil in a file that belongs to no group.
        let ledger: GroupLedger?
    }

    /// The truth of the medium, and the first superblock of this writer, which is not yet written.
    ///
    /// - Throws: `locked`, `fingerprintMismatch`, `rankMismatch`, `unsupported`, `corrupt`, and
    ///   what reading throws. Nothing was changed then.
    func recover() throws(CheckpointError) -> Result {
        try lock()
        // A process that replaces a file holds its lock until the new one has the name.
        guard storage.isAtItsPath else {
            throw CheckpointError(
                .locked,
                "\(storage.path): another file took its place while it was opened, by a resize or "
                    + "a replacement; open it again")
        }
        try withCheckpointErrors { () throws(StorageError) in
            // A superblock that is only in the page cache must not free slots: COMMIT.md, "Open".
            try storage.flush()
        }
        // What an earlier writer's failed flush left in the page cache looks intact but is not on
        // the medium, and this flush does not bring it there: it must not be adopted.
        storage.discardCache()
        let image = try MetadataImage.read(from: storage)
        let decision = try SlotSelection.decide(image)
        if let error = decision.lostEndError { throw error.about(storage.path) }
        try check(decision.identity)
        try checkNumbers(decision)
        try checkReadable(image, decision.identity.geometry)
        guard !decision.isFork else {
            throw CheckpointError(
                .corrupt,
                "\(storage.path): two superblocks of generation \(decision.highestGeneration) "
                    + "differ, so two writers have used this file at once; nothing is written. "
                    + "Extract the checkpoint you want with pcextract and start a new file")
        }
        let choice = try choose(decision, image)
        let superblock = firstSuperblock(decision, choice.candidate)
        var held: [SlotIndex: SequenceNumber] = [:]
        if let candidate = choice.held { held[candidate.slot] = candidate.sequence }
        return Result(
            identity: decision.identity, superblock: superblock, kept: superblock.keptSlots,
            held: held,
            recovered: choice.candidate.map {
                RecoveredCheckpoint(candidate: $0, isVerified: choice.isVerified)
            },
            unreadable: choice.unreadable, nextSequence: nextSequence(decision),
            ledger: decision.identity.isOfGroup
                ? GroupLedger(
                    superblock, decision.candidates,
                    retainCount: decision.identity.geometry.retainCount) : nil)
    }

    /// The checkpoint to continue from.
    private struct Choice {
        var candidate: Candidate?
        /// Every chunk of it was read.
        var isVerified = true
        /// What a load falls back to should the chosen one, unread, be rotten.
        var held: Candidate?
        var unreadable: [SlotIndex] = []
    }

    /// Above everything seen, and above everything that was given and left no trace.
    private func nextSequence(_ decision: RecoveryDecision) -> UInt64 {
        let (next, overflow) = decision.highestSequence.rawValue.addingReportingOverflow(1)
        return max(overflow ? .max : next, decision.superblock?.sequenceLimit ?? 0)
    }

    private func lock() throws(CheckpointError) {
        let deadline = SystemClock.monotonicTime + Self.deadWriterPatience
        while true {
            do throws(StorageError) {
                if try storage.tryLock(.writer, exclusive: true) { return }
            } catch {
                throw CheckpointError(error)
            }
            guard isHolderDead(), SystemClock.monotonicTime < deadline else { break }
            SystemClock.sleep(nanoseconds: 5_000_000)
        }
        let advice =
            "a file has one writer: give each rank its own path, or close the other one"
        throw CheckpointError(
            .locked,
            "\(storage.path): another writer has it open\(lockHolder()); \(advice)")
    }

    /// The kernel takes an io_uring apart after its process is gone, and the ring holds the file:
    /// a restart that comes at once must not be refused for the 0.1 s that this takes.
    private static let deadWriterPatience: UInt64 = 2_000_000_000

    /// Whether the process that the newest superblock names is of this boot, and gone.
    private func isHolderDead() -> Bool {
        newestWriter().map { !ThisMachine.hasProcess($0) } ?? false
    }

    /// The process of this boot that the newest superblock names, when that can be read.
    private func newestWriter() -> UInt32? {
        guard let image = try? MetadataImage.read(from: storage),
            let superblock = (try? SlotSelection.decide(image))?.superblock,
            superblock.writerBootID == ThisMachine.bootID
        else { return nil }
        return superblock.writerPID
    }

    /// Who holds the lock now. The medium names who opened the file last, which is not the same
    /// where that process is gone, or another is just opening it.
    private func lockHolder() -> String {
        let holders = storage.writerLockHolders
        if !holders.isEmpty {
            let names = holders.map {
                $0.processID == ThisProcess.id
                    ? "this process, \($0.processID)" : "process \($0.processID), \($0.command)"
            }
            return " (\(names.joined(separator: "; ")))"
        }
        guard let writer = newestWriter() else { return " (a process that \(Self.unseen))" }
        if ThisMachine.hasProcess(writer) { return " (process \(writer))" }
        return " (process \(writer) opened it last and is gone; a process that \(Self.unseen))"
    }

    private static let unseen =
        "this user cannot see holds the lock: lsof or fuser -v, run as root, names it"

    private func check(_ identity: IdentityBlock) throws(CheckpointError) {
        let unknown = identity.features.unknownReadOnlyCompatible
        guard unknown == 0 else {
            throw CheckpointError(
                .unsupported,
                "\(storage.path): features 0x\(String(unknown, radix: 16)) allow this version "
                    + "to read the file but not to write it; use a newer PCcheck")
        }
        guard identity.rank == options.rank, identity.worldSize == options.worldSize else {
            throw CheckpointError(
                .rankMismatch,
                "\(storage.path): it belongs to rank \(identity.rank) of \(identity.worldSize), "
                    + "but this is rank \(options.rank) of \(options.worldSize); "
                    + "give each rank its own path")
        }
        guard options.acceptsGroup || !identity.isOfGroup else {
            throw CheckpointError(
                .invalidArgument,
                "\(storage.path): it belongs to run \(identity.runUUID), whose ranks agree on "
                    + "their checkpoints; open its folder with pccheck.distributed")
        }
        if let wanted = options.fingerprint, wanted != identity.fingerprint {
            throw CheckpointError(
                .fingerprintMismatch,
                "\(storage.path): its fingerprint is \"\(identity.fingerprint)\", but this run's "
                    + "is \"\(wanted)\"; use another file for another model or topology")
        }
    }

    /// Numbers that only a hostile or rotten file reaches must not overflow here.
    private func checkNumbers(_ decision: RecoveryDecision) throws(CheckpointError) {
        let limit = UInt64.max / 2
        let sequence = nextSequence(decision)
        let generation = decision.highestGeneration.rawValue
        guard sequence < limit, generation < limit else {
            throw CheckpointError(
                .corrupt,
                "\(storage.path): the highest sequence is \(sequence) and the highest generation "
                    + "\(generation), expected less than \(limit); extract the checkpoint you want "
                    + "with pcextract and start a new file")
        }
    }

    /// A slot whose metadata cannot be read may hold the newest checkpoint: taking it for free
    /// would lose it to an error that may be gone tomorrow.
    private func checkReadable(
        _ image: MetadataImage, _ geometry: Geometry
    ) throws(CheckpointError) {
        for slot in geometry.slots {
            let start = geometry.headerOffset(slot)
            let area = start..<start + geometry.metadataStride
            guard
                let failure = image.readFailures.first(where: {
                    area.contains($0.byteOffset ?? .max)
                })
            else { continue }
            var error = CheckpointError(failure, slot: slot)
            error.message +=
                "; slot \(slot) may hold the newest checkpoint, so nothing is written: open the "
                + "file again, or extract what is readable with pcextract and start a new file"
            throw error
        }
    }

    /// The checkpoint to continue from: the newest of which every chunk verifies.
    ///
    /// What no superblock names is verified because nothing else says that its F1 finished. The
    /// anchored one is verified because a rotten one is not worth keeping: continuing from it would
    /// free the slot of the older checkpoint that a load falls back to, the last intact one. An
    /// opener that trusts it holds that slot instead.
    private func choose(
        _ decision: RecoveryDecision, _ image: MetadataImage
    ) throws(CheckpointError) -> Choice {
        var damage: CheckpointError?
        var unreadable: [SlotIndex] = []
        let isTrusting = !hasLostPower(decision) && options.trustsAnchor
        for candidate in decision.candidates {
            if candidate.isAnchored, isTrusting,
                let choice = trust(candidate, decision, unreadable)
            {
                return choice
            }
            do throws(CheckpointError) {
                try SlotVerifier.verify(candidate, in: storage, progress: progress)
            } catch {
                // Another process, with more memory, can tell. The code of an error that `progress`
                // threw is negative: none of the library's is.
                if error.code == .outOfMemory || error.code.rawValue < 0 { throw error }
                // With a superblock unread as well, this may be what it anchors.
                if error.code != .corrupt, !image.readFailures.isEmpty { throw error }
                // What cannot be read now may be read tomorrow.
                if error.code != .corrupt { unreadable.append(candidate.slot) }
                options.logger.warning(
                    "rejected a checkpoint that is damaged or cannot be read",
                    metadata: ["step": "\(candidate.step)", "error": "\(error)"])
                if candidate.kind != .unanchored || decision.superblock == nil {
                    damage = damage ?? error
                }
                continue
            }
            if !candidate.isAnchored, !decision.identity.isOfGroup {
                options.logger.notice(
                    "anchored another checkpoint than the last superblock",
                    metadata: ["step": "\(candidate.step)", "slot": "\(candidate.slot)"])
            }
            return Choice(candidate: candidate, unreadable: unreadable)
        }
        if damage == nil, let anchor = decision.superblock?.anchor {
            damage = CheckpointError(
                .corrupt,
                "\(storage.path): slot \(anchor.slot) should hold step \(anchor.step) (sequence "
                    + "\(anchor.sequence)), but its header or chunk table is damaged",
                slot: anchor.slot, byteOffset: decision.identity.geometry.headerOffset(anchor.slot))
        }
        if damage == nil, decision.superblock == nil { damage = lossOfSuperblocks(decision) }
        guard var damage else { return Choice(unreadable: unreadable) }
        damage.message +=
            "; no checkpoint is intact, so nothing is written: look with pcfsck --verify full and "
            + "save what is left with pcextract, then start a new file"
        throw damage
    }

    /// Continues from the anchored checkpoint without reading it, and holds the one that a load
    /// falls back to when it is rotten: a crash before the first save is durable (COMMIT.md states
    /// C0 to C3) must leave that.
    ///
    /// - Returns: nil when holding it would leave no slot to save to.
    private func trust(
        _ anchored: Candidate, _ decision: RecoveryDecision, _ unreadable: [SlotIndex]
    ) -> Choice? {
        var choice = Choice(candidate: anchored, isVerified: false, unreadable: unreadable)
        let kept = firstSuperblock(decision, anchored).keptSlots
        let older = decision.candidates.filter { $0.sequence < anchored.sequence }
        // One that the superblock keeps is not overwritten before it is named no more.
        if !older.contains(where: { kept[$0.slot] != nil }) {
            choice.held = older.first { !unreadable.contains($0.slot) }
        }
        let used = Set(kept.keys).union(unreadable).union(choice.held.map { [$0.slot] } ?? [])
        return decision.identity.geometry.slots.contains { !used.contains($0) } ? choice : nil
    }

    /// Without a superblock nothing says that a slot in use is free: its checkpoint may belong to
    /// this file although the identity block does not.
    private func lossOfSuperblocks(_ decision: RecoveryDecision) -> CheckpointError? {
        decision.slots.first { $0.reason != .empty }.map { report in
            CheckpointError(
                .corrupt,
                "\(storage.path): no superblock is intact, and slot \(report.slot) is not empty "
                    + "but \(report.reason.rawValue)", slot: report.slot,
                byteOffset: report.headerOffset)
        }
    }

    /// Whether the power went under the last writer, and the persistent memory did not save what
    /// it had promised to: then what was flushed may be gone, and even an anchor proves nothing.
    private func hasLostPower(_ decision: RecoveryDecision) -> Bool {
        guard let last = decision.superblock, last.storageKind == .persistentMemory,
            !last.isCleanClose, storage.unsafeShutdownCount > last.unsafeShutdownCount
        else { return false }
        options.logger.warning(
            "power was lost, and the persistent memory did not save its buffers; verifying all",
            metadata: [
                "path": "\(storage.path)",
                "unsafe_shutdowns": "\(storage.unsafeShutdownCount)",
                "recorded": "\(last.unsafeShutdownCount)",
            ])
        return true
    }

    /// Names the chosen checkpoint and this writer, one generation above everything seen.
    ///
    /// That of a group names what the one before named, also what is damaged: the ranks have not
    /// decided yet, and this is how they see that a durable part was lost. Nothing is saved before
    /// an attempt begins, whose superblock names what they chose.
    private func firstSuperblock(
        _ decision: RecoveryDecision, _ chosen: Candidate?
    ) -> Superblock {
        let before = decision.identity.isOfGroup ? decision.superblock : nil
        return Superblock(
            fileUUID: decision.identity.fileUUID,
            generation: Generation(rawValue: decision.highestGeneration.rawValue + 1),
            anchor: before.map(\.anchor) ?? chosen.map { Anchor($0) },
            parentDigest: decision.superblockDigest ?? .zero,
            watermark: decision.superblock?.watermark,
            commitTime: SystemClock.wallTime, writerBootID: ThisMachine.bootID,
            writerPID: ThisProcess.id, storageKind: storage.kind,
            unsafeShutdownCount: storage.unsafeShutdownCount,
            retained: before?.retained ?? olderToRetain(decision, chosen),
            sequenceLimit: nextSequence(decision) + Limits.sequenceReserve,
            attempt: decision.superblock?.attempt ?? 0)
    }

    /// Asks each candidate once: after an error that passes, a second answer may be another one.
    private func olderToRetain(
        _ decision: RecoveryDecision, _ chosen: Candidate?
    ) -> [RetainedSlot] {
        var older: [RetainedSlot] = []
        let identity = decision.identity
        for candidate in decision.candidates {
            // Strictly: a superblock that named two slots with one sequence would be refused.
            let last = older.last?.sequence ?? chosen?.sequence ?? .none
            guard candidate.sequence < last else { continue }
            guard older.count < identity.geometry.retainCount - 1 else { break }
            if isWhole(candidate) {
                older.append(RetainedSlot(slot: candidate.slot, sequence: candidate.sequence))
            }
        }
        return older
    }

    /// Whether a superblock may name the checkpoint as retained: one that was released, or was
    /// never anchored, may be half overwritten without its header telling.
    private func isWhole(_ candidate: Candidate) -> Bool {
        switch candidate.kind {
        case .anchored, .retained: true
        case .unanchored, .older:
            (try? SlotVerifier.verify(candidate, in: storage)) != nil
        }
    }
}

extension Superblock {
    /// The slots that it names, and the sequences that they hold.
    var keptSlots: [SlotIndex: SequenceNumber] {
        var kept: [SlotIndex: SequenceNumber] = [:]
        if let anchor { kept[anchor.slot] = anchor.sequence }
        for entry in retained { kept[entry.slot] = entry.sequence }
        return kept
    }
}
