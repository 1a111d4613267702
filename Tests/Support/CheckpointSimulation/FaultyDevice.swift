internal import CheckpointDevice
internal import CheckpointFormat

/// Mistakes of a device, or of the code that calls one, so that the simulation can prove that it
/// would find them.
package enum DeviceMistake: String, CaseIterable, Sendable {
    /// A copy does not wait for the kernels that make what is copied.
    case ignoreReady
    /// The event of copies comes before they have ended.
    case hastyEvent
    /// The device writes to a buffer once more after the event of its copies.
    case lateWrite
    /// A stream that is held runs on.
    case looseHold
}

/// A device that makes a mistake, over one that does not.
final class FaultyDevice: Device {
    private let device: any Device
    private let mistake: DeviceMistake

    private init(_ device: any Device, _ mistake: DeviceMistake) {
        self.device = device
        self.mistake = mistake
    }

    /// `device` itself where there is no mistake.
    static func plant(_ mistake: DeviceMistake?, in device: any Device) -> any Device {
        mistake.map { FaultyDevice(device, $0) } ?? device
    }

    var name: DeviceName { device.name }

    func follow(_ event: any DeviceEvent) throws(CheckpointError) {
        if mistake != .ignoreReady { try device.follow(event) }
    }

    func hold(_ stream: UInt64, until event: any DeviceEvent) throws(CheckpointError) {
        if mistake != .looseHold { try device.hold(stream, until: event) }
    }

    func copyToHost(_ copies: [DeviceCopy]) throws(CheckpointError) -> any DeviceEvent {
        let event = try device.copyToHost(copies)
        switch mistake {
        case .hastyEvent:
            let hasty = SimulatedEvent()
            hasty.come(nil)
            return hasty
        case .lateWrite:
            _ = try device.copyToHost(copies)
            return event
        case .ignoreReady, .looseHold: return event
        }
    }

    // MARK: What goes through as it is

    func pin(_ memory: UnsafeMutableRawBufferPointer) throws(CheckpointError) -> Bool {
        // Safe, here and below: the caller vouches for the memory.
        try unsafe device.pin(memory)
    }

    func unpin(_ memory: UnsafeMutableRawBufferPointer) throws(CheckpointError) {
        try unsafe device.unpin(memory)
    }

    func record(_ stream: UInt64) throws(CheckpointError) -> any DeviceEvent {
        try device.record(stream)
    }

    func mark() throws(CheckpointError) -> any DeviceEvent { try device.mark() }

    func drain() throws(CheckpointError) { try device.drain() }

    func copyToDevice(_ copies: [DeviceCopy]) throws(CheckpointError) -> any DeviceEvent {
        try device.copyToDevice(copies)
    }
}
