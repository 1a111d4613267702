internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage
internal import CheckpointWriter
internal import StorageFaults

/// A run of a real writer over persistent memory, and what a power cut leaves at every store.
package struct PersistentMemoryCuts {
    package private(set) var stateCount = 0
    /// Writes of which all subsets of words were tried.
    package private(set) var exhaustiveCount = 0
    package private(set) var violation: String?
    private let recording: Recording
    private let payloads: [UInt64: Set<Digest>]
    /// Results are kept by content; a fresh one now and then bounds the memory.
    private var memo = RecoveryMemo()

    /// - Parameter fences: false leaves the fence out of every write.
    package init(inFlight: Int, retain: Int, saveCount: Int, fences: Bool = true) throws {
        let file = try SmallFile.file(inFlight: inFlight, retain: retain)
        let storage = RecordingPersistentMemory(contents: file, fences: fences)
        let promises = Promises()
        storage.medium.setObserver { promises.newlyDurable() }
        let writer = try CheckpointWriter(storage: storage, options: SmallFile.options())
        for step in 1...UInt64(saveCount) {
            let payload = SmallFile.payload(step: step)
            let ticket = try writer.save(step: step, payload: CheckpointPayload(opaque: payload))
            promises.began(ticket, payload)
            if step % 2 == 0 { _ = try ticket.wait() }
        }
        try writer.close()
        for sequence in promises.newlyDurable() { storage.medium.note(sequence) }
        recording = storage.medium.recording
        payloads = promises.payloads
    }

    /// Stops at the first violation.
    ///
    /// - Parameters:
    ///   - sampleCount: states per cut where more words than `exhaustiveLimit` may be old or new.
    package mutating func check(sampleCount: Int, exhaustiveLimit: Int, seed: UInt64) throws {
        for point in recording.crashPoints where violation == nil {
            let image = MemoryStorage(
                contents: CrashStates(recording, at: point, seed: 0).durableImage())
            let promise = Promise(
                sequence: SequenceNumber(rawValue: point.notes.max() ?? 0),
                generation: try CheckpointReader(storage: image).decision.highestGeneration)
            let states = StoreStates(
                recording, at: point, image: image, exhaustiveLimit: exhaustiveLimit)
            if states.isExhaustive, states.wordCount > 0 { exhaustiveCount += 1 }
            states.forEach(in: image, sampleCount: sampleCount, seed: seed) {
                stateCount += 1
                if stateCount % 20_000 == 0 { memo = RecoveryMemo() }
                guard let problem = memo.problem(image, promise, payloads) else { return true }
                violation = "\(problem), after \(point.eventCount) events"
                return false
            }
        }
    }
}
