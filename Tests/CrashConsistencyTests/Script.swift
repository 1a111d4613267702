import CheckpointFormat
import CheckpointSimulation
import CheckpointWriter
import StorageFaults
import Testing

/// What a run does, in one word per step.
enum Operation: String, CaseIterable, Sendable {
    /// Begins a checkpoint of one to three chunks and goes on.
    case save
    /// Begins one and waits until it has ended.
    case saveAndWait
    /// Closes the writer and opens the file again.
    case reopen
    /// Stops the writer as a killed process would, and opens the file again.
    case abandon
    /// Begins a checkpoint, one of whose writes fails.
    case failWrite
    /// Begins a checkpoint whose first flush fails.
    case failFlush
}

struct Script: Sendable, CustomStringConvertible {
    var inFlight: Int
    var retain: Int
    var operations: [Operation]
    var codec = Codec.none
    var plantedBug: PlantedBug?

    var description: String {
        "N=\(inFlight) retain=\(retain) codec=\(codec) "
            + operations.map(\.rawValue).joined(separator: ",")
    }

    /// Every sequence of operations of this length.
    static func sequences(_ count: Int) -> [[Operation]] {
        guard count > 0 else { return [[]] }
        return sequences(count - 1).flatMap { head in Operation.allCases.map { head + [$0] } }
    }
}

/// A script, run once by a real writer over a recording medium.
struct ScriptRun {
    let script: Script
    let recording: Recording
    let payloads: [UInt64: Set<Digest>]

    init(_ script: Script) throws {
        let file = try SmallFile.file(inFlight: script.inFlight, retain: script.retain)
        var runner = ScriptRunner(script: script, contents: file)
        try runner.run()
        self.script = script
        recording = runner.storage.recording
        payloads = runner.promises.payloads
    }
}

struct ScriptRunner {
    let script: Script
    var storage: RecordingStorage
    let promises = Promises()
    private var step: UInt64 = 0
    private var tickets: [CheckpointTicket] = []

    init(script: Script, contents: [UInt8]) {
        self.script = script
        storage = RecordingStorage(contents: contents)
    }

    mutating func run() throws {
        observe()
        var writer = try open()
        for operation in script.operations {
            switch operation {
            case .save: try save(writer)
            case .saveAndWait:
                try save(writer)
                try settle()
            case .failWrite: try fail(writer, .init(.write, number: 1, .error(5)))
            case .failFlush: try fail(writer, .init(.flush, number: 0, .error(5)))
            case .reopen:
                try settle()
                try writer.close()
                writer = try open()
            case .abandon:
                writer.abandon()
                writer = try open()
            }
        }
        try settle()
        for sequence in promises.newlyDurable() { storage.note(sequence) }
        try writer.close()
    }

    /// From here on the recording says what the caller knew before each write and flush.
    func observe() {
        let promises = promises
        storage.setObserver { promises.newlyDurable() }
    }

    mutating func open() throws -> CheckpointWriter {
        storage = RecordingStorage(openerOf: storage)
        storage.setPlan(FaultPlan())
        let writer = try CheckpointWriter(
            storage: FaultyStorage.plant(script.plantedBug, in: storage),
            options: SmallFile.options(script.codec))
        // What an open writer calls its newest durable checkpoint is a promise too.
        storage.note(writer.statistics.newestDurableSequence.rawValue)
        return writer
    }

    mutating func save(_ writer: CheckpointWriter) throws {
        step += 1
        let payload = SmallFile.payload(step: step)
        do throws(CheckpointError) {
            let ticket = try writer.save(step: step, payload: CheckpointPayload(opaque: payload))
            #expect(promises.began(ticket, payload), "I3: sequence \(ticket.sequence) is reused")
            tickets.append(ticket)
        } catch {
            // After failed flushes a file of few slots has none left until it is reopened.
            guard error.code == .slotsExhausted else { throw error }
        }
    }

    private mutating func fail(_ writer: CheckpointWriter, _ rule: FaultPlan.Rule) throws {
        try settle()
        storage.setPlan(FaultPlan([rule]))
        try save(writer)
        try settle()
        storage.setPlan(FaultPlan())
    }

    mutating func settle() throws {
        for ticket in tickets { _ = try ticket.wait(timeoutNanoseconds: 20_000_000_000) }
        tickets = []
    }
}
