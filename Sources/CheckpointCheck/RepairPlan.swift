public import CheckpointFormat
public import CheckpointRecovery
public import CheckpointStorage

/// One block that `pcfsck -p` rewrites.
public struct Repair: Hashable, Sendable {
    public let problem: Problem
    public let byteOffset: UInt64
    /// Where the copy that it is rewritten from lies.
    public let sourceByteOffset: UInt64
    /// The 4096 bytes to write.
    public let bytes: [UInt8]
}

extension Repair: CustomStringConvertible {
    public var description: String {
        "\(problem.id): rewrite the block at byte \(byteOffset) from the whole copy at byte "
            + "\(sourceByteOffset)"
    }
}

/// The provably safe repairs of a file: what is written is a copy of a block that recovery already
/// follows, over a block that recovery already ignores. So recovery decides the same before,
/// during and after it, whenever a crash interrupts it.
public struct RepairPlan: Hashable, Sendable {
    public let repairs: [Repair]
    /// Why nothing is repaired though something could be; nil otherwise.
    public let refusal: String?

    public var isEmpty: Bool { repairs.isEmpty }

    /// Plans for what `decision` found in `image`. Nothing is read or written.
    public init(image: MetadataImage, decision: RecoveryDecision?) {
        guard let decision else {
            self.init([], refusal: nil)
            return
        }
        let repairs =
            Self.identityRepairs(image, decision) + Self.superblockRepairs(image, decision)
        let refusal = repairs.isEmpty ? nil : Self.refusal(decision)
        self.init(refusal == nil ? repairs : [], refusal: refusal)
    }

    private init(_ repairs: [Repair], refusal: String?) {
        self.repairs = repairs
        self.refusal = refusal
    }

    private static func refusal(_ decision: RecoveryDecision) -> String? {
        let features = decision.identity.features
        let unknown = features.unknownCompatible | features.unknownReadOnlyCompatible
        if unknown != 0 {
            return "the file uses features 0x\(String(unknown, radix: 16)) that this version does "
                + "not know; a newer PCcheck can repair it"
        }
        if decision.isTruncated { return "the file is truncated; copy it again first" }
        return nil
    }

    private static func identityRepairs(
        _ image: MetadataImage, _ decision: RecoveryDecision
    ) -> [Repair] {
        // The chosen copy must be this file's: some other block has to carry its UUID.
        let hasWitness =
            decision.superblock != nil || decision.slots.contains { $0.header != nil }
        guard hasWitness,
            let source = decision.identityFindings.first(where: \.agreesWithChosen),
            let bytes = image.identityBlocks.first(where: { $0.offset == source.offset })?.bytes
        else { return [] }
        return decision.identityFindings.compactMap { report in
            guard case .failure = report.result, !report.isUnreadable else { return nil }
            return Repair(
                problem: ProblemCatalogue.identityDamaged, byteOffset: report.offset,
                sourceByteOffset: source.offset, bytes: bytes)
        }
    }

    private static func superblockRepairs(
        _ image: MetadataImage, _ decision: RecoveryDecision
    ) -> [Repair] {
        decision.superblockFindings.compactMap { report in
            guard case .failure(let error) = report.result, !report.isUnreadable,
                let twin = decision.superblockFindings.first(where: {
                    $0.parity == report.parity && $0.position != report.position
                }), twin.superblock != nil,
                let bytes = image.superblocks.first(where: { $0.offset == twin.offset })?.bytes
            else { return nil }
            let isMisplaced =
                switch error {
                case .foreignFile, .misdirected: true
                default: false
                }
            return Repair(
                problem: isMisplaced
                    ? ProblemCatalogue.superblockMisplaced : ProblemCatalogue.superblockDamaged,
                byteOffset: report.offset, sourceByteOffset: twin.offset, bytes: bytes)
        }
    }

    /// Carries out the plan on `storage`, which must be open for writing.
    ///
    /// Takes the writer lock, flushes, and plans again, because the file may have changed since.
    /// A repair that is already done is skipped, so that applying a plan twice changes nothing.
    ///
    /// - Returns: the repairs that were carried out, flushed and read back.
    /// - Throws: `locked` when a writer is at work, `busy` when the file changed, `inputOutput`
    ///   when a write, the flush or the read-back fails. Nothing durable is lost then.
    @discardableResult
    public func apply(to storage: any Storage) throws(CheckpointError) -> [Repair] {
        if let refusal {
            throw CheckpointError(.unsupported, "\(storage.path) is not repaired: \(refusal)")
        }
        if repairs.isEmpty { return [] }
        let isLocked: Bool
        do throws(StorageError) {
            isLocked = try storage.tryLock(.writer, exclusive: true)
        } catch {
            throw CheckpointError(error)
        }
        guard isLocked else {
            throw CheckpointError(
                .locked, "\(storage.path): a writer has the file open; close it before the repair")
        }
        // An unlock that fails leaves the lock to the end of this opener; nothing else depends
        // on it.
        defer { try? storage.unlock(.writer) }
        do throws(StorageError) {
            // What is repaired from must be on the medium, not only in the page cache.
            try storage.flush()
        } catch {
            throw CheckpointError(error)
        }
        let pending = try pendingRepairs(storage)
        for repair in pending { try carryOut(repair, storage) }
        return pending
    }

    /// Those that are still needed.
    private func pendingRepairs(
        _ storage: any Storage
    ) throws(CheckpointError) -> [Repair] {
        let image = try MetadataImage.read(from: storage)
        let decision = try SlotSelection.decide(image)
        let fresh = RepairPlan(image: image, decision: decision).repairs
        var pending: [Repair] = []
        for repair in repairs {
            if fresh.contains(repair) {
                pending.append(repair)
            } else if try read(repair.byteOffset, storage) != repair.bytes {
                throw CheckpointError(
                    .busy,
                    "\(storage.path): the block at byte \(repair.byteOffset) changed since the "
                        + "check; run pcfsck again", byteOffset: repair.byteOffset)
            }
        }
        return pending
    }

    private func read(
        _ offset: UInt64, _ storage: any Storage
    ) throws(CheckpointError) -> [UInt8] {
        do throws(StorageError) {
            return try storage.readBlocks(at: offset, count: Limits.blockByteCount)
        } catch {
            throw CheckpointError(error)
        }
    }

    /// One block at a time: a crash here leaves a block that recovery ignored anyway torn, and its
    /// source whole.
    private func carryOut(
        _ repair: Repair, _ storage: any Storage
    ) throws(CheckpointError) {
        do throws(StorageError) {
            try storage.writeBlocks(repair.bytes, at: repair.byteOffset)
            try storage.flush()
        } catch {
            throw CheckpointError(error)
        }
        guard try read(repair.byteOffset, storage) == repair.bytes else {
            throw CheckpointError(
                .inputOutput,
                "\(storage.path): the repaired block at byte \(repair.byteOffset) does not read "
                    + "back as written; replace the medium", byteOffset: repair.byteOffset)
        }
    }
}
