public import CheckpointFormat
public import CheckpointStorage

/// A storage in memory that records every write and flush, and fails where a plan says so.
///
/// Reads see what was written, as through a page cache. After a failed flush they still do, though
/// the medium may never get those bytes; `discardCache` shows what the medium has.
public final class RecordingStorage: Storage {
    private struct Log {
        var recording: Recording
        var plan = FaultPlan()
        var callCounts: [FaultPlan.CallKind: Int] = [:]
        var flushLimit = Int.max
    }

    /// Bytes as reads see them, and the locks.
    private let memory: MemoryStorage
    private let log: Monitor<Log>
    /// A closure alone in a monitor would be wrapped anew at each access, without end.
    private struct Observer: Sendable {
        var body: (@Sendable () -> [UInt64])?
    }
    private let observer: Monitor<Observer>

    /// A medium of its own that holds `contents`.
    public init(contents: [UInt8], path: String = "memory") {
        memory = MemoryStorage(contents: contents, path: path)
        log = Monitor(Log(recording: Recording(initial: contents)))
        observer = Monitor(Observer())
    }

    /// Another opener of the medium of `other`: the same bytes, recording, plan and observer, but
    /// locks of its own.
    public init(openerOf other: RecordingStorage) {
        memory = MemoryStorage(openerOf: other.memory)
        log = other.log
        observer = other.observer
    }

    public var path: String { memory.path }
    public var kind: StorageKind { memory.kind }
    public var byteCount: UInt64 { memory.byteCount }
    public var contents: [UInt8] { memory.contents }
    public var recording: Recording { log.withLock { $0.recording } }
    public var callCounts: [FaultPlan.CallKind: Int] { log.withLock { $0.callCounts } }

    /// The hook of `MemoryStorage`, called before everything else.
    public func setFaultHook(_ hook: MemoryStorage.FaultHook?) { memory.setFaultHook(hook) }

    /// Replaces the plan and counts calls from 0 again.
    public func setPlan(_ plan: FaultPlan) {
        log.withLock {
            $0.plan = plan
            $0.callCounts = [:]
        }
    }

    /// From here on flushes cover only writes that end at or below `limit`.
    public func setFlushLimit(_ limit: Int) { log.withLock { $0.flushLimit = limit } }

    /// Called before each write and flush is recorded, without a lock held; what it returns is
    /// noted there. A test that returns what it was told so far knows what the caller knew before
    /// that call.
    public func setObserver(_ body: (@Sendable () -> [UInt64])?) {
        observer.withLock { $0.body = body }
    }

    /// Records `number` at this position.
    public func note(_ number: UInt64) {
        log.withLock { $0.recording.events.append(.note(number)) }
    }

    /// The write with this index is durable from here on.
    func fence(_ index: Int) { log.withLock { $0.recording.events.append(.fenced(index)) } }

    private func nextEffect(_ kind: FaultPlan.CallKind) -> FaultPlan.Effect? {
        log.withLock { log in
            let number = log.callCounts[kind, default: 0]
            log.callCounts[kind] = number + 1
            return log.plan.effect(kind, number: number)
        }
    }

    func observe() {
        guard let body = observer.withLock({ $0.body }) else { return }
        for number in body() { note(number) }
    }

    public func read(
        into buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64
    ) throws(StorageError) {
        if case .error(let number) = nextEffect(.read) {
            throw StorageError.read(
                errno: number, path: path, byteOffset: offset, byteCount: range.count)
        }
        try memory.read(into: buffer, range, at: offset)
    }

    public func write(
        _ buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64
    ) throws(StorageError) {
        observe()
        try end(begin(buffer, range, at: offset))
    }

    /// A write between its beginning and its end.
    struct WriteUnderWay {
        let index: Int
        fileprivate let buffer: AlignedBuffer
        fileprivate let part: Range<Int>
        fileprivate let place: Int
        fileprivate let error: StorageError?
        fileprivate let isLost: Bool
    }

    /// From here on a power cut may leave the write on the medium. Reads see it when it has ended.
    func begin(_ buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64) -> WriteUnderWay {
        let effect = nextEffect(.write)
        var place = Int(offset)
        var count = range.count
        var failure: Int32?
        switch effect {
        case nil, .lostWrite: break
        case .error(let number):
            count = 0
            failure = number
        case .partialWrite(let number):
            count = range.count / 2 / Limits.blockByteCount * Limits.blockByteCount
            failure = number
        case .misdirectedWrite(let distance): place += distance
        }
        let part = range.lowerBound..<range.lowerBound + count
        let isLost =
            effect == .lostWrite || place < 0 || place + count > Int(clamping: byteCount)
        var write = Recording.Write(offset: place, bytes: buffer.array(part))
        write.isLost = isLost
        let isMisplaced = isLost || place != Int(offset)
        let index = log.withLock { log in
            write.isBeyondFlushes = place + count > log.flushLimit
            log.recording.writes.append(write)
            if isMisplaced { log.recording.silentFaultCount += 1 }
            let index = log.recording.writes.count - 1
            log.recording.events.append(.writeBegan(index))
            return index
        }
        let error = failure.map {
            StorageError.write(
                errno: $0, path: path, byteOffset: offset, byteCount: range.count)
        }
        return WriteUnderWay(
            index: index, buffer: buffer, part: part, place: place, error: error, isLost: isLost)
    }

    func end(_ write: WriteUnderWay) throws(StorageError) {
        let index = write.index
        let bytes = write.buffer.array(write.part)
        do throws(StorageError) {
            if !write.isLost { try memory.write(write.buffer, write.part, at: UInt64(write.place)) }
            if let error = write.error { throw error }
        } catch {
            log.withLock { log in
                log.recording.noteEnd(of: index, bytes)
                log.recording.events.append(.writeFailed(index))
            }
            throw error
        }
        log.withLock { log in
            log.recording.noteEnd(of: index, bytes)
            log.recording.writes[index].hasEnded = true
            log.recording.events.append(.writeEnded(index))
        }
    }

    public func flush() throws(StorageError) {
        observe()
        let effect = nextEffect(.flush)
        let (began, covered) = log.withLock { log in
            log.recording.events.append(.flushBegan)
            return (
                log.recording.events.count - 1,
                log.recording.writes.indices.filter { log.recording.writes[$0].hasEnded }
            )
        }
        do throws(StorageError) {
            try memory.flush()
            if case .error(let number) = effect {
                throw StorageError.flush(errno: number, path: path)
            }
        } catch {
            log.withLock { log in
                log.recording.events.append(.flushFailed(began: began))
                for index in covered where !log.recording.isDurable(index, before: began) {
                    log.recording.writes[index].isForgotten = true
                }
            }
            throw error
        }
        log.withLock { $0.recording.events.append(.flushEnded(began: began)) }
    }

    /// A medium that grows has its size at once: no crash state is without it.
    public func resize(to byteCount: UInt64) throws(StorageError) {
        try memory.resize(to: byteCount)
        log.withLock { log in
            let missing = Int(byteCount) - log.recording.initial.count
            log.recording.initial += [UInt8](repeating: 0, count: max(missing, 0))
        }
    }

    /// The bytes of forgotten writes disappear: the medium never got them.
    public func discardCache() {
        let bytes = log.withLock { log -> [UInt8]? in
            let forgotten = log.recording.writes.indices.filter {
                log.recording.writes[$0].isForgotten && !log.recording.writes[$0].isDiscarded
            }
            if forgotten.isEmpty { return nil }
            log.recording.events.append(.cacheDiscarded)
            for index in forgotten { log.recording.writes[index].isDiscarded = true }
            var bytes = log.recording.initial
            for write in log.recording.writes where !write.isLost && !write.isDiscarded {
                bytes.replaceSubrange(write.range, with: write.bytes)
            }
            return bytes
        }
        if let bytes { memory.overwrite(bytes, at: 0) }
    }

    public func tryLock(_ byte: LockByte, exclusive: Bool) throws(StorageError) -> Bool {
        try memory.tryLock(byte, exclusive: exclusive)
    }

    public func unlock(_ byte: LockByte) throws(StorageError) { try memory.unlock(byte) }
}

extension Recording {
    /// A device may read the buffer at any time between a write's two ends.
    mutating func noteEnd(of index: Int, _ bytes: [UInt8]) {
        if writes[index].bytes != bytes { changedWriteOffset = writes[index].offset }
    }

    /// Whether a flush that succeeded before event `limit` covers write `index`.
    func isDurable(_ index: Int, before limit: Int) -> Bool {
        guard let ended = events.firstIndex(of: .writeEnded(index)) else { return false }
        return events[..<limit].contains { event in
            if case .flushEnded(let began) = event { began > ended } else { false }
        } && !writes[index].isForgotten
    }
}
