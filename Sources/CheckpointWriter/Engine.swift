internal import CheckpointFormat
internal import CheckpointStorage
internal import Logging

/// The threads of a writer and what they share.
///
/// ```
/// save ─► snapshot workers ─► staging pool ─► writer workers ─► committer
/// ```
/// Snapshot workers copy the caller's memory chunk by chunk and digest it on the way; writer
/// workers compress and write, always the oldest checkpoint first, so that N in flight are a queue
/// that keeps the device busy and not N streams that slow each other; the committer runs the two
/// barriers.
final class Engine: Sendable {
    let storage: any Storage
    let identity: IdentityBlock
    let options: WriterOptions
    let pool: StagingMemory
    let monitor: Monitor<EngineState>
    let commitObserver: CommitObserver
    let urgency = StagingUrgency()
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
    }

    var geometry: Geometry { identity.geometry }

    func start() throws(CheckpointError) {
        do throws(StorageError) {
            for number in 0..<options.snapshotWorkerCount {
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

    private enum Copy {
        case chunk(InFlightCheckpoint, CheckpointPayload, index: Int, AlignedBuffer)
        case stop
    }

    private func runSnapshotWorker() {
        let copier = DigestingCopier()
        while case .chunk(let checkpoint, let payload, let index, let buffer)? = nextCopy() {
            let began = SystemClock.monotonicTime
            let range = checkpoint.chunkRange(index)
            let leaves = payload.copy(
                from: range.offset, count: range.count, to: buffer, with: copier)
            // The device gets whole blocks; what lies behind the payload is zero.
            buffer.fillWithZeros(range.count..<Self.paddedByteCount(range.count))
            let elapsed = SystemClock.monotonicTime - began
            let isQuiet = monitor.withLock { state in
                state.statistics.copyNanoseconds += elapsed
                finishCopy(
                    checkpoint, StagedChunk(index: index, buffer: buffer, leaves: leaves), &state)
                return urgency.isUrgent && state.isCopying
            }
            // Writers that stand back need not be woken for each chunk; the last one wakes them.
            if !isQuiet { monitor.wakeAll() }
        }
    }

    private func nextCopy() -> Copy? {
        monitor.waitFor { state in
            if state.isStopped { return .stop }
            guard let checkpoint = state.nextToCopy, let payload = checkpoint.payload else {
                return nil
            }
            guard let buffer = state.freeBuffers.popLast() else {
                if state.stallBegan == nil { state.stallBegan = SystemClock.monotonicTime }
                return nil
            }
            if let began = state.stallBegan {
                state.statistics.stagingStallNanoseconds += SystemClock.monotonicTime - began
                state.stallBegan = nil
            }
            let index = checkpoint.nextChunkToCopy
            checkpoint.nextChunkToCopy += 1
            checkpoint.busyCount += 1
            return .chunk(checkpoint, payload, index: index, buffer)
        }
    }

    private func finishCopy(
        _ checkpoint: InFlightCheckpoint, _ chunk: StagedChunk, _ state: inout EngineState
    ) {
        checkpoint.busyCount -= 1
        checkpoint.copiedCount += 1
        guard checkpoint.failure == nil else {
            state.freeBuffers.append(chunk.buffer)
            state.endIfFailed(checkpoint)
            return
        }
        state.enqueue(WriteItem(checkpoint: checkpoint, chunk: chunk))
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
        let next = monitor.waitFor { state -> NextWrite? in
            if state.isStopped { return .stop }
            guard !state.writeQueue.isEmpty, !(urgency.isUrgent && state.isCopying) else {
                return mayWait ? nil : .nothing
            }
            let item = state.writeQueue.removeFirst()
            item.checkpoint.busyCount += 1
            item.checkpoint.hasWritten = true
            return .item(item)
        }
        return next ?? .nothing
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
        options.logger.error(
            "a write failed; this checkpoint is abandoned",
            metadata: ["error": "\(error)", "step": "\(item.checkpoint.step)"])
        monitor.withLock { state in
            release(item, &state)
            state.fail(item.checkpoint, error)
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
        let checkpoint = item.checkpoint
        release(item, &state)
        if let done, let index = item.chunk?.index {
            checkpoint.entries[index] = done.entry
            checkpoint.logicalDigest.setLeaves(
                done.leaves, at: checkpoint.chunkRange(index).offset)
            state.statistics.chunkWriteCount += 1
            state.statistics.compressNanoseconds += done.compressNanoseconds
            state.statistics.writeNanoseconds += done.writeNanoseconds
        } else {
            state.statistics.metadataWriteCount += 1
        }
        guard checkpoint.failure == nil else { return state.endIfFailed(checkpoint) }
        checkpoint.writesLeft -= 1
        // Joined here: the commit record exists only after every completion has arrived.
        if checkpoint.writesLeft == 0 { state.written.append(checkpoint) }
    }

    static func paddedByteCount(_ byteCount: Int) -> Int {
        (byteCount + Limits.blockByteCount - 1) / Limits.blockByteCount * Limits.blockByteCount
    }
}
