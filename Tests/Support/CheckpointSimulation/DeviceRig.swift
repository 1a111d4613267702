internal import CheckpointDevice
internal import CheckpointFormat
internal import CheckpointStorage
internal import CheckpointWriter
internal import StorageFaults

/// The devices of one run, with an application that computes on them: each save is of memory that a
/// kernel has just made, and the next kernel spoils it as soon as the checkpoint lets it.
struct DeviceRig: DeviceRuntime {
    private let devices: [SimulatedDevice]
    private let streams: [SimulatedStream]
    private let mistake: DeviceMistake?

    /// nil when the system has no room for another thread.
    init?(
        _ scheduler: SimulatedScheduler, _ mistake: DeviceMistake?, random: inout SplitMix64
    ) {
        self.mistake = mistake
        let hostMemory = PinnedMemory()
        devices = (0..<Int32.random(in: 1...2, using: &random)).map {
            SimulatedDevice(
                ordinal: $0, scheduler, hostMemory, byteCount: 3 * SmallFile.chunkByteCount,
                random: &random)
        }
        streams = devices.compactMap { $0.makeStream() }
        guard streams.count == devices.count else { return nil }
    }

    func open(_ name: DeviceName) throws(CheckpointError) -> any Device {
        FaultyDevice.plant(mistake, in: try OpenedDevice(devices[Int(name.ordinal)]))
    }

    var mayFail: Bool { devices.contains(where: \.mayFail) }

    /// Ends what the devices do.
    ///
    /// - Returns: what one of them did wrong.
    func stop() -> String? {
        for device in devices { device.stop() }
        return devices.lazy.compactMap(\.problem).first
    }

    /// Spreads a payload over the host, where `memory` holds it, and the devices.
    func place(
        _ payload: [UInt8], _ memory: AlignedBuffer, random: inout SplitMix64
    ) -> [CheckpointPayload.Region] {
        var regions: [CheckpointPayload.Region] = []
        var start = 0
        while start < payload.count {
            let left = payload.count - start
            let count = Bool.random(using: &random) ? left : .random(in: 1...left, using: &random)
            let isEarly = UInt8.random(in: 0..<4, using: &random) == 0
            let place = Int.random(in: 0...devices.count, using: &random)
            if place == devices.count {
                // Safe: the caller keeps the buffer, which has these bytes.
                let range = unsafe UnsafeRawBufferPointer(
                    start: memory.baseAddress + start, count: count)
                unsafe regions.append(CheckpointPayload.Region(range, isEarly: isEarly))
            } else {
                streams[place].add(
                    .store(Array(payload[start..<start + count]), at: start))
                regions.append(region(start..<start + count, isEarly, on: place))
            }
            start += count
        }
        return regions
    }

    private func region(
        _ range: Range<Int>, _ isEarly: Bool, on place: Int
    ) -> CheckpointPayload.Region {
        let address = UInt(SimulatedDevice.start) + UInt(range.lowerBound)
        // Safe: nobody follows it but the device.
        return unsafe CheckpointPayload.Region(
            UnsafeRawBufferPointer(
                start: UnsafeRawPointer(bitPattern: address), count: range.count),
            isEarly: isEarly,
            stream: DeviceStream(devices[place].name, handle: streams[place].handle))
    }

    /// The next step of the training changes all memory of the devices.
    func compute(behind ticket: CheckpointTicket) throws(CheckpointError) {
        for (device, stream) in zip(devices, streams) {
            try ticket.hold(DeviceStream(device.name, handle: stream.handle))
        }
        for stream in streams {
            let garbage = [UInt8](repeating: 0xEE, count: 3 * SmallFile.chunkByteCount)
            stream.add(.store(garbage, at: 0))
        }
    }
}
