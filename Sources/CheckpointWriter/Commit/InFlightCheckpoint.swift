internal import CheckpointDevice
internal import CheckpointFormat
internal import CheckpointStorage

/// One checkpoint between `save` and its outcome.
// Unchecked: the constants are set in init; only methods of `EngineState` change the variables,
// with its lock held.
final class InFlightCheckpoint: @unchecked Sendable {
    let sequence: SequenceNumber
    let slot: SlotIndex
    let step: UInt64
    let userMetadata: String
    /// Of the group; 0 without one.
    let attempt: UInt64
    /// Copied and written before the others.
    let isUrgent: Bool
    /// Its commit record waits for the caller's word that the memory did not change while it was
    /// copied.
    var needsApproval: Bool
    let chunkCount: Int
    let chunkByteCount: Int
    let payloadByteCount: UInt64
    let payloadKind: PayloadKind
    let manifestByteCount: UInt64
    let beganTime = SystemClock.wallTime
    let ticket: CheckpointTicket
    /// Whether a chunk has bytes on a device.
    private let isOnDevice: [Bool]
    /// Element width of each chunk for the byte-plane filter: 1, 2, 4 or 8.
    let planeWidths: [Int]

    /// When the payload's bytes on each device may be read.
    let ready: [DeviceName: [any DeviceEvent]]
    /// nil once staged: the caller's memory is no longer known here.
    var payload: CheckpointPayload?
    /// How many chunks the snapshot workers have taken.
    var takenCount = 0
    var copiedCount = 0
    /// Chunks, and the early ones of them, that the host does not read any more.
    private var releasedCount = 0
    private var releasedEarlyCount = 0
    /// The chunks that are copied first; the others follow in their order.
    let earlyChunks: [Int]
    /// What follows them, when it is not just every chunk.
    private let laterChunks: [Int]
    /// The "writing" header and every chunk.
    var writesLeft: Int
    /// Copies and writes under way at this moment. Only at 0 may a failed checkpoint end.
    var busyCount = 0
    /// The write of the "writing" header has returned, so chunks may follow: a reader that meets
    /// one of them then finds the mark too.
    var isMarked = false
    /// A write was handed to the medium, so after a failed flush it may be lost.
    var hasWritten = false
    var isCommitting = false
    var failure: CheckpointError?
    /// The failure was a flush: the slot is not reused.
    var isSlotDoubtful = false
    var entries: [ChunkEntry?]
    var logicalDigest: TreeDigest

    init(
        _ request: SaveRequest, isUrgent: Bool, sequence: SequenceNumber, slot: SlotIndex,
        attempt: UInt64, chunkByteCount: Int, urgency: StagingUrgency
    ) {
        let payload = request.payload
        self.sequence = sequence
        self.slot = slot
        step = request.step
        self.payload = payload
        userMetadata = request.userMetadata
        self.attempt = attempt
        self.isUrgent = isUrgent
        needsApproval = request.needsApproval
        ready = request.ready
        self.chunkByteCount = chunkByteCount
        payloadByteCount = payload.byteCount
        payloadKind = payload.kind
        manifestByteCount = payload.manifestByteCount
        let size = UInt64(chunkByteCount)
        chunkCount = Int((payload.byteCount + size - 1) / size)
        isOnDevice = (0..<chunkCount).map { index in
            payload.isOnDevice(
                from: UInt64(index) * size,
                count: ChunkEntry.rawByteCount(
                    index: index, payloadByteCount: payload.byteCount,
                    chunkByteCount: chunkByteCount))
        }
        planeWidths = (0..<chunkCount).map { index in
            let width = payload.elementByteCount(
                from: UInt64(index) * size, count: chunkByteCount)
            return [2, 4, 8].contains(width) ? width : 1
        }
        earlyChunks = payload.earlyChunks(chunkByteCount: chunkByteCount)
        let early = Set(earlyChunks)
        laterChunks = early.isEmpty ? [] : (0..<chunkCount).filter { !early.contains($0) }
        writesLeft = chunkCount + 1
        entries = [ChunkEntry?](repeating: nil, count: chunkCount)
        logicalDigest = TreeDigest(byteCount: payload.byteCount)
        ticket = CheckpointTicket(
            step: step, sequence: sequence, urgency: urgency, hasEarly: !earlyChunks.isEmpty,
            isOnDevice: isOnDevice.contains(true), devices: request.devices)
    }

    var leftCount: Int { chunkCount - takenCount }
    var earlyLeftCount: Int { max(0, earlyChunks.count - takenCount) }
    var hasMoreToCopy: Bool { leftCount > 0 }
    var hasEarlyToCopy: Bool { earlyLeftCount > 0 }

    /// The chunk that a snapshot worker copies next; there is one.
    var nextChunk: (index: Int, isEarly: Bool, isOnDevice: Bool) {
        let isEarly = hasEarlyToCopy
        let index =
            isEarly
            ? earlyChunks[takenCount]
            : earlyChunks.isEmpty ? takenCount : laterChunks[takenCount - earlyChunks.count]
        return (index, isEarly, isOnDevice[index])
    }

    /// What of the payload is read no more, unless by devices that have been told to.
    struct Release: OptionSet {
        let rawValue: UInt8
        static let early = Release(rawValue: 1)
        static let all = Release(rawValue: 2)
    }

    /// The host does not read a chunk any more.
    ///
    /// - Returns: what that completes.
    func release(_ copy: ChunkCopy) -> Release {
        var completed: Release = []
        releasedCount += 1
        if releasedCount == chunkCount { completed.insert(.all) }
        if copy.isEarly {
            releasedEarlyCount += 1
            if releasedEarlyCount == earlyChunks.count { completed.insert(.early) }
        }
        return completed
    }

    func chunkRange(_ index: Int) -> (offset: UInt64, count: Int) {
        let count = ChunkEntry.rawByteCount(
            index: index, payloadByteCount: payloadByteCount, chunkByteCount: chunkByteCount)
        return (UInt64(index) * UInt64(chunkByteCount), count)
    }

    /// The header that marks the slot as taken, before any of its chunks is complete.
    func writingHeader(identity: IdentityBlock, codec: Codec) -> SlotHeader {
        var header = SlotHeader(
            emptySlot: slot, fileUUID: identity.fileUUID, geometry: identity.geometry)
        header.state = .writing
        header.sequence = sequence
        header.step = step
        header.beganTime = beganTime
        header.payloadByteCount = payloadByteCount
        header.chunkByteCount = chunkByteCount
        header.chunkCount = chunkCount
        header.codec = codec
        header.payloadKind = payloadKind
        header.manifestByteCount = manifestByteCount
        header.userMetadata = userMetadata
        header.attempt = attempt
        return header
    }

    /// The commit record and its chunk table, once every chunk was written.
    func commitRecord(
        identity: IdentityBlock, codec: Codec
    ) -> (header: SlotHeader, table: ChunkTable) {
        let entries = self.entries.map { entry in
            guard let entry else { preconditionFailure("every chunk was written") }
            return entry
        }
        let table = ChunkTable(entries: entries)
        var header = writingHeader(identity: identity, codec: codec)
        header.state = .complete
        header.completedTime = SystemClock.wallTime
        header.storedByteCount = entries.reduce(0) { $0 + UInt64($1.storedByteCount) }
        header.chunkTableDigest = table.encoded().digest
        header.logicalDigest = logicalDigest.finish()
        return (header, table)
    }
}
