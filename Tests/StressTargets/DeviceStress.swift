import CheckpointDevice
import CheckpointFormat
import CheckpointStorage
import CheckpointWriter
import FakeDevices
import StorageFaults

/// What the threads of a run compute on: each has a stream of its own, and memory of its own on a
/// device of the stand-in and on the host. ThreadSanitizer sees the order that a device
/// guarantees, so it reports a buffer that is read before its copies have come.
struct DeviceStress: Sendable {
    let runtime: FakeDevices
    private let workers: [Worker]

    private struct Worker {
        let device: FakeDevice
        let memory: FakeMemory
        let stream: DeviceStream
    }

    init(_ runtime: FakeDevices, threadCount: Int, capacity: Int) {
        self.runtime = runtime
        workers = (0..<threadCount).map { number in
            let device = runtime[number % runtime.devices.count]
            let memory = device.memory([UInt8](repeating: 0, count: capacity))
            return Worker(device: device, memory: memory, stream: device.makeStream())
        }
    }

    /// What a step has made, and what belongs to it on the host.
    struct State {
        let digest: Digest
        let payload: CheckpointPayload
        fileprivate let hostMemory: AlignedBuffer
        fileprivate let thread: Int
    }

    /// Queues a training step of a thread, and describes what it makes.
    func compute(
        thread: Int, byteCount: Int, capacity: Int, random: inout SplitMix64
    ) -> State {
        let worker = workers[thread]
        let hostCount = min(Int(random.next() % 5000), capacity - byteCount)
        let value = UInt8(truncatingIfNeeded: random.next())
        worker.device.set(worker.memory, to: value, on: worker.stream)
        let hostBytes = ImageBuilder.bytes(hostCount, seed: random.next())
        let hostMemory = AlignedBuffer(byteCount: hostCount)
        hostMemory.copy(hostBytes, to: 0)
        let isEarly = random.next() % 3 == 0
        // Safe: the state keeps the host's part, and the run that of the device.
        let regions = unsafe [
            CheckpointPayload.Region(
                UnsafeRawBufferPointer(start: hostMemory.baseAddress, count: hostCount)),
            CheckpointPayload.Region(
                UnsafeRawBufferPointer(rebasing: worker.memory.range[..<byteCount]),
                isEarly: isEarly, stream: worker.stream),
        ]
        return State(
            digest: Digest(of: hostBytes + [UInt8](repeating: value, count: byteCount)),
            payload: CheckpointPayload(opaque: regions), hostMemory: hostMemory, thread: thread)
    }

    /// The next step changes all of it, as soon as the checkpoint lets it.
    func continueBehind(_ ticket: CheckpointTicket, _ state: State) throws(CheckpointError) {
        let worker = workers[state.thread]
        try ticket.hold(worker.stream)
        worker.device.set(worker.memory, to: 0xEE, on: worker.stream)
        state.hostMemory.fillWithZeros(0..<state.hostMemory.byteCount)
    }
}
