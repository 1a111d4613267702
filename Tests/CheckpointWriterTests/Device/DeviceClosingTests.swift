import CheckpointDevice
import CheckpointFormat
import CheckpointStorage
import CheckpointWriter
import FakeDevices
import Glibc
import StorageFaults
import Testing

/// Once a ticket has ended, or its writer, no device touches the caller's memory or the pool: the
/// stand-in loses the device that does. `FakeDevices.use` throws when something was left behind.
@Suite(.serialized) struct DeviceClosingTests {
    enum End: CaseIterable { case close, abandon, letGo }

    @Test(arguments: End.allCases, [1, 3, 64])
    func copiesUnderWayEndBeforeTheWriter(end: End, poolChunks: Int) throws {
        for seed in 1...6 as ClosedRange<UInt64> {
            try FakeDevices.use(seed: seed) { devices in
                FakeDevices.delay(microseconds: 500...2000)
                let state = DeviceState(devices)
                state.add(300_000, on: 0)
                state.add(100_000, on: nil)
                state.add(300_000, on: 1)
                var file: DeviceWriter? = try DeviceWriter(devices, poolChunks: poolChunks)
                let storage = try #require(file?.storage)
                let tickets = try (1...2).map { try #require(file).writer.save($0, state) }
                usleep(UInt32(seed * 700))
                switch end {
                case .close: try file?.writer.close()
                case .abandon: file?.writer.abandon()
                case .letGo: break
                }
                file = nil
                #expect(FakeDevices.registeredByteCount == 0)
                for memory in state.memories { memory.device.free(memory) }
                for ticket in tickets {
                    let outcome = try #require(ticket.outcome, "it has ended")
                    if case .failed(let error) = outcome { #expect(error.code == .closed) }
                    if end == .close, ticket.step == 2 { #expect(outcome == .durable) }
                }
                try nothingIsUnderWay(devices)
                if end == .close { #expect(try storage.newest().bytes == state.expected) }
            }
        }
    }

    /// Memory is freed, and unregistered: a copy that is still to come loses the device.
    private func nothingIsUnderWay(_ devices: FakeDevices) throws {
        usleep(10_000)
        for device in devices.devices { #expect(device.error == 0, "\(device.name)") }
    }

    /// It cannot end before the device does, as that still writes to the pool.
    @Test(arguments: [End.close, .abandon]) func theEndWaitsForTheDevice(end: End) throws {
        try FakeDevices.use { devices in
            let state = DeviceState(devices)
            state.add(300_000, on: 0)
            let file = try DeviceWriter(devices)
            let gate = FakeGate()
            devices[0].wait(for: gate, on: state.streams[0])
            let ticket = try file.writer.save(1, state)
            // From here on the device has all copies.
            try ticket.hold(state.streams[0], timeoutNanoseconds: deadlineNanoseconds)
            try self.end(file, end, waitsFor: gate) { #expect(ticket.outcome == nil) }
            #expect(ticket.outcome != nil)
            devices[0].free(state.memories[0])
            try nothingIsUnderWay(devices)
        }
    }

    /// Ends the writer of `file`, which takes until the gate is open.
    private func end(
        _ file: DeviceWriter, _ end: End, waitsFor gate: FakeGate, _ meanwhile: () -> Void = {}
    ) throws {
        let hasEnded = Monitor(false)
        let thread = try WorkerThread(name: "closer") {
            if end == .close { try? file.writer.close() } else { file.writer.abandon() }
            hasEnded.withLock { $0 = true }
            hasEnded.wakeAll()
        }
        let limit = SystemClock.monotonicTime + 100_000_000
        #expect(!hasEnded.wait(deadline: limit) { $0 })
        meanwhile()
        gate.open()
        thread.join()
    }

    /// A worker hands a chunk to the device, piece by piece, when the end comes: the thread that
    /// waits for the device must not end before it has heard of it.
    @Test func theEndWaitsForWhatIsBeingQueued() throws {
        try FakeDevices.use(prepare: { FakeDevices.setVersion(12000) }) { devices in
            FakeDevices.delay(microseconds: 0...0)
            let state = DeviceState(devices)
            state.addTiny(3000, on: 0)
            for round in 0..<40 {
                let file = try DeviceWriter(devices)
                let ticket = try file.writer.save(1, state)
                usleep(UInt32(round % 8 * 200))
                file.writer.abandon()
                #expect(ticket.outcome != nil, "round \(round)")
                #expect(FakeDevices.registeredByteCount == 0)
            }
            try nothingIsUnderWay(devices)
        }
    }

    // MARK: Waiting that fails

    /// The thread that waits gets an error, while the copies go on: the ticket must not end before
    /// them.
    @Test(arguments: ["cuEventSynchronize", "cuCtxPushCurrent_v2"], 0..<12)
    func aWaitThatFailsIsNoEndOfTheCopies(name: String, after: Int) throws {
        try FakeDevices.use(seed: UInt64(after)) { devices in
            FakeDevices.delay(microseconds: 2000...4000)
            let state = DeviceState(devices)
            state.add(200_000, on: 0)
            state.add(200_000, on: 1)
            let file = try DeviceWriter(devices)
            #expect(try file.writer.outcome(1, [1]) == .durable)
            let calls = name == "cuEventSynchronize" ? after : after + 6
            FakeDevices.fail(name, error: 2, after: calls)
            let ticket: CheckpointTicket
            do throws(CheckpointError) { ticket = try file.writer.save(2, state) } catch {
                return try file.writer.close()
            }
            _ = try ticket.end()
            for memory in state.memories { memory.device.free(memory) }
            try nothingIsUnderWay(devices)
            file.writer.abandon()
            try nothingIsUnderWay(devices)
        }
    }

    /// One of two devices that fill a chunk fails at once, while the other one is still at it.
    @Test(arguments: UInt64(0)..<4, [false, true])
    func theOtherDeviceIsWaitedForToo(seed: UInt64, isFatal: Bool) throws {
        try FakeDevices.use(seed: seed) { devices in
            let state = DeviceState(devices)
            state.add(30_000, on: Int(seed % 2))
            state.add(30_000, on: 1 - Int(seed % 2))
            let file = try DeviceWriter(devices)
            let gate = FakeGate()
            devices[1].wait(for: gate, on: state.streams[1])
            if isFatal {
                for memory in state.memories where memory.device === devices[0] {
                    devices[0].free(memory)
                }
            } else {
                FakeDevices.fail("copy", error: 2)
            }
            let ticket = try file.writer.save(1, state)
            let error = #expect(throws: CheckpointError.self) {
                try ticket.wait(timeoutNanoseconds: 100_000_000)
            }
            #expect(error?.code == .timeout, "device 1 has not begun")
            gate.open()
            guard case .failed = try ticket.end() else {
                Issue.record("it ended as \(String(describing: ticket.outcome))")
                return
            }
            for memory in state.memories { memory.device.free(memory) }
            usleep(10_000)
            #expect(devices[1].error == 0)
            file.writer.abandon()
            usleep(10_000)
            #expect(devices[1].error == 0)
            #expect((devices[0].error != 0) == isFatal)
        }
    }

    /// Nothing can be learned of the copies, which are still to come: their buffer is lost.
    @Test func aBufferThatADeviceMayStillFillIsGivenUp() throws {
        try FakeDevices.use { devices in
            let state = DeviceState(devices)
            state.add(60_000, on: 0)
            let file = try DeviceWriter(devices, poolChunks: 1)
            let gate = FakeGate()
            devices[0].wait(for: gate, on: state.streams[0])
            for _ in 0..<2 { FakeDevices.fail("cuEventSynchronize", error: 2) }
            guard case .failed(let error) = try file.writer.save(1, state).end() else {
                Issue.record("two waits failed")
                return
            }
            #expect(error.code == .accelerator)
            let chunks = try file.holdChunks()
            let bytes = pattern(77, count: 60_000)
            let ticket = try file.writer.save(2, bytes)
            #expect(chunks.waitUntilHolding())
            gate.open()
            let deadline = SystemClock.monotonicTime + deadlineNanoseconds
            while FakeDevices.bytesToHost == 0, SystemClock.monotonicTime < deadline {
                usleep(1000)
            }
            chunks.open()
            #expect(try ticket.end() == .durable)
            #expect(try file.storage.newest().bytes == bytes)
            #expect(try file.writer.save(3, state).end() == .durable)
            #expect(try file.storage.newest().bytes == state.expected)
            try file.writer.close()
        }
    }

    /// The ticket has ended, as nothing can be learned of its copies; the pool stays for them.
    @Test(arguments: [End.close, .abandon], [0, 1])
    func theEndWaitsForCopiesOfWhichNothingIsKnown(end: End, failedEventCount: Int) throws {
        try FakeDevices.use { devices in
            let state = DeviceState(devices)
            state.add(60_000, on: 0)
            let file = try DeviceWriter(devices)
            let gate = FakeGate()
            devices[0].wait(for: gate, on: state.streams[0])
            for _ in 0..<2 { FakeDevices.fail("cuEventSynchronize", error: 2) }
            guard case .failed = try file.writer.save(1, state).end() else {
                Issue.record("two waits failed")
                return
            }
            for _ in 0..<failedEventCount { FakeDevices.fail("cuEventCreate", error: 2) }
            try self.end(file, end, waitsFor: gate)
            devices[0].free(state.memories[0])
            try nothingIsUnderWay(devices)
        }
    }

    /// The second device refuses its part of a chunk, after the first one has begun with its own.
    @Test(arguments: UInt64(0)..<8) func aRefusalWaitsForWhatHasBegun(seed: UInt64) throws {
        try FakeDevices.use(seed: seed) { devices in
            let state = DeviceState(devices)
            state.add(30_000, on: Int(seed % 2))
            state.add(30_000, on: 1 - Int(seed % 2))
            let file = try DeviceWriter(devices, poolChunks: 1)
            #expect(try file.writer.save(1, state).end() == .durable)
            let gate = FakeGate()
            for index in 0..<2 { devices[index].wait(for: gate, on: state.streams[index]) }
            FakeDevices.fail("cuMemcpyDtoHAsync_v2", error: 2, after: 1)
            let ticket = try file.writer.save(2, state)
            let error = #expect(throws: CheckpointError.self) {
                try ticket.wait(timeoutNanoseconds: 100_000_000)
            }
            #expect(error?.code == .timeout, "what was not refused is still to come")
            gate.open()
            guard case .failed = try ticket.end() else {
                Issue.record("a copy was refused")
                return
            }
            // The buffer is used again: nothing of the first device comes late.
            let next = pattern(99, count: 60_000)
            #expect(try file.writer.outcome(3, next) == .durable)
            #expect(try file.storage.newest().bytes == next)
            for memory in state.memories { memory.device.free(memory) }
            try nothingIsUnderWay(devices)
            file.writer.abandon()
        }
    }

    // MARK: Forks

    /// In a child of fork(2) every call is refused: the driver does not work there.
    @Test func aChildIsRefused() throws {
        try FakeDevices.use { devices in
            let state = DeviceState(devices)
            state.add(300_000, on: 0)
            let file = try DeviceWriter(devices)
            let gate = FakeGate()
            devices[0].wait(for: gate, on: state.streams[0])
            let ticket = try file.writer.save(1, state)
            try ticket.hold(state.streams[0], timeoutNanoseconds: deadlineNanoseconds)
            let stream = state.streams[0]
            let payload = state.payload
            let status = try inChild {
                do throws(CheckpointError) {
                    _ = try file.writer.save(step: 2, payload: payload)
                    return 1
                } catch { if error.code != .forked { return 2 } }
                do throws(CheckpointError) {
                    try ticket.hold(stream, timeoutNanoseconds: 1_000_000_000)
                    return 3
                } catch { if error.code != .forked { return 4 } }
                do throws(CheckpointError) {
                    _ = try devices.open(DeviceName(.cuda, 1))
                    return 5
                } catch { if error.code != .forked { return 6 } }
                file.writer.abandon()
                return 0
            }
            #expect(status == 0)
            gate.open()
            #expect(try ticket.end() == .durable)
            #expect(try file.storage.newest().bytes == state.expected)
            try file.writer.close()
        }
    }

    /// - Returns: what `body` does in a child of this process, which then ends.
    private func inChild(_ body: () -> Int32) throws -> Int32 {
        // Swift hides it; safe, as the child does little and ends without a return.
        let symbol = unsafe try #require(dlsym(nil, "fork"))
        let fork = unsafe unsafeBitCast(symbol, to: (@convention(c) () -> pid_t).self)
        let child = fork()
        if child == 0 { _exit(body()) }
        for _ in 0..<2000 {
            var status: Int32 = 0
            if unsafe waitpid(child, &status, WNOHANG) == child { return status >> 8 }
            usleep(10_000)
        }
        kill(child, SIGKILL)
        var status: Int32 = 0
        unsafe _ = waitpid(child, &status, 0)
        return -1
    }
}
