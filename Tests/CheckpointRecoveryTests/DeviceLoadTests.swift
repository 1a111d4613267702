import CheckpointDevice
import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import FakeDevices
import StorageFaults
import Testing

/// Checkpoints come to memory that the host cannot touch, chunk by chunk, each verified first.
@Suite(.serialized) struct DeviceLoadTests {
    private static let content = try? ImageBuilder.Content.tensors(
        [100_000, 1, 60_000], metadata: [], seed: 3)

    private struct File {
        let storage: MemoryStorage
        let reader: CheckpointReader
        let selected: SelectedCheckpoint
        let bytes: [UInt8]
    }

    private func file(_ codec: Codec = .none) throws -> File {
        var builder = try ImageBuilder(capacity: 1 << 20)
        let content = try #require(Self.content)
        let anchor = builder.complete(slot: 0, sequence: 5, content: content, codec: codec)
        builder.commit(builder.superblock(generation: 3, anchor: anchor))
        let storage = builder.storage()
        let reader = try CheckpointReader(storage: storage)
        let candidate = try #require(reader.decision.candidates.first)
        if codec != .none { #expect(candidate.table.entries.contains { $0.codec == codec }) }
        return File(
            storage: storage, reader: reader, selected: try reader.select(candidate),
            bytes: content.bytes)
    }

    private func destination(
        _ memory: FakeMemory, at offset: Int, _ stream: DeviceStream
    ) -> Destination {
        // Safe: the device keeps the memory until the end of the test.
        unsafe Destination(payloadOffset: UInt64(offset), buffer: memory.range, stream: stream)
    }

    private static let untouched: UInt8 = 0xA5

    private func memory(_ device: FakeDevice, _ count: Int) -> FakeMemory {
        device.memory([UInt8](repeating: Self.untouched, count: count))
    }

    /// Compared in one piece: a report that lists what differs would take minutes.
    private func holds(
        _ memory: FakeMemory, _ expected: ArraySlice<UInt8>,
        _ location: SourceLocation = #_sourceLocation
    ) {
        let isRight = memory.bytes[...] == expected
        #expect(isRight, "other bytes arrived", sourceLocation: location)
    }

    @Test(arguments: Codec.allCases, UInt64(1)...3)
    func everyByteArrives(codec: Codec, seed: UInt64) throws {
        try FakeDevices.use(seed: seed) { devices in
            FakeDevices.delay(microseconds: 0...2000)
            let file = try file(codec)
            let half = file.bytes.count / 2 + 77
            let parts = [(0, 0..<half), (1, half..<file.bytes.count)]
            let memories = parts.map { memory(devices[$0.0], $0.1.count) }
            let destinations = zip(parts, memories).map { part, memory in
                destination(memory, at: part.1.lowerBound, devices[part.0].makeStream())
            }
            try file.selected.read(destinations, devices: devices)
            for (part, memory) in zip(parts, memories) {
                holds(memory, file.bytes[part.1])
            }
            #expect(FakeDevices.bytesToDevice == UInt64(file.bytes.count))
            #expect(FakeDevices.unpinnedCopyCount == 0)
            #expect(FakeDevices.registeredByteCount == 0)
        }
    }

    /// Pieces of chunks, for the host and for both devices, in any order, with empty ones.
    @Test(arguments: Codec.allCases) func destinationsMayBeMixed(codec: Codec) throws {
        try FakeDevices.use { devices in
            let file = try file(codec)
            var random = SplitMix64(seed: 9)
            var onDevices: [(FakeMemory, Int)] = []
            var onHost: [(AlignedBuffer, Int)] = []
            var destinations: [Destination] = []
            let streams = devices.devices.map { $0.makeStream() }
            for number in 0..<60 {
                let count = number % 7 == 0 ? 0 : Int(random.next() % 70_000)
                let offset = Int(random.next() >> 1) % (file.bytes.count - count)
                guard number % 3 != 0 else {
                    let buffer = AlignedBuffer(byteCount: count)
                    onHost.append((buffer, offset))
                    // Safe: the list keeps the buffer.
                    destinations.append(
                        unsafe Destination(
                            payloadOffset: UInt64(offset),
                            buffer: UnsafeMutableRawBufferPointer(
                                start: buffer.baseAddress, count: count)))
                    continue
                }
                let memory = memory(devices[number % 2], count)
                onDevices.append((memory, offset))
                destinations.append(destination(memory, at: offset, streams[number % 2]))
            }
            try file.selected.read(destinations, devices: devices)
            for (memory, offset) in onDevices {
                holds(memory, file.bytes[offset..<offset + memory.byteCount])
            }
            for (buffer, offset) in onHost {
                let isRight =
                    buffer.array(0..<buffer.byteCount)[...]
                    == file.bytes[offset..<offset + buffer.byteCount]
                #expect(isRight)
            }
        }
    }

    /// Work that was queued before the load may still use the memory; its bytes come first.
    @Test(arguments: UInt64(1)...4) func theStreamIsWaitedFor(seed: UInt64) throws {
        try FakeDevices.use(seed: seed) { devices in
            FakeDevices.delay(microseconds: 2000...4000)
            let file = try file()
            let stream = devices[0].makeStream()
            let memory = memory(devices[0], file.bytes.count)
            devices[0].set(memory, to: 0xEE, on: stream)
            try file.selected.read([destination(memory, at: 0, stream)], devices: devices)
            devices[0].synchronize(stream)
            holds(memory, file.bytes[...])
        }
    }

    @Test func theLoadWaitsForAStreamThatIsBusy() throws {
        try FakeDevices.use { devices in
            let file = try file()
            let stream = devices[0].makeStream()
            let memory = memory(devices[0], file.bytes.count)
            let gate = FakeGate()
            devices[0].wait(for: gate, on: stream)
            let isDone = Monitor(false)
            let destination = destination(memory, at: 0, stream)
            let thread = try WorkerThread(name: "loader") {
                try? file.selected.read([destination], devices: devices)
                isDone.withLock { $0 = true }
                isDone.wakeAll()
            }
            let limit = SystemClock.monotonicTime + 100_000_000
            #expect(!isDone.wait(deadline: limit) { $0 })
            #expect(memory.bytes.allSatisfy { $0 == Self.untouched })
            gate.open()
            thread.join()
            holds(memory, file.bytes[...])
        }
    }

    // MARK: Failures

    @Test(arguments: Codec.allCases) func nothingOfADamagedChunkIsCopied(codec: Codec) throws {
        try FakeDevices.use { devices in
            let file = try file(codec)
            let geometry = file.reader.decision.identity.geometry
            let chunk = geometry.chunkByteCount
            let data = geometry.slotDataOffset(file.selected.candidate.slot)
            let bad = 3
            file.storage.flip(
                1, at: data + file.selected.candidate.table.entries[bad].storedOffset + 100)
            let stream = devices[0].makeStream()
            let whole = memory(devices[0], file.bytes.count)
            let error = #expect(throws: CheckpointError.self) {
                try file.selected.read([destination(whole, at: 0, stream)], devices: devices)
            }
            #expect(error?.code == .corrupt)
            #expect(error?.message.contains("chunk \(bad)") == true)
            let start = bad * chunk
            #expect(whole.bytes[start..<start + chunk].allSatisfy { $0 == Self.untouched })
            // What does not touch it loads.
            let sound = memory(devices[0], chunk)
            try file.selected.read([destination(sound, at: chunk, stream)], devices: devices)
            holds(sound, file.bytes[chunk..<2 * chunk])
        }
    }

    @Test(
        arguments: [
            "cuMemcpyHtoDAsync_v2", "cuEventRecord", "cuEventSynchronize", "cuStreamWaitEvent",
            "cuStreamCreate", "copy",
        ], 0..<5)
    func anErrorOfTheDeviceIsReported(name: String, after: Int) throws {
        try FakeDevices.use(seed: UInt64(after)) { devices in
            FakeDevices.delay(microseconds: 500...1500)
            let file = try file()
            let stream = devices[0].makeStream()
            let memory = memory(devices[0], file.bytes.count)
            let isOnce = ["cuStreamWaitEvent", "cuStreamCreate"].contains(name)
            FakeDevices.fail(name, error: 2, after: isOnce ? 0 : after)
            let error = #expect(throws: CheckpointError.self) {
                try file.selected.read([destination(memory, at: 0, stream)], devices: devices)
            }
            #expect(error?.code == .accelerator)
            #expect(error?.message.contains("CUDA_ERROR_OUT_OF_MEMORY") == true)
            // Nothing is under way, neither from the buffers nor to the memory.
            devices[0].free(memory)
            #expect(devices[0].error == 0)
            let other = self.memory(devices[0], file.bytes.count)
            try file.selected.read([destination(other, at: 0, stream)], devices: devices)
            holds(other, file.bytes[...])
        }
    }

    @Test func memoryThatIsNotTheDevicesIsAnError() throws {
        try FakeDevices.use { devices in
            let file = try file()
            let stream = devices[0].makeStream()
            let memory = memory(devices[0], 1000)
            devices[0].free(memory)
            let error = #expect(throws: CheckpointError.self) {
                try file.selected.read([destination(memory, at: 0, stream)], devices: devices)
            }
            #expect(error?.code == .accelerator)
            #expect(error?.message.contains("CUDA_ERROR_ILLEGAL_ADDRESS") == true)
            // The file is as it was.
            #expect(try file.selected.readBytes(0..<1000) == Array(file.bytes[..<1000]))
        }
    }

    @Test func aCaptureIsRefused() throws {
        try FakeDevices.use { devices in
            let file = try file()
            let stream = devices[0].makeStream()
            let memory = memory(devices[0], 100_000)
            devices[0].beginCapture(stream, .global)
            let error = #expect(throws: CheckpointError.self) {
                try file.selected.read([destination(memory, at: 0, stream)], devices: devices)
            }
            #expect(error?.code == .invalidArgument)
            #expect(error?.message.contains("CUDA graph") == true)
            #expect(devices[0].endCapture(stream) == 0)
            #expect(memory.bytes.allSatisfy { $0 == Self.untouched })
        }
    }

    /// An empty tensor is on a device in name only.
    @Test func emptyDestinationsNeedNoDevice() throws {
        try FakeDevices.use { devices in
            let file = try file()
            let stream = DeviceStream(DeviceName(.cuda, 7), handle: 0)
            let empty = unsafe Destination(
                payloadOffset: 10, buffer: UnsafeMutableRawBufferPointer(start: nil, count: 0),
                stream: stream)
            try file.selected.read([empty], devices: devices)
            #expect(FakeDevices.callCount("cuDeviceGet") == 0)
        }
    }

    @Test func aMissingDeviceIsNamed() throws {
        try FakeDevices.use { devices in
            let file = try file()
            let memory = memory(devices[0], 1000)
            let error = #expect(throws: CheckpointError.self) {
                try file.selected.read(
                    [destination(memory, at: 0, DeviceStream(DeviceName(.cuda, 7), handle: 0))],
                    devices: devices)
            }
            #expect(error?.code == .unsupported)
            #expect(error?.message.contains("cuda:7") == true)
        }
    }

    /// Where host memory cannot be registered, copies are slower and right.
    @Test func unregisteredBuffersWork() throws {
        try FakeDevices.use { devices in
            FakeDevices.limitRegistration(byteCount: 1000)
            let file = try file()
            let memory = memory(devices[1], file.bytes.count)
            try file.selected.read(
                [destination(memory, at: 0, devices[1].makeStream())], devices: devices)
            holds(memory, file.bytes[...])
            #expect(FakeDevices.unpinnedCopyCount > 0)
        }
    }
}
