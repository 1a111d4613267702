public import CheckpointFormat
public import CheckpointRecovery
public import CheckpointStorage

/// What a repair writes, in which order, and what it leaves to a person.
///
/// A plan is made without writing. Its steps are ordered so that a crash between any two of them,
/// or within one, leaves recovery with a decision that is no worse than before: each step says why.
public struct RepairPlan: Hashable, Sendable {
    /// In the order in which they are carried out; no block is written twice.
    public let repairs: [Repair]
    /// Why nothing is repaired though something could be; nil otherwise.
    public let refusal: String?
    /// Choices between data, which a repair makes only when a person has said yes.
    public let questions: [RepairQuestion]
    /// Why something was left as it is, one sentence each.
    public let notes: [String]
    /// What else the plan rests on; see `MetadataImage.digest`.
    private let basis: Digest

    public var isEmpty: Bool { repairs.isEmpty }

    /// The highest generation of a superblock that there was or that the plan writes.
    public let highestGeneration: Generation
    let fileUUID: Identifier128
    /// The file's size before the repair.
    let fileByteCount: UInt64
    /// The size that the file gets first, as its end was lost; nil when it keeps its own.
    let extendedByteCount: UInt64?

    /// Plans the safe repairs of what `decision` found in `image`. Nothing is read or written.
    public init(image: MetadataImage, decision: RecoveryDecision?) {
        guard let decision else {
            self.init([], image: image, decision: nil)
            return
        }
        self.init(SafeRepairs.all(image, decision), image: image, decision: decision)
    }

    /// A plan of `repairs`; when the file is one that is not written to, of none.
    init(
        _ repairs: [Repair], questions: [RepairQuestion] = [], notes: [String] = [],
        writes generation: Generation = Generation(rawValue: 0), image: MetadataImage,
        decision: RecoveryDecision?, extends oldByteCount: UInt64? = nil
    ) {
        // What a later step writes anyway is not written before: its old content is ignored by
        // recovery already, or the step would not come later.
        var planned: [Repair] = []
        for (index, repair) in repairs.enumerated()
        where repair.oldBytes != repair.bytes || repair.problem == ProblemCatalogue.endLost {
            let isLast = !repairs[(index + 1)...].contains { $0.byteOffset == repair.byteOffset }
            if isLast { planned.append(repair) }
        }
        let isWanted = !planned.isEmpty || decision?.hasLostEnd == true
        let refusal = isWanted ? decision.flatMap(Self.refusal) : nil
        let accepted = refusal == nil ? planned : []
        self.repairs = accepted
        self.refusal = refusal
        self.questions = questions
        self.notes = notes
        highestGeneration = max(generation, decision?.highestGeneration ?? generation)
        fileUUID = decision?.identity.fileUUID ?? .zero
        fileByteCount = oldByteCount ?? image.fileByteCount
        extendedByteCount =
            oldByteCount == nil || accepted.isEmpty ? nil : image.fileByteCount
        basis =
            decision.map {
                image.digest(
                    geometry: $0.identity.geometry, excluding: Set(accepted.map(\.byteOffset)))
            } ?? .zero
    }

    static func refusal(_ decision: RecoveryDecision) -> String? {
        let features = decision.identity.features
        let unknown = features.unknownCompatible | features.unknownReadOnlyCompatible
        if unknown != 0 {
            return "the file uses features 0x\(String(unknown, radix: 16)) that this version does "
                + "not know; a newer PCcheck can repair it"
        }
        if decision.isTruncated { return "the file is truncated; copy it again first" }
        let geometry = decision.identity.geometry
        if decision.hasLostEnd {
            return decision.fileByteCount >= geometry.tailOffset
                ? "the end of the file is missing; pcfsck -y restores it"
                : "the file was made on a device of \(geometry.fileByteCount) bytes; give it that "
                    + "size with truncate -s \(geometry.fileByteCount), and run pcfsck -y then"
        }
        return nil
    }

    /// What takes the plan back; nil when it writes nothing.
    public func undoFile(stamp: RepairStamp) -> UndoFile? {
        guard UndoFile.recordCount.contains(repairs.count) else { return nil }
        return UndoFile(
            fileUUID: fileUUID, fileByteCount: fileByteCount, createdTime: stamp.time,
            highestGeneration: highestGeneration,
            records: repairs.map {
                .init(
                    byteOffset: $0.byteOffset, newDigest: Digest(of: $0.bytes),
                    oldBytes: $0.oldBytes)
            })
    }

    /// Carries out the plan on `storage`, which must be open for writing.
    ///
    /// Takes the writer lock, flushes, and compares the metadata with what the plan was made from,
    /// because the file may have changed since. A step that is already done is skipped, so that
    /// applying a plan twice changes nothing.
    ///
    /// - Parameter beforeFirstWrite: called under the lock when something is about to be written.
    ///   When it throws, nothing is.
    /// - Returns: the repairs that were carried out, flushed and read back.
    /// - Throws: `locked` when a writer is at work, `busy` when the file changed, `inputOutput`
    ///   when a write, the flush or the read-back fails. Nothing durable is lost then.
    @discardableResult
    public func apply(
        to storage: any Storage,
        beforeFirstWrite: () throws(CheckpointError) -> Void = {}
    ) throws(CheckpointError) -> [Repair] {
        if let refusal {
            throw CheckpointError(.unsupported, "\(storage.path) is not repaired: \(refusal)")
        }
        if repairs.isEmpty { return [] }
        return try RepairMedium(storage).whileLocked { medium throws(CheckpointError) in
            let pending = try pendingRepairs(medium)
            if pending.isEmpty { return [] }
            try beforeFirstWrite()
            // A crash here leaves the file with its size and zeros at its end, which are damaged
            // copies like others: a repair that comes later rewrites them.
            if let extendedByteCount { try medium.resize(to: extendedByteCount) }
            for repair in pending { try medium.write(repair.bytes, at: repair.byteOffset) }
            return pending
        }
    }

    /// Those that are still needed.
    private func pendingRepairs(_ medium: RepairMedium) throws(CheckpointError) -> [Repair] {
        var image = try MetadataImage.read(from: medium.storage)
        let decision = try SlotSelection.decide(image)
        if extendedByteCount != nil { image = image.extended(to: decision.identity.geometry) }
        let found = image.digest(
            geometry: decision.identity.geometry, excluding: Set(repairs.map(\.byteOffset)))
        guard found == basis else {
            throw CheckpointError(
                .busy,
                "\(medium.storage.path): its metadata changed since the check; run it again")
        }
        var pending: [Repair] = []
        for repair in repairs {
            let bytes = try medium.read(repair.byteOffset)
            // Zeros behind the end are no block yet.
            let isThere = repair.byteOffset + Geometry.block <= medium.storage.byteCount
            if bytes == repair.bytes && isThere { continue }
            guard bytes == repair.oldBytes else {
                throw CheckpointError(
                    .busy,
                    "\(medium.storage.path): the block at byte \(repair.byteOffset) changed since "
                        + "the check; run it again", byteOffset: repair.byteOffset)
            }
            pending.append(repair)
        }
        return pending
    }
}

/// A medium that repairs are made on: locked, and one block at a time.
struct RepairMedium {
    let storage: any Storage

    init(_ storage: any Storage) { self.storage = storage }

    /// Runs `body` with the writer lock held and everything that was written before on the medium:
    /// what is repaired from must not be in the page cache only.
    func whileLocked<Result>(
        _ body: (RepairMedium) throws(CheckpointError) -> Result
    ) throws(CheckpointError) -> Result {
        guard
            try withCheckpointErrors({ () throws(StorageError) in
                try storage.tryLock(.writer, exclusive: true)
            })
        else {
            throw CheckpointError(
                .locked, "\(storage.path): a writer has the file open; close it before the repair")
        }
        // An unlock that fails leaves the lock to the end of this opener; nothing else depends
        // on it.
        defer { try? storage.unlock(.writer) }
        try withCheckpointErrors { () throws(StorageError) in try storage.flush() }
        // What a failed flush left in the page cache looks intact, and is not on the medium.
        storage.discardCache()
        return try body(self)
    }

    func read(_ offset: UInt64) throws(CheckpointError) -> [UInt8] {
        try withCheckpointErrors { () throws(StorageError) in
            try storage.readPaddedBlock(at: offset)
        }
    }

    /// Gives the file another size, and makes that durable.
    func resize(to byteCount: UInt64) throws(CheckpointError) {
        if storage.byteCount == byteCount { return }
        try withCheckpointErrors { () throws(StorageError) in
            try storage.resize(to: byteCount)
            try storage.flush()
        }
    }

    /// Writes one block, flushes, and reads it back: at any moment at most one block of a repair
    /// is torn, those before it are done, and those behind it are as they were.
    func write(_ bytes: [UInt8], at offset: UInt64) throws(CheckpointError) {
        try withCheckpointErrors { () throws(StorageError) in
            try storage.writeBlocks(bytes, at: offset)
            try storage.flush()
        }
        guard try read(offset) == bytes else {
            throw CheckpointError(
                .inputOutput,
                "\(storage.path): the repaired block at byte \(offset) does not read back as "
                    + "written; replace the medium", byteOffset: offset)
        }
    }
}
