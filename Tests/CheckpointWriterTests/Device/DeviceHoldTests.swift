import CheckpointDevice
import CheckpointFormat
import CheckpointStorage
import CheckpointWriter
import FakeDevices
import StorageFaults
import Testing

/// What a training stream did before a save is in it, and what `hold` held back is not.
@Suite(.serialized) struct DeviceHoldTests {
    /// Copies and kernels begin so late that each wrong order shows.
    private static func slow() { FakeDevices.delay(microseconds: 1000...3000) }

    @Test(arguments: [1, 64]) func workThatIsQueuedBeforeTheSaveIsInIt(poolChunks: Int) throws {
        try FakeDevices.use { devices in
            Self.slow()
            let state = DeviceState(devices)
            state.add(300_000, on: 0)
            state.add(50_000, on: 1)
            let file = try DeviceWriter(devices, poolChunks: poolChunks)
            for step in 1...4 as ClosedRange<UInt64> {
                state.overwrite(UInt8(step))
                #expect(try file.writer.save(step, state).end() == .durable)
                let expected = [UInt8](repeating: UInt8(step), count: 350_000)
                #expect(try file.storage.newest().bytes == expected)
            }
            try file.writer.close()
        }
    }

    /// Parts that different streams of one device have made.
    @Test func eachStreamIsWaitedFor() throws {
        try FakeDevices.use { devices in
            Self.slow()
            let memories = (0..<3).map { _ in devices[0].memory(pattern(1, count: 100_000)) }
            let streams = (0..<2).map { _ in devices[0].makeStream() }
            // The third is on the default stream.
            let used = streams + [DeviceStream(devices[0].name, handle: 0)]
            let regions = zip(memories, used).map { memory, stream in
                unsafe CheckpointPayload.Region(
                    UnsafeRawBufferPointer(memory.range), stream: stream)
            }
            let file = try DeviceWriter(devices)
            for step in 1...3 as ClosedRange<UInt64> {
                // Each of them comes last once.
                let gate = FakeGate()
                devices[0].wait(for: gate, on: used[Int(step) - 1])
                for (index, (memory, stream)) in zip(memories, used).enumerated() {
                    let value = UInt8(step) * 10 + UInt8(index)
                    devices[0].set(memory, to: value, on: stream)
                }
                let ticket = try file.writer.save(
                    step: step, payload: CheckpointPayload(opaque: regions))
                let error = #expect(throws: CheckpointError.self) {
                    try ticket.waitStaged(timeoutNanoseconds: 50_000_000)
                }
                #expect(error?.code == .timeout, "stream \(step) is late")
                gate.open()
                #expect(try ticket.end() == .durable)
                let expected = (0..<3).flatMap {
                    [UInt8](repeating: UInt8(step) * 10 + UInt8($0), count: 100_000)
                }
                #expect(try file.storage.newest().bytes == expected)
            }
            try file.writer.close()
        }
    }

    @Test(arguments: [1, 3, 64]) func workBehindAHoldIsNotInTheSave(poolChunks: Int) throws {
        try FakeDevices.use { devices in
            Self.slow()
            let state = DeviceState(devices)
            state.add(300_000, on: 0)
            state.add(70_000, on: nil)
            state.add(300_000, on: 1)
            let file = try DeviceWriter(devices, inFlight: 3, poolChunks: poolChunks)
            var tickets: [CheckpointTicket] = []
            var values: [UInt64: UInt8] = [:]
            for step in 1...5 as ClosedRange<UInt64> {
                state.overwrite(UInt8(step))
                values[step] = UInt8(step)
                let ticket = try file.writer.save(step, state)
                for stream in state.streams {
                    try ticket.hold(stream, timeoutNanoseconds: deadlineNanoseconds)
                }
                state.overwrite(0xEE)
                tickets.append(ticket)
                if step % 2 == 0 { try check(ticket, file, UInt8(step)) }
            }
            for ticket in tickets.dropLast() { _ = try ticket.end() }
            try check(#require(tickets.last), file, 5)
            try file.writer.close()
        }
    }

    private func check(_ ticket: CheckpointTicket, _ file: DeviceWriter, _ value: UInt8) throws {
        #expect(try ticket.end() == .durable)
        let bytes = try file.storage.newest().bytes
        #expect(bytes.prefix(300_000).allSatisfy { $0 == value }, "step \(ticket.step)")
        #expect(bytes.suffix(300_000).allSatisfy { $0 == value }, "step \(ticket.step)")
    }

    /// All copies of the save are queued at once, so nobody waits for the device.
    @Test func aLargePoolKeepsNobodyWaiting() throws {
        try FakeDevices.use { devices in
            let state = DeviceState(devices)
            state.add(700_000, on: 0)
            state.add(30_000, on: nil)
            let file = try DeviceWriter(devices)
            let gate = FakeGate()
            devices[0].wait(for: gate, on: state.streams[0])
            let ticket = try file.writer.save(1, state)
            // The copies cannot begin, and yet it returns.
            try ticket.hold(state.streams[0], timeoutNanoseconds: deadlineNanoseconds)
            #expect(!ticket.isStaged)
            #expect(FakeDevices.bytesToHost == 0)
            state.overwrite(0xEE)
            gate.open()
            #expect(try ticket.end() == .durable)
            #expect(try file.storage.newest().bytes == state.expected)
            #expect(file.writer.statistics.stagingStallNanoseconds == 0)
            try file.writer.close()
        }
    }

    @Test func aSmallPoolKeepsTheHostWaiting() throws {
        try FakeDevices.use { devices in
            let state = DeviceState(devices)
            state.add(700_000, on: 0)
            let file = try DeviceWriter(devices, poolChunks: 2)
            let gate = FakeGate()
            devices[0].wait(for: gate, on: state.streams[0])
            let ticket = try file.writer.save(1, state)
            let error = #expect(throws: CheckpointError.self) {
                try ticket.hold(state.streams[0], timeoutNanoseconds: 50_000_000)
            }
            #expect(error?.code == .timeout)
            gate.open()
            // Nothing is held back after a timeout.
            #expect(devices[0].synchronize(state.streams[0]) == 0)
            try ticket.hold(state.streams[0], timeoutNanoseconds: deadlineNanoseconds)
            state.overwrite(0xEE)
            #expect(try ticket.end() == .durable)
            #expect(try file.storage.newest().bytes == state.expected)
            #expect(file.writer.statistics.deviceLeg.stallNanoseconds > 0)
            try file.writer.close()
        }
    }

    /// The early parts may change while the others wait for room in the pool.
    @Test func earlyPartsAreLetGoFirst() throws {
        try FakeDevices.use { devices in
            Self.slow()
            let state = DeviceState(devices)
            state.add(500_000, on: 0)
            let early = try #require(state.add(100_000, on: 0, isEarly: true))
            let earlyThere = try #require(state.add(60_000, on: 1, isEarly: true))
            state.add(200_000, on: 1)
            let file = try DeviceWriter(devices, poolChunks: 4)
            let gate = try file.holdChunks()
            let ticket = try file.writer.save(1, state)
            for stream in state.streams {
                try ticket.hold(
                    stream, onlyEarly: true, timeoutNanoseconds: deadlineNanoseconds)
            }
            devices[0].set(early, to: 0xEE, on: state.streams[0])
            devices[1].set(earlyThere, to: 0xEE, on: state.streams[1])
            try ticket.waitEarly(timeoutNanoseconds: deadlineNanoseconds)
            let error = #expect(throws: CheckpointError.self) {
                try ticket.hold(state.streams[0], timeoutNanoseconds: 50_000_000)
            }
            #expect(error?.code == .timeout, "the rest has no room yet")
            gate.open()
            for stream in state.streams {
                try ticket.hold(stream, timeoutNanoseconds: deadlineNanoseconds)
            }
            state.overwrite(0xDD)
            #expect(try ticket.end() == .durable)
            #expect(try file.storage.newest().bytes == state.expected)
            try file.writer.close()
        }
    }

    /// Nothing is early, so nothing is waited for.
    @Test func withoutEarlyPartsAnEarlyHoldIsNothing() throws {
        try FakeDevices.use { devices in
            let state = DeviceState(devices)
            state.add(300_000, on: 0)
            let file = try DeviceWriter(devices, poolChunks: 1)
            let gate = FakeGate()
            devices[0].wait(for: gate, on: state.streams[0])
            let ticket = try file.writer.save(1, state)
            try ticket.hold(state.streams[0], onlyEarly: true, timeoutNanoseconds: 1_000_000_000)
            gate.open()
            #expect(try ticket.end() == .durable)
            try file.writer.close()
        }
    }

    /// A checkpoint without anything on devices, or of another device, holds no stream.
    @Test func otherDevicesAreNotHeld() throws {
        try FakeDevices.use { devices in
            let state = DeviceState(devices)
            state.add(300_000, on: 0)
            let file = try DeviceWriter(devices)
            let gate = FakeGate()
            devices[0].wait(for: gate, on: state.streams[0])
            let ticket = try file.writer.save(1, state)
            try ticket.hold(state.streams[1], timeoutNanoseconds: deadlineNanoseconds)
            #expect(devices[1].synchronize(state.streams[1]) == 0)
            gate.open()
            #expect(try ticket.end() == .durable)
            // After the end there is nothing to wait for.
            try ticket.hold(state.streams[0], timeoutNanoseconds: 1)
            let host = try file.writer.save(2, [1, 2, 3])
            try host.hold(state.streams[0], timeoutNanoseconds: deadlineNanoseconds)
            #expect(try host.end() == .durable)
            try file.writer.close()
        }
    }

    /// Two saves, the second of which waits for a stream that the first one holds.
    @Test(arguments: [1, 2, 64]) func savesQueueBehindEachOther(poolChunks: Int) throws {
        try FakeDevices.use { devices in
            FakeDevices.delay(microseconds: 0...1000)
            let state = DeviceState(devices)
            state.add(400_000, on: 0)
            state.add(100_000, on: 1)
            let file = try DeviceWriter(devices, inFlight: 3, poolChunks: poolChunks)
            var last: CheckpointTicket?
            for step in 1...12 as ClosedRange<UInt64> {
                state.overwrite(UInt8(step))
                let ticket = try file.writer.save(step, state, isUrgent: step % 3 == 0)
                for stream in state.streams {
                    try ticket.hold(stream, timeoutNanoseconds: deadlineNanoseconds)
                }
                last = ticket
            }
            #expect(try last?.end() == .durable)
            let expected = [UInt8](repeating: 12, count: 500_000)
            #expect(try file.storage.newest().bytes == expected)
            try file.writer.close()
        }
    }

    // MARK: Graphs

    @Test(arguments: FakeDevice.CaptureMode.allCases)
    func nothingIsSavedInsideOfACapture(mode: FakeDevice.CaptureMode) throws {
        try FakeDevices.use { devices in
            let state = DeviceState(devices)
            state.add(300_000, on: 0)
            let file = try DeviceWriter(devices)
            #expect(try file.writer.save(5, state).end() == .durable)
            devices[0].beginCapture(state.streams[0], mode)
            let error = #expect(throws: CheckpointError.self) { try file.writer.save(9, state) }
            #expect(error?.code == .invalidArgument)
            #expect(error?.message.contains("CUDA graph") == true)
            #expect(devices[0].endCapture(state.streams[0]) == 0, "the capture is as it was")
            #expect(file.writer.statistics.savedCount == 1)
            // The step was not taken, either.
            #expect(try file.writer.save(6, state).end() == .durable)
            #expect(try file.storage.newest().bytes == state.expected)
            try file.writer.close()
        }
    }

    @Test(arguments: FakeDevice.CaptureMode.allCases)
    func nothingIsHeldInsideOfACapture(mode: FakeDevice.CaptureMode) throws {
        try FakeDevices.use { devices in
            let state = DeviceState(devices)
            state.add(300_000, on: 0)
            let file = try DeviceWriter(devices)
            let gate = FakeGate()
            devices[0].wait(for: gate, on: state.streams[0])
            let ticket = try file.writer.save(1, state)
            devices[0].beginCapture(state.streams[0], mode)
            let error = #expect(throws: CheckpointError.self) {
                try ticket.hold(state.streams[0], timeoutNanoseconds: deadlineNanoseconds)
            }
            #expect(error?.code == .invalidArgument)
            #expect(error?.message.contains("CUDA graph") == true)
            #expect(devices[0].endCapture(state.streams[0]) == 0, "the capture is as it was")
            gate.open()
            #expect(try ticket.end() == .durable)
            #expect(try file.storage.newest().bytes == state.expected)
            try file.writer.close()
        }
    }

    /// It would not always show otherwise, but only while copies happen to be under way.
    @Test func aCaptureIsRefusedThoughNothingIsLeftToHold() throws {
        try FakeDevices.use { devices in
            let state = DeviceState(devices)
            state.add(300_000, on: 0)
            let file = try DeviceWriter(devices)
            let ticket = try file.writer.save(1, state)
            #expect(try ticket.end() == .durable)
            devices[0].beginCapture(state.streams[0], .global)
            for onlyEarly in [false, true] {
                let error = #expect(throws: CheckpointError.self) {
                    try ticket.hold(state.streams[0], onlyEarly: onlyEarly)
                }
                #expect(error?.code == .invalidArgument)
            }
            #expect(devices[0].endCapture(state.streams[0]) == 0)
            try file.writer.close()
            // The device is no longer open.
            try ticket.hold(state.streams[0])
        }
    }

    /// The threads of the writer use the driver while another stream records a graph.
    @Test(arguments: FakeDevice.CaptureMode.allCases)
    func aCaptureElsewhereSuffersNothing(mode: FakeDevice.CaptureMode) throws {
        try FakeDevices.use { devices in
            let state = DeviceState(devices)
            state.add(300_000, on: 0)
            let other = devices[0].makeStream()
            let file = try DeviceWriter(devices, poolChunks: 2)
            devices[0].beginCapture(other, mode)
            // The first one opens the device, too.
            let first = try file.writer.save(1, state)
            try first.hold(state.streams[0], timeoutNanoseconds: deadlineNanoseconds)
            #expect(try first.end() == .durable)
            #expect(devices[0].endCapture(other) == 0)
            #expect(try file.storage.newest().bytes == state.expected)
            try file.writer.close()
        }
    }
}
