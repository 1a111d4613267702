import CheckpointDevice
import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import CheckpointWriter
import FakeDevices
import StorageFaults
import Testing

/// Checkpoints of memory that the host cannot touch hold every byte, as it was when it was saved.
@Suite(.serialized) struct DeviceSavingTests {
    /// Where the parts of a state are.
    enum Layout: CaseIterable {
        case oneDevice, twoDevices, mixed, tiny, withEmpties, smallerThanAChunk

        func fill(_ state: DeviceState) {
            switch self {
            case .oneDevice: state.add(700_001, on: 0)
            case .twoDevices:
                state.add(300_000, on: 1)
                state.add(400_000, on: 0)
            case .mixed:
                // No part ends where a chunk does, but one.
                for (index, count) in [1, 4095, 65_536, 70_001, 131_072, 99, 200_000].enumerated() {
                    state.add(count, on: [0, nil, 1, nil, nil, 0, 1][index])
                }
            case .tiny:
                state.addTiny(5000, on: 0)
                state.add(30_000, on: nil)
                state.addTiny(3000, on: 1)
                state.addTiny(2000, on: 0)
            case .withEmpties:
                state.add(0, on: 0)
                state.add(65_536, on: nil)
                state.add(0, on: 1)
                state.add(100_000, on: 0)
                state.add(0, on: nil)
            case .smallerThanAChunk: state.add(5, on: 1)
            }
        }
    }

    @Test(arguments: Layout.allCases, [1, 3, 64])
    func everyByteComesBack(layout: Layout, poolChunks: Int) throws {
        try FakeDevices.use { devices in
            let state = DeviceState(devices)
            layout.fill(state)
            let file = try DeviceWriter(devices, poolChunks: poolChunks)
            for step in 1...3 as ClosedRange<UInt64> {
                #expect(try file.writer.save(step, state).end() == .durable)
                #expect(try file.storage.newest().bytes == state.expected)
            }
            let statistics = file.writer.statistics
            #expect(statistics.deviceLeg.byteCount == FakeDevices.bytesToHost)
            #expect(statistics.unpinnedReason == nil)
            #expect(FakeDevices.unpinnedCopyCount == 0)
            #expect(FakeDevices.registeredByteCount == statistics.poolByteCount)
            try file.writer.close()
        }
    }

    @Test(arguments: Codec.allCases) func codecsGetWhatDevicesCopied(codec: Codec) throws {
        try FakeDevices.use { devices in
            let state = DeviceState(devices)
            state.add(300_000, on: 0)
            state.add(90_000, on: nil)
            let zeros = try #require(state.add(300_000, on: 1))
            zeros.bytes = [UInt8](repeating: 0, count: zeros.byteCount)
            let expected = state.expected.prefix(390_000) + zeros.bytes
            let file = try DeviceWriter(devices, poolChunks: 3) { $0.codec = codec }
            #expect(try file.writer.save(1, state).end() == .durable)
            #expect(try file.storage.newest().bytes == Array(expected))
            try file.writer.close()
        }
    }

    @Test(arguments: Layout.allCases)
    func mediaThatTheProcessorWritesGetThemToo(layout: Layout) throws {
        try FakeDevices.use { devices in
            let state = DeviceState(devices)
            layout.fill(state)
            let storage = try RecordingPersistentMemory(
                contents: memoryFile(capacity: 2 << 20).contents)
            let writer = try CheckpointWriter(
                storage: storage, options: DeviceWriter.options(devices))
            for step in 1...3 as ClosedRange<UInt64> {
                #expect(try writer.save(step, state).end() == .durable)
            }
            #expect(writer.statistics.poolByteCount == 3 << 16, "only for what is on its way")
            try writer.close()
            #expect(try storage.newest().bytes == state.expected)
        }
    }

    /// Late, in two pieces, and out of order between streams.
    @Test(arguments: UInt64(1)...8) func copiesMayComeLate(seed: UInt64) throws {
        try FakeDevices.use(seed: seed) { devices in
            FakeDevices.delay(microseconds: 0...4000)
            let states = (0..<4).map { number in
                let state = DeviceState(devices, seed: seed * 100 + UInt64(number) * 10)
                state.add(100_000, on: 1)
                state.add(50_000, on: nil)
                state.addTiny(1000, on: 0)
                state.add(150_000, on: 0)
                return state
            }
            let file = try DeviceWriter(
                devices, inFlight: 4, retain: 4, poolChunks: [1, 2, 5, 64][Int(seed % 4)])
            let tickets = try states.enumerated().map {
                try file.writer.save(UInt64($0.offset), $0.element)
            }
            try file.writer.close()
            for (ticket, state) in zip(tickets, states) {
                guard ticket.outcome == .durable else {
                    if case .superseded = ticket.outcome { continue }
                    Issue.record("step \(ticket.step): \(String(describing: ticket.outcome))")
                    continue
                }
                let loaded = try file.storage.bytes(of: ticket.sequence)
                let isRight = loaded == state.expected
                #expect(isRight, "step \(ticket.step)")
            }
            #expect(try file.storage.newest().step == 3)
        }
    }

    @Test(arguments: [0, 1]) func aChunkOfTwoDevicesWaitsForBoth(late: Int) throws {
        try FakeDevices.use { devices in
            let state = DeviceState(devices)
            state.add(30_000, on: 0)
            state.add(30_000, on: 1)
            let file = try DeviceWriter(devices)
            let gate = FakeGate()
            devices[late].wait(for: gate, on: state.streams[late])
            let ticket = try file.writer.save(1, state)
            let error = #expect(throws: CheckpointError.self) {
                try ticket.waitStaged(timeoutNanoseconds: 50_000_000)
            }
            #expect(error?.code == .timeout, "device \(late) has not begun")
            gate.open()
            #expect(try ticket.end() == .durable)
            #expect(try file.storage.newest().bytes == state.expected)
            try file.writer.close()
        }
    }

    @Test func urgentOnesOvertake() throws {
        try FakeDevices.use { devices in
            let first = DeviceState(devices, seed: 1)
            first.add(700_000, on: 0)
            let urgent = DeviceState(devices, seed: 50)
            urgent.add(200_000, on: 0)
            urgent.add(100_000, on: 1)
            let file = try DeviceWriter(devices, poolChunks: 1)
            let gate = try file.holdChunks()
            let overtaken = try file.writer.save(1, first)
            #expect(gate.waitUntilHolding())
            let ticket = try file.writer.save(2, urgent, isUrgent: true)
            gate.open()
            #expect(try ticket.end() == .durable)
            #expect(try file.storage.newest().bytes == urgent.expected)
            guard case .superseded = try overtaken.end() else {
                Issue.record("it ended as \(String(describing: overtaken.outcome))")
                return
            }
            try file.writer.close()
        }
    }

    @Test func approvalDecides() throws {
        try FakeDevices.use { devices in
            let state = DeviceState(devices)
            state.add(300_000, on: 0)
            let file = try DeviceWriter(devices)
            let approved = try file.writer.save(1, state, needsApproval: true)
            try approved.waitStaged(timeoutNanoseconds: deadlineNanoseconds)
            file.writer.approve(approved)
            #expect(try approved.end() == .durable)
            // Before it has arrived.
            FakeDevices.delay(microseconds: 2000...4000)
            let rejected = try file.writer.save(2, state, needsApproval: true)
            file.writer.reject(rejected, because: "the test says so")
            guard case .failed(let error) = try rejected.end() else {
                Issue.record("it ended as \(String(describing: rejected.outcome))")
                return
            }
            #expect(error.code == .rejected)
            #expect(try file.storage.newest().step == 1)
            #expect(try file.writer.save(3, state).end() == .durable)
            #expect(try file.storage.newest().bytes == state.expected)
            try file.writer.close()
        }
    }

    // MARK: Calls of the driver

    /// A hundred thousand tensors must not be a hundred thousand calls.
    @Test(arguments: [
        (Int32(13000), "cuMemcpyBatchAsync_v2"), (12080, "cuMemcpyBatchAsync"),
        (12000, "cuMemcpyDtoHAsync_v2"),
    ])
    func tinyPartsAreGathered(version: Int32, name: String) throws {
        try FakeDevices.use(prepare: { FakeDevices.setVersion(version) }) { devices in
            FakeDevices.delay(microseconds: 0...10)
            let state = DeviceState(devices)
            state.addTiny(8000, on: 0)
            let file = try DeviceWriter(devices)
            #expect(try file.writer.save(1, state).end() == .durable)
            #expect(try file.storage.newest().bytes == state.expected)
            let chunkCount = UInt64((state.expected.count + (64 << 10) - 1) / (64 << 10))
            let calls = FakeDevices.callCount(name)
            #expect(version < 12080 ? calls >= 8000 : calls == chunkCount)
            try file.writer.close()
        }
    }

    /// What is behind a stream's own work is on the device for good: no call waits for it.
    @Test func savingCallsTheDriverLittle() throws {
        try FakeDevices.use { devices in
            let state = DeviceState(devices)
            state.add(1 << 20, on: 0)
            let file = try DeviceWriter(devices)
            #expect(try file.writer.save(1, state).end() == .durable)
            let before = FakeDevices.callCount("cuEventCreate")
            #expect(try file.writer.save(2, state).end() == .durable)
            // One when it may begin, one for each of 16 chunks, and one behind the last.
            #expect(FakeDevices.callCount("cuEventCreate") - before <= 18)
            #expect(FakeDevices.callCount("cuStreamSynchronize") == 0)
            try file.writer.close()
        }
    }

    // MARK: Several threads

    @Test func threadsSaveAtOnce() throws {
        try FakeDevices.use { devices in
            let file = try DeviceWriter(devices, inFlight: 3, poolChunks: 4)
            let states = (0..<3).map { number in
                let state = DeviceState(devices, seed: UInt64(number) * 100)
                state.add(100_000, on: number % 2)
                state.add(40_000, on: nil)
                state.add(100_000, on: 1 - number % 2)
                return state
            }
            let payloads = states.map(\.payload)
            let failures = Monitor([String]())
            let threads = try (0..<3).map { number in
                try WorkerThread(name: "saver") { [payload = payloads[number]] in
                    for _ in 0..<10 {
                        do throws(CheckpointError) {
                            let outcome = try file.writer.save(step: 1, payload: payload).end()
                            if case .failed(let error) = outcome { throw error }
                        } catch {
                            failures.withLock { $0.append("\(error)") }
                        }
                    }
                }
            }
            for thread in threads { thread.join() }
            #expect(failures.withLock { $0 } == [])
            try file.writer.close()
            let loaded = try file.storage.newest().bytes
            #expect(states.contains { $0.expected == loaded })
        }
    }
}

extension Storage {
    /// The payload of a checkpoint that is retained.
    func bytes(of sequence: SequenceNumber) throws -> [UInt8] {
        let reader = try CheckpointReader(storage: self)
        let candidate = try #require(
            reader.decision.candidates.first { $0.sequence == sequence }, "it is kept")
        let selected = try reader.select(candidate)
        defer { selected.close() }
        return try selected.readBytes(0..<candidate.header.payloadByteCount)
    }
}
