internal import CPlatformCUDA
public import CheckpointFormat
internal import Synchronization

/// NVIDIA's driver.
// Unchecked: calls of the C object may come from any thread; see cuda_driver.h.
@safe public final class CUDADriver: @unchecked Sendable {
    @unsafe fileprivate let driver: OpaquePointer

    /// Finds functions of a driver by name.
    public typealias Lookup = @convention(c) (UnsafePointer<CChar>?) -> UnsafeMutableRawPointer?

    /// The driver of this machine, loaded once for the process.
    ///
    /// - Throws: `unsupported`, with the loader's own words.
    public static func installed() throws(CheckpointError) -> CUDADriver {
        try unsafe CUDADriver(nil)
    }

    /// - Parameter lookup: in place of the installed library.
    @unsafe public init(_ lookup: Lookup?) throws(CheckpointError) {
        var driver: OpaquePointer?
        var missing = [CChar](repeating: 0, count: 256)
        // Safe: the buffer has the size that is given.
        let result = unsafe pccp_cuda_open(lookup, &driver, &missing, missing.count)
        guard result == 0, let driver = unsafe driver else {
            throw Self.openingError(result, missing: text(missing))
        }
        unsafe self.driver = driver
    }

    private static func openingError(_ result: Int32, missing: String) -> CheckpointError {
        let advice = "save tensors that are on the CPU, or install NVIDIA's driver"
        switch result {
        case PCCP_CUDA_FORKED: return forked
        case PCCP_CUDA_NO_LIBRARY:
            return CheckpointError(
                .unsupported, "a tensor is on a CUDA device, but \(missing); \(advice)")
        case PCCP_CUDA_NO_FUNCTION:
            return CheckpointError(
                .unsupported,
                "NVIDIA's driver on this machine has no function \(missing); install a newer one")
        default:
            return CheckpointError(
                .unsupported,
                "NVIDIA's driver does not start: \(missing) (\(result)); \(advice)")
        }
    }

    fileprivate func check(_ result: Int32, _ call: String) throws(CheckpointError) {
        if result == 0 { return }
        switch result {
        case PCCP_CUDA_CAPTURING:
            throw CheckpointError(
                .invalidArgument,
                "the stream is recording a CUDA graph, so nothing is saved, loaded or held on it "
                    + "now; do that after the capture")
        case PCCP_CUDA_FORKED:
            throw Self.forked
        case PCCP_CUDA_NO_MEMORY:
            throw CheckpointError(.outOfMemory, "there is no host memory to \(call)")
        default:
            throw CheckpointError(
                .accelerator,
                "CUDA could not \(call): \(words(result)); after an error of the device itself "
                    + "only a new process can use it: start again, and resume")
        }
    }

    private static let forked = CheckpointError(
        .forked,
        "CUDA was used before this process was forked, and does not work in the child; start "
            + "processes with the method spawn")

    private func words(_ result: Int32) -> String {
        var words = [CChar](repeating: 0, count: 256)
        // Safe: the buffer has the size that is given.
        unsafe pccp_cuda_error_text(driver, result, &words, words.count)
        return text(words)
    }
}

/// What a C function wrote into a buffer.
private func text(_ buffer: [CChar]) -> String {
    String(decoding: buffer.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
}

/// A CUDA device: its primary context, which torch and others use too.
// Unchecked: the C object may be used from any thread.
@safe public final class CUDADevice: Device, @unchecked Sendable {
    public let name: DeviceName
    fileprivate let driver: CUDADriver
    @unsafe fileprivate let device: OpaquePointer
    /// Held from the first copy of a call to the event behind the last one. A copy that fails later
    /// may report that to the next event of its stream only: it must not be that of other copies,
    /// of which nobody would know then that they are garbage.
    private let order = Mutex(())

    public init(ordinal: Int32, of driver: CUDADriver) throws(CheckpointError) {
        name = DeviceName(.cuda, ordinal)
        self.driver = driver
        var device: OpaquePointer?
        // Safe, here and below: handles of the driver, alive as long as this object.
        let result = unsafe pccp_cuda_device_open(driver.driver, ordinal, &device)
        if result == Self.noSuchDevice { throw Self.missing(name) }
        try driver.check(result, "open \(name)")
        guard let device = unsafe device else { throw Self.missing(name) }
        unsafe self.device = device
    }

    deinit { unsafe pccp_cuda_device_close(device) }

    /// CUDA_ERROR_INVALID_DEVICE.
    private static let noSuchDevice: Int32 = 101

    private static func missing(_ name: DeviceName) -> CheckpointError {
        CheckpointError(
            .unsupported,
            "there is no device \(name) in this process; see nvidia-smi, and the variable "
                + "CUDA_VISIBLE_DEVICES")
    }

    private func check(_ result: Int32, _ call: String) throws(CheckpointError) {
        try driver.check(result, "\(call) on \(name)")
    }

    public func pin(_ memory: UnsafeMutableRawBufferPointer) throws(CheckpointError) -> Bool {
        // Safe: handles of the driver, alive as long as this object.
        let result = unsafe pccp_cuda_register(device, memory.baseAddress, memory.count)
        if result == Self.alreadyRegistered { return false }
        try check(result, "register \(memory.count) bytes of host memory")
        return true
    }

    /// CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED.
    private static let alreadyRegistered: Int32 = 712

    public func unpin(_ memory: UnsafeMutableRawBufferPointer) throws(CheckpointError) {
        let result = unsafe pccp_cuda_unregister(device, memory.baseAddress)
        try check(result, "unregister host memory")
    }

    public func record(_ stream: UInt64) throws(CheckpointError) -> any DeviceEvent {
        var event: OpaquePointer?
        // Safe: handles of the driver, alive as long as this object.
        try check(unsafe pccp_cuda_record(device, stream, &event), "record an event")
        return unsafe CUDAEvent(event, self)
    }

    public func mark() throws(CheckpointError) -> any DeviceEvent {
        try order.withLock { _ throws(CheckpointError) in try markNow() }
    }

    private func markNow() throws(CheckpointError) -> any DeviceEvent {
        var event: OpaquePointer?
        try check(unsafe pccp_cuda_mark(device, &event), "mark the copies")
        return unsafe CUDAEvent(event, self)
    }

    public func drain() throws(CheckpointError) {
        // Safe: a handle of the driver, alive as long as this object.
        try check(unsafe pccp_cuda_drain(device), "wait for the copies")
    }

    public func follow(_ event: any DeviceEvent) throws(CheckpointError) {
        let event = CUDAEvent.of(event)
        // Safe: handles of the driver, alive as long as this object.
        try check(unsafe pccp_cuda_follow(device, event.event), "wait for the training stream")
    }

    public func hold(_ stream: UInt64, until event: any DeviceEvent) throws(CheckpointError) {
        let event = CUDAEvent.of(event)
        try check(unsafe pccp_cuda_hold(device, stream, event.event), "hold the training stream")
    }

    public func copyToHost(_ copies: [DeviceCopy]) throws(CheckpointError) -> any DeviceEvent {
        let copies = unsafe Self.described(copies)
        return try order.withLock { _ throws(CheckpointError) in
            try check(unsafe pccp_cuda_to_host(device, copies, copies.count), "copy to the host")
            return try markNow()
        }
    }

    public func copyToDevice(_ copies: [DeviceCopy]) throws(CheckpointError) -> any DeviceEvent {
        // Safe: handles of the driver, alive as long as this object.
        let copies = unsafe Self.described(copies)
        return try order.withLock { _ throws(CheckpointError) in
            try check(
                unsafe pccp_cuda_to_device(device, copies, copies.count), "copy to the device")
            return try markNow()
        }
    }

    /// Memory of this device, for measurements.
    public func allocate(byteCount: Int) throws(CheckpointError) -> CUDAMemory {
        var address: UInt64 = 0
        try check(
            unsafe pccp_cuda_allocate(device, byteCount, &address), "allocate \(byteCount) bytes")
        return CUDAMemory(self, address: address, byteCount: byteCount)
    }

    /// Such as `NVIDIA H200`.
    public var modelName: String {
        var name = [CChar](repeating: 0, count: 256)
        // Safe: the buffer has the size that is given.
        return unsafe pccp_cuda_device_name(device, &name, name.count) == 0
            ? text(name) : "\(self.name)"
    }

    private static func described(_ copies: [DeviceCopy]) -> [pccp_cuda_copy] {
        unsafe copies.map {
            unsafe pccp_cuda_copy(host: $0.host, device: $0.address, byte_count: $0.byteCount)
        }
    }
}

/// Memory of a device, which goes with this object.
public final class CUDAMemory: Sendable {
    private let device: CUDADevice
    public let address: UInt64
    public let byteCount: Int

    fileprivate init(_ device: CUDADevice, address: UInt64, byteCount: Int) {
        self.device = device
        self.address = address
        self.byteCount = byteCount
    }

    // Safe: allocated on this device, freed once.
    deinit { unsafe pccp_cuda_free(device.device, address) }
}

// Unchecked: the C object is immutable once it is recorded.
@safe private final class CUDAEvent: DeviceEvent, @unchecked Sendable {
    @unsafe let event: OpaquePointer?
    /// Keeps the device open.
    private let device: CUDADevice

    @unsafe init(_ event: OpaquePointer?, _ device: CUDADevice) {
        unsafe self.event = event
        self.device = device
    }

    // Safe, here and below: the event is this object's, and the device is open.
    deinit { unsafe pccp_cuda_event_free(event) }

    func wait() throws(CheckpointError) {
        try device.driver.check(
            unsafe pccp_cuda_wait(event), "finish the copies on \(device.name)")
    }

    static func of(_ event: any DeviceEvent) -> CUDAEvent {
        guard let event = event as? CUDAEvent else {
            preconditionFailure("devices of two runtimes do not wait for each other")
        }
        return event
    }
}
