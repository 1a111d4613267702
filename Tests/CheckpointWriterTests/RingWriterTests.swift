import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import CheckpointWriter
import Foundation
import Testing

private let unavailable = RingStorage.unavailableReason

/// A writer over io_uring: what it saves, and what a full disk does to it.
@Suite(.enabled(if: unavailable == nil, "\(unavailable ?? "")")) struct RingWriterTests {
    let directory: TemporaryDirectory
    let path: String
    var options = WriterOptions()

    init() throws {
        directory = try TemporaryDirectory()
        path = directory.file()
        options.backend = .ring
    }

    @Test(arguments: [0, 1, 4095, 4096, 65537, 300_001, 1 << 20])
    func bytesComeBackWhateverTheirCount(count: Int) throws {
        try createFile(path)
        let bytes = pattern(UInt64(count), count: count)
        let writer = try CheckpointWriter(path: path, options: options)
        let ticket = try writer.save(step: 7, payload: CheckpointPayload(opaque: bytes))
        #expect(try ticket.wait() == .durable)
        let statistics = writer.statistics
        #expect(statistics.storageKind == .ring && statistics.storageFallbackReason == nil)
        #expect(statistics.storageDetail?.contains("4 writes per worker") == true)
        try writer.close()
        let reader = try CheckpointReader(path: path)
        #expect(reader.decision.superblock?.storageKind == .ring)
        #expect(try loadNewest(path).bytes == bytes)
    }

    @Test(arguments: [1, 3], [1, 2, 16])
    func manyInFlightWithAnyDepth(workers: Int, depth: Int) throws {
        try createFile(path, capacity: 2 << 20, inFlight: 3)
        var options = options
        options.writerWorkerCount = workers
        options.writeQueueDepth = depth
        // Fewer buffers than writes that could be under way.
        options.poolByteCount = 5 * 64 << 10
        let patterns = (1...6).map { pattern($0, count: 700_001) }
        for codec in Codec.allCases {
            options.codec = codec
            let writer = try CheckpointWriter(path: path, options: options)
            try writer.rewind(to: 1)
            let tickets = try patterns.enumerated().map { index, bytes in
                try writer.save(
                    step: UInt64(index + 1), payload: CheckpointPayload(opaque: bytes))
            }
            try writer.close()
            #expect(tickets.last?.outcome == .durable)
            let newest = try loadNewest(path)
            #expect(newest.step == 6)
            #expect(newest.bytes == patterns[5])
        }
    }

    @Test func anAbandonedWriterLeavesTheLastDurableOne() throws {
        try createFile(path, capacity: 1 << 20, inFlight: 2)
        for round in 1...3 {
            let writer = try CheckpointWriter(path: path, options: options)
            let step = UInt64(2 * round)
            #expect(try writer.outcome(step, pattern(step, count: 1_000_000)) == .durable)
            let ticket = try writer.save(
                step: step + 1,
                payload: CheckpointPayload(opaque: pattern(step + 1, count: 1_000_000)))
            writer.abandon()
            let newest = try loadNewest(path)
            #expect(newest.step == step || newest.step == step + 1)
            if ticket.outcome == .durable { #expect(newest.step == step + 1) }
            #expect(newest.bytes == pattern(newest.step, count: 1_000_000))
        }
    }

    /// A sparse file is not what `pccheck create` makes: here writes can meet a full disk.
    @Test(.enabled(if: TemporaryFileSystem.isPossible, "mounting needs root"))
    func aFullDiskFailsTheWriteAndNothingElse() throws {
        let disk = try #require(try TemporaryFileSystem(byteCount: 2 << 20))
        let file = disk.directory.file("sparse")
        #expect(FileManager.default.createFile(atPath: file, contents: nil))
        try FileHandle(forWritingTo: URL(fileURLWithPath: file)).truncate(atOffset: 64 << 20)
        let storage = try RingStorage(path: file)
        let queue = try storage.makeWriteQueue(depth: 4, pool: nil)
        let buffer = AlignedBuffer(byteCount: 4 << 20)
        buffer.copy(pattern(1, count: 4 << 20), to: 0)
        // More than fits: what the disk still takes is a short write, and the rest is refused.
        queue.submit(buffer, 0..<4 << 20, at: 0, tag: 1)
        let failed = queue.waitForOne()
        #expect(failed.tag == 1 && failed.error?.osErrorNumber == ENOSPC)
        #expect(CheckpointError(try #require(failed.error)).code == .noSpace)
        #expect(try storage.readBlocks(at: 0, count: 65536) == pattern(1, count: 65536))
        // What has its blocks is written on.
        queue.submit(buffer, 4096..<8192, at: 0, tag: 2)
        let written = queue.waitForOne()
        #expect(written.tag == 2 && written.error == nil)
        #expect(try storage.readBlocks(at: 0, count: 4096) == buffer.array(4096..<8192))
    }
}
