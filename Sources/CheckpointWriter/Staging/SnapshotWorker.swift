internal import CheckpointDevice
internal import CheckpointFormat
internal import CheckpointStorage

// What snapshot workers do: copy what the host can read, and digest it.

extension Engine {
    func runSnapshotWorker() {
        let copier = DigestingCopier()
        while let work = nextSnapshotWork() {
            switch work {
            case .copy(let copy) where copy.isOnDevice: queue(copy)
            case .copy(let copy):
                complete(copy) { () throws(CheckpointError) in
                    try copied(copy, with: copier)
                }
            case .digest(let copy):
                complete(copy) { () throws(CheckpointError) in
                    try digested(copy, with: copier)
                }
            }
        }
    }

    private func nextSnapshotWork() -> SnapshotWork? {
        monitor.waitFor { state -> SnapshotWork?? in
            if state.isStopped { return .some(nil) }
            return state.takeSnapshotWork(isDirect: medium != nil).map { .some($0) }
        }
    }

    private func complete(
        _ copy: ChunkCopy, _ body: () throws(CheckpointError) -> ChunkCopy.Result
    ) {
        let began = SystemClock.monotonicTime
        do throws(CheckpointError) {
            let done = try body()
            let elapsed = SystemClock.monotonicTime - began
            let (released, isQuiet) = monitor.withLock { state in
                state.statistics.copyNanoseconds += elapsed
                if !copy.isOnDevice { state.noteCopy(copy, nanoseconds: elapsed) }
                let inFlightCount = state.inFlight.count
                let released = state.finishCopy(copy, done)
                let isQuiet =
                    medium == nil && state.writesStandBack
                    && state.inFlight.count == inFlightCount
                return (released, isQuiet)
            }
            report(released, of: copy.checkpoint)
            // Writers that pause need not be woken for each chunk; the last one does it.
            // A save that waits for a slot must be, when one is free. What went straight to the
            // medium may have been the last chunk that the committer waits for.
            if !isQuiet { monitor.wakeAll() }
        } catch {
            logAbandoned(copy.checkpoint, error)
            monitor.withLock { $0.failCopy(copy, error) }
            monitor.wakeAll()
        }
    }

    /// The medium gets whole blocks; what lies behind the payload is zero.
    private func copied(
        _ copy: ChunkCopy, with copier: DigestingCopier
    ) throws(CheckpointError) -> ChunkCopy.Result {
        let range = copy.checkpoint.chunkRange(copy.index)
        guard let buffer = copy.buffer else {
            // Safe: the target is used inside of the closure only.
            return try unsafe written(copy, with: copier) { target in
                // Safe: the target is memory of the medium, which holds the chunk.
                unsafe copy.payload.copy(
                    from: range.offset, count: range.count, to: target, with: copier)
            }
        }
        // Safe: the buffer lives through the call.
        let leaves = unsafe copy.payload.copy(
            from: range.offset, count: range.count,
            to: CopyTarget(start: buffer.baseAddress, byteCount: buffer.byteCount),
            with: copier)
        buffer.fillWithZeros(range.count..<Self.paddedByteCount(range.count))
        return .staged(StagedChunk(index: copy.index, buffer: buffer, leaves: leaves))
    }

    /// A chunk that devices have copied to its buffer.
    private func digested(
        _ copy: ChunkCopy, with copier: DigestingCopier
    ) throws(CheckpointError) -> ChunkCopy.Result {
        let count = copy.checkpoint.chunkRange(copy.index).count
        guard let buffer = copy.buffer else { preconditionFailure("a device needs a buffer") }
        if medium == nil {
            let leaves = buffer.withBytes(0..<count) { TreeDigest.leaves(of: $0) }
            buffer.fillWithZeros(count..<Self.paddedByteCount(count))
            return .staged(StagedChunk(index: copy.index, buffer: buffer, leaves: leaves))
        }
        // Safe: the target is used inside of the closure only.
        return try unsafe written(copy, with: copier) { target in
            // Safe: the buffer holds the chunk, and the target is memory of the medium for it.
            var leaves = unsafe LeafCopy(to: target, count: count, with: copier)
            unsafe leaves.append(UnsafeRawBufferPointer(start: buffer.baseAddress, count: count))
            return leaves.digests
        }
    }

    /// Brings a chunk to a medium that the processor writes, by `body`, which returns the digests
    /// of its leaves.
    private func written(
        _ copy: ChunkCopy, with copier: DigestingCopier, _ body: (CopyTarget) -> [Digest]
    ) throws(CheckpointError) -> ChunkCopy.Result {
        guard let medium else { preconditionFailure("only such a medium does without a buffer") }
        let range = copy.checkpoint.chunkRange(copy.index)
        let padded = Self.paddedByteCount(range.count)
        let offset = geometry.slotDataOffset(copy.checkpoint.slot) + range.offset
        let began = SystemClock.monotonicTime
        monitor.withLock { $0.beginMediumWrite() }
        var byteCount = 0
        defer { monitor.withLock { $0.endMediumWrite(byteCount: byteCount) } }
        let leaves = try withCheckpointErrors(slot: copy.checkpoint.slot) {
            () throws(StorageError) in
            // Safe: the medium's memory is used inside the closure only.
            try unsafe medium.withCopyTarget(at: offset, byteCount: padded) { target in
                let leaves = unsafe body(target)
                let padding = [UInt8](repeating: 0, count: padded - range.count)
                unsafe padding.withUnsafeBytes {
                    unsafe copier.copy($0, to: target, at: range.count)
                }
                _ = copier.takeDigest()
                return leaves
            }
        }
        byteCount = range.count
        return .written(
            ChunkWriter.Result(
                entry: ChunkEntry(
                    storedOffset: range.offset, storedByteCount: range.count,
                    rawByteCount: range.count, codec: .none, planeWidth: 1,
                    digest: TreeDigest.combine(leaves, byteCount: UInt64(range.count))),
                leaves: leaves, compressNanoseconds: 0,
                writeNanoseconds: SystemClock.monotonicTime - began))
    }
}
