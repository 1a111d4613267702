import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import CheckpointWriter
import Testing

@Suite struct RoundTripTests {
    let directory: TemporaryDirectory
    let path: String

    init() throws {
        directory = try TemporaryDirectory()
        path = directory.file()
    }

    @Test(arguments: [0, 1, 4095, 4096, 65536, 65537, 300_001, 1 << 20])
    func bytesComeBackWhateverTheirCount(count: Int) throws {
        try createFile(path)
        let bytes = pattern(UInt64(count), count: count)
        let writer = try CheckpointWriter(path: path)
        let ticket = try writer.save(step: 7, payload: CheckpointPayload(opaque: bytes))
        #expect(try ticket.wait() == .durable)
        try writer.close()
        let newest = try loadNewest(path)
        #expect(newest.step == 7)
        #expect(newest.bytes == bytes)
    }

    @Test(arguments: Codec.allCases)
    func codecsRestoreEveryByte(codec: Codec) throws {
        try createFile(path)
        let bytes = (0..<500_000).map { UInt8(truncatingIfNeeded: $0 / 1000) }
        var options = WriterOptions()
        options.codec = codec
        let writer = try CheckpointWriter(path: path, options: options)
        #expect(
            try writer.save(step: 1, payload: CheckpointPayload(opaque: bytes)).wait() == .durable)
        #expect((writer.statistics.storedByteCount < 100_000) == (codec != .none))
        try writer.close()
        #expect(try loadNewest(path).bytes == bytes)
    }

    private func tensor(_ name: String, elements: UInt64) throws -> TensorDescription {
        TensorDescription(
            name: name, elementType: try #require(ElementType(name: "F32")), shape: [elements])
    }

    @Test func tensorsComeBackUnderTheirNames() throws {
        try createFile(path)
        let content = pattern(1, count: 140_004)
        let memory = UnsafeMutableRawBufferPointer.allocate(
            byteCount: content.count, alignment: 16)
        defer { unsafe memory.deallocate() }
        unsafe memory.copyBytes(from: content)
        // Safe, twice: the memory lives until the writer is closed, and nobody changes it.
        let first = unsafe UnsafeRawBufferPointer(rebasing: memory[..<40_000])
        let second = unsafe UnsafeRawBufferPointer(rebasing: memory[40_000...])
        let payload = try CheckpointPayload(
            tensors: [
                (tensor("first", elements: 10_000), unsafe CheckpointPayload.Region(first)),
                (tensor("second", elements: 25_001), unsafe CheckpointPayload.Region(second)),
            ], metadata: [("run", "a")])
        let writer = try CheckpointWriter(path: path)
        #expect(try writer.save(step: 1, payload: payload).wait() == .durable)
        try writer.close()
        let bytes = try loadNewest(path).bytes
        let manifest = try SafetensorsManifest(
            decoding: bytes, payloadByteCount: UInt64(bytes.count))
        #expect(manifest.metadata.map(\.value) == ["a"])
        #expect(manifest.tensors.map(\.name) == ["first", "second"])
        #expect(manifest.tensors.map(\.dataRange) == [0..<40_000, 40_000..<140_004])
        #expect(Array(bytes[Int(manifest.dataOffset)...]) == content)
    }

    @Test func tensorsThatDoNotFitTheirShapeAreRefused() throws {
        let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 40, alignment: 16)
        defer { unsafe memory.deallocate() }
        // Safe: the payloads do not come to be.
        let region = unsafe CheckpointPayload.Region(UnsafeRawBufferPointer(memory))
        let wrongSize = #expect(throws: CheckpointError.self) {
            try CheckpointPayload(tensors: [(tensor("w", elements: 11), region)], metadata: [])
        }
        #expect(wrongSize?.code == .invalidArgument)
        #expect(
            wrongSize?.message
                == "the byte count of tensor w is 40, expected 44, from its shape and dtype")
        let twice = try tensor("w", elements: 10)
        let repeated = #expect(throws: CheckpointError.self) {
            try CheckpointPayload(tensors: [(twice, region), (twice, region)], metadata: [])
        }
        #expect(repeated?.code == .invalidArgument)
    }

    @Test func manyInFlightAllEndAndTheNewestIsFound() throws {
        try createFile(path, inFlight: 4)
        let writer = try CheckpointWriter(path: path)
        var tickets: [CheckpointTicket] = []
        for step in 1...40 {
            let payload = CheckpointPayload(opaque: pattern(UInt64(step), count: 200_000))
            tickets.append(try writer.save(step: UInt64(step), payload: payload))
        }
        try writer.close()
        for ticket in tickets {
            switch ticket.outcome {
            case .durable: break
            case .superseded(let by): #expect(by > ticket.sequence)
            case let other: Issue.record("step \(ticket.step): \(String(describing: other))")
            }
        }
        #expect(tickets.last?.outcome == .durable)
        let newest = try loadNewest(path)
        #expect(newest.step == 40)
        #expect(newest.bytes == pattern(40, count: 200_000))
    }

    @Test func sequencesAndGenerationsGoOnAfterReopening() throws {
        try createFile(path)
        var last = SequenceNumber.none
        var lastGeneration = Generation(rawValue: 0)
        for round in 1...5 {
            let writer = try CheckpointWriter(path: path)
            let ticket = try writer.save(
                step: UInt64(round), payload: CheckpointPayload(opaque: pattern(1, count: 10)))
            #expect(try ticket.wait() == .durable)
            #expect(ticket.sequence > last)
            last = ticket.sequence
            try writer.close()
            let decision = try CheckpointReader(path: path).decision
            #expect(decision.highestGeneration > lastGeneration)
            #expect(decision.superblock?.isCleanClose == true)
            lastGeneration = decision.highestGeneration
        }
    }

    @Test func retainedCheckpointsStayLoadable() throws {
        try createFile(path, inFlight: 1, retain: 3)
        let writer = try CheckpointWriter(path: path)
        for step in 1...7 {
            let payload = CheckpointPayload(opaque: pattern(UInt64(step), count: 70_000))
            #expect(try writer.save(step: UInt64(step), payload: payload).wait() == .durable)
        }
        try writer.close()
        let reader = try CheckpointReader(path: path)
        #expect(reader.decision.candidates.prefix(3).map(\.step) == [7, 6, 5])
        for candidate in reader.decision.candidates.prefix(3) {
            let selected = try reader.select(candidate)
            #expect(try selected.readBytes(0..<70_000) == pattern(candidate.step, count: 70_000))
        }
    }
}
