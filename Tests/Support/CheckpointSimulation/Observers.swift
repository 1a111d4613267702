internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage
internal import CheckpointWriter
internal import StorageFaults

/// Threads that look at a writer while it works: one reads its statistics, one loads from its file.
final class Observers: Sendable {
    private struct State {
        var isStopped = false
        var problem: String?
        var loaded: [Recovered] = []
        var error: CheckpointError?
        var threads: [WorkerThread] = []
    }

    private let state = Monitor(State())
    private let writer: CheckpointWriter
    private let medium: RecordingStorage
    private let scheduler: SimulatedScheduler
    /// A reader that cannot read the newest checkpoint falls back to an older one.
    private let readsFail: Bool
    /// The anchored checkpoint, when its writer has not read it and a byte of the file has changed.
    private let unproven: SequenceNumber?

    init(
        _ writer: CheckpointWriter, _ medium: RecordingStorage, _ scheduler: SimulatedScheduler,
        readsFail: Bool, unproven: SequenceNumber?
    ) {
        self.writer = writer
        self.medium = medium
        self.scheduler = scheduler
        self.readsFail = readsFail
        self.unproven = unproven
    }

    func watch() { start("watcher") { $0.watchUntilStopped() } }
    func read() { start("reader") { $0.readUntilStopped() } }

    private func start(_ name: String, _ body: @escaping @Sendable (Observers) -> Void) {
        guard let thread = try? WorkerThread(name: name, { [self] in body(self) }) else { return }
        state.withLock { $0.threads.append(thread) }
    }

    func stop() {
        let threads = state.withLock { state in
            state.isStopped = true
            return state.threads
        }
        for thread in threads { thread.join() }
    }

    /// What they saw that must not be.
    func problem(_ payloads: [UInt64: Set<Digest>], allowsErrors: Bool) -> String? {
        state.withLock { state in
            if let problem = state.problem { return problem }
            for found in state.loaded
            where !payloads[found.sequence.rawValue, default: []].contains(found.digest) {
                return "I2: a reader got other bytes for sequence \(found.sequence) than were saved"
            }
            if let error = state.error, !allowsErrors { return "a reader failed: \(error)" }
            return nil
        }
    }

    private var isStopped: Bool { state.withLock { $0.isStopped } }

    /// What is durable does not become less so.
    private func watchUntilStopped() {
        var newest = SequenceNumber.none
        while !isStopped {
            let statistics = writer.statistics
            if statistics.newestDurableSequence < newest {
                state.withLock { state in
                    state.problem =
                        "I3: sequence \(statistics.newestDurableSequence) follows \(newest)"
                }
            }
            newest = statistics.newestDurableSequence
            scheduler.sleep(nanoseconds: scheduler.draw(below: 2_000_000))
        }
    }

    /// A load that begins after something was durable finds that, or something newer.
    private func readUntilStopped() {
        while !isStopped {
            let promised = writer.statistics.newestDurableSequence
            let storage = SimulatedDisk(
                RecordingStorage(openerOf: medium), scheduler: scheduler)
            do throws(CheckpointError) {
                let reader = try CheckpointReader(storage: storage, workerCount: 1)
                let found = try reader.loadNewest { selected throws(CheckpointError) in
                    Recovered(
                        sequence: selected.candidate.sequence,
                        digest: try ResumeTrial.load(selected))
                }.value
                state.withLock { state in
                    state.loaded.append(found)
                    if found.sequence < promised, promised != unproven, !readsFail,
                        medium.recording.silentFaultCount == 0
                    {
                        state.problem =
                            "I1: a reader got sequence \(found.sequence), "
                            + "but \(promised) was durable"
                    }
                }
            } catch {
                // Before anything is durable there may be nothing, or something that is under way,
                // or what an earlier run left half done.
                if promised != .none || ![.noCheckpoint, .busy, .corrupt].contains(error.code) {
                    state.withLock { $0.error = error }
                }
            }
            scheduler.sleep(nanoseconds: scheduler.draw(below: 20_000_000))
        }
    }
}
