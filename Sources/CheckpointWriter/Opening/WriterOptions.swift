public import CheckpointDevice
public import CheckpointFormat
public import CheckpointStorage
public import Logging

/// What `save` does when every slot is in flight.
public enum BusyPolicy: Sendable, Hashable {
    /// Wait for a slot; after the timeout, throw `timeout`.
    case wait(timeoutNanoseconds: UInt64?)
    /// Save nothing, and return a ticket in state `skipped`.
    case skip
    /// Throw `busy`.
    case fail
}

public struct WriterOptions: Sendable {
    public var busyPolicy = BusyPolicy.wait(timeoutNanoseconds: nil)
    public var backend = StorageBackend.automatic
    /// On persistent memory: flush also what the platform promises to save when the power goes.
    public var isDeepFlushing = false
    /// Threads that copy state out of the caller's memory and digest it. One moves more than
    /// 10 GB/s, and several wait for the same memory, so there are few when nil: a quarter of the
    /// processors, 1 to 4; on persistent memory, where they do all there is to do, 1 to 4 of them.
    public var snapshotWorkerCount: Int?
    /// Threads that compress and write chunks.
    public var writerWorkerCount = 3
    /// Writes that one writer worker keeps under way, where the back end can do more than one.
    public var writeQueueDepth = 4
    /// Bytes of the staging pool; nil for the smaller of one slot and 2 GiB. At least one chunk
    /// per writer worker.
    public var poolByteCount: UInt64?
    public var codec = Codec.none
    public var zstdLevel: Int32 = 1
    /// Must match the file when not nil.
    public var fingerprint: String?
    /// Must match the file.
    public var rank: UInt32 = 0
    public var worldSize: UInt32 = 1
    public var allowsNetwork = false
    /// Open the file of a group, too. Its ranks agree on an attempt before the first save.
    public var acceptsGroup = false
    /// Continue from the anchored checkpoint without reading it. Should it be rotten, the older one
    /// that a load falls back to is still there: its slot is not used until the first save of this
    /// writer is durable. Where that would leave no slot to save to, and after lost power, the
    /// anchored one is read all the same.
    public var trustsAnchor = false
    /// A save that waits so long for readers' pins logs which slots and processes.
    public var pinWarningNanoseconds: UInt64 = 2_000_000_000
    /// How long an urgent save waits for readers that have every free slot pinned, before it takes
    /// the slot that has been free the longest.
    public var urgentPatienceNanoseconds: UInt64 = 1_000_000_000
    /// What opens the devices that state is on, when it is first saved.
    public var deviceRuntime: any DeviceRuntime = InstalledRuntimes()
    public var logger = Logger(label: "pccheck") { _ in SwiftLogNoOpLogHandler() }

    public init() {}
}
