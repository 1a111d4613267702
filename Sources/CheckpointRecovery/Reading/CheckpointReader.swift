public import CheckpointFormat
public import CheckpointStorage

/// Reads checkpoints of a file, also while a writer is at work on it. Never modifies it.
///
/// Calls may come from several threads.
public final class CheckpointReader: Sendable {
    /// While some of these threads wait for the device, the others digest: so many keep both busy.
    public static let defaultWorkerCount = 4

    public let storage: any Storage
    private let workerCount: Int
    private let pins: PinTable
    private let latest: Monitor<RecoveryDecision>

    /// Opens the file at `path` and reads its metadata.
    ///
    /// - Parameters:
    ///   - workerCount: threads that read, verify and decompress payload.
    ///   - fingerprint: what the file's run fingerprint must be; nil accepts any.
    /// - Throws: `notFound`, `notACheckpointFile`, `unsupported`, `corrupt`, `inputOutput`;
    ///   `fingerprintMismatch` for a file of another model.
    public convenience init(
        path: String, mode: FileStorage.Mode = .automatic,
        workerCount: Int = CheckpointReader.defaultWorkerCount,
        fingerprint: String? = nil
    ) throws(CheckpointError) {
        let storage = try withCheckpointErrors { () throws(StorageError) in
            try FileStorage(path: path, access: .read, mode: mode)
        }
        try self.init(storage: storage, workerCount: workerCount, fingerprint: fingerprint)
    }

    /// Reads the metadata of an open medium.
    public convenience init(
        storage: any Storage, workerCount: Int = CheckpointReader.defaultWorkerCount,
        fingerprint: String? = nil
    ) throws(CheckpointError) {
        let decision = try Self.readDecision(storage)
        if let fingerprint, fingerprint != decision.identity.fingerprint {
            throw CheckpointError(
                .fingerprintMismatch,
                "\(storage.path) belongs to run \"\(decision.identity.fingerprint)\", expected "
                    + "\"\(fingerprint)\"; give the path of this run's file")
        }
        self.init(storage: storage, decision: decision, workerCount: workerCount)
    }

    /// Reads what `decision` found on the medium: for tools that look at wrecks.
    public init(
        storage: any Storage, decision: RecoveryDecision,
        workerCount: Int = CheckpointReader.defaultWorkerCount
    ) {
        self.storage = storage
        self.workerCount = max(1, workerCount)
        pins = PinTable(storage: storage)
        latest = Monitor(decision)
    }

    /// What the last `refresh` found.
    public var decision: RecoveryDecision { latest.withLock { $0 } }

    /// Reads the metadata again.
    @discardableResult
    public func refresh() throws(CheckpointError) -> RecoveryDecision {
        // What may look at a truncated file may do so again.
        let decision = try Self.readDecision(storage, allowsTruncation: decision.isTruncated)
        latest.withLock { $0 = decision }
        return decision
    }

    private static func readDecision(
        _ storage: any Storage, allowsTruncation: Bool = false
    ) throws(CheckpointError) -> RecoveryDecision {
        do throws(CheckpointError) {
            return try SlotSelection.decide(
                MetadataImage.readSettled(from: storage), allowsTruncation: allowsTruncation)
        } catch {
            throw error.about(storage.path)
        }
    }

    /// Pins the slot of `candidate`, so that no writer reuses it, and checks that it still holds
    /// that checkpoint.
    ///
    /// `Load` chooses; this is for a caller that looks at one checkpoint.
    ///
    /// - Throws: `busy` when a writer has taken the slot meanwhile: refresh and choose again.
    public func select(
        _ candidate: Candidate, proof: Proof = .demanded
    ) throws(CheckpointError) -> SelectedCheckpoint {
        guard try pins.pin(candidate.slot) else { throw candidate.taken(in: storage.path) }
        let selected = SelectedCheckpoint(
            candidate,
            reader: PayloadReader(
                storage: storage, candidate: candidate, workerCount: workerCount),
            pins: pins, proof: proof)
        let header = try withCheckpointErrors(slot: candidate.slot) { () throws(StorageError) in
            try storage.readBlocks(at: candidate.headerOffset, count: Limits.blockByteCount)
        }
        let found = Digest(of: header, 0..<SlotHeader.Layout.checksum.offset)
        guard found == candidate.headerDigest else { throw candidate.taken(in: storage.path) }
        return selected
    }

    /// `select`, for a caller that has no other checkpoint to use: while the writer that made
    /// `candidate` still has the slot, it waits for that writer's flush.
    ///
    /// - Parameter pause: lets time pass for the writer; false ends the wait.
    /// - Returns: nil when the writer has it still after `WriterPatience`.
    /// - Throws: `busy` when a writer has taken the slot for another one.
    public func selectFlushed(
        _ candidate: Candidate, pause: () -> Bool
    ) throws(CheckpointError) -> SelectedCheckpoint? {
        for _ in 0..<WriterPatience.attemptCount {
            do throws(CheckpointError) {
                return try select(candidate)
            } catch {
                guard error.code == .busy,
                    try refresh().candidates.contains(where: { $0.isSame(as: candidate) })
                else { throw error }
            }
            guard pause() else { return nil }
        }
        return nil
    }
}

/// How long a reader stays with a writer that has the slot which it wants: RECOVERY.md, "Reading
/// while a writer is running".
public enum WriterPatience {
    /// How often it looks again when a writer takes a slot under it, which takes tenths of a
    /// second. One that writes to memory as fast as it can wins two times of three, and sixteen
    /// times in a row now and then.
    public static let attemptCount = 256

    /// Between two looks at the same checkpoint, whose writer waits for a flush: five seconds in
    /// all.
    public static func pause() { SystemClock.sleep(nanoseconds: 20_000_000) }
}

extension Candidate {
    /// Whether nothing was written to the slot since.
    func isSame(as other: Candidate) -> Bool {
        slot == other.slot && headerDigest == other.headerDigest
    }

    /// The error of a caller that finds another checkpoint in the slot than this one.
    func taken(in path: String) -> CheckpointError {
        CheckpointError(
            .busy,
            "\(path): slot \(slot) held sequence \(sequence), but a writer has taken it for a "
                + "newer checkpoint; refresh and choose again",
            slot: slot, byteOffset: headerOffset)
    }
}
