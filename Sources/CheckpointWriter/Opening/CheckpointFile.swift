public import CheckpointFormat
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
        let existing = try existingStorage(path, options)
        // Its lock, until another file has the name.
        defer { withExtendedLifetime(existing) {} }
        let device = existing.flatMap { $0.isBlockDevice ? $0 : nil }
        let identity = try makeIdentity(options, deviceByteCount: device?.byteCount)
        if let device {
            try withCheckpointErrors { () throws(StorageError) in
                try write(identity, to: device)
                try device.flush()
            }
            return
        }
        try createRegularFile(path, identity, options, progress)
    }

    private static func createRegularFile(
        _ path: String, _ identity: IdentityBlock, _ options: Options, _ progress: Progress?
    ) throws(CheckpointError) {
        var file: NewFile
        do throws(StorageError) {
            file = try NewFile(beside: path, byteCount: identity.geometry.fileByteCount)
        } catch {
            throw CheckpointError(error)
        }
        let temporaryPath = file.temporaryPath
        let storage = try withCheckpointErrors { () throws(StorageError) in
            try FileStorage(
                path: temporaryPath, access: .write, allowsNetwork: options.allowsNetwork)
        }
        // What is not reserved is written, so that a full disk shows now. A store into a block of
        // persistent memory that was never written would be a fault that waits for a journal.
        if options.preallocation == .zero || !file.isReserved || storage.isDAX {
            try writeZeros(identity.geometry.fileByteCount, to: storage, progress: progress)
        }
        do throws(StorageError) {
            try write(identity, to: storage)
            try storage.flush()
            try file.publish(replacing: options.replacesExisting)
        } catch {
            throw CheckpointError(error)
        }
    }

    /// What is at the path now, locked against writers; nil when there is nothing.
    static func existingStorage(
        _ path: String, _ options: Options
    ) throws(CheckpointError) -> FileStorage? {
        let storage: FileStorage
        do throws(StorageError) {
            storage = try FileStorage(
                path: path, access: .write, allowsNetwork: options.allowsNetwork)
        } catch {
            let error = CheckpointError(error)
            if error.code == .notFound { return nil }
            throw error
        }
        guard options.replacesExisting else {
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
                creator: "pccheck \(PCcheck.version)", fingerprint: options.fingerprint)
        } catch {
            var error = CheckpointError(.invalidArgument, "\(error)")
            if let deviceByteCount {
                error.message += "; the device has \(deviceByteCount) bytes"
            }
            throw error
        }
    }

    static func writeZeros(
        _ byteCount: UInt64, to storage: FileStorage, progress: Progress?
    ) throws(CheckpointError) {
        let buffer = AlignedBuffer(byteCount: 8 << 20)
        var offset: UInt64 = 0
        while offset < byteCount {
            let count = Int(min(UInt64(buffer.byteCount), byteCount - offset))
            try withCheckpointErrors { () throws(StorageError) in
                try storage.write(buffer, 0..<count, at: offset)
            }
            offset += UInt64(count)
            try progress?(offset, byteCount)
        }
    }

    /// Writes every metadata block of a new file, so that nothing stale is left on a device:
    /// generations 1 and 2 fill all four superblock positions.
    ///
    /// - Parameter held: a checkpoint whose chunks are in its slot already; both generations name
    ///   it.
    static func write(
        _ identity: IdentityBlock, to storage: any Storage,
        holding held: (header: SlotHeader, table: ChunkTable)? = nil
    ) throws(StorageError) {
        let anchor = try held.map { held throws(StorageError) in
            try writeCommitRecord(held.header, held.table, to: storage)
        }
        let others = identity.geometry.slots.filter { $0 != held?.header.slot }
        try writeEmptyHeaders(identity, others, to: storage)
        let first = Superblock(
            fileUUID: identity.fileUUID, generation: Generation(rawValue: 1), anchor: anchor,
            isCleanClose: true, parentDigest: .zero, commitTime: SystemClock.wallTime,
            writerBootID: SystemClock.bootID, writerPID: SystemClock.processID,
            storageKind: storage.kind,
            sequenceLimit: anchor.map { $0.sequence.rawValue + 1 } ?? 0)
        try finish(identity, first, storage)
    }

    static func writeEmptyHeaders(
        _ identity: IdentityBlock, _ slots: some Sequence<SlotIndex>, to storage: any Storage
    ) throws(StorageError) {
        for slot in slots {
            let header = SlotHeader(
                emptySlot: slot, fileUUID: identity.fileUUID, geometry: identity.geometry)
            try storage.writeBlocks(
                header.encoded().bytes, at: identity.geometry.headerOffset(slot))
        }
    }

    /// What comes behind the slots: `first` and its successor, which says the same, fill all four
    /// superblock positions; then everything is flushed, and the identity blocks are written.
    static func finish(
        _ identity: IdentityBlock, _ first: Superblock, _ storage: any Storage
    ) throws(StorageError) {
        let geometry = identity.geometry
        var superblock = first
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

extension CheckpointFile {
    /// - Returns: what a superblock says of it.
    private static func writeCommitRecord(
        _ header: SlotHeader, _ table: ChunkTable, to storage: any Storage
    ) throws(StorageError) -> Anchor {
        let encoded = header.encoded()
        try storage.writeBlocks(encoded.bytes + table.encoded().bytes, at: header.ownOffset)
        return Anchor(
            slot: header.slot, sequence: header.sequence, step: header.step,
            headerDigest: encoded.digest)
    }
}

/// Facts of this library.
public enum PCcheck {
    public static let versionLiteral: StaticString = "0.1.0"
    public static var version: String { "\(versionLiteral)" }
}
