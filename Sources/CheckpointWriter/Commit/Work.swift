internal import CheckpointDevice
internal import CheckpointFormat
internal import CheckpointStorage

// What the state hands to the engine's threads, and what they bring back.

/// What a caller asks to save.
struct SaveRequest {
    let step: UInt64
    let payload: CheckpointPayload
    let userMetadata: String
    let needsApproval: Bool
    /// When the payload's bytes on each device may be read.
    let ready: [DeviceName: [any DeviceEvent]]
    /// Of the writer.
    let devices: DeviceTable
}

/// One chunk to copy out of the caller's memory.
struct ChunkCopy {
    let checkpoint: InFlightCheckpoint
    let payload: CheckpointPayload
    let index: Int
    let isEarly: Bool
    /// Some of its bytes are on a device.
    let isOnDevice: Bool
    /// Nothing was being written when it was taken.
    let isAlone: Bool
    /// nil when the chunk goes straight to the medium.
    let buffer: AlignedBuffer?

    enum Result {
        case staged(StagedChunk)
        case written(ChunkWriter.Result)
    }
}

/// A chunk that devices copy into its buffer at the moment.
struct ArrivingChunk {
    let copy: ChunkCopy
    /// How many of its bytes are on devices.
    let byteCount: Int
    /// All of them are in the buffer once the events of all its devices have come.
    let events: [DeviceName: any DeviceEvent]
    let beganTime: UInt64
}

/// What a snapshot worker does next.
enum SnapshotWork {
    case copy(ChunkCopy)
    /// Its bytes are in the buffer.
    case digest(ChunkCopy)
}

/// A chunk that was copied out of the caller's memory.
struct StagedChunk {
    let index: Int
    let buffer: AlignedBuffer
    /// The digests of its leaves, taken while it was copied.
    let leaves: [Digest]
}

/// One piece of work for a writer worker.
struct WriteItem {
    let checkpoint: InFlightCheckpoint
    /// nil for the "writing" header.
    let chunk: StagedChunk?

    /// Urgent ones, then the oldest checkpoint first; its header before its chunks, in order.
    static func isBefore(_ left: WriteItem, _ right: WriteItem) -> Bool { left.rank < right.rank }

    private var rank: (Int, UInt64, Int) {
        (checkpoint.isUrgent ? 0 : 1, checkpoint.sequence.rawValue, chunk?.index ?? -1)
    }
}

/// The saves that wait for a slot.
struct SlotWaits {
    private var count: UInt64 = 0
    private var beganSum: UInt64 = 0

    mutating func begin(now: UInt64) {
        count += 1
        beganSum &+= now
    }

    /// - Returns: how long it was.
    mutating func end(began: UInt64, now: UInt64) -> UInt64 {
        count -= 1
        beganSum &-= began
        return now - began
    }

    /// How long all of them have waited.
    func nanoseconds(now: UInt64) -> UInt64 { count &* now &- beganSum }
}

/// A checkpoint whose commit record is written, but not flushed.
struct SealedCheckpoint {
    let checkpoint: InFlightCheckpoint
    let headerDigest: Digest
    let storedByteCount: UInt64
}
