public import CheckpointFormat
internal import CheckpointRecovery
public import CheckpointStorage
internal import Logging
internal import Synchronization

/// Writes checkpoints into one file, several in flight at once.
///
/// Every save ends in exactly one outcome, which its ticket reports. A checkpoint is *staged* once
/// it was copied out of the caller's memory. It is *durable* once it was flushed and anchored by a
/// flushed superblock. Whatever is durable stays recoverable until as many newer ones are durable
/// as the file retains. Methods may be called from any thread.
public final class CheckpointWriter: Sendable {
    private let engine: Engine
    /// The checkpoint that opening continues from; nil in a file without checkpoints.
    public let recovered: RecoveredCheckpoint?
    private let isClosed = Mutex(false)
    private let ownerProcessID = ThisProcess.id

    /// Opens an existing file for writing.
    ///
    /// A complete newer checkpoint that a crash left unanchored is verified and anchored first.
    /// - Throws: `locked` when another writer has the file; `notFound`, `readOnly`,
    ///   `notACheckpointFile`, `unsupported`, `fingerprintMismatch`, `rankMismatch`,
    ///   `invalidArgument`, `outOfMemory`, `inputOutput`.
    public convenience init(path: String, options: WriterOptions = WriterOptions())
        throws(CheckpointError)
    {
        let opened = try withCheckpointErrors { () throws(StorageError) in
            try options.backend.open(
                path: path, allowsNetwork: options.allowsNetwork,
                isDeepFlushing: options.isDeepFlushing)
        }
        if let reason = opened.fallbackReason {
            options.logger.warning(
                "took a slower back end", metadata: ["path": "\(path)", "reason": "\(reason)"])
        }
        try self.init(storage: opened.storage, options: options)
        engine.monitor.withLock { $0.statistics.storageFallbackReason = opened.fallbackReason }
    }

    /// The same over any medium.
    public init(storage: any Storage, options: WriterOptions = WriterOptions())
        throws(CheckpointError)
    {
        guard (1...64).contains(options.snapshotWorkerCount ?? 1),
            (1...64).contains(options.writerWorkerCount), (1...64).contains(options.writeQueueDepth)
        else {
            throw CheckpointError(
                .invalidArgument, "worker counts and the write queue's depth are 1 to 64")
        }
        do throws(CheckpointError) {
            (engine, recovered) = try Self.openEngine(storage, options)
        } catch {
            // The storage may live on: only a writer that is open may hold the lock.
            if error.code != .locked { try? storage.unlock(.writer) }
            throw error.about(storage.path)
        }
    }

    private static func openEngine(
        _ storage: any Storage, _ options: WriterOptions
    ) throws(CheckpointError) -> (Engine, RecoveredCheckpoint?) {
        let start = try WriterOpening(storage: storage, options: options).recover()
        let pool = try makePool(start.identity.geometry, storage, options)
        var state = EngineState(
            storage: storage, geometry: start.identity.geometry,
            slots: SlotTable(
                slots: start.identity.geometry.slots, kept: start.kept, held: start.held,
                unreadable: start.unreadable),
            superblock: start.superblock, nextSequence: start.nextSequence,
            freeBuffers: pool.buffers(of: start.identity.geometry.chunkByteCount),
            group: start.ledger)
        state.statistics.storageKind = storage.kind
        state.statistics.storageDetail = storage.detail
        state.statistics.poolByteCount = UInt64(pool.byteCount)
        let engine = Engine(
            storage: storage, identity: start.identity, options: options, pool: pool, state: state)
        engine.monitor.withLock { state in
            state.statistics.snapshotWorkerCount = engine.snapshotWorkerCount
            state.statistics.writerWorkerCount = options.writerWorkerCount
        }
        // Before any slot is written: from here on the medium names this writer, and an adopted
        // checkpoint is anchored.
        let digest = try engine.writeSuperblock(start.superblock)
        engine.monitor.withLock { $0.open(superblockDigest: digest) }
        try engine.start()
        return (engine, start.recovered)
    }

    deinit {
        if isInOwnProcess { engine.stop() }
    }

    private static func makePool(
        _ geometry: Geometry, _ storage: any Storage, _ options: WriterOptions
    ) throws(CheckpointError) -> StagingMemory {
        let chunk = geometry.chunkByteCount
        // For a medium that the processor writes, only what is on a device is staged.
        let isNeeded = Engine.directMedium(storage, options) == nil
        let wanted = isNeeded ? options.poolByteCount ?? min(geometry.slotByteCount, 2 << 30) : 0
        let count = max(
            Int(clamping: wanted / UInt64(chunk)) + (wanted % UInt64(chunk) == 0 ? 0 : 1),
            isNeeded ? options.writerWorkerCount : Engine.directBufferCount)
        let (byteCount, overflow) = count.multipliedReportingOverflow(by: chunk)
        guard !overflow, let memory = StagingMemory(byteCount: byteCount) else {
            throw CheckpointError(
                .outOfMemory,
                "there is no memory for a staging pool: it would take "
                    + "\(overflow ? wanted : UInt64(byteCount)) bytes, but "
                    + "\(StagingMemory.availableByteCount) are available; ask for a smaller pool, "
                    + "of at least one chunk of \(chunk) bytes for each of "
                    + "\(options.writerWorkerCount) writer workers")
        }
        return memory
    }

    /// The staging pool: one region, fixed while the writer lives. Its bytes are the writer's own;
    /// this is for registering the memory with a device.
    // Safe: the engine keeps the pool for as long.
    @unsafe public var poolMemory: UnsafeMutableRawBufferPointer { unsafe engine.pool.region }

    public var identity: IdentityBlock { engine.identity }

    /// Begins a checkpoint.
    ///
    /// Returns at once, unless every slot is in flight and the policy is to wait. The payload's
    /// memory is read until the ticket is staged.
    /// - Parameters:
    ///   - step: at least the last step saved by this writer; see `rewind`.
    ///   - userMetadata: at most 2048 bytes of UTF-8, kept in the slot header.
    ///   - isUrgent: copied and written before everything else in flight, which then most likely
    ///     ends as superseded. While it waits, it gets the first slot that becomes free, and after
    ///     `urgentPatienceNanoseconds` one that only readers have: their reads then end as `busy`.
    ///   - needsApproval: written, but not committed before `approve`. For callers that can tell
    ///     only once the ticket is staged whether their memory changed while it was copied.
    /// - Throws: `tooLarge`, `stepBackwards`, `busy`, `timeout`, `slotsExhausted`, `failStop`,
    ///   `closed`, `forked`, `invalidArgument`. Nothing was changed then.
    public func save(
        step: UInt64, payload: CheckpointPayload, userMetadata: String = "", isUrgent: Bool = false,
        needsApproval: Bool = false
    ) throws(CheckpointError) -> CheckpointTicket {
        let pending = try prepare(
            step: step, payload: payload, userMetadata: userMetadata, needsApproval: needsApproval)
        var deadline: UInt64 = 0
        if case .wait(let timeout?) = engine.options.busyPolicy {
            deadline = PendingSave.deadline(after: timeout)
        }
        while true {
            if let ticket = try pending.begin(isUrgent: isUrgent) { return ticket }
            if let skipped = try pending.answerOfPolicy() { return skipped }
            try pending.wait(isUrgent: isUrgent, deadline: deadline)
        }
    }

    /// The same in parts, for a caller that must not wait for a slot without a break.
    ///
    /// - Throws: `tooLarge`, `stepBackwards`, `failStop`, `closed`, `forked`, `invalidArgument`.
    public func prepare(
        step: UInt64, payload: CheckpointPayload, userMetadata: String = "",
        needsApproval: Bool = false
    ) throws(CheckpointError) -> PendingSave {
        try checkArguments(step: step, payload: payload, userMetadata: userMetadata)
        return PendingSave(
            self, engine,
            SaveRequest(
                step: step, payload: payload, userMetadata: userMetadata,
                needsApproval: needsApproval, ready: try engine.ready(payload),
                devices: engine.devices))
    }

    /// In a forked child the threads do not exist, and locks that they hold are never released.
    var isInOwnProcess: Bool { ownerProcessID == ThisProcess.id }

    func checkProcess() throws(CheckpointError) {
        guard isInOwnProcess else {
            throw CheckpointError(
                .forked,
                "\(engine.storage.path): this writer belongs to process \(ownerProcessID), which "
                    + "forked; open the file after the fork, in the process that saves")
        }
    }

    private func checkArguments(
        step: UInt64, payload: CheckpointPayload, userMetadata: String
    ) throws(CheckpointError) {
        let path = engine.storage.path
        try checkProcess()
        // Before the size: a caller may make room, with another writer, and try again.
        try engine.monitor.withLock { state throws(CheckpointError) in
            try state.checkOpen()
            try state.checkOrder(step)
        }
        let capacity = engine.geometry.slotByteCount
        guard payload.byteCount <= capacity else {
            throw CheckpointError(
                .tooLarge,
                "\(path): the state takes \(payload.byteCount) bytes, but a slot holds "
                    + "\(capacity); what is saved stays as it is: close the file, make room with "
                    + "pccheck resize \(path) --capacity \(CheckpointFile.capacity(for: payload)), "
                    + "and resume")
        }
        guard userMetadata.utf8.count <= Limits.userMetadataByteCount else {
            throw CheckpointError(
                .invalidArgument,
                "user metadata has \(userMetadata.utf8.count) bytes, "
                    + "expected at most \(Limits.userMetadataByteCount)")
        }
        guard step <= Limits.stepMaximum else {
            throw CheckpointError(
                .invalidArgument, "step is \(step), expected at most \(Limits.stepMaximum)")
        }
    }

    /// Says that the memory of a checkpoint did not change while it was copied: commit it.
    ///
    /// One that has ended, or that needed no approval, is left alone.
    public func approve(_ ticket: CheckpointTicket) {
        engine.monitor.withLock { $0.approve(ticket) }
        engine.monitor.wakeAll()
    }

    /// Ends a checkpoint that was not approved as failed, with the code `rejected`: its slot is
    /// released, and what was durable stays so.
    public func reject(_ ticket: CheckpointTicket, because reason: String) {
        engine.monitor.withLock { $0.reject(ticket, because: reason) }
        engine.monitor.wakeAll()
    }

    /// Says that training goes back to `step` on purpose: saves may use any step from there on.
    /// They still get higher sequences, and so they are newer.
    public func rewind(to step: UInt64) throws(CheckpointError) {
        try engine.monitor.withLock { state throws(CheckpointError) in try state.rewind(to: step) }
    }

    /// Begins an attempt of a group, durably, with what all ranks agreed on. Durable checkpoints of
    /// this file that are newer than its base are void.
    ///
    /// - Throws: `noCheckpoint` when this file does not hold the base, `corrupt` when it is
    ///   damaged; `invalidArgument`, `failStop`, `closed`, `forked`, `inputOutput`.
    public func beginAttempt(_ attempt: GroupAttempt) throws(CheckpointError) {
        try checkProcess()
        let request = try engine.monitor.withLock { state throws(CheckpointError) in
            try state.request(attempt)
        }
        engine.monitor.wakeAll()
        let result = engine.monitor.waitFor { _ in request.result }
        try result.get()
    }

    /// Records what all ranks know of a durable checkpoint of a group: that it is durable on all of
    /// them, or that it is void. One that was decided on before is left alone.
    public func decide(_ sequence: SequenceNumber, isComplete: Bool) {
        engine.monitor.withLock { $0.decide(sequence, isComplete: isComplete) }
        engine.monitor.wakeAll()
    }

    public var statistics: WriterStatistics {
        engine.monitor.withLock { $0.currentStatistics(now: SystemClock.monotonicTime) }
    }

    /// Waits until nothing is in flight, marks the file as cleanly closed, and unlocks it.
    ///
    /// Afterwards every save throws `closed`. Closing twice is allowed.
    /// - Throws: `failStop`, or why the last superblock could not be written. The writer is
    ///   closed all the same, and what was durable stays so.
    public func close() throws(CheckpointError) {
        let wasClosed = isClosed.withLock { isClosed in
            defer { isClosed = true }
            return isClosed
        }
        if wasClosed { return }
        if !isInOwnProcess { return }
        engine.monitor.withLock { $0.close() }
        engine.monitor.wakeAll()
        engine.monitor.wait { $0.inFlight.isEmpty }
        engine.stop()
        // Nothing but this thread uses the storage now.
        defer { unlockAll() }
        let last = try engine.monitor.withLock { state throws(CheckpointError) in
            if let error = state.failStop { throw error }
            var next = engine.nextSuperblock(state)
            next.isCleanClose = true
            next.sequenceLimit = state.nextSequence
            return next
        }
        _ = try engine.writeSuperblock(last)
    }

    /// Stops at once, as a crash would: what is in flight fails, and nothing more is written.
    public func abandon() {
        let wasClosed = isClosed.withLock { isClosed in
            defer { isClosed = true }
            return isClosed
        }
        if wasClosed || !isInOwnProcess { return }
        engine.stop()
        unlockAll()
    }

    /// The storage may outlive the writer, and readers may then pin quarantined slots too.
    private func unlockAll() {
        for slot in engine.geometry.slots { try? engine.storage.unlock(.slot(slot)) }
        try? engine.storage.unlock(.writer)
    }
}
