public import CheckpointFormat
internal import CheckpointStorage

/// The devices of one writer or one read, each opened when it is first named, and the host memory
/// that is registered with them.
public final class DeviceTable: Sendable {
    private let runtime: any DeviceRuntime
    /// nil once it is closed.
    private let devices = Monitor<[DeviceName: any Device]?>([:])
    private let pins = Monitor([Pin]())

    // Unchecked: an address is kept, not followed.
    @safe private struct Pin: @unchecked Sendable {
        @unsafe let memory: UnsafeMutableRawBufferPointer
        /// Who undoes it; nil when somebody else had registered the memory.
        let device: (any Device)?
        /// Keeps the memory.
        let owner: AnyObject
    }

    public init(runtime: any DeviceRuntime) { self.runtime = runtime }

    deinit { close() }

    /// - Parameter opened: called once for a device, before anybody gets it.
    /// - Throws: what opening and `opened` throw: the next call tries again. `closed`.
    public func device(
        _ name: DeviceName, opened: (any Device) throws(CheckpointError) -> Void = { _ in }
    ) throws(CheckpointError) -> any Device {
        try devices.withLock { devices throws(CheckpointError) in
            if let known = devices?[name] { return known }
            guard devices != nil else {
                throw CheckpointError(.closed, "the file was closed; open it again")
            }
            let device = try runtime.open(name)
            try opened(device)
            devices?[name] = device
            return device
        }
    }

    /// - Throws: `invalidArgument` when a stream of an open device records a graph; `forked`.
    public func refuseGraph(on stream: DeviceStream) throws(CheckpointError) {
        guard let device = devices.withLock({ $0?[stream.device] }) else { return }
        do throws(CheckpointError) {
            _ = try device.record(stream.handle)
        } catch {
            // A device that has failed runs nothing that could be held back.
            if [.invalidArgument, .forked].contains(error.code) { throw error }
        }
    }

    /// Registers memory of `owner` with all devices until `close`, unless that was done.
    ///
    /// - Returns: why that is not possible; nil when it is registered.
    @unsafe public func pin(
        _ memory: UnsafeMutableRawBufferPointer, of owner: AnyObject, for device: any Device
    ) -> String? {
        pins.withLock { pins in
            // Safe: addresses are compared.
            if pins.contains(where: { unsafe $0.memory.baseAddress == memory.baseAddress }) {
                return nil
            }
            do throws(CheckpointError) {
                // Safe: the caller vouches for the memory.
                let isNew = try unsafe device.pin(memory)
                pins.append(unsafe Pin(memory: memory, device: isNew ? device : nil, owner: owner))
                return nil
            } catch {
                return error.message
            }
        }
    }

    /// Memory that a device may still copy to or from: it stays until the process ends.
    private static let lost = Monitor([Pin]())

    /// Lets go of the memory and of the devices, once they copy nothing any more.
    public func close() {
        let open = devices.withLock { devices in
            defer { devices = nil }
            return devices ?? [:]
        }
        let areOver = open.values.map(Self.isOver).allSatisfy { $0 }
        pins.withLock { pins in
            // All devices copy to memory that one of them has registered.
            if !areOver {
                Self.lost.withLock { [pins] in $0 += pins }
            } else {
                // Safe: the memory is still there. A device that fails this has failed before.
                for pin in pins { try? unsafe pin.device?.unpin(pin.memory) }
            }
            pins = []
        }
    }

    /// Waits for the copies that nobody could wait for.
    ///
    /// - Returns: whether they are known to have ended.
    private static func isOver(_ device: any Device) -> Bool {
        do throws(CheckpointError) {
            try device.mark().wait()
            return true
        } catch {
            // It may have no event left, and still copy.
            return (try? device.drain()) != nil
        }
    }
}

/// The runtimes of this machine, whose libraries are loaded on demand.
public struct InstalledRuntimes: DeviceRuntime {
    public init() {}

    public func open(_ name: DeviceName) throws(CheckpointError) -> any Device {
        switch name.kind {
        case .cuda: try CUDADevice(ordinal: name.ordinal, of: CUDADriver.installed())
        }
    }
}
