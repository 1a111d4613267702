public import CheckpointFormat
public import CheckpointStorage

/// What a writer has done since it was opened. Times are in nanoseconds, sizes in bytes.
public struct WriterStatistics: Sendable, Hashable {
    /// The life of one checkpoint.
    public struct TimeLine: Sendable, Hashable {
        public var step: UInt64
        public var sequence: SequenceNumber
        public var payloadByteCount: UInt64
        public var storedByteCount: UInt64
        public var stagedNanoseconds: UInt64
        public var durableNanoseconds: UInt64
    }

    /// What a group's file keeps.
    public struct Group: Sendable, Hashable {
        /// 0 before one has begun.
        public var attempt: UInt64
        /// The newest checkpoint that is known to be durable on all ranks.
        public var watermark: GroupCheckpointName?
        /// Durable checkpoints that wait for a verdict.
        public var undecidedCount: Int
        public var freeSlotCount: Int
    }

    /// One leg of the way from a device to the medium.
    public struct Leg: Sendable, Hashable {
        public var byteCount: UInt64 = 0
        /// Time during which at least one of its transfers was under way.
        public var busyNanoseconds: UInt64 = 0
        /// Time during which a transfer was due, but none could begin: to the pool, because that
        /// was full; to the medium, because nothing had arrived in the pool.
        public var stallNanoseconds: UInt64 = 0
        private var lastEnd: UInt64 = 0

        public init() {}

        /// Of transfers that end in the order in which they begin.
        mutating func add(byteCount: Int, from began: UInt64, to ended: UInt64) {
            self.byteCount += UInt64(byteCount)
            let began = max(began, lastEnd)
            if ended > began { busyNanoseconds += ended - began }
            lastEnd = max(lastEnd, ended)
        }
    }

    public static let recentCount = 16

    /// How the medium is reached.
    public var storageKind = StorageKind.unknown
    /// Why the medium is not reached as asked; nil when it is.
    public var storageFallbackReason: String?
    /// What else the back end reports, such as the granularity of persistent memory, or whether the
    /// pool is registered with the kernel.
    public var storageDetail: String?
    public var snapshotWorkerCount = 0
    public var writerWorkerCount = 0
    public var poolByteCount: UInt64 = 0
    public var inFlightCount = 0
    /// Checkpoints begun, and how they ended.
    public var savedCount: UInt64 = 0
    public var durableCount: UInt64 = 0
    public var supersededCount: UInt64 = 0
    public var skippedCount: UInt64 = 0
    public var failedCount: UInt64 = 0
    /// Payload bytes of durable and superseded checkpoints, and what was written for them.
    public var payloadByteCount: UInt64 = 0
    public var storedByteCount: UInt64 = 0
    public var metadataWriteCount: UInt64 = 0
    public var chunkWriteCount: UInt64 = 0
    public var flushCount: UInt64 = 0
    public var flushNanoseconds: UInt64 = 0
    /// Summed over the writer workers.
    public var writeNanoseconds: UInt64 = 0
    public var compressNanoseconds: UInt64 = 0
    /// From devices to the pool.
    public var deviceLeg = Leg()
    /// From the pool to the medium, or straight to it from the caller's memory.
    public var mediumLeg = Leg()
    /// Devices that checkpoints came from, such as `cuda:0`.
    public var devices: [String] = []
    /// Why the pool is not registered with them; nil when it is.
    public var unpinnedReason: String?
    /// Copying and digesting, summed over the snapshot workers.
    public var copyNanoseconds: UInt64 = 0
    /// Time during which state was waiting to be copied and the pool was empty.
    public var stagingStallNanoseconds: UInt64 = 0
    /// Time that callers of `save` waited for a slot.
    public var busyNanoseconds: UInt64 = 0
    public var writeQueueCountMaximum = 0
    /// Slots out of use until the file is reopened, after a failed flush, or because the newer
    /// checkpoint that they hold could not be read.
    public var quarantinedSlotCount = 0
    /// Slots that urgent saves took from readers.
    public var brokenPinCount: UInt64 = 0
    /// The pins of readers that keep a save from a slot now.
    public var pinnedSlots: [SlotPin] = []
    public var newestDurableStep: UInt64?
    public var newestDurableSequence = SequenceNumber.none
    /// The last error of any checkpoint.
    public var lastError: String?
    /// The writer accepts no more checkpoints.
    public var isFailStop = false
    /// nil in a file that belongs to no group.
    public var group: Group?
    /// The most recent durable checkpoints, oldest first.
    public var recent: [TimeLine] = []

    public init() {}

    mutating func add(_ line: TimeLine) {
        if recent.count == Self.recentCount { recent.removeFirst() }
        recent.append(line)
    }
}

extension WriterStatistics.TimeLine {
    /// Of a checkpoint that has ended as durable.
    init(_ item: SealedCheckpoint) {
        let ticket = item.checkpoint.ticket
        self.init(
            step: ticket.step, sequence: ticket.sequence,
            payloadByteCount: item.checkpoint.payloadByteCount,
            storedByteCount: item.storedByteCount, stagedNanoseconds: ticket.stagedNanoseconds,
            durableNanoseconds: ticket.durableNanoseconds)
    }
}
