public import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

/// Creates checkpoint files.
public enum CheckpointFile {
    /// How the slots get their blocks.
    public enum Preallocation: String, Sendable, CaseIterable {
        /// Reserve them. The first pass over each slot also marks its blocks as written, which
        /// its flushes make durable. A file system that reserves none, and persistent memory,
        /// get zeros all the same.
        case fallocate
        /// Reserve them and write zeros: the creation takes as long as writing the whole file.
        case zero
    }

    public struct Options: Sendable {
        /// The largest payload in bytes.
        public var capacity: UInt64
        public var inFlight = 2
        public var retain = 1
        public var chunkByteCount = 4 << 20
        public var preallocation = Preallocation.fallocate
        public var rank: UInt32 = 0
        public var worldSize: UInt32 = 1
        public var fingerprint = ""
        /// Makes it the file of a group: what all files of the job share.
        public var runUUID = Identifier128.zero
        /// Replace what is at the path; otherwise an existing file is an error.
        public var replacesExisting = false
        /// Accept a network file system, whose locks and flushes may not keep the promises.
        public var allowsNetwork = false

        public init(capacity: UInt64) { self.capacity = capacity }
    }

    public typealias Progress =
        @Sendable (_ done: UInt64, _ total: UInt64) throws(CheckpointError) -> Void

    /// Creates a file without checkpoints.
    ///
    /// The file appears under its name only when it is complete and durable. A block device is
    /// written in place.
    ///
    /// - Parameter progress: called with bytes done and bytes in all while zeros are written; what
    ///   it throws ends the creation, and nothing is left of it.
    /// - Throws: `exists`, `noSpace`, `invalidArgument`, `readOnly`, `locked`, `inputOutput`.
    public static func create(
        path: String, options: Options, progress: Progress? = nil
    ) throws(CheckpointError) {
        let path = try destination(path, replacing: options.replacesExisting)
        let existing = try existingStorage(
            path, replacing: options.replacesExisting, allowsNetwork: options.allowsNetwork)
        // Its lock, until another file has the name.
        defer { withExtendedLifetime(existing) {} }
        let device = existing.flatMap { $0.isBlockDevice ? $0 : nil }
        let identity = try makeIdentity(options, deviceByteCount: device?.byteCount)
        if let device {
            return try withCheckpointErrors { () throws(StorageError) in
                try writeMetadata(identity, firstSuperblock(identity), to: device)
                try device.flush()
            }
        }
        var file = try NewCheckpointFile(
            at: path, identity, isZeroed: options.preallocation == .zero,
            allowsNetwork: options.allowsNetwork, whenFull: "choose a smaller capacity",
            progress: progress)
        try file.seal(firstSuperblock(identity))
        try file.publish(replacing: options.replacesExisting)
    }

    /// The path at which a new file appears: where it replaces one, that is the file which a
    /// symbolic link leads to, and the link stays.
    static func destination(
        _ path: String, replacing: Bool
    ) throws(CheckpointError) -> String {
        guard replacing else { return path }
        return try withCheckpointErrors { () throws(StorageError) in try NewFile.target(of: path) }
    }

    /// What is at the path now, locked against writers; nil when there is nothing.
    static func existingStorage(
        _ path: String, replacing: Bool, allowsNetwork: Bool
    ) throws(CheckpointError) -> FileStorage? {
        let storage: FileStorage
        do throws(StorageError) {
            storage = try FileStorage(path: path, access: .write, allowsNetwork: allowsNetwork)
        } catch {
            let error = CheckpointError(error)
            if error.code == .notFound { return nil }
            throw error
        }
        guard replacing else {
            throw CheckpointError(
                .exists,
                storage.isBlockDevice
                    ? "\(path): it is a block device, and what it holds would be lost; choose "
                        + "another path, or replace it explicitly"
                    : "\(path): it exists already; choose another path, or replace it explicitly")
        }
        let isLocked = try withCheckpointErrors { () throws(StorageError) in
            try storage.tryLock(.writer, exclusive: true)
        }
        guard isLocked else {
            throw CheckpointError(
                .locked, "\(path): a writer has it open; close that writer before replacing it")
        }
        return storage
    }

    static func makeIdentity(
        _ options: Options, deviceByteCount: UInt64?
    ) throws(CheckpointError) -> IdentityBlock {
        do throws(FormatError) {
            let geometry = try Geometry(
                capacity: options.capacity, inFlight: options.inFlight, retain: options.retain,
                chunkByteCount: options.chunkByteCount, fileByteCount: deviceByteCount)
            return try IdentityBlock(
                fileUUID: .random(), geometry: geometry, createdTime: SystemClock.wallTime,
                rank: options.rank, worldSize: options.worldSize,
                creator: "pccheck \(PCcheck.version)", fingerprint: options.fingerprint,
                runUUID: options.runUUID)
        } catch {
            var error = CheckpointError(.invalidArgument, "\(error)")
            if let deviceByteCount {
                error.message += "; the device has \(deviceByteCount) bytes"
            }
            throw error
        }
    }

    /// The first superblock of a file without checkpoints.
    static func firstSuperblock(_ identity: IdentityBlock) -> Superblock {
        Superblock(
            fileUUID: identity.fileUUID, generation: Generation(rawValue: 1), anchor: nil,
            isCleanClose: true, parentDigest: .zero, commitTime: SystemClock.wallTime,
            writerBootID: ThisMachine.bootID, writerPID: ThisProcess.id,
            storageKind: .direct, sequenceLimit: 0)
    }

    /// Writes every metadata block of a new file, so that nothing stale is left on a device.
    ///
    /// `first` and its successor, which says the same, fill all four superblock positions. They
    /// name the checkpoints `copies`, newest first, which are in their slots already.
    static func writeMetadata(
        _ identity: IdentityBlock, _ first: Superblock, holding copies: [Candidate] = [],
        to storage: any Storage
    ) throws(StorageError) {
        let geometry = identity.geometry
        for slot in geometry.slots where !copies.contains(where: { $0.slot == slot }) {
            let header = SlotHeader(
                emptySlot: slot, fileUUID: identity.fileUUID, geometry: geometry)
            try storage.writeBlocks(header.encoded().bytes, at: geometry.headerOffset(slot))
        }
        var superblock = first
        superblock.isCleanClose = true
        superblock.storageKind = storage.kind
        superblock.anchor = copies.first.map { Anchor($0) }
        superblock.retained = copies.dropFirst().map {
            RetainedSlot(slot: $0.slot, sequence: $0.sequence)
        }
        for _ in 0..<2 {
            let encoded = superblock.encoded()
            for offset in geometry.superblockOffsets(parity: superblock.generation.parity) {
                try storage.writeBlocks(encoded.bytes, at: offset)
            }
            superblock.generation = Generation(rawValue: superblock.generation.rawValue + 1)
            superblock.parentDigest = encoded.digest
        }
        let reserved = [UInt8](repeating: 0, count: Limits.blockByteCount)
        try storage.writeBlocks(reserved, at: 3 * UInt64(Limits.blockByteCount))
        // Last, and only when all else is on the medium, so that an interrupted creation on a
        // device is not taken for a checkpoint file.
        try storage.flush()
        for offset in geometry.identityOffsets {
            try storage.writeBlocks(identity.encoded(), at: offset)
        }
    }
}

/// Facts of this library.
public enum PCcheck {
    public static let versionLiteral: StaticString = "0.1.0"
    public static var version: String { "\(versionLiteral)" }
}
