import CheckpointFormat
import CheckpointStorage
import CheckpointWriter
import Logging
import StorageFaults
import Synchronization
import Testing

/// A save that waits for readers says for whom.
@Suite struct PinStallTests {
    private struct LogRecorder: LogHandler {
        let said: Monitor<[String]>
        var metadata: Logger.Metadata = [:]
        var logLevel = Logger.Level.warning

        subscript(metadataKey key: String) -> Logger.Metadata.Value? {
            get { metadata[key] }
            set { metadata[key] = newValue }
        }

        func log(event: LogEvent) {
            let pins = event.metadata?["pins"].map { "\($0)" } ?? ""
            said.withLock { $0.append("\(event.level) \(event.message) \(pins)") }
        }
    }

    /// One slot in flight, all free ones pinned by another opener in this process.
    private func pinned(
        _ policy: BusyPolicy, said: Monitor<[String]> = Monitor([])
    ) throws -> (writer: CheckpointWriter, reader: FileStorage, directory: TemporaryDirectory) {
        let directory = try TemporaryDirectory()
        let path = directory.file()
        try createFile(path, capacity: 200_000, inFlight: 1, retain: 1)
        var options = WriterOptions()
        options.busyPolicy = policy
        options.pinWarningNanoseconds = 300_000_000
        options.logger = Logger(label: "test") { _ in LogRecorder(said: said) }
        let writer = try CheckpointWriter(path: path, options: options)
        #expect(try writer.save(step: 1, payload: payload(1)).wait() == .durable)
        let reader = try FileStorage(path: path, access: .read)
        for slot in writer.identity.geometry.slots {
            #expect(try reader.tryLock(.slot(slot), exclusive: false))
        }
        return (writer, reader, directory)
    }

    private func payload(_ seed: UInt64) -> CheckpointPayload {
        CheckpointPayload(opaque: pattern(seed, count: 100_000))
    }

    @Test(arguments: [BusyPolicy.fail, .wait(timeoutNanoseconds: 50_000_000)])
    func theErrorNamesSlotAndProcess(policy: BusyPolicy) throws {
        let (writer, reader, directory) = try pinned(policy)
        let error = #expect(throws: CheckpointError.self) {
            try writer.save(step: 2, payload: payload(2))
        }
        let pin = try #require(writer.statistics.pinnedSlots.first)
        #expect(error?.code == (policy == .fail ? .busy : .timeout))
        #expect(error?.slot == pin.slot)
        let process = "this process (\(ThisProcess.id))"
        #expect(error?.message.contains("slot \(pin.slot) is pinned by \(process)") == true)
        #expect(error?.message.contains("close that reader") == true)
        #expect(pin.holders.map(\.processID) == [ThisProcess.id])
        for slot in writer.identity.geometry.slots { try reader.unlock(.slot(slot)) }
        #expect(try writer.save(step: 2, payload: payload(2)).wait() == .durable)
        #expect(writer.statistics.pinnedSlots.isEmpty)
        try writer.close()
        withExtendedLifetime(directory) {}
    }

    @Test func aLongWaitIsLoggedOnce() throws {
        let said = Monitor([String]())
        let (writer, reader, directory) = try pinned(.wait(timeoutNanoseconds: nil), said: said)
        let slots = writer.identity.geometry.slots
        let outcome = Monitor(CheckpointOutcome?.none)
        let thread = try WorkerThread(name: "saver") {
            let ended = try? writer.save(step: 2, payload: payload(2)).wait()
            outcome.withLock { $0 = ended }
        }
        SystemClock.sleep(nanoseconds: 2_500_000_000)
        let lines = said.withLock { $0 }
        #expect(lines.count == 1)
        #expect(lines.first?.hasPrefix("warning a save waits for readers slot ") == true)
        #expect(lines.first?.contains("is pinned by this process") == true)
        for slot in slots { try reader.unlock(.slot(slot)) }
        thread.join()
        #expect(outcome.withLock { $0 } == .durable)
        try writer.close()
        withExtendedLifetime(directory) {}
    }

    @Test func slotsInFlightAreNoPins() throws {
        let directory = try TemporaryDirectory()
        let path = directory.file()
        try createFile(path, capacity: 200_000, inFlight: 1, retain: 1)
        let file = try FileStorage(path: path, access: .read)
        let storage = MemoryStorage(
            contents: try file.readBlocks(at: 0, count: Int(file.byteCount)))
        storage.setFaultHook { call in
            if case .flush = call { SystemClock.sleep(nanoseconds: 200_000_000) }
            return nil
        }
        var options = WriterOptions()
        options.busyPolicy = .fail
        let writer = try CheckpointWriter(storage: storage, options: options)
        let first = try writer.save(step: 1, payload: payload(1))
        let error = #expect(throws: CheckpointError.self) {
            try writer.save(step: 2, payload: payload(2))
        }
        #expect(error?.code == .busy)
        #expect(error?.message.contains("1 of 1 checkpoints are in flight") == true)
        #expect(try first.wait() == .durable)
        try writer.close()
    }
}
