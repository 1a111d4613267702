import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import CheckpointWriter
import StorageFaults
import Synchronization
import Testing

/// Ten seconds: no wait in these tests may take longer.
let deadlineNanoseconds: UInt64 = 10_000_000_000

/// A new file in memory: chunks of 64 KiB.
func memoryFile(
    inFlight: Int = 2, retain: Int = 1, capacity: UInt64 = 192 << 10, ofGroup: Bool = false
) throws -> RecordingStorage {
    var builder = try ImageBuilder(
        inFlight: inFlight, retain: retain, capacity: capacity, chunkByteCount: 64 << 10,
        runUUID: ofGroup ? ImageBuilder.uuid : .zero)
    let parent = builder.commit(builder.superblock(generation: 1, anchor: nil))
    builder.commit(builder.superblock(generation: 2, anchor: nil, parent: parent))
    return RecordingStorage(contents: builder.bytes)
}

extension CheckpointWriter {
    func save(_ step: UInt64, _ bytes: [UInt8]) throws(CheckpointError) -> CheckpointTicket {
        try save(step: step, payload: CheckpointPayload(opaque: bytes))
    }

    func outcome(_ step: UInt64, _ bytes: [UInt8]) throws(CheckpointError) -> CheckpointOutcome {
        try save(step, bytes).wait(timeoutNanoseconds: deadlineNanoseconds)
    }
}

extension Storage {
    var geometry: Geometry {
        get throws { try CheckpointReader(storage: self).decision.identity.geometry }
    }

    /// The newest checkpoint that loads.
    func newest() throws -> (step: UInt64, sequence: SequenceNumber, bytes: [UInt8]) {
        try CheckpointReader(storage: self).loadNewest { selected throws(CheckpointError) in
            let header = selected.candidate.header
            return (
                header.step, header.sequence, try selected.readBytes(0..<header.payloadByteCount)
            )
        }.value
    }
}

extension RecordingStorage {
    /// What is left when the power is cut now and no uncovered write reached the medium.
    var afterPowerCut: MemoryStorage {
        let recording = recording
        return MemoryStorage(
            contents: CrashStates(recording, at: recording.end, seed: 0).durableImage())
    }
}

/// Holds back the calls that it is told to, until it is opened.
final class Gate: Sendable {
    private let state = Monitor((isOpen: false, waiting: 0))
    private let isMine: @Sendable (MemoryStorage.Call) -> Bool

    init(_ isMine: @escaping @Sendable (MemoryStorage.Call) -> Bool) { self.isMine = isMine }

    var hook: MemoryStorage.FaultHook {
        { [self] call in
            guard isMine(call) else { return nil }
            state.withLock { $0.waiting += 1 }
            state.wakeAll()
            state.wait(deadline: SystemClock.monotonicTime + 2 * deadlineNanoseconds) { $0.isOpen }
            return nil
        }
    }

    func open() {
        state.withLock { $0.isOpen = true }
        state.wakeAll()
    }

    /// Waits until a call is held back.
    func waitUntilHolding() -> Bool {
        state.wait(deadline: SystemClock.monotonicTime + deadlineNanoseconds) { $0.waiting > 0 }
    }
}

/// `body` on a thread of its own; false when it is not done in time.
func isDone(within nanoseconds: UInt64, _ body: @escaping @Sendable () -> Void) throws -> Bool {
    let flag = Monitor(false)
    _ = try WorkerThread(name: "test") {
        body()
        flag.withLock { $0 = true }
        flag.wakeAll()
    }
    return flag.wait(deadline: SystemClock.monotonicTime + nanoseconds) { $0 }
}
