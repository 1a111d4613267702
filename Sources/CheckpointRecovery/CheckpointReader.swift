public import CheckpointFormat
public import CheckpointStorage

/// Reads checkpoints of a file, also while a writer is at work on it. Never modifies it.
///
/// Calls may come from several threads.
public final class CheckpointReader: Sendable {
    /// A candidate that could not be loaded, and why.
    public struct Rejection: Sendable {
        public let candidate: Candidate
        public let error: CheckpointError
    }

    /// While some of these threads wait for the device, the others digest: so many keep both busy.
    public static let defaultWorkerCount = 4

    /// How often a search starts over when a writer takes a slot under it, which takes tenths of
    /// a second. One that writes to memory as fast as it can wins two times of three, and sixteen
    /// times in a row now and then.
    private static let attemptCount = 256

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
        let storage: FileStorage
        do throws(StorageError) {
            storage = try FileStorage(path: path, access: .read, mode: mode)
        } catch {
            throw CheckpointError(error)
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

    /// Reads the metadata anew.
    @discardableResult
    public func refresh() throws(CheckpointError) -> RecoveryDecision {
        let decision = try Self.readDecision(storage)
        latest.withLock { $0 = decision }
        return decision
    }

    private static func readDecision(
        _ storage: any Storage
    ) throws(CheckpointError) -> RecoveryDecision {
        do throws(CheckpointError) {
            return try SlotSelection.decide(MetadataImage.readSettled(from: storage))
        } catch {
            throw error.about(storage.path)
        }
    }

    /// Pins the slot of `candidate`, so that no writer reuses it, and checks that it still holds
    /// that checkpoint.
    ///
    /// An unanchored candidate must be verified before its content is trusted; `loadNewest` does.
    ///
    /// - Throws: `busy` when a writer has taken the slot meanwhile: refresh and choose again.
    public func select(_ candidate: Candidate) throws(CheckpointError) -> SelectedCheckpoint {
        guard try pins.pin(candidate.slot) else { throw taken(candidate) }
        let selected = SelectedCheckpoint(
            candidate,
            reader: PayloadReader(
                storage: storage, candidate: candidate, workerCount: workerCount),
            pins: pins)
        let header: [UInt8]
        do throws(StorageError) {
            header = try storage.readBlocks(
                at: candidate.headerOffset, count: Limits.blockByteCount)
        } catch {
            throw CheckpointError(error, slot: candidate.slot)
        }
        let found = Digest(of: header, 0..<SlotHeader.Layout.checksum.offset)
        guard found == candidate.headerDigest else { throw taken(candidate) }
        return selected
    }

    private func taken(_ candidate: Candidate) -> CheckpointError {
        CheckpointError(
            .busy,
            "\(storage.path): slot \(candidate.slot) held sequence \(candidate.sequence), but a "
                + "writer has taken it for a newer checkpoint; refresh and choose again",
            slot: candidate.slot, byteOffset: candidate.headerOffset)
    }

    /// Gives the newest checkpoint that `isWanted` accepts to `use`, and falls back to the next
    /// one when it turns out damaged.
    ///
    /// A candidate that no superblock anchors is verified in full before `use` sees it.
    ///
    /// - Parameter use: reads what it needs. When it throws `corrupt`, `inputOutput` or `busy`, the
    ///   next candidate is tried; another error ends the search.
    /// - Returns: what `use` returned, its candidate, and those rejected before it.
    /// - Throws: `noCheckpoint` when there is no candidate, or only what a crash left of a first
    ///   checkpoint; `busy` when a writer is still at work on every one; `corrupt` when all were
    ///   rejected otherwise. The message names every slot and why.
    public func loadNewest<Value>(
        where isWanted: (Candidate) -> Bool = { _ in true },
        _ use: (SelectedCheckpoint) throws(CheckpointError) -> Value
    ) throws(CheckpointError) -> (value: Value, candidate: Candidate, rejected: [Rejection]) {
        var rejected: [Rejection] = []
        var decision = self.decision
        attempts: for attempt in 1...Self.attemptCount {
            rejected = []
            for candidate in decision.candidates where isWanted(candidate) {
                do throws(CheckpointError) {
                    let selected = try select(candidate)
                    defer { selected.close() }
                    if candidate.kind == .unanchored { try selected.verify() }
                    return (try use(selected), candidate, rejected)
                } catch {
                    guard [.corrupt, .inputOutput, .busy].contains(error.code) else {
                        throw error
                    }
                    // A slot that was taken under us: something newer exists by now.
                    if error.code == .busy, attempt < Self.attemptCount {
                        decision = try refresh()
                        continue attempts
                    }
                    rejected.append(Rejection(candidate: candidate, error: error))
                }
            }
            break
        }
        throw nothingLoads(decision, rejected, isWanted)
    }

    private func nothingLoads(
        _ decision: RecoveryDecision, _ rejected: [Rejection], _ isWanted: (Candidate) -> Bool
    ) -> CheckpointError {
        let slots = decision.slots.map { report in
            var text = "slot \(report.slot): \(report.reason.rawValue)"
            if let header = report.header, header.state != .empty {
                text += ", sequence \(header.sequence), step \(header.step)"
            }
            if let error = rejected.first(where: { $0.candidate.slot == report.slot })?.error {
                text += ", \(error.message)"
            } else if decision.candidates.contains(where: {
                $0.slot == report.slot && !isWanted($0)
            }) {
                text += ", not what was asked for"
            } else if let detail = report.detail {
                text += ", \(detail)"
            }
            return text
        }
        let list = slots.joined(separator: "; ")
        let wasUnfinished =
            !decision.mayHoldDurable && rejected.allSatisfy { $0.error.code == .corrupt }
        guard let first = rejected.first, !wasUnfinished else {
            return CheckpointError(
                .noCheckpoint,
                "\(storage.path) holds no checkpoint that fits the request (\(list))")
        }
        let isBusy = rejected.allSatisfy { $0.error.code == .busy }
        return CheckpointError(
            isBusy ? .busy : .corrupt,
            "\(storage.path): every checkpoint that fits the request is "
                + (isBusy ? "in the hands of a writer; try again" : "damaged") + " (\(list))",
            slot: first.candidate.slot, byteOffset: first.error.byteOffset)
    }
}
