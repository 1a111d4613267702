import CheckpointDevice
import CheckpointFormat
import CheckpointStorage
import CheckpointWriter
import FakeDevices
import StorageFaults
import Testing

/// A state whose parts are on devices and on the host, and the bytes that a checkpoint of it holds.
final class DeviceState {
    private let devices: FakeDevices
    /// One for each device: what the application computes on.
    let streams: [DeviceStream]
    private(set) var memories: [FakeMemory] = []
    private var hostMemories: [AlignedBuffer] = []
    private var regions: [CheckpointPayload.Region] = []
    private(set) var expected: [UInt8] = []
    private var seed: UInt64

    init(_ devices: FakeDevices, seed: UInt64 = 1) {
        self.devices = devices
        self.seed = seed
        streams = devices.devices.map { $0.makeStream() }
    }

    var payload: CheckpointPayload { CheckpointPayload(opaque: regions) }

    private func nextBytes(_ count: Int) -> [UInt8] {
        seed += 1
        let bytes = pattern(seed, count: count)
        expected += bytes
        return bytes
    }

    private func add(
        _ memory: UnsafeMutableRawBufferPointer, isEarly: Bool, _ stream: DeviceStream?
    ) {
        // Safe: the state keeps the memory.
        regions.append(
            unsafe CheckpointPayload.Region(
                UnsafeRawBufferPointer(memory), isEarly: isEarly, stream: stream))
    }

    /// - Parameter ordinal: nil for the host.
    @discardableResult
    func add(_ count: Int, on ordinal: Int?, isEarly: Bool = false) -> FakeMemory? {
        let bytes = nextBytes(count)
        guard let ordinal else {
            let memory = AlignedBuffer(byteCount: count)
            memory.copy(bytes, to: 0)
            hostMemories.append(memory)
            // Safe: the buffer has that size.
            let range = unsafe UnsafeMutableRawBufferPointer(
                start: memory.baseAddress, count: count)
            unsafe add(range, isEarly: isEarly, nil)
            return nil
        }
        let memory = devices[ordinal].memory(bytes)
        memories.append(memory)
        unsafe add(memory.range, isEarly: isEarly, streams[ordinal])
        return memory
    }

    /// Pieces of one allocation, of 1 to 40 bytes, with gaps between them, which are not saved.
    func addTiny(_ count: Int, on ordinal: Int) {
        let all = pattern(seed, count: count * 41)
        let memory = devices[ordinal].memory(all)
        memories.append(memory)
        for index in 0..<count {
            let start = index * 41
            let range = start..<start + 1 + index % 40
            expected += all[range]
            // Safe: the range lies in the memory.
            let piece = unsafe UnsafeMutableRawBufferPointer(rebasing: memory.range[range])
            unsafe add(piece, isEarly: false, streams[ordinal])
        }
        seed += 1
    }

    /// Sets all device memory, as a training step does, on the streams of the state.
    func overwrite(_ value: UInt8) {
        for memory in memories {
            memory.device.set(memory, to: value, on: streams[Int(memory.device.name.ordinal)])
        }
    }

    func synchronize() {
        for (device, stream) in zip(devices.devices, streams) { device.synchronize(stream) }
    }
}

/// A writer over a new file in memory that saves from the stand-in's devices.
struct DeviceWriter {
    static let chunk = 64 << 10

    let storage: RecordingStorage
    let writer: CheckpointWriter

    init(
        _ devices: any DeviceRuntime, inFlight: Int = 2, retain: Int = 1, poolChunks: Int = 64,
        _ configure: (inout WriterOptions) -> Void = { _ in }
    ) throws {
        storage = try memoryFile(inFlight: inFlight, retain: retain, capacity: 2 << 20)
        writer = try CheckpointWriter(
            storage: storage,
            options: Self.options(devices, poolChunks: poolChunks, configure))
    }

    static func options(
        _ devices: any DeviceRuntime, poolChunks: Int = 64,
        _ configure: (inout WriterOptions) -> Void = { _ in }
    ) -> WriterOptions {
        var options = WriterOptions()
        options.deviceRuntime = devices
        options.poolByteCount = UInt64(poolChunks * chunk)
        options.writerWorkerCount = 1
        options.snapshotWorkerCount = 2
        configure(&options)
        return options
    }

    /// From here on chunks are held back on their way to the medium.
    func holdChunks() throws -> Gate {
        let geometry = try storage.geometry
        let data = geometry.dataOffset..<geometry.tailOffset
        let gate = Gate { call in
            if case .write(let offset, _) = call { return data.contains(offset) }
            return false
        }
        storage.setFaultHook(gate.hook)
        return gate
    }
}

extension CheckpointWriter {
    func save(
        _ step: UInt64, _ state: DeviceState, isUrgent: Bool = false, needsApproval: Bool = false
    ) throws(CheckpointError) -> CheckpointTicket {
        try save(
            step: step, payload: state.payload, isUrgent: isUrgent, needsApproval: needsApproval)
    }
}

extension CheckpointTicket {
    /// The end, which comes in time.
    func end() throws(CheckpointError) -> CheckpointOutcome {
        try wait(timeoutNanoseconds: deadlineNanoseconds)
    }
}
