public import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import CheckpointWriter
import FakeDevices
import Glibc
import StorageFaults

/// Several threads at one writer, and a reader beside them: everything that one of them does may
/// meet everything that another does. Which thread does what follows from the seed; when, does
/// not.
public struct StressRun: Sendable {
    public enum Medium: String, CaseIterable, Sendable { case memory, file, ring }

    public let seed: UInt64
    public var medium: Medium
    /// Saves come from devices of the stand-in driver.
    public var isOnDevice: Bool
    public var operationCount = 40

    private static let threadCount = 4
    private static let capacity: UInt64 = 192 << 10

    public init(seed: UInt64) {
        self.seed = seed
        medium = Medium.allCases[Int(seed % UInt64(Medium.allCases.count))]
        isOnDevice = seed % 4 == 3
    }

    private var inFlightCount: Int { 1 + Int(seed / 3 % 3) }
    private var retainCount: Int { 1 + Int(seed / 9 % 3) }

    // MARK: Media

    /// How writer and readers open the same bytes.
    private struct Opened {
        let writer: CheckpointWriter
        let reader: @Sendable () throws(CheckpointError) -> CheckpointReader
        let remove: @Sendable () -> Void
    }

    private func options(_ devices: DeviceStress?) -> WriterOptions {
        var options = WriterOptions()
        if let devices { options.deviceRuntime = devices.runtime }
        options.busyPolicy = seed % 2 == 0 ? .wait(timeoutNanoseconds: nil) : .skip
        options.codec = seed % 5 == 0 ? .zstd : .none
        options.snapshotWorkerCount = 2
        options.writerWorkerCount = 3
        options.poolByteCount = 4 << 16
        options.backend = medium == .ring ? .ring : .automatic
        return options
    }

    private func open(_ devices: DeviceStress?) throws(CheckpointError) -> Opened {
        if medium == .memory { return try openMemory(devices) }
        let path = "/dev/shm/pccheck-stress-\(getpid())-\(seed).pcc"
        var options = CheckpointFile.Options(capacity: Self.capacity)
        options.inFlight = inFlightCount
        options.retain = retainCount
        options.chunkByteCount = 64 << 10
        options.replacesExisting = true
        try CheckpointFile.create(path: path, options: options)
        return Opened(
            writer: try CheckpointWriter(path: path, options: self.options(devices)),
            reader: { () throws(CheckpointError) in try CheckpointReader(path: path) },
            // Safe: the call reads the path only.
            remove: { _ = unsafe unlink(path) })
    }

    /// Every seventh call to this medium takes its time, so that younger checkpoints overtake.
    private func openMemory(_ devices: DeviceStress?) throws(CheckpointError) -> Opened {
        let builder: ImageBuilder
        do throws(FormatError) {
            var empty = try ImageBuilder(
                inFlight: inFlightCount, retain: retainCount, capacity: Self.capacity)
            let parent = empty.commit(empty.superblock(generation: 1, anchor: nil))
            empty.commit(empty.superblock(generation: 2, anchor: nil, parent: parent))
            builder = empty
        } catch {
            throw CheckpointError(.invalidArgument, "\(error)")
        }
        let medium = builder.storage()
        let opener = MemoryStorage(openerOf: medium)
        let delays = Monitor(SplitMix64(seed: seed))
        opener.setFaultHook { call in
            let word = delays.withLock { $0.next() }
            if case .write = call, word % 7 == 0 { usleep(UInt32((word >> 8) % 3000)) }
            return nil
        }
        return Opened(
            writer: try CheckpointWriter(storage: opener, options: options(devices)),
            reader: { () throws(CheckpointError) in
                try CheckpointReader(storage: MemoryStorage(openerOf: medium))
            },
            remove: {})
    }

    // MARK: Running

    /// - Returns: what was seen; every ticket's end is in it.
    /// - Throws: what no user of a sound medium may get.
    public func history() throws(CheckpointError) -> CommitHistory {
        guard isOnDevice else { return try history(nil) }
        var history: CommitHistory?
        do {
            try FakeDevices.use(seed: seed) { runtime in
                history = try self.history(
                    DeviceStress(
                        runtime, threadCount: Self.threadCount, capacity: Int(Self.capacity)))
            }
        } catch let error as CheckpointError {
            throw error
        } catch {
            throw CheckpointError(.accelerator, "\(error) are left")
        }
        guard let history else { preconditionFailure("it was written down, or not made") }
        return history
    }

    private func history(_ devices: DeviceStress?) throws(CheckpointError) -> CommitHistory {
        let opened = try open(devices)
        defer { opened.remove() }
        let tickets = Monitor([CheckpointTicket]())
        let logs = Monitor([CommitHistory.Operation]())
        let failure = Monitor<CheckpointError?>(nil)
        func thread(
            _ name: String, _ body: @escaping @Sendable (Log) throws(CheckpointError) -> Void
        ) throws(CheckpointError) -> WorkerThread {
            let work: @Sendable () -> Void = {
                // Each thread keeps its own log: sharing one would order what must meet freely.
                let log = Log()
                do throws(CheckpointError) {
                    try body(log)
                } catch {
                    failure.withLock { $0 = error }
                }
                let operations = log.operations
                logs.withLock { $0 += operations }
            }
            do throws(StorageError) {
                return try WorkerThread(name: name, work)
            } catch {
                throw CheckpointError(.outOfMemory, "\(error)")
            }
        }
        var threads: [WorkerThread] = []
        for number in 0..<Self.threadCount {
            threads.append(
                try thread("stress-\(number)") { log throws(CheckpointError) in
                    try use(opened.writer, devices, tickets, number: number, log)
                })
        }
        let isOver = Monitor(false)
        let reader = try thread("stress-reader") { log throws(CheckpointError) in
            while !isOver.withLock({ $0 }) { try load(opened.reader, log) }
        }
        // Some saves meet the close.
        threads[0].join()
        let log = Log()
        try log.note { () throws(CheckpointError) in
            try opened.writer.close()
            return .closed
        }
        for thread in threads { thread.join() }
        isOver.withLock { $0 = true }
        reader.join()
        try load(opened.reader, log)
        for ticket in tickets.withLock({ $0 }) { try wait(ticket, log) }
        if let error = failure.withLock({ $0 }) { throw error }
        let decision = try opened.reader().decision
        let kept = decision.candidates.filter { [.anchored, .retained].contains($0.kind) }
        return CommitHistory(
            operations: logs.withLock { $0 } + log.operations, kept: kept.map(\.sequence),
            retainCount: retainCount)
    }

    /// What one thread has seen.
    private final class Log {
        private(set) var operations: [CommitHistory.Operation] = []

        func note(
            _ body: () throws(CheckpointError) -> CommitHistory.Event
        ) throws(CheckpointError) {
            let invoked = SystemClock.monotonicTime
            let event = try body()
            operations.append(
                CommitHistory.Operation(invoked, SystemClock.monotonicTime, event))
        }
    }

    private func use(
        _ writer: CheckpointWriter, _ devices: DeviceStress?,
        _ tickets: Monitor<[CheckpointTicket]>, number: Int, _ log: Log
    ) throws(CheckpointError) {
        var random = SplitMix64(seed: seed &* 31 &+ UInt64(number))
        for _ in 0..<operationCount {
            switch random.next() % 8 {
            case 0, 1, 2, 3:
                let count = Int(random.next() % Self.capacity) + 1
                if let devices {
                    let state = devices.compute(
                        thread: number, byteCount: count, capacity: Int(Self.capacity),
                        random: &random)
                    try save(writer, devices, tickets, state, log)
                    continue
                }
                try save(writer, tickets, ImageBuilder.bytes(count, seed: random.next()), log)
            case 4, 5:
                let word = random.next()
                let ticket = tickets.withLock { list in
                    list.isEmpty ? nil : list[Int(word % UInt64(list.count))]
                }
                guard let ticket else { continue }
                if word >> 40 & 1 == 0 { try wait(ticket, log) } else { try poll(ticket, log) }
            default:
                try log.note { .newest(writer.statistics.newestDurableSequence) }
            }
        }
    }

    private func save(
        _ writer: CheckpointWriter, _ tickets: Monitor<[CheckpointTicket]>, _ bytes: [UInt8],
        _ log: Log
    ) throws(CheckpointError) {
        try save(writer, tickets, CheckpointPayload(opaque: bytes), Digest(of: bytes), log)
    }

    private func save(
        _ writer: CheckpointWriter, _ devices: DeviceStress,
        _ tickets: Monitor<[CheckpointTicket]>, _ state: DeviceStress.State, _ log: Log
    ) throws(CheckpointError) {
        let ticket = try save(writer, tickets, state.payload, state.digest, log)
        if let ticket { try devices.continueBehind(ticket, state) }
    }

    /// - Returns: nil when it was skipped, or refused.
    @discardableResult
    private func save(
        _ writer: CheckpointWriter, _ tickets: Monitor<[CheckpointTicket]>,
        _ payload: CheckpointPayload, _ digest: Digest, _ log: Log
    ) throws(CheckpointError) -> CheckpointTicket? {
        var begun: CheckpointTicket?
        try log.note { () throws(CheckpointError) in
            do throws(CheckpointError) {
                let ticket = try writer.save(step: 1, payload: payload)
                if ticket.sequence == .none { return .skipped }
                tickets.withLock { $0.append(ticket) }
                begun = ticket
                return .saved(ticket.sequence, digest)
            } catch {
                guard error.code == .closed else { throw error }
                return .refused
            }
        }
        return begun
    }

    private func wait(_ ticket: CheckpointTicket, _ log: Log) throws(CheckpointError) {
        try log.note { () throws(CheckpointError) in
            try Self.event(ticket, try ticket.wait(timeoutNanoseconds: 60_000_000_000))
        }
    }

    private func poll(_ ticket: CheckpointTicket, _ log: Log) throws(CheckpointError) {
        try log.note { () throws(CheckpointError) in
            guard let outcome = ticket.outcome else { return .pending(ticket.sequence) }
            return try Self.event(ticket, outcome)
        }
    }

    private static func event(
        _ ticket: CheckpointTicket, _ outcome: CheckpointOutcome
    ) throws(CheckpointError) -> CommitHistory.Event {
        switch outcome {
        case .durable: .durable(ticket.sequence)
        case .superseded(let newer): .superseded(ticket.sequence, by: newer)
        case .skipped: .skipped
        case .failed(let error): throw error
        }
    }

    /// A reader opens the file and loads what it finds.
    private func load(
        _ open: () throws(CheckpointError) -> CheckpointReader, _ log: Log
    ) throws(CheckpointError) {
        try log.note { () throws(CheckpointError) in
            while true {
                do throws(CheckpointError) {
                    let found = try open().loadNewest { selected throws(CheckpointError) in
                        let count = selected.candidate.header.payloadByteCount
                        return Digest(of: try selected.readBytes(0..<count))
                    }
                    return .loaded(found.candidate.sequence, found.value)
                } catch {
                    // The writer took every candidate meanwhile; a reader then tries again.
                    if error.code == .busy { continue }
                    guard error.code == .noCheckpoint else { throw error }
                    return .loaded(.none, .zero)
                }
            }
        }
    }
}
