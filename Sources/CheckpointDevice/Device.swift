public import CheckpointFormat

/// The runtime that a device belongs to; the raw values are those of `PCC_DEVICE_*` in pccheck.h.
public enum DeviceKind: UInt32, Sendable, Hashable {
    case cuda = 1
}

/// One device as its runtime numbers it, such as `cuda:0`.
public struct DeviceName: Sendable, Hashable, CustomStringConvertible {
    public let kind: DeviceKind
    public let ordinal: Int32

    public init(_ kind: DeviceKind, _ ordinal: Int32) {
        self.kind = kind
        self.ordinal = ordinal
    }

    public var description: String { "\(kind):\(ordinal)" }
}

/// A stream of the caller's on a device: the order in which its memory changes.
public struct DeviceStream: Sendable, Hashable {
    public let device: DeviceName
    /// The runtime's own handle; 0 for its default stream.
    public let handle: UInt64

    public init(_ device: DeviceName, handle: UInt64) {
        self.device = device
        self.handle = handle
    }
}

/// One range of bytes that goes between host memory and a device.
// Unchecked: addresses are kept, not followed. Who asks for the copy keeps both sides to its end.
@safe public struct DeviceCopy: @unchecked Sendable {
    @unsafe public let host: UnsafeMutableRawPointer
    public let address: UInt64
    public let byteCount: Int

    @unsafe public init(host: UnsafeMutableRawPointer, address: UInt64, byteCount: Int) {
        unsafe self.host = host
        self.address = address
        self.byteCount = byteCount
    }
}

/// A point in the work of a stream.
public protocol DeviceEvent: AnyObject, Sendable {
    /// Blocks the calling thread until the work before the event is done.
    ///
    /// - Throws: `accelerator`: what was copied before it is unknown then.
    func wait() throws(CheckpointError)
}

/// A device, with a side stream of its own on which everything is copied in order.
///
/// Calls may come from any thread. Each throws `accelerator` with the runtime's own words, and
/// `forked` in a child of the process that opened the device.
public protocol Device: AnyObject, Sendable {
    var name: DeviceName { get }

    /// Registers host memory, so that every device copies to it and from it directly.
    ///
    /// - Returns: false when somebody else has registered it.
    func pin(_ memory: UnsafeMutableRawBufferPointer) throws(CheckpointError) -> Bool
    func unpin(_ memory: UnsafeMutableRawBufferPointer) throws(CheckpointError)

    /// The work that is queued by now on a stream of the caller's.
    ///
    /// - Throws: `invalidArgument` while the stream records a graph, as nothing runs then.
    func record(_ stream: UInt64) throws(CheckpointError) -> any DeviceEvent
    /// What is queued by now on the side stream.
    func mark() throws(CheckpointError) -> any DeviceEvent
    /// Waits for all that is queued by now on the side stream, without an event.
    ///
    /// - Throws: when it may still be under way.
    func drain() throws(CheckpointError)

    /// What is queued on the side stream later waits for the event; no thread does.
    func follow(_ event: any DeviceEvent) throws(CheckpointError)
    /// The same for a stream of the caller's.
    func hold(_ stream: UInt64, until event: any DeviceEvent) throws(CheckpointError)

    /// Queues copies on the side stream.
    ///
    /// - Returns: an event behind them, which reports their error, and nobody else's. Both sides
    ///   must stay until it has come.
    /// - Throws: some of the copies may be under way then; an event of `mark` comes after them.
    func copyToHost(_ copies: [DeviceCopy]) throws(CheckpointError) -> any DeviceEvent
    func copyToDevice(_ copies: [DeviceCopy]) throws(CheckpointError) -> any DeviceEvent
}

/// What opens devices.
public protocol DeviceRuntime: Sendable {
    /// - Throws: `unsupported` where the runtime is not installed, or has no such device.
    func open(_ name: DeviceName) throws(CheckpointError) -> any Device
}
