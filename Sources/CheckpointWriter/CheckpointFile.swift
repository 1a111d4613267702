public import CheckpointFormat
internal import CheckpointStorage

/// Creates checkpoint files.
public enum CheckpointFile {
    /// How the slots get their blocks.
    public enum Preallocation: String, Sendable, CaseIterable {
        /// Reserve them. Quick, but on ext4 and XFS the first write to each block also has to
        /// mark it as written, which makes a small durable write cost more flushes.
        case fallocate
        /// Reserve them and write zeros: slower once, then every save runs at full speed.
        case zero
    }

    public struct Options: Sendable {
        /// The largest payload in bytes.
        public var capacity: UInt64
        public var inFlight = 2
        public var retain = 1
        public var chunkByteCount = 4 << 20
        public var preallocation = Preallocation.zero
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
        if options.preallocation == .zero { try writeZeros(to: storage, progress: progress) }
        do throws(StorageError) {
            try write(identity, to: storage)
            try storage.flush()
            try file.publish(replacing: options.replacesExisting)
        } catch {
            throw CheckpointError(error)
        }
    }

    /// What is at the path now, locked against writers; nil when there is nothing.
    private static func existingStorage(
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

    private static func makeIdentity(
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

    private static func writeZeros(
        to storage: FileStorage, progress: Progress?
    ) throws(CheckpointError) {
        let buffer = AlignedBuffer(byteCount: 8 << 20)
        var offset: UInt64 = 0
        while offset < storage.byteCount {
            let count = Int(min(UInt64(buffer.byteCount), storage.byteCount - offset))
            try withCheckpointErrors { () throws(StorageError) in
                try storage.write(buffer, 0..<count, at: offset)
            }
            offset += UInt64(count)
            try progress?(offset, storage.byteCount)
        }
    }

    /// Writes every metadata block of a new file, so that nothing stale is left on a device:
    /// generations 1 and 2 fill all four superblock positions.
    static func write(_ identity: IdentityBlock, to storage: any Storage) throws(StorageError) {
        let geometry = identity.geometry
        for slot in geometry.slots {
            let header = SlotHeader(
                emptySlot: slot, fileUUID: identity.fileUUID, geometry: geometry)
            try storage.writeBlocks(header.encoded().bytes, at: geometry.headerOffset(slot))
        }
        var parent = Digest.zero
        for number in [UInt64(1), 2] {
            let superblock = Superblock(
                fileUUID: identity.fileUUID, generation: Generation(rawValue: number), anchor: nil,
                isCleanClose: true, parentDigest: parent, commitTime: SystemClock.wallTime,
                writerBootID: SystemClock.bootID, writerPID: SystemClock.processID,
                storageKind: storage.kind)
            let encoded = superblock.encoded()
            parent = encoded.digest
            for offset in geometry.superblockOffsets(parity: superblock.generation.parity) {
                try storage.writeBlocks(encoded.bytes, at: offset)
            }
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
