import CPlatformLinux
import CheckpointFormat
import Foundation
import Testing

@testable import CheckpointStorage

/// Why the tests that need a ring do not run here; nil when they do.
private let unavailable = RingStorage.unavailableReason

/// What becomes of a write after each answer of the kernel. Pure.
@Suite struct WriteProgressTests {
    private struct Case {
        let name: String
        let count: Int
        /// What the kernel answers to one write after another.
        let answers: [Int32]
        /// What is then done, and the decision after the last answer.
        let done: Int
        let decision: Int32

        init(_ name: String, _ count: Int, _ answers: [Int32], done: Int, _ decision: Int32) {
            self.name = name
            self.count = count
            self.answers = answers
            self.done = done
            self.decision = decision
        }
    }

    private static let complete = Int32(PCC_WRITE_DONE)
    private static let rest = Int32(PCC_WRITE_REST)

    private static let cases = [
        Case("all at once", 16384, [16384], done: 16384, complete),
        Case("short by blocks", 16384, [4096], done: 4096, rest),
        Case("short, then the rest", 16384, [4096, 12288], done: 16384, complete),
        Case("inside a block: back to its start", 16384, [5000], done: 4096, rest),
        Case("inside a block, then the rest", 16384, [5000, 12288], done: 16384, complete),
        Case("less than a block once", 16384, [100], done: 0, rest),
        Case("less than a block, then all", 16384, [100, 16384], done: 16384, complete),
        Case("less than a block twice", 16384, [100, 100], done: 0, -EIO),
        Case("progress in between", 16384, [100, 4196, 100], done: 4096, rest),
        Case("nothing", 16384, [0], done: 0, -EIO),
        Case("nothing after something", 16384, [8192, 0], done: 8192, -EIO),
        Case("more than was asked", 4096, [4097], done: 0, -EIO),
        Case("more than was left", 8192, [4096, 8192], done: 4096, -EIO),
        Case("interrupted", 4096, [-EINTR], done: 0, rest),
        Case("interrupted, then all", 4096, [-EINTR, 4096], done: 4096, complete),
        Case("would block", 8192, [4096, -EAGAIN], done: 4096, rest),
        Case("would block, then the rest", 8192, [4096, -EAGAIN, 4096], done: 8192, complete),
        Case("canceled", 4096, [-ECANCELED], done: 0, -ECANCELED),
        Case("full", 8192, [4096, -ENOSPC], done: 4096, -ENOSPC),
        Case("failed", 4096, [-EIO], done: 0, -EIO),
        Case(
            "would block for ever", 4096, Array(repeating: -EAGAIN, count: 101), done: 0, -EAGAIN),
    ]

    @Test func everyAnswerIsHeeded() {
        for item in Self.cases {
            var progress = pccp_write_progress(count: item.count, done: 0, stall_count: 0)
            var decision = Self.rest
            for answer in item.answers {
                #expect(decision == Self.rest, "\(item.name): only the rest is written again")
                // Safe: the struct lives through the call.
                decision = unsafe pccp_write_progress(&progress, answer)
            }
            #expect(decision == item.decision, "\(item.name)")
            #expect(progress.done == item.done, "\(item.name)")
        }
    }

    @Test func whyThereIsNoRingIsSaidWithWhatToDo() {
        #expect(RingStorage.reason(probed: 0, disabledSetting: 0) == nil)
        let table: [(result: Int32, setting: Int32, parts: [String])] = [
            (-ENOSYS, -1, ["Linux 5.6", "seccomp profile"]),
            (-EPERM, 2, ["kernel.io_uring_disabled is 2", "sysctl kernel.io_uring_disabled=0"]),
            (-EPERM, 0, ["seccomp filter", "allow io_uring_setup"]),
            (-EPERM, -1, ["seccomp filter", "allow io_uring_setup"]),
            (-EOPNOTSUPP, 0, ["too old"]),
            (-ENOMEM, 0, ["locked memory", "ulimit -l"]),
            (-EMFILE, 0, ["Too many open files"]),
        ]
        for item in table {
            let reason = RingStorage.reason(probed: item.result, disabledSetting: item.setting)
            for part in item.parts + ["io_uring is not available"] {
                #expect(reason?.contains(part) == true, "\(reason ?? "nil") should say \(part)")
            }
        }
    }
}

@Suite(.enabled(if: unavailable == nil, "\(unavailable ?? "")")) final class RingStorageTests {
    private let directory: URL
    private var path: String { directory.appendingPathComponent("file").path }

    init() throws {
        directory = FileManager.default.temporaryDirectory
            .appendingPathComponent("pccheck-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(at: directory) }

    /// A file of `byteCount` zeros, open.
    private func storage(
        _ byteCount: Int, _ mode: FileStorage.Mode = .automatic
    ) throws -> RingStorage {
        try Data(count: byteCount).write(to: URL(fileURLWithPath: path))
        return try RingStorage(path: path, mode: mode)
    }

    /// Words that occur nowhere else in the file.
    private static func fill(_ buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64) {
        let words = stride(from: offset, to: offset + UInt64(range.count), by: 8).map {
            $0 &* 0x9E37_79B9_7F4A_7C15
        }
        // Safe: the array outlives the closure.
        unsafe words.withUnsafeBytes { unsafe buffer.copy($0, to: range.lowerBound) }
    }

    /// Whether the file holds, from `offset`, what `fill` makes for it.
    private func expectFilled(
        _ storage: RingStorage, _ range: Range<UInt64>,
        _ location: SourceLocation = #_sourceLocation
    ) throws {
        storage.discardCache()
        let wanted = AlignedBuffer(byteCount: range.count)
        Self.fill(wanted, 0..<range.count, at: range.lowerBound)
        let found = try storage.readBlocks(at: range.lowerBound, count: range.count)
        // Apart, so that a failure does not print megabytes.
        let isEqual = found == wanted.array(0..<range.count)
        #expect(isEqual, sourceLocation: location)
    }

    private struct Piece {
        let offset: UInt64
        let byteCount: Int
    }

    /// Consecutive pieces of odd block counts, up to `total` bytes.
    private static func pieces(_ total: Int, blockCounts: [Int]) -> [Piece] {
        var result: [Piece] = []
        var offset = 0
        while offset < total {
            let blocks = blockCounts[result.count % blockCounts.count]
            let count = min(blocks * Limits.blockByteCount, total - offset)
            result.append(Piece(offset: UInt64(offset), byteCount: count))
            offset += count
        }
        return result
    }

    @Test(arguments: [FileStorage.Mode.automatic, .buffered], [true, false])
    func everyByteOfManyWritesArrives(mode: FileStorage.Mode, usesPool: Bool) throws {
        let total = 6 << 20
        let storage = try storage(total, mode)
        #expect(storage.kind == .ring)
        let depth = 4
        let size = 1 << 20
        let pool = try #require(StagingMemory(byteCount: depth * size))
        let queue = try storage.makeWriteQueue(depth: depth, pool: pool)
        #expect(queue.depth == depth)
        // Both kinds of memory in one queue: the registered pool, and buffers of their own.
        var buffers =
            usesPool
            ? pool.buffers(of: size) : (0..<depth).map { _ in AlignedBuffer(byteCount: size) }
        buffers[0] = AlignedBuffer(byteCount: size)
        let pieces = Self.pieces(total, blockCounts: [1, 256, 3, 33, 2, 1, 17, 20])
        #expect(pieces.count > 8 * depth)
        var free = Array(0..<depth)
        var ended = 0
        func endOne() {
            let completion = queue.waitForOne()
            #expect(completion.error == nil && !completion.isUnresolved)
            free.append(completion.tag)
            ended += 1
        }
        for piece in pieces {
            if free.isEmpty { endOne() }
            let tag = free.removeFirst()
            // Not from the buffer's start, to see that the range is heeded.
            let start = piece.byteCount + 4096 <= size ? 4096 : 0
            let range = start..<start + piece.byteCount
            Self.fill(buffers[tag], range, at: piece.offset)
            queue.submit(buffers[tag], range, at: piece.offset, tag: tag)
        }
        while queue.pendingCount > 0 { endOne() }
        #expect(ended == pieces.count && free.sorted() == Array(0..<depth))
        try storage.flush()
        try expectFilled(storage, 0..<UInt64(total))
    }

    @Test func aQueueTellsWhatItHas() throws {
        let storage = try storage(1 << 20)
        let pool = try #require(StagingMemory(byteCount: 1 << 20))
        let registered = try storage.makeWriteQueue(depth: 7, pool: pool).detail
        #expect(registered?.contains("7 writes per worker") == true)
        #expect(registered?.contains("pool registered") == true)
        #expect(try storage.makeWriteQueue(depth: 1, pool: nil).detail?.contains("no pool") == true)
    }

    @Test func aWriteThatFailsIsToldAndTheOthersGoOn() throws {
        _ = try storage(1 << 20)
        // A descriptor for reading gives EBADF at each write, as a ring reports it.
        let reading = try FileStorage(path: path, access: .read)
        let queue = try RingWriteQueue(
            RingStorage(path: path), descriptor: reading.descriptor, depth: 2, pool: nil)
        for tag in [10, 20] {
            queue.submit(
                AlignedBuffer(byteCount: 4096), 0..<4096, at: UInt64(tag) * 4096, tag: tag)
        }
        var tags: Set<Int> = []
        for _ in 0..<2 {
            let completion = queue.waitForOne()
            tags.insert(completion.tag)
            #expect(completion.error?.osErrorNumber == EBADF)
            #expect(completion.error?.operation == "io_uring write")
            #expect(completion.error?.byteOffset == UInt64(completion.tag) * 4096)
            #expect(!completion.isUnresolved)
        }
        #expect(tags == [10, 20] && queue.pendingCount == 0)
    }

    /// Keeps nothing alive.
    private struct Weak: Sendable { weak var buffer: AlignedBuffer? }

    /// Submits `count` writes of `byteCount` each and keeps no buffer.
    private static func submitAndForget(
        _ queue: any WriteQueue, count: Int, byteCount: Int
    ) -> [Weak] {
        (0..<count).map { index in
            let buffer = AlignedBuffer(byteCount: byteCount)
            let offset = UInt64(index * byteCount)
            fill(buffer, 0..<byteCount, at: offset)
            queue.submit(buffer, 0..<byteCount, at: offset, tag: index)
            return Weak(buffer: buffer)
        }
    }

    @Test func buffersLiveUntilTheirCompletionIsSeen() throws {
        let size = 2 << 20
        let storage = try storage(4 * size)
        let queue = try storage.makeWriteQueue(depth: 4, pool: nil)
        let buffers = Self.submitAndForget(queue, count: 4, byteCount: size)
        for left in stride(from: 4, to: 0, by: -1) {
            #expect(buffers.count { $0.buffer != nil } == left)
            let completion = queue.waitForOne()
            #expect(completion.error == nil)
            #expect(buffers[completion.tag].buffer == nil, "it is given back at once")
        }
        try storage.flush()
        try expectFilled(storage, 0..<UInt64(4 * size))
    }

    @Test func aRingDroppedWithWritesUnderWayWaitsForThem() throws {
        let size = 1 << 20
        let storage = try storage(8 * size)
        for _ in 0..<2 {
            var queue: (any WriteQueue)? = try storage.makeWriteQueue(depth: 8, pool: nil)
            // Each is large enough to be given to the kernel at once.
            let buffers = Self.submitAndForget(try #require(queue), count: 8, byteCount: size)
            #expect(buffers.allSatisfy { $0.buffer != nil })
            queue = nil
            // Freed by now, and only now: every byte was read from it before.
            #expect(buffers.allSatisfy { $0.buffer == nil })
            try expectFilled(storage, 0..<UInt64(8 * size))
            let zeros = AlignedBuffer(byteCount: 8 * size)
            try storage.write(zeros, 0..<8 * size, at: 0)
        }
    }

    /// A pipe: its writes end short, or not before somebody reads. Both ends close with it.
    // Unchecked: constant, and each end has one user at a time.
    private final class PipeEnds: @unchecked Sendable {
        let pipe = Pipe()

        /// A ring takes any descriptor; the file is there to be named in errors.
        func queue(_ file: RingStorage, depth: Int) throws -> RingWriteQueue {
            try RingWriteQueue(
                file, descriptor: pipe.fileHandleForWriting.fileDescriptor, depth: depth, pool: nil)
        }

        func read(_ count: Int) -> [UInt8] {
            Array(pipe.fileHandleForReading.readData(ofLength: count))
        }
    }

    @Test func shortWritesAreContinued() throws {
        let ends = PipeEnds()
        let size = 4 << 20
        let file = try storage(4096)
        let read = Monitor([UInt8]())
        let reader = try WorkerThread.start(name: "read") {
            // A pipe holds 64 KiB: each write that the kernel carries out ends short.
            let bytes = ends.read(size)
            read.withLock { $0 = bytes }
        }
        var queue: RingWriteQueue? = try ends.queue(file, depth: 1)
        let buffer = AlignedBuffer(byteCount: size)
        Self.fill(buffer, 0..<size, at: 0)
        queue?.submit(buffer, 0..<size, at: 0, tag: 5)
        let completion = queue?.waitForOne()
        #expect(completion?.tag == 5 && completion?.error == nil)
        // Were the rest not written, the reader would wait for it: it ends with the pipe instead,
        // which the ring has open as well.
        queue = nil
        try ends.pipe.fileHandleForWriting.close()
        reader.join()
        let isEqual = read.withLock { $0 } == buffer.array(0..<size)
        #expect(isEqual, "\(read.withLock { $0.count }) bytes arrived, expected \(size)")
    }

    @Test func aDroppedRingKeepsBuffersWhileTheKernelReadsThem() throws {
        let ends = PipeEnds()
        let size = 1 << 20
        let file = try storage(4096)
        // A full pipe: the next write goes on until somebody reads.
        ends.pipe.fileHandleForWriting.write(Data(count: 64 << 10))
        let state = Monitor((weak: Weak(buffer: nil), isSubmitted: false, isDropped: false))
        let owner = try WorkerThread.start(name: "drop") {
            var queue = try? ends.queue(file, depth: 1)
            if let queue {
                let buffers = Self.submitAndForget(queue, count: 1, byteCount: size)
                state.withLock { $0 = (buffers[0], true, false) }
                state.wakeAll()
            }
            queue = nil
            state.withLock { $0.isDropped = true }
            state.wakeAll()
        }
        let deadline = SystemClock.monotonicTime + 30_000_000_000
        #expect(state.wait(deadline: deadline) { $0.isSubmitted })
        // Time enough for a queue that does not wait.
        #expect(!state.wait(deadline: SystemClock.monotonicTime + 200_000_000) { $0.isDropped })
        #expect(state.withLock { $0.weak.buffer != nil })
        #expect(ends.read(64 << 10).count == 64 << 10)
        #expect(state.wait(deadline: deadline) { $0.isDropped })
        owner.join()
        #expect(state.withLock { $0.weak.buffer == nil })
    }

    @Test func aRingDroppedBeforeTheKernelHasItsWritesDropsThem() throws {
        let storage = try storage(64 << 10)
        var queue: (any WriteQueue)? = try storage.makeWriteQueue(depth: 4, pool: nil)
        let buffers = Self.submitAndForget(try #require(queue), count: 4, byteCount: 4096)
        queue = nil
        #expect(buffers.allSatisfy { $0.buffer == nil })
        let content = try storage.readBlocks(at: 0, count: 16384)
        #expect(content == [UInt8](repeating: 0, count: 16384))
    }

    @Test func aQueueOutlivesWhoMadeIt() throws {
        var maker: RingStorage? = try storage(1 << 20)
        let queue = try #require(maker).makeWriteQueue(depth: 2, pool: nil)
        maker = nil
        let buffer = AlignedBuffer(byteCount: 8192)
        Self.fill(buffer, 0..<8192, at: 4096)
        queue.submit(buffer, 0..<8192, at: 4096, tag: 0)
        #expect(queue.waitForOne().error == nil)
        try expectFilled(RingStorage(path: path), 4096..<12288)
    }

    @Test func eachThreadHasARingOfItsOwn() throws {
        let share = 4 << 20
        let storage = try storage(4 * share)
        let failures = Monitor(0)
        let threads = try (0..<4).map { number in
            try WorkerThread.start(name: "ring-\(number)") {
                guard let queue = try? storage.makeWriteQueue(depth: 3, pool: nil) else {
                    return failures.withLock { $0 += 1 }
                }
                let first = number * share
                for offset in stride(from: first, to: first + share, by: 512 << 10) {
                    if queue.pendingCount == queue.depth, queue.waitForOne().error != nil {
                        failures.withLock { $0 += 1 }
                    }
                    let buffer = AlignedBuffer(byteCount: 512 << 10)
                    Self.fill(buffer, 0..<buffer.byteCount, at: UInt64(offset))
                    queue.submit(buffer, 0..<buffer.byteCount, at: UInt64(offset), tag: offset)
                }
                while queue.pendingCount > 0 {
                    if queue.waitForOne().error != nil { failures.withLock { $0 += 1 } }
                }
            }
        }
        for thread in threads { thread.join() }
        #expect(failures.withLock { $0 } == 0)
        try storage.flush()
        try expectFilled(storage, 0..<UInt64(4 * share))
    }
}
