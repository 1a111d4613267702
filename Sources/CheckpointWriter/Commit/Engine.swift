internal import CheckpointFormat
internal import CheckpointStorage
internal import Logging

/// The threads of a writer and what they share.
///
/// ```
/// save ─► snapshot workers ─► staging pool ─► writer workers ─► committer
/// ```
/// Snapshot workers copy the caller's memory chunk by chunk and digest it on the way; writer
/// workers compress and write, always the oldest checkpoint first (after urgent ones), so that N in
/// flight are a queue that keeps the device busy and not N streams that slow each other; the
/// committer runs the two barriers.
final class Engine: Sendable {
    let storage: any Storage
    let identity: IdentityBlock
    let options: WriterOptions
    let pool: StagingMemory
    let monitor: Monitor<EngineState>
    let commitObserver: CommitObserver
    let urgency: StagingUrgency
    /// Set when chunks go from the caller's memory straight to the medium.
    private let medium: (any ByteAddressableStorage)?
    let snapshotWorkerCount: Int
    private let threads = Monitor([WorkerThread]())

    init(
        storage: any Storage, identity: IdentityBlock, options: WriterOptions,
        pool: StagingMemory, state: sending EngineState
    ) {
        self.storage = storage
        self.identity = identity
        self.options = options
        self.pool = pool
        urgency = state.urgency
        monitor = Monitor(state)
        commitObserver = CommitObserver()
        medium = Self.directMedium(storage, options)
        let processorCount = ThisProcess.processorCount
        snapshotWorkerCount =
            options.snapshotWorkerCount
            ?? max(1, min(4, medium == nil ? processorCount / 4 : processorCount))
    }

    /// The medium, when nothing is to be staged for it: the processor writes it, and no codec does.
    static func directMedium(
        _ storage: any Storage, _ options: WriterOptions
    ) -> (any ByteAddressableStorage)? {
        options.codec == .none ? storage as? any ByteAddressableStorage : nil
    }

    var geometry: Geometry { identity.geometry }

    func start() throws(CheckpointError) {
        do throws(StorageError) {
            for number in 0..<snapshotWorkerCount {
                try launch("pcc-snapshot-\(number)") { $0.runSnapshotWorker() }
            }
            for number in 0..<options.writerWorkerCount {
                try launch("pcc-writer-\(number)") { $0.runWriterWorker() }
            }
            try launch("pcc-commit") { $0.runCommitter() }
        } catch {
            stop()
            throw CheckpointError(error)
        }
    }

    private func launch(
        _ name: String, _ body: @escaping @Sendable (Engine) -> Void
    ) throws(StorageError) {
        let thread = try WorkerThread(name: name) { [self] in body(self) }
        threads.withLock { $0.append(thread) }
    }

    /// Ends every checkpoint in flight as failed and joins the threads. Nothing reads the
    /// callers' memory afterwards.
    func stop() {
        let stopped = CheckpointError(
            .closed, "\(storage.path): the writer was stopped before this checkpoint was durable")
        monitor.withLock { $0.stop(stopped) }
        monitor.wakeAll()
        let joining = threads.withLock { threads in
            defer { threads = [] }
            return threads
        }
        for thread in joining { thread.join() }
    }

    // MARK: Snapshot workers

    private func runSnapshotWorker() {
        let copier = DigestingCopier()
        while let copy = nextCopy() {
            let began = SystemClock.monotonicTime
            do throws(CheckpointError) {
                let done = try perform(copy, with: copier)
                let elapsed = SystemClock.monotonicTime - began
                let isQuiet = monitor.withLock { state in
                    state.statistics.copyNanoseconds += elapsed
                    let inFlightCount = state.inFlight.count
                    state.finishCopy(copy, done)
                    return urgency.isUrgent && state.isCopying
                        && state.inFlight.count == inFlightCount
                }
                // Writers that pause need not be woken for each chunk; the last one does it.
                // A save that waits for a slot must be, when one is free.
                if !isQuiet { monitor.wakeAll() }
            } catch {
                logAbandoned(copy.checkpoint, error)
                monitor.withLock { $0.failCopy(copy, error) }
                monitor.wakeAll()
            }
        }
    }

    /// The device gets whole blocks; what lies behind the payload is zero.
    private func perform(
        _ copy: ChunkCopy, with copier: DigestingCopier
    ) throws(CheckpointError) -> ChunkCopy.Result {
        let range = copy.checkpoint.chunkRange(copy.index)
        let padded = Self.paddedByteCount(range.count)
        if let buffer = copy.buffer {
            // Safe: the buffer lives through the call.
            let leaves = unsafe copy.payload.copy(
                from: range.offset, count: range.count,
                to: CopyTarget(start: buffer.baseAddress, byteCount: buffer.byteCount),
                with: copier)
            buffer.fillWithZeros(range.count..<padded)
            return .staged(StagedChunk(index: copy.index, buffer: buffer, leaves: leaves))
        }
        guard let medium else { preconditionFailure("only such a medium does without a buffer") }
        let offset = geometry.slotDataOffset(copy.checkpoint.slot) + range.offset
        let began = SystemClock.monotonicTime
        let leaves = try withCheckpointErrors(slot: copy.checkpoint.slot) {
            () throws(StorageError) in
            // Safe: the medium's memory is used inside the closure only.
            try unsafe medium.withCopyTarget(at: offset, byteCount: padded) { target in
                let leaves = unsafe copy.payload.copy(
                    from: range.offset, count: range.count, to: target, with: copier)
                let padding = [UInt8](repeating: 0, count: padded - range.count)
                unsafe padding.withUnsafeBytes {
                    unsafe copier.copy($0, to: target, at: range.count)
                }
                _ = copier.takeDigest()
                return leaves
            }
        }
        return .written(
            ChunkWriter.Result(
                entry: ChunkEntry(
                    storedOffset: range.offset, storedByteCount: range.count,
                    rawByteCount: range.count, codec: .none, planeWidth: 1,
                    digest: TreeDigest.combine(leaves, byteCount: UInt64(range.count))),
                leaves: leaves, compressNanoseconds: 0,
                writeNanoseconds: SystemClock.monotonicTime - began))
    }

    private func nextCopy() -> ChunkCopy? {
        monitor.waitFor { state -> ChunkCopy?? in
            if state.isStopped { return .some(nil) }
            return state.takeCopy(isDirect: medium != nil).map { .some($0) }
        }
    }

    // MARK: Writer workers

    /// Where processors are short, copying goes first: callers wait for it, nobody for this.
    private static let writerNice = 10

    private func runWriterWorker() {
        WorkerThread.yieldToOthers(nice: Self.writerNice)
        let worker = ChunkWriter(
            queue: makeWriteQueue(), options: options, chunkByteCount: geometry.chunkByteCount)
        while true {
            // As long as the queue has room, more work comes before waiting for what is in it.
            switch worker.hasRoom ? nextWrite(mayWait: worker.isIdle) : .nothing {
            case .item(let item): begin(item, worker)
            case .nothing: end(worker.waitForOne())
            case .stop:
                while !worker.isIdle { end(worker.waitForOne()) }
                return
            }
        }
    }

    /// A medium that cannot queue writes takes them one by one.
    private func makeWriteQueue() -> any WriteQueue {
        do throws(StorageError) {
            let queue = try storage.makeWriteQueue(depth: options.writeQueueDepth, pool: pool)
            if let detail = queue.detail {
                monitor.withLock { $0.statistics.storageDetail = detail }
            }
            return queue
        } catch {
            options.logger.warning("writes are not queued", metadata: ["error": "\(error)"])
            monitor.withLock { $0.statistics.storageFallbackReason = "\(error)" }
            return BlockingWriteQueue(storage)
        }
    }

    private enum NextWrite {
        case item(WriteItem)
        case nothing
        case stop
    }

    private func nextWrite(mayWait: Bool) -> NextWrite {
        monitor.waitFor { state -> NextWrite? in
            if state.isStopped { return .stop }
            // A mark never pauses: chunks wait for it.
            let standsBack = urgency.isUrgent && state.isCopying
            if let item = state.takeWrite(onlyMarks: standsBack) { return .item(item) }
            return mayWait ? nil : .nothing
        }
    }

    private func begin(_ item: WriteItem, _ worker: ChunkWriter) {
        if item.chunk != nil {
            return worker.begin(item, dataOffset: geometry.slotDataOffset(item.checkpoint.slot))
        }
        do throws(CheckpointError) {
            try writeHeader(item.checkpoint.writingHeader(identity: identity, codec: options.codec))
            monitor.withLock { $0.finishWrite(item, nil) }
        } catch {
            fail(item, error)
        }
        monitor.wakeAll()
    }

    private func end(_ done: ChunkWriter.Completion) {
        if let error = done.error {
            let error = CheckpointError(error, slot: done.item.checkpoint.slot)
            done.isUnresolved ? failStop(unresolved: done.item, error) : fail(done.item, error)
        } else {
            monitor.withLock { $0.finishWrite(done.item, done.result) }
        }
        monitor.wakeAll()
    }

    private func fail(_ item: WriteItem, _ error: CheckpointError) {
        logAbandoned(item.checkpoint, error)
        monitor.withLock { $0.failWrite(item, error) }
    }

    private func logAbandoned(_ checkpoint: InFlightCheckpoint, _ error: CheckpointError) {
        options.logger.error(
            "a write failed; this checkpoint is abandoned",
            metadata: ["error": "\(error)", "step": "\(checkpoint.step)"])
    }

    private func failStop(unresolved item: WriteItem, _ cause: CheckpointError) {
        var error = cause
        error.code = .failStop
        options.logger.critical("fail-stop", metadata: ["error": "\(error)"])
        monitor.withLock { $0.stopSaving(unresolved: item, error) }
    }

    private func writeHeader(_ header: SlotHeader) throws(CheckpointError) {
        try withCheckpointErrors(slot: header.slot) { () throws(StorageError) in
            try storage.writeBlocks(header.encoded().bytes, at: header.ownOffset)
        }
    }

    static func paddedByteCount(_ byteCount: Int) -> Int {
        (byteCount + Limits.blockByteCount - 1) / Limits.blockByteCount * Limits.blockByteCount
    }
}
