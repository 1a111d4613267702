import CheckpointDevice
import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import CheckpointWriter
import FakeDevices
import Logging
import StorageFaults
import Testing

/// A device that fails costs the checkpoints that come from it, and nothing else.
@Suite(.serialized) struct DeviceFailureTests {
    /// The end of a ticket that fails because of the device.
    private func failure(of ticket: CheckpointTicket) throws -> CheckpointError? {
        guard case .failed(let error) = try ticket.end() else {
            Issue.record("step \(ticket.step) ended as \(String(describing: ticket.outcome))")
            return nil
        }
        return error
    }

    /// What was durable is so still, and memory of the host is saved.
    private func worksForTheHost(
        _ file: DeviceWriter, after step: UInt64, holds expected: [UInt8]
    ) throws {
        #expect(try file.storage.newest().bytes == expected)
        for step in step + 1...step + 4 {
            let bytes = pattern(step, count: 300_000)
            #expect(try file.writer.outcome(step, bytes) == .durable)
            #expect(try file.storage.newest().bytes == bytes)
        }
        #expect(!file.writer.statistics.isFailStop)
    }

    // MARK: Opening

    @Test func aMachineWithoutADriverSavesTensorsOfTheHost() throws {
        try #require(throws: CheckpointError.self) { try CUDADriver.installed() }
        try FakeDevices.use { devices in
            let state = DeviceState(devices)
            state.add(100_000, on: 0)
            let file = try DeviceWriter(InstalledRuntimes())
            #expect(try file.writer.outcome(1, [1, 2, 3]) == .durable)
            let error = #expect(throws: CheckpointError.self) { try file.writer.save(2, state) }
            #expect(error?.code == .unsupported)
            #expect(error?.message.contains("libcuda.so.1") == true)
            #expect(error?.message.contains("on the CPU") == true)
            try worksForTheHost(file, after: 1, holds: [1, 2, 3])
            try file.writer.close()
        }
    }

    @Test func aDriverThatIsTooOldIsNamed() throws {
        try FakeDevices.use { devices in
            let state = DeviceState(devices)
            state.add(100_000, on: 0)
            let file = try DeviceWriter(OldRuntime())
            let error = #expect(throws: CheckpointError.self) { try file.writer.save(1, state) }
            #expect(error?.code == .unsupported)
            #expect(error?.message.contains("cuStreamIsCapturing") == true)
            #expect(try file.writer.outcome(1, [1, 2, 3]) == .durable)
            try file.writer.close()
        }
    }

    @Test func aDeviceThatIsNotThereIsNamed() throws {
        try FakeDevices.use { devices in
            let region = unsafe CheckpointPayload.Region(
                UnsafeRawBufferPointer(devices[0].memory([1, 2, 3]).range),
                stream: DeviceStream(DeviceName(.cuda, 5), handle: 0))
            let file = try DeviceWriter(devices)
            let error = #expect(throws: CheckpointError.self) {
                try file.writer.save(step: 1, payload: CheckpointPayload(opaque: [region]))
            }
            #expect(error?.code == .unsupported)
            #expect(error?.message.contains("cuda:5") == true)
            #expect(error?.message.contains("new process") == false)
            #expect(try file.writer.outcome(1, [1, 2, 3]) == .durable)
            try file.writer.close()
        }
    }

    @Test func aDriverThatDoesNotStartSaysWhy() throws {
        try FakeDevices.use { devices in
            let state = DeviceState(devices)
            state.add(100_000, on: 0)
            let file = try DeviceWriter(FreshRuntime())
            FakeDevices.fail("cuInit", error: 719)
            let error = #expect(throws: CheckpointError.self) { try file.writer.save(1, state) }
            #expect(error?.code == .unsupported)
            #expect(error?.message.contains("CUDA_ERROR_LAUNCH_FAILED") == true)
            // Another attempt may find it running.
            #expect(try file.writer.save(1, state).end() == .durable)
            #expect(try file.storage.newest().bytes == state.expected)
            try file.writer.close()
        }
    }

    // MARK: Registered memory

    @Test func aPoolThatCannotBeRegisteredIsOnlySlower() throws {
        try FakeDevices.use { devices in
            FakeDevices.limitRegistration(byteCount: 100_000)
            let log = CapturedLog()
            let state = DeviceState(devices)
            state.add(300_000, on: 0)
            state.addTiny(500, on: 1)
            let file = try DeviceWriter(devices) { $0.logger = log.logger }
            for step in 1...3 as ClosedRange<UInt64> {
                #expect(try file.writer.save(step, state).end() == .durable)
            }
            #expect(try file.storage.newest().bytes == state.expected)
            #expect(FakeDevices.unpinnedCopyCount > 0)
            #expect(log.has(.warning, "slower"))
            let reason = try #require(file.writer.statistics.unpinnedReason)
            #expect(reason.contains("register") && reason.contains("out of memory"))
            try file.writer.close()
        }
    }

    @Test func aPoolThatTheCallerRegisteredStaysSo() throws {
        try FakeDevices.use { devices in
            let state = DeviceState(devices)
            state.add(300_000, on: 0)
            state.add(300_000, on: 1)
            let file = try DeviceWriter(devices)
            let pool = unsafe file.writer.poolMemory
            unsafe devices[1].register(pool)
            #expect(try file.writer.save(1, state).end() == .durable)
            #expect(try file.storage.newest().bytes == state.expected)
            #expect(FakeDevices.unpinnedCopyCount == 0)
            #expect(file.writer.statistics.unpinnedReason == nil)
            try file.writer.close()
            #expect(FakeDevices.registeredByteCount == UInt64(pool.count), "the caller's")
            unsafe devices[1].unregister(pool)
        }
    }

    // MARK: Copies

    @Test(arguments: [false, true]) func memoryThatIsFreedFailsTheSave(isLate: Bool) throws {
        try FakeDevices.use { devices in
            let state = DeviceState(devices)
            let memory = try #require(state.add(500_000, on: 0))
            let file = try DeviceWriter(devices, poolChunks: 3)
            #expect(try file.writer.save(1, state).end() == .durable)
            let gate = FakeGate()
            if isLate {
                FakeDevices.delay(microseconds: 3000...5000)
            } else {
                devices[0].wait(for: gate, on: state.streams[0])
            }
            let ticket = try file.writer.save(2, state)
            devices[0].free(memory)
            gate.open()
            let error = try failure(of: ticket)
            #expect(error?.code == .accelerator)
            #expect(error?.message.contains("CUDA_ERROR_ILLEGAL_ADDRESS") == true)
            #expect(error?.message.contains("new process") == true)
            // The stream is lost with the device: nothing is left to hold.
            try ticket.hold(state.streams[0], timeoutNanoseconds: deadlineNanoseconds)
            let next = #expect(throws: CheckpointError.self) { try file.writer.save(3, state) }
            #expect(next?.code == .accelerator)
            try worksForTheHost(file, after: 3, holds: state.expected)
            try file.writer.close()
        }
    }

    /// A copy that fails, whichever it is, fails its checkpoint only.
    @Test(arguments: 0..<8, [1, 3]) func aFailedCopyFailsOneSave(after: Int, pool: Int) throws {
        try FakeDevices.use { devices in
            let state = DeviceState(devices)
            state.add(200_000, on: 0)
            state.add(100_000, on: nil)
            state.add(200_000, on: 1)
            let file = try DeviceWriter(devices, poolChunks: pool)
            #expect(try file.writer.save(1, state).end() == .durable)
            FakeDevices.fail("copy", error: 2, after: after)
            let error = try failure(of: file.writer.save(2, state))
            #expect(error?.code == .accelerator)
            #expect(error?.message.contains("CUDA_ERROR_OUT_OF_MEMORY") == true)
            #expect(try file.storage.newest().step == 1)
            #expect(try file.writer.save(3, state).end() == .durable)
            #expect(try file.storage.newest().bytes == state.expected)
            #expect(FakeDevices.unpinnedCopyCount == 0, "no buffer was given up")
            #expect(file.writer.statistics.failedCount == 1)
            try file.writer.close()
        }
    }

    /// Both are copied at once, and one copy fails: no garbage becomes durable.
    @Test(arguments: UInt64(1)...40) func aFailedCopyIsNobodyElses(seed: UInt64) throws {
        try FakeDevices.use(seed: seed) { devices in
            let states = (0..<2).map { number in
                let state = DeviceState(devices, seed: seed * 10 + UInt64(number))
                state.add(250_000, on: 0)
                return state
            }
            let file = try DeviceWriter(devices, inFlight: 2, retain: 2) {
                $0.snapshotWorkerCount = 4
            }
            FakeDevices.delay(microseconds: 0...300)
            FakeDevices.fail("copy", error: 2, after: Int(seed % 8))
            let tickets = try states.enumerated().map {
                try file.writer.save(UInt64($0.offset), $0.element)
            }
            for ticket in tickets { _ = try ticket.end() }
            try file.writer.close()
            var hasFailed = false
            for (ticket, state) in zip(tickets, states) {
                switch ticket.outcome {
                case .durable:
                    let loaded = try file.storage.bytes(of: ticket.sequence)
                    let isRight = loaded == state.expected
                    #expect(isRight, "step \(ticket.step)")
                case .failed: hasFailed = true
                default: break
                }
            }
            #expect(hasFailed)
        }
    }

    @Test func aDeviceThatFailsForGoodLeavesTheOther() throws {
        try FakeDevices.use { devices in
            let lost = DeviceState(devices, seed: 1)
            lost.add(300_000, on: 0)
            let sound = DeviceState(devices, seed: 50)
            sound.add(300_000, on: 1)
            let file = try DeviceWriter(devices, poolChunks: 2)
            devices[0].free(lost.memories[0])
            #expect(try failure(of: file.writer.save(1, lost))?.code == .accelerator)
            #expect(try file.writer.save(2, sound).end() == .durable)
            #expect(try file.storage.newest().bytes == sound.expected)
            let error = #expect(throws: CheckpointError.self) { try file.writer.save(3, lost) }
            #expect(error?.code == .accelerator)
            try worksForTheHost(file, after: 3, holds: sound.expected)
            try file.writer.close()
        }
    }

    // MARK: Every call

    /// What the calls of a save can do wrong, in every place, once and for good.
    @Test(
        arguments: [
            "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2",
            "cuThreadExchangeStreamCaptureMode", "cuMemHostRegister_v2", "cuMemHostUnregister",
            "cuStreamCreate", "cuStreamWaitEvent", "cuStreamIsCapturing", "cuEventCreate",
            "cuEventRecord", "cuEventSynchronize", "cuEventDestroy_v2", "cuMemcpyDtoHAsync_v2",
            "cuMemcpyBatchAsync_v2", "copy",
        ], [false, true])
    func anErrorOfAnyCallIsReported(name: String, isSticky: Bool) throws {
        for after in [0, 1, 2, 4, 9, 19, 39] {
            do {
                try FakeDevices.use(seed: UInt64(after)) { devices in
                    FakeDevices.delay(microseconds: 0...100)
                    try failOnce(name, after: after, isSticky: isSticky, devices)
                }
            } catch let leaks as FakeDevices.Leaks {
                // What a call that frees something refuses to free, it leaves behind.
                let mayLeak = [
                    "cuCtxPushCurrent_v2", "cuThreadExchangeStreamCaptureMode",
                    "cuMemHostUnregister", "cuEventDestroy_v2", "cuCtxPopCurrent_v2",
                ]
                #expect(mayLeak.contains(name), "\(name) after \(after): \(leaks)")
            }
        }
    }

    private func failOnce(
        _ name: String, after: Int, isSticky: Bool, _ devices: FakeDevices
    ) throws {
        let state = DeviceState(devices, seed: 7)
        state.add(100_000, on: 0)
        state.addTiny(500, on: 0)
        state.add(70_000, on: 1)
        let file = try DeviceWriter(devices, poolChunks: 2)
        FakeDevices.fail(name, error: 719, after: after, isSticky: isSticky)
        var tickets: [CheckpointTicket] = []
        for step in 1...3 as ClosedRange<UInt64> {
            do throws(CheckpointError) {
                let ticket = try file.writer.save(step, state)
                tickets.append(ticket)
                try ticket.hold(state.streams[0], timeoutNanoseconds: deadlineNanoseconds)
            } catch {
                #expect(error.code == .accelerator, "\(name) after \(after): \(error)")
            }
        }
        var last: UInt64?
        for ticket in tickets {
            switch try ticket.end() {
            case .durable: last = ticket.step
            case .failed(let error): #expect(error.code == .accelerator, "\(name): \(error)")
            default: break
            }
        }
        if let last {
            let newest = try file.storage.newest()
            let isRight = newest.bytes == state.expected
            #expect(newest.step == last && isRight, "\(name) after \(after)")
        }
        #expect(try file.writer.outcome(9, [9, 9]) == .durable)
        try file.writer.close()
    }
}

/// A driver without a function that is needed.
private struct OldRuntime: DeviceRuntime {
    func open(_ name: DeviceName) throws(CheckpointError) -> any Device {
        try CUDADevice(ordinal: name.ordinal, of: FakeDevices.oldDriver())
    }
}

/// Starts the driver anew for each device.
private struct FreshRuntime: DeviceRuntime {
    func open(_ name: DeviceName) throws(CheckpointError) -> any Device {
        try CUDADevice(ordinal: name.ordinal, of: FakeDevices.newDriver())
    }
}
