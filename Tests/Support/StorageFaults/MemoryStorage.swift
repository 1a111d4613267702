public import CheckpointFormat
public import CheckpointStorage

/// A storage in memory, for tests: a medium's bytes and its lock table, shared by its openers.
public final class MemoryStorage: Storage {
    /// One call to the medium, as a fault hook sees it before it takes effect.
    public enum Call: Hashable, Sendable {
        case read(offset: UInt64, byteCount: Int)
        case write(offset: UInt64, byteCount: Int)
        case flush
        case lock(LockByte, exclusive: Bool)
    }

    /// Called before each call, without any lock held; a returned number is the errno it fails
    /// with.
    public typealias FaultHook = @Sendable (Call) -> Int32?

    /// A closure alone in a monitor would be wrapped anew at each access, without end.
    private struct Hook: Sendable {
        var body: FaultHook?
    }

    private struct Medium {
        var bytes: [UInt8]
        /// Who holds each byte: the opener's identity, and whether it holds it alone.
        var locks: [LockByte: [ObjectIdentifier: Bool]] = [:]
        var flushCount = 0
    }

    public let path: String
    public let kind = StorageKind.memory
    private let medium: Monitor<Medium>
    private let hook = Monitor(Hook())

    /// A medium of its own that holds `contents`.
    public init(contents: [UInt8], path: String = "memory") {
        self.path = path
        medium = Monitor(Medium(bytes: contents))
    }

    /// A medium of its own, all zero.
    public convenience init(byteCount: UInt64, path: String = "memory") {
        self.init(contents: [UInt8](repeating: 0, count: Int(byteCount)), path: path)
    }

    /// Another opener of the medium of `other`: the same bytes, locks of its own.
    public init(openerOf other: MemoryStorage) {
        path = other.path
        medium = other.medium
    }

    deinit {
        // As with open file descriptions: closing releases the locks.
        let identity = ObjectIdentifier(self)
        medium.withLock { medium in
            for byte in medium.locks.keys { medium.locks[byte]?[identity] = nil }
        }
    }

    public var byteCount: UInt64 { medium.withLock { UInt64($0.bytes.count) } }

    /// All bytes of the medium as they are now.
    public var contents: [UInt8] { medium.withLock { $0.bytes } }

    /// The bytes of one range as they are now.
    public func bytes(in range: Range<Int>) -> [UInt8] {
        medium.withLock { Array($0.bytes[range]) }
    }

    /// How many flushes succeeded.
    public var flushCount: Int { medium.withLock { $0.flushCount } }

    /// Changes bytes of the medium behind the back of every opener, any offset and count.
    public func overwrite(_ bytes: [UInt8], at offset: UInt64) {
        medium.withLock {
            $0.bytes.replaceSubrange(Int(offset)..<Int(offset) + bytes.count, with: bytes)
        }
    }

    /// Flips the bits of `mask` in the byte at `offset`.
    public func flip(_ mask: UInt8, at offset: UInt64) {
        medium.withLock { $0.bytes[Int(offset)] ^= mask }
    }

    /// Installs or removes the hook of this opener.
    public func setFaultHook(_ newHook: FaultHook?) { hook.withLock { $0.body = newHook } }

    private func fail(_ call: Call) throws(StorageError) {
        guard let hook = hook.withLock({ $0.body }), let error = hook(call) else { return }
        throw switch call {
        case .read(let offset, let byteCount):
            StorageError.read(errno: error, path: path, byteOffset: offset, byteCount: byteCount)
        case .write(let offset, let byteCount):
            .write(errno: error, path: path, byteOffset: offset, byteCount: byteCount)
        case .flush: .flush(errno: error, path: path)
        case .lock(let byte, _):
            .lock(errno: error, path: path, byteOffset: byte.byteOffset)
        }
    }

    private func check(_ range: Range<Int>, _ offset: UInt64) {
        precondition(
            range.lowerBound % Limits.blockByteCount == 0
                && range.count % Limits.blockByteCount == 0
                && offset % UInt64(Limits.blockByteCount) == 0,
            "offsets and counts are multiples of 4096, as O_DIRECT needs them")
    }

    public func read(
        into buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64
    ) throws(StorageError) {
        check(range, offset)
        try fail(.read(offset: offset, byteCount: range.count))
        let part = medium.withLock { medium in
            let start = min(Int(clamping: offset), medium.bytes.count)
            return Array(medium.bytes[start...].prefix(range.count))
        }
        buffer.copy(part, to: range.lowerBound)
        guard part.count == range.count else {
            throw StorageError.read(
                errno: 0, path: path, byteOffset: offset, byteCount: range.count)
        }
    }

    public func write(
        _ buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64
    ) throws(StorageError) {
        check(range, offset)
        try fail(.write(offset: offset, byteCount: range.count))
        guard offset <= byteCount, UInt64(range.count) <= byteCount - offset else {
            throw StorageError(
                operation: "pwrite", path: path, byteOffset: offset, byteCount: range.count,
                osErrorNumber: 28, advice: "a storage in memory does not grow")
        }
        overwrite(buffer.array(range), at: offset)
    }

    public func flush() throws(StorageError) {
        try fail(.flush)
        medium.withLock { $0.flushCount += 1 }
    }

    public func resize(to byteCount: UInt64) throws(StorageError) {
        medium.withLock { medium in
            let missing = Int(byteCount) - medium.bytes.count
            if missing < 0 { return medium.bytes.removeLast(-missing) }
            medium.bytes += [UInt8](repeating: 0, count: missing)
        }
    }

    public func tryLock(_ byte: LockByte, exclusive: Bool) throws(StorageError) -> Bool {
        try fail(.lock(byte, exclusive: exclusive))
        let identity = ObjectIdentifier(self)
        return medium.withLock { medium in
            let others = medium.locks[byte, default: [:]].filter { $0.key != identity }
            let isFree = exclusive ? others.isEmpty : !others.values.contains(true)
            if isFree { medium.locks[byte, default: [:]][identity] = exclusive }
            return isFree
        }
    }

    public func isInHand(_ slot: SlotIndex) -> Bool {
        let identity = ObjectIdentifier(self)
        return medium.withLock { medium in
            medium.locks[.slot(slot), default: [:]].contains { $0.value && $0.key != identity }
        }
    }

    public func unlock(_ byte: LockByte) throws(StorageError) {
        let identity = ObjectIdentifier(self)
        medium.withLock { $0.locks[byte]?[identity] = nil }
    }
}
