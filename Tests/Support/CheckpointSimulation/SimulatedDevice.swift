internal import CheckpointDevice
internal import CheckpointFormat
internal import CheckpointStorage
internal import StorageFaults

/// A device whose streams are threads of a simulation: copies are late, come in two pieces, and now
/// and then fail.
///
/// It outlives the writers that open it, as a device does: memory and streams of the application
/// are its own. Addresses are none of the host's.
// Unchecked: one thread of the simulation runs at a time, and hands over under a lock.
final class SimulatedDevice: @unchecked Sendable {
    let name: DeviceName
    fileprivate let scheduler: SimulatedScheduler
    private var memory: [UInt8] = []
    private let hostMemory: PinnedMemory
    private var streams: [SimulatedStream] = []
    /// Copies until one fails; nil when none does.
    private var copiesUntilFailure: Int?
    private let failsForGood: Bool
    let mayFail: Bool
    /// After it the device does nothing any more.
    private(set) var fatalError: CheckpointError?
    /// A copy that came too late.
    private(set) var problem: String?

    static let start: UInt64 = 0x7000_0000_0000

    init(
        ordinal: Int32, _ scheduler: SimulatedScheduler, _ hostMemory: PinnedMemory,
        byteCount: Int, random: inout SplitMix64
    ) {
        name = DeviceName(.cuda, ordinal)
        self.hostMemory = hostMemory
        self.scheduler = scheduler
        memory = [UInt8](repeating: 0, count: byteCount)
        mayFail = UInt8.random(in: 0..<4, using: &random) == 0
        copiesUntilFailure = mayFail ? Int.random(in: 0..<12, using: &random) : nil
        failsForGood = Bool.random(using: &random)
    }

    func makeStream() -> SimulatedStream? {
        let stream = try? SimulatedStream(self, number: UInt64(streams.count))
        if let stream { streams.append(stream) }
        return stream
    }

    fileprivate func stream(_ handle: UInt64) -> SimulatedStream { streams[Int(handle)] }

    /// Ends the threads of all streams.
    func stop() {
        for stream in streams { stream.stop() }
    }

    // MARK: What its streams do

    fileprivate func store(_ bytes: [UInt8], at offset: Int) {
        if fatalError != nil { return }
        scheduler.sleep(nanoseconds: latency())
        memory.replaceSubrange(offset..<offset + bytes.count, with: bytes)
    }

    /// In two pieces, either of which may come first.
    fileprivate func copyToHost(_ copy: DeviceCopy) -> CheckpointError? {
        if let fatalError { return fatalError }
        scheduler.sleep(nanoseconds: latency())
        if let count = copiesUntilFailure {
            copiesUntilFailure = count > 0 ? count - 1 : nil
            if count == 0 {
                let error = CheckpointError(.accelerator, "a copy of the simulation failed")
                if failsForGood { fatalError = error }
                return error
            }
        }
        let middle = copy.byteCount / 2
        let pieces = [0..<middle, middle..<copy.byteCount]
        for piece in scheduler.draw(below: 2) == 0 ? pieces : pieces.reversed() {
            move(piece, of: copy)
            scheduler.sleep(nanoseconds: latency() / 4)
        }
        return nil
    }

    private func move(_ piece: Range<Int>, of copy: DeviceCopy) {
        let start = Int(copy.address - Self.start) + piece.lowerBound
        // Safe: the address is compared, and followed unless its memory was taken back.
        let target = unsafe UnsafeMutableRawBufferPointer(
            start: copy.host + piece.lowerBound, count: piece.count)
        if unsafe hostMemory.isTakenBack(target) {
            problem = "a device writes to memory that its user has taken back"
            return
        }
        unsafe target.copyBytes(from: memory[start..<start + piece.count])
    }

    /// Mostly some 50 µs; now and then much later.
    fileprivate func latency() -> UInt64 {
        scheduler.draw(below: 32) == 0
            ? scheduler.draw(below: 5_000_000) : scheduler.draw(below: 50_000)
    }

    fileprivate func pin(_ memory: UnsafeMutableRawBufferPointer) {
        unsafe hostMemory.add(memory)
    }

    fileprivate func unpin(_ memory: UnsafeMutableRawBufferPointer) {
        unsafe hostMemory.remove(memory)
    }
}

/// Host memory that was registered with the devices of a run, and is no more.
final class PinnedMemory: Sendable {
    private let takenBack = Monitor([Range<UInt>]())

    private static func addresses(_ memory: UnsafeMutableRawBufferPointer) -> Range<UInt> {
        let start = UInt(bitPattern: memory.baseAddress)
        return start..<start + UInt(memory.count)
    }

    /// The system may give an address again.
    func add(_ memory: UnsafeMutableRawBufferPointer) {
        let range = unsafe Self.addresses(memory)
        takenBack.withLock { $0.removeAll { $0.overlaps(range) } }
    }

    func remove(_ memory: UnsafeMutableRawBufferPointer) {
        let range = unsafe Self.addresses(memory)
        takenBack.withLock { $0.append(range) }
    }

    /// Memory that was never registered may be written to: a device only copies to it more slowly.
    func isTakenBack(_ memory: UnsafeMutableRawBufferPointer) -> Bool {
        let wanted = unsafe Self.addresses(memory)
        return takenBack.withLock { $0.contains { $0.overlaps(wanted) } }
    }
}

/// The order in which a device does things: a thread that does them.
final class SimulatedStream: Sendable {
    enum Work: Sendable {
        /// A kernel that changes memory.
        case store([UInt8], at: Int)
        case copy(DeviceCopy)
        case come(SimulatedEvent)
        case wait(SimulatedEvent)
    }

    private struct Queue {
        var work: [Work] = []
        var isStopped = false
    }

    let handle: UInt64
    private let queue = Monitor(Queue())
    private let device: SimulatedDevice
    private let thread = Monitor<WorkerThread?>(nil)

    fileprivate init(_ device: SimulatedDevice, number: UInt64) throws(StorageError) {
        self.device = device
        handle = number
        let thread = try WorkerThread(name: "stream") { [self] in run() }
        self.thread.withLock { $0 = thread }
    }

    func add(_ work: Work...) { add(work) }

    fileprivate func add(_ work: [Work]) {
        queue.withLock { $0.work += work }
        queue.wakeAll()
    }

    private func run() {
        // An asynchronous error goes to the event that comes next.
        var error: CheckpointError?
        while let next = next() {
            switch next {
            case .store(let bytes, let offset): device.store(bytes, at: offset)
            case .copy(let copy): error = error ?? device.copyToHost(copy)
            case .come(let event):
                event.come(device.fatalError ?? error)
                error = nil
            case .wait(let event): event.waitUntilCome()
            }
        }
    }

    private func next() -> Work? {
        queue.waitFor { queue -> Work?? in
            if !queue.work.isEmpty { return .some(queue.work.removeFirst()) }
            return queue.isStopped ? .some(nil) : nil
        }
    }

    /// Once all that is queued is done.
    fileprivate func stop() {
        queue.withLock { $0.isStopped = true }
        queue.wakeAll()
        thread.withLock { thread in
            let running = thread
            thread = nil
            return running
        }?.join()
    }
}

final class SimulatedEvent: DeviceEvent {
    private struct State {
        var hasCome = false
        var error: CheckpointError?
    }

    private let state = Monitor(State())

    func come(_ error: CheckpointError?) {
        state.withLock { state in
            state.hasCome = true
            state.error = error
        }
        state.wakeAll()
    }

    func waitUntilCome() { state.wait { $0.hasCome } }

    func wait() throws(CheckpointError) {
        let error = state.waitFor { state -> CheckpointError?? in
            state.hasCome ? .some(state.error) : nil
        }
        if let error { throw error }
    }
}

/// How a writer sees the device: through a side stream of its own.
final class OpenedDevice: Device {
    private let device: SimulatedDevice
    private let sideStream: SimulatedStream

    init(_ device: SimulatedDevice) throws(CheckpointError) {
        self.device = device
        guard let stream = device.makeStream() else {
            throw CheckpointError(.accelerator, "there is no room for another stream")
        }
        sideStream = stream
    }

    var name: DeviceName { device.name }

    private func check() throws(CheckpointError) {
        if let error = device.fatalError { throw error }
    }

    func pin(_ memory: UnsafeMutableRawBufferPointer) throws(CheckpointError) -> Bool {
        // Safe: addresses are kept.
        unsafe device.pin(memory)
        return true
    }

    func unpin(_ memory: UnsafeMutableRawBufferPointer) throws(CheckpointError) {
        unsafe device.unpin(memory)
    }

    func record(_ stream: UInt64) throws(CheckpointError) -> any DeviceEvent {
        try check()
        let event = SimulatedEvent()
        device.stream(stream).add(.come(event))
        return event
    }

    func mark() throws(CheckpointError) -> any DeviceEvent {
        try check()
        let event = SimulatedEvent()
        sideStream.add(.come(event))
        return event
    }

    func drain() throws(CheckpointError) { try mark().wait() }

    func follow(_ event: any DeviceEvent) throws(CheckpointError) {
        try check()
        sideStream.add(.wait(Self.own(event)))
    }

    func hold(_ stream: UInt64, until event: any DeviceEvent) throws(CheckpointError) {
        try check()
        device.stream(stream).add(.wait(Self.own(event)))
    }

    private static func own(_ event: any DeviceEvent) -> SimulatedEvent {
        guard let event = event as? SimulatedEvent else {
            preconditionFailure("the simulation has one kind of event")
        }
        return event
    }

    /// Those of one call happen in any order.
    func copyToHost(_ copies: [DeviceCopy]) throws(CheckpointError) -> any DeviceEvent {
        try check()
        var work: [SimulatedStream.Work] = []
        for copy in copies {
            let place = Int(device.scheduler.draw(below: UInt64(work.count + 1)))
            work.insert(.copy(copy), at: place)
        }
        let event = SimulatedEvent()
        sideStream.add(work + [.come(event)])
        return event
    }

    func copyToDevice(_ copies: [DeviceCopy]) throws(CheckpointError) -> any DeviceEvent {
        preconditionFailure("the simulation loads to the host")
    }
}
