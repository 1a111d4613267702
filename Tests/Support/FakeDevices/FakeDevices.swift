public import CheckpointDevice
public import CheckpointFormat
internal import CheckpointStorage
internal import FakeCUDA
internal import Synchronization

/// The devices of the stand-in driver, fresh, and for one test at a time: the driver is global.
///
/// Each is used as an application uses it: with a stream of its own, and memory that the host
/// cannot touch. A device that a writer or a read opens is the real `CUDADevice` over the same
/// driver.
public final class FakeDevices: DeviceRuntime {
    private static let turn = Mutex(())

    public let devices: [FakeDevice]
    private let driver: CUDADriver

    private init(count: Int) throws(CheckpointError) {
        driver = try Self.newDriver()
        devices = (0..<Int32(count)).map { FakeDevice(ordinal: $0) }
    }

    public static func newDriver() throws(CheckpointError) -> CUDADriver {
        // Safe, here and below: the functions are the stand-in's.
        try unsafe CUDADriver(fakecuda_lookup)
    }

    /// A driver without `cuStreamIsCapturing`.
    public static func oldDriver() throws(CheckpointError) -> CUDADriver {
        try unsafe CUDADriver { name in
            guard let name = unsafe name, unsafe String(cString: name) != "cuStreamIsCapturing"
            else { return nil }
            return unsafe fakecuda_lookup(name)
        }
    }

    public subscript(_ ordinal: Int) -> FakeDevice { devices[ordinal] }

    /// Runs `body` with a driver that nobody else uses.
    ///
    /// - Parameter prepare: before the driver starts: for its settings.
    /// - Throws: what `body` throws, or what it left behind.
    public static func use(
        seed: UInt64 = 1, count: Int = 2, prepare: () -> Void = {},
        _ body: (FakeDevices) throws -> Void
    ) throws {
        try turn.withLock { _ in
            fakecuda_reset(seed)
            fakecuda_set_device_count(Int32(count))
            prepare()
            let devices = try FakeDevices(count: count)
            try body(devices)
            for device in devices.devices { device.leave() }
            if let leaks = devices.leaks { throw Leaks(description: leaks) }
        }
    }

    public struct Leaks: Error, CustomStringConvertible {
        public let description: String
    }

    /// What nobody has given back, besides what the test itself has; nil when there is nothing.
    public var leaks: String? {
        let own = devices.filter(\.isEntered)
        let counts = [
            ("streams", Int(fakecuda_live_streams()) - own.reduce(0) { $0 + $1.streamCount }),
            ("events", Int(fakecuda_live_events())),
            ("registered bytes", Int(fakecuda_registered_bytes())),
        ]
        let contexts = devices.map {
            ("contexts of \($0.name)", Int(fakecuda_retain_count($0.name.ordinal)) - $0.useCount)
        }
        let left = (counts + contexts).filter { $0.1 != 0 }
        return left.isEmpty ? nil : left.map { "\($0.1) \($0.0)" }.joined(separator: ", ")
    }

    public func open(_ name: DeviceName) throws(CheckpointError) -> any Device {
        try CUDADevice(ordinal: name.ordinal, of: driver)
    }
}

/// One device, as the application sees it.
// Unchecked: one test at a time uses it, and what it hands to threads has a lock.
public final class FakeDevice: @unchecked Sendable {
    public let name: DeviceName
    private var context: CUcontext = 0
    private var streams: [CUstream] = []
    private var allocations: [CUdeviceptr] = []

    fileprivate init(ordinal: Int32) { name = DeviceName(.cuda, ordinal) }

    fileprivate var isEntered: Bool { context != 0 }
    fileprivate var useCount: Int { isEntered ? 1 : 0 }
    fileprivate var streamCount: Int { streams.count }

    /// Runs `body` with the device's context current.
    private func during(_ body: () -> CUresult) -> CUresult {
        var popped: CUcontext = 0
        // Safe, here and below: the driver stores a handle.
        if !isEntered, unsafe cuDevicePrimaryCtxRetain(&context, name.ordinal) != 0 {
            preconditionFailure("the test has no context of \(name)")
        }
        let refusal = cuCtxPushCurrent_v2(context)
        guard refusal == 0 else { return refusal }
        defer { _ = unsafe cuCtxPopCurrent_v2(&popped) }
        return body()
    }

    private func must(_ body: () -> CUresult) {
        let result = during(body)
        precondition(result == 0, "the test's own call failed with \(result) on \(name)")
    }

    /// The test is done with it: gives back what is left, whatever has failed.
    fileprivate func leave() {
        guard isEntered else { return }
        _ = during {
            for stream in streams { _ = cuStreamDestroy_v2(stream) }
            return 0
        }
        _ = cuDevicePrimaryCtxRelease_v2(name.ordinal)
        context = 0
    }

    // MARK: Memory

    /// New memory with these bytes.
    public func memory(_ bytes: [UInt8]) -> FakeMemory {
        var address: CUdeviceptr = 0
        must { unsafe cuMemAlloc_v2(&address, max(bytes.count, 1)) }
        allocations.append(address)
        let memory = FakeMemory(device: self, address: address, byteCount: bytes.count)
        memory.bytes = bytes
        return memory
    }

    /// Frees it at once, whatever is queued.
    ///
    /// - Returns: 0, or what the device is lost to.
    @discardableResult public func free(_ memory: FakeMemory) -> Int32 {
        during { cuMemFree_v2(memory.address) }
    }

    // MARK: Streams

    public func makeStream() -> DeviceStream {
        var stream: CUstream = 0
        must { unsafe cuStreamCreate(&stream, 1) }
        streams.append(stream)
        return DeviceStream(name, handle: stream)
    }

    /// What this device's context is lost to; 0 while it is not.
    public var error: Int32 { during { cuStreamSynchronize(0) } }

    /// Waits until the stream has done what is queued.
    @discardableResult public func synchronize(_ stream: DeviceStream) -> Int32 {
        during { cuStreamSynchronize(stream.handle) }
    }

    /// Queues a kernel that sets every byte.
    public func set(_ memory: FakeMemory, to value: UInt8, on stream: DeviceStream) {
        must { cuMemsetD8Async(memory.address, value, memory.byteCount, stream.handle) }
    }

    /// Queues work that does not end before the gate is opened.
    public func wait(for gate: FakeGate, on stream: DeviceStream) {
        // Safe: the stream calls the function once, which takes the reference over.
        must {
            unsafe cuLaunchHostFunc(
                stream.handle, FakeGate.pass, Unmanaged.passRetained(gate).toOpaque())
        }
    }

    // MARK: Graphs

    public enum CaptureMode: Int32, CaseIterable, Sendable {
        case global = 0
        case threadLocal = 1
        case relaxed = 2
    }

    public func beginCapture(_ stream: DeviceStream, _ mode: CaptureMode) {
        must { cuStreamBeginCapture_v2(stream.handle, mode.rawValue) }
    }

    /// - Returns: the error that the capture was spoiled with, or 0.
    public func endCapture(_ stream: DeviceStream) -> Int32 {
        var graph: CUgraph = 0
        return during { unsafe cuStreamEndCapture(stream.handle, &graph) }
    }

    // MARK: Registered memory

    /// With all devices, as PyTorch does.
    public func register(_ memory: UnsafeMutableRawBufferPointer) {
        let portable: UInt32 = 1
        // Safe: only the address is kept.
        must { unsafe cuMemHostRegister_v2(memory.baseAddress, memory.count, portable) }
    }

    public func unregister(_ memory: UnsafeMutableRawBufferPointer) {
        must { unsafe cuMemHostUnregister(memory.baseAddress) }
    }
}

/// Memory of a device.
public final class FakeMemory: Sendable {
    public let device: FakeDevice
    public let address: UInt64
    public let byteCount: Int

    fileprivate init(device: FakeDevice, address: UInt64, byteCount: Int) {
        self.device = device
        self.address = address
        self.byteCount = byteCount
    }

    /// Its addresses, which the host must not follow.
    @unsafe public var range: UnsafeMutableRawBufferPointer {
        unsafe UnsafeMutableRawBufferPointer(
            start: UnsafeMutableRawPointer(bitPattern: UInt(address)), count: byteCount)
    }

    /// What it holds now. Nothing may be under way.
    public var bytes: [UInt8] {
        get {
            // Safe: the view has as many bytes, while nobody frees the memory.
            unsafe Array(UnsafeRawBufferPointer(start: fakecuda_view(address), count: byteCount))
        }
        set {
            precondition(newValue.count == byteCount, "all of it is set")
            // Safe: as above.
            unsafe UnsafeMutableRawBufferPointer(start: fakecuda_view(address), count: byteCount)
                .copyBytes(from: newValue)
        }
    }
}

/// Holds up streams until it is opened.
public final class FakeGate: Sendable {
    private let isOpen = Monitor(false)

    public init() {}

    public func open() {
        isOpen.withLock { $0 = true }
        isOpen.wakeAll()
    }

    /// Not for ever, so that a test that fails ends.
    private static let limitNanoseconds: UInt64 = 20_000_000_000

    fileprivate static let pass: @convention(c) (UnsafeMutableRawPointer?) -> Void = { gate in
        // Safe: only compared with NULL.
        guard let gate = unsafe gate else { return }
        // Safe: the reference that `wait` retained, taken once.
        let isOpen = unsafe Unmanaged<FakeGate>.fromOpaque(gate).takeRetainedValue().isOpen
        isOpen.wait(deadline: SystemClock.monotonicTime + limitNanoseconds) { $0 }
    }
}
