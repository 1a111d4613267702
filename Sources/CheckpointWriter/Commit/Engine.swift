internal import CheckpointDevice
internal import CheckpointFormat
internal import CheckpointStorage
internal import Logging

/// The threads of a writer and what they share.
///
/// ```
/// save ─► snapshot workers ─► staging pool ─► writer workers ─► committer
/// ```
/// Snapshot workers copy the caller's memory chunk by chunk and digest it on the way; what is on an
/// accelerator that one copies itself, and they digest it once it has arrived. Writer
/// workers compress and write, always the oldest checkpoint first (after urgent ones), so that N in
/// flight are a queue that keeps the medium busy and not N streams that slow each other; the
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
    let medium: (any ByteAddressableStorage)?
    let devices: DeviceTable
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
        devices = DeviceTable(runtime: options.deviceRuntime)
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

    /// So many chunks of a device are on their way to such a medium: one is copied, one has
    /// arrived, and one is being written.
    static let directBufferCount = 3

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

    func launch(
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
        devices.close()
    }

    // MARK: Writer workers

    /// Where processors are short, copying goes first: callers wait for it, nobody for this.
    static let writerNice = 10

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
            if let item = state.takeWrite(onlyMarks: state.writesStandBack) { return .item(item) }
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

    func logAbandoned(_ checkpoint: InFlightCheckpoint, _ error: CheckpointError) {
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
