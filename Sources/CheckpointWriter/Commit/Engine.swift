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
    let urgency = StagingUrgency()
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
        monitor.withLock { state in
            state.isClosing = true
            state.isStopped = true
            for checkpoint in state.inFlight { state.fail(checkpoint, stopped) }
        }
        monitor.wakeAll()
        let joining = threads.withLock { threads in
            defer { threads = [] }
            return threads
        }
        for thread in joining { thread.join() }
    }

    // MARK: Snapshot workers

    private struct Copy {
        let checkpoint: InFlightCheckpoint
        let payload: CheckpointPayload
        let index: Int
        let isEarly: Bool
        /// nil when the chunk goes straight to the medium.
        let buffer: AlignedBuffer?
    }

    private func runSnapshotWorker() {
        let copier = DigestingCopier()
        while let copy = nextCopy() {
            let began = SystemClock.monotonicTime
            do throws(CheckpointError) {
                let done = try perform(copy, with: copier)
                let elapsed = SystemClock.monotonicTime - began
                let isQuiet = monitor.withLock { state in
                    state.statistics.copyNanoseconds += elapsed
                    finishCopy(copy, done, &state)
                    return urgency.isUrgent && state.isCopying
                }
                // Writers that stand back need not be woken for each chunk; the last one does it.
                if !isQuiet { monitor.wakeAll() }
            } catch {
                abandon(copy.checkpoint, error) { _ in copy.checkpoint.busyCount -= 1 }
                monitor.wakeAll()
            }
        }
    }

    private enum CopyResult {
        case staged(StagedChunk)
        case written(ChunkWriter.Result)
    }

    /// The device gets whole blocks; what lies behind the payload is zero.
    private func perform(
        _ copy: Copy, with copier: DigestingCopier
    ) throws(CheckpointError) -> CopyResult {
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

    private func nextCopy() -> Copy? {
        monitor.waitFor { state -> Copy?? in
            if state.isStopped { return .some(nil) }
            guard let checkpoint = state.nextToCopy, let payload = checkpoint.payload,
                medium == nil || checkpoint.isMarked
            else { return nil }
            var buffer: AlignedBuffer?
            if medium == nil {
                guard let free = state.takeFreeBuffer() else { return nil }
                buffer = free
            } else {
                checkpoint.hasWritten = true
            }
            let chunk = checkpoint.takeChunk()
            checkpoint.busyCount += 1
            return Copy(
                checkpoint: checkpoint, payload: payload, index: chunk.index,
                isEarly: chunk.isEarly, buffer: buffer)
        }
    }

    private func finishCopy(_ copy: Copy, _ done: CopyResult, _ state: inout EngineState) {
        let checkpoint = copy.checkpoint
        checkpoint.busyCount -= 1
        checkpoint.copiedCount += 1
        if checkpoint.failure != nil {
            if let buffer = copy.buffer { state.freeBuffers.append(buffer) }
            return state.endIfFailed(checkpoint)
        }
        switch done {
        case .staged(let chunk): state.enqueue(WriteItem(checkpoint: checkpoint, chunk: chunk))
        case .written(let result): finishChunk(checkpoint, index: copy.index, result, &state)
        }
        if copy.isEarly {
            checkpoint.copiedEarlyCount += 1
            if checkpoint.copiedEarlyCount == checkpoint.earlyChunks.count {
                checkpoint.ticket.markEarlyCopied()
            }
        }
        if checkpoint.copiedCount == checkpoint.chunkCount {
            checkpoint.payload = nil
            checkpoint.ticket.markStaged()
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
            // A mark never stands back: chunks wait for it.
            let standsBack = urgency.isUrgent && state.isCopying
            guard let index = state.nextWriteIndex(onlyMarks: standsBack) else {
                return mayWait ? nil : .nothing
            }
            let item = state.writeQueue.remove(at: index)
            item.checkpoint.busyCount += 1
            item.checkpoint.hasWritten = true
            return .item(item)
        }
    }

    private func begin(_ item: WriteItem, _ worker: ChunkWriter) {
        if item.chunk != nil {
            return worker.begin(item, dataOffset: geometry.slotDataOffset(item.checkpoint.slot))
        }
        do throws(CheckpointError) {
            try writeHeader(item.checkpoint.writingHeader(identity: identity, codec: options.codec))
            monitor.withLock { finishWrite(item, nil, &$0) }
        } catch {
            abandon(item, error)
        }
        monitor.wakeAll()
    }

    private func end(_ done: ChunkWriter.Completion) {
        if let error = done.error {
            let error = CheckpointError(error, slot: done.item.checkpoint.slot)
            done.isUnresolved ? failStop(unresolved: done.item, error) : abandon(done.item, error)
        } else {
            monitor.withLock { finishWrite(done.item, done.result, &$0) }
        }
        monitor.wakeAll()
    }

    private func abandon(_ item: WriteItem, _ error: CheckpointError) {
        abandon(item.checkpoint, error) { release(item, &$0) }
    }

    /// Ends a checkpoint after a failed write, once `release` gave back what the write held.
    private func abandon(
        _ checkpoint: InFlightCheckpoint, _ error: CheckpointError,
        _ release: (inout EngineState) -> Void
    ) {
        options.logger.error(
            "a write failed; this checkpoint is abandoned",
            metadata: ["error": "\(error)", "step": "\(checkpoint.step)"])
        monitor.withLock { state in
            release(&state)
            state.fail(checkpoint, error)
        }
    }

    /// The write may still be going on, and would then land in whatever the slot is used for next:
    /// no slot is used again, and the buffer never.
    private func failStop(unresolved item: WriteItem, _ cause: CheckpointError) {
        var error = cause
        error.code = .failStop
        options.logger.critical("fail-stop", metadata: ["error": "\(error)"])
        monitor.withLock { state in
            item.checkpoint.busyCount -= 1
            state.stopSaving(error)
        }
    }

    private func writeHeader(_ header: SlotHeader) throws(CheckpointError) {
        try withCheckpointErrors(slot: header.slot) { () throws(StorageError) in
            try storage.writeBlocks(header.encoded().bytes, at: header.ownOffset)
        }
    }

    private func release(_ item: WriteItem, _ state: inout EngineState) {
        item.checkpoint.busyCount -= 1
        if let chunk = item.chunk { state.freeBuffers.append(chunk.buffer) }
    }

    private func finishWrite(
        _ item: WriteItem, _ done: ChunkWriter.Result?, _ state: inout EngineState
    ) {
        release(item, &state)
        if let done, let index = item.chunk?.index {
            finishChunk(item.checkpoint, index: index, done, &state)
        } else {
            item.checkpoint.isMarked = true
            state.statistics.metadataWriteCount += 1
            finishOne(item.checkpoint, &state)
        }
    }

    private func finishChunk(
        _ checkpoint: InFlightCheckpoint, index: Int, _ done: ChunkWriter.Result,
        _ state: inout EngineState
    ) {
        checkpoint.entries[index] = done.entry
        checkpoint.logicalDigest.setLeaves(done.leaves, at: checkpoint.chunkRange(index).offset)
        state.statistics.chunkWriteCount += 1
        state.statistics.compressNanoseconds += done.compressNanoseconds
        state.statistics.writeNanoseconds += done.writeNanoseconds
        finishOne(checkpoint, &state)
    }

    private func finishOne(_ checkpoint: InFlightCheckpoint, _ state: inout EngineState) {
        guard checkpoint.failure == nil else { return state.endIfFailed(checkpoint) }
        checkpoint.writesLeft -= 1
        // Joined here: the commit record exists only after every completion has arrived.
        if checkpoint.writesLeft == 0, !checkpoint.needsApproval {
            state.written.append(checkpoint)
        }
    }

    static func paddedByteCount(_ byteCount: Int) -> Int {
        (byteCount + Limits.blockByteCount - 1) / Limits.blockByteCount * Limits.blockByteCount
    }
}
