import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import CheckpointWriter
import Foundation
import StorageFaults
import Synchronization
import Testing

/// Mistakes that a published prototype of this idea made, each as a test that would catch it here.
@Suite struct PrototypeDefectTests {
    /// It opened the file with O_TRUNC.
    @Test func defect1ReopeningDestroysNothing() throws {
        let directory = try TemporaryDirectory()
        try createFile(directory.file())
        let bytes = pattern(3, count: 150_001)
        let first = try CheckpointWriter(path: directory.file())
        #expect(try first.outcome(3, bytes) == .durable)
        first.abandon()
        let second = try CheckpointWriter(path: directory.file())
        #expect(second.statistics.newestDurableStep == 3)
        second.abandon()
        #expect(try loadNewest(directory.file()).bytes == bytes)
        #expect(throws: CheckpointError.self) { try createFile(directory.file()) }
        #expect(try loadNewest(directory.file()).bytes == bytes)
    }

    /// Its root on disk was an address of the process that wrote it.
    @Test func defect2TheFileDependsOnNoProcessOrPlace() throws {
        let storage = try memoryFile()
        let writer = try CheckpointWriter(storage: storage)
        let bytes = pattern(1, count: 100_000)
        #expect(try writer.outcome(1, bytes) == .durable)
        try writer.close()
        // Another path, another storage object, and bytes that moved in memory.
        let directory = try TemporaryDirectory()
        let path = directory.file("elsewhere.pcc")
        #expect(FileManager.default.createFile(atPath: path, contents: Data(storage.contents)))
        #expect(try loadNewest(path).bytes == bytes)
        let before = try Data(contentsOf: URL(fileURLWithPath: path))
        // Reading, as another program does it, leaves every byte as it is.
        #expect(try Self.independentDigest(of: path) == Digest(of: storage.contents))
        #expect(try Data(contentsOf: URL(fileURLWithPath: path)) == before)
        let again = try CheckpointWriter(path: path)
        #expect(again.statistics.newestDurableStep == 1)
        #expect(try again.outcome(2, bytes) == .durable)
        try again.close()
        #expect(try loadNewest(path).step == 2)
    }

    /// The digest of the file as another process, cat(1), sees it.
    private static func independentDigest(of path: String) throws -> Digest {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/bin/cat")
        process.arguments = [path]
        let pipe = Pipe()
        process.standardOutput = pipe
        try process.run()
        let data = pipe.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        return Digest(of: Array(data))
    }

    /// It swapped 32 of 64 bits.
    @Test func defect3NumbersGoOnBeyond32Bits() throws {
        let high = (UInt64(1) << 32) - 2
        var builder = try ImageBuilder(inFlight: 2, retain: 1)
        let anchor = builder.complete(slot: 0, sequence: high, step: high)
        builder.commit(builder.superblock(generation: high, anchor: anchor))
        let storage = builder.storage()
        for round in UInt64(1)...3 {
            let writer = try CheckpointWriter(storage: storage)
            for step in [high + 10 * round, high + 10 * round + 1] {
                #expect(try writer.outcome(step, pattern(step, count: 70_000)) == .durable)
            }
            try writer.close()
            let newest = try storage.newest()
            #expect(newest.step == high + 10 * round + 1)
            #expect(newest.sequence.rawValue == high + 2 * round)
            #expect(newest.bytes == pattern(newest.step, count: 70_000))
        }
        let decision = try CheckpointReader(storage: storage).decision
        #expect(decision.highestSequence.rawValue > UInt64(UInt32.max))
        // Each round: the opening, two checkpoints, the close.
        #expect(decision.highestGeneration.rawValue == high + 12)
    }

    /// A slow older checkpoint replaced a newer one, whose slot was then reused.
    @Test func defect4ALateOlderCheckpointIsNeverPublished() throws {
        let storage = try memoryFile(inFlight: 2)
        let geometry = try storage.geometry
        let writer = try CheckpointWriter(storage: storage)
        let slot0 = geometry.slotDataOffset(SlotIndex(0))
        let gate = Gate {
            if case .write(let offset, _) = $0 { return offset == slot0 }
            return false
        }
        storage.setFaultHook(gate.hook)
        let older = try writer.save(1, pattern(1, count: 65_536))
        #expect(gate.waitUntilHolding())
        #expect(try writer.outcome(2, pattern(2, count: 65_536)) == .durable)
        gate.open()
        let outcome = try older.wait(timeoutNanoseconds: deadlineNanoseconds)
        #expect(outcome == .superseded(by: SequenceNumber(rawValue: 2)))
        #expect(writer.statistics.newestDurableStep == 2)
        #expect(try storage.newest().step == 2)
        #expect(try storage.afterPowerCut.newest().step == 2)
        // The newer one's slot is not handed out again while it is the newest.
        storage.setFaultHook(nil)
        let third = try writer.outcome(3, pattern(3, count: 65_536))
        #expect(third == .durable)
        try writer.close()
        #expect(try storage.newest().step == 3)
    }

    /// The last chunk committed without waiting for the others.
    @Test(arguments: [0, 1, 2])
    func defect5NothingIsCommittedBeforeEveryChunkIsWritten(delayed: Int) throws {
        let storage = try memoryFile()
        let geometry = try storage.geometry
        let writer = try CheckpointWriter(storage: storage)
        let held = geometry.slotDataOffset(SlotIndex(0)) + UInt64(delayed) << 16
        let gate = Gate {
            if case .write(let offset, _) = $0 { return offset == held }
            return false
        }
        storage.setFaultHook(gate.hook)
        let flushes = writer.statistics.flushCount
        let ticket = try writer.save(1, pattern(1, count: 3 << 16))
        #expect(gate.waitUntilHolding())
        // Long enough for the two other chunks and for a commit that does not wait.
        #expect(throws: CheckpointError.self) { try ticket.wait(timeoutNanoseconds: 200_000_000) }
        #expect(ticket.outcome == nil)
        let header = try CheckpointReader(storage: storage).decision.slots[0].header
        #expect(header?.state == .writing)
        #expect(writer.statistics.flushCount == flushes)
        gate.open()
        #expect(try ticket.wait(timeoutNanoseconds: deadlineNanoseconds) == .durable)
        try writer.close()
        #expect(try storage.afterPowerCut.newest().bytes == pattern(1, count: 3 << 16))
    }

    /// The pointer was never synced before the slot that it no longer named was recycled.
    @Test func defect6ASlotIsReusedOnlyAfterTheFlushOfTheSuperblockThatReleasedIt() throws {
        for (inFlight, retain) in [(1, 1), (1, 2), (2, 1), (3, 2)] {
            let storage = try memoryFile(inFlight: inFlight, retain: retain)
            let writer = try CheckpointWriter(storage: storage)
            for step in UInt64(1)...12 {
                _ = try writer.save(step, pattern(step, count: 70_000))
            }
            try writer.close()
            let geometry = try storage.geometry
            try Self.checkReuse(storage.recording, geometry)
        }
    }

    /// The same where only the slot that is about to be released could be taken: the others are
    /// pinned, and the superblock's flush is held back.
    @Test func defect6ASlotIsNotReusedWhileTheFlushIsUnderWay() throws {
        let storage = try memoryFile(inFlight: 2)
        let geometry = try storage.geometry
        let writer = try CheckpointWriter(storage: storage)
        #expect(try writer.outcome(1, pattern(1, count: 10)) == .durable)
        let reader = RecordingStorage(openerOf: storage)
        #expect(try reader.tryLock(.slot(SlotIndex(2)), exclusive: false))
        let flushCount = Mutex(0)
        let gate = Gate { call in
            call == .flush
                && flushCount.withLock { count in
                    count += 1
                    return count == 2
                }
        }
        storage.setFaultHook(gate.hook)
        let second = try writer.save(2, pattern(2, count: 10))
        #expect(gate.waitUntilHolding())
        let kept = Int(geometry.slotDataOffset(SlotIndex(0)))
        let before = storage.recording.writes.count
        let saver = try WorkerThread(name: "saver") { _ = try? writer.save(3, [3]) }
        // Long enough for a save that does not wait.
        Thread.sleep(forTimeInterval: 0.2)
        #expect(!storage.recording.writes[before...].contains { $0.offset == kept })
        gate.open()
        saver.join()
        #expect(try second.wait(timeoutNanoseconds: deadlineNanoseconds) == .durable)
        try writer.close()
        #expect(try storage.newest().step == 3)
    }

    /// Before any write into a slot, the newest superblock that is certain to be on the medium
    /// does not name the slot.
    private static func checkReuse(_ recording: Recording, _ geometry: Geometry) throws {
        let positions = Set([0, 1].flatMap { geometry.superblockOffsets(parity: $0) })
        let uuid = ImageBuilder.uuid
        var checkedCount = 0
        for point in recording.crashPoints {
            guard point.eventCount > 0,
                case .writeBegan(let index) = recording.events[point.eventCount - 1]
            else { continue }
            let offset = UInt64(recording.writes[index].offset)
            guard let slot = slot(at: offset, geometry) else { continue }
            let durable = try point.durable.filter {
                positions.contains(UInt64(recording.writes[$0].offset))
            }.map {
                try Superblock(
                    decoding: recording.writes[$0].bytes, fileUUID: uuid,
                    slotCount: geometry.slotCount)
            }
            guard let newest = durable.max(by: { $0.generation < $1.generation }) else { continue }
            checkedCount += 1
            let isOwn = newest.anchor?.slot == slot || newest.retained.contains { $0.slot == slot }
            #expect(
                !isOwn, "slot \(slot) is written, but generation \(newest.generation) names it")
        }
        #expect(checkedCount > 20)
    }

    private static func slot(at offset: UInt64, _ geometry: Geometry) -> SlotIndex? {
        geometry.slots.first { slot in
            let header = geometry.headerOffset(slot)
            let data = geometry.slotDataOffset(slot)
            return (header..<header + geometry.metadataStride).contains(offset)
                || (data..<data + geometry.dataStride).contains(offset)
        }
    }

    static let sizes = [
        1, 511, 512, 513, 4095, 4096, 4097, 16_383, 16_384, 16_385, 65_535, 65_536, 65_537,
        70_003, 131_071, 131_072, 131_073, 180_225, 196_607, 196_608,
    ]

    /// Data lay 16 KiB behind the range that was synced.
    @Test(arguments: sizes)
    func defect7TheLastBytesSurviveAPowerCutRightAfterTheAcknowledgement(count: Int) throws {
        let storage = try memoryFile()
        let writer = try CheckpointWriter(storage: storage)
        for step in UInt64(1)...3 {
            let bytes = pattern(step, count: count)
            #expect(try writer.outcome(step, bytes) == .durable)
            let newest = try storage.afterPowerCut.newest()
            #expect(newest.step == step)
            #expect(newest.bytes == bytes)
        }
        writer.abandon()
    }

    /// Copies in fixed units ran over the end of a chunk into its neighbour.
    @Test(arguments: sizes)
    func defect8NoWriteLeavesItsChunkOrSlot(count: Int) throws {
        let storage = try memoryFile(inFlight: 1, retain: 2)
        let geometry = try storage.geometry
        let writer = try CheckpointWriter(storage: storage)
        let full = Int(geometry.slotByteCount)
        #expect(try writer.outcome(1, pattern(1, count: full)) == .durable)
        #expect(try writer.outcome(2, pattern(2, count: count)) == .durable)
        #expect(try writer.outcome(3, pattern(3, count: full)) == .durable)
        try writer.close()
        let reader = try CheckpointReader(storage: storage)
        for candidate in reader.decision.candidates {
            let expected = pattern(candidate.step, count: candidate.step == 2 ? count : full)
            let selected = try reader.select(candidate)
            #expect(try selected.readBytes(0..<UInt64(expected.count)) == expected)
            selected.close()
        }
        for write in storage.recording.writes where write.offset >= Int(geometry.dataOffset) {
            guard write.offset < Int(geometry.tailOffset) else { continue }
            let inSlot = (write.offset - Int(geometry.dataOffset)) % Int(geometry.dataStride)
            #expect(inSlot % (64 << 10) == 0)
            #expect(write.bytes.count <= 64 << 10)
            #expect(inSlot + write.bytes.count <= full)
        }
    }

    /// A superseded checkpoint kept its staging memory, and later calls waited for it for ever.
    @Test func defect9EndedCheckpointsGiveTheirStagingMemoryBack() throws {
        let storage = try memoryFile(inFlight: 3)
        var options = WriterOptions()
        options.poolByteCount = 3 << 16
        options.busyPolicy = .skip
        let writer = try CheckpointWriter(storage: storage, options: options)
        let dataOffset = try storage.geometry.dataOffset
        let dataEnd = try storage.geometry.tailOffset
        let writeCount = Mutex(0)
        storage.setFaultHook { call in
            guard case .write(let offset, _) = call, (dataOffset..<dataEnd).contains(offset)
            else { return nil }
            return writeCount.withLock { count in
                count += 1
                return count % 11 == 0 ? 5 : nil
            }
        }
        var tickets: [CheckpointTicket] = []
        let bytes = pattern(1, count: 150_000)
        for step in UInt64(1)...300 {
            // Now and then let the queue drain, so that not everything is skipped.
            if step % 3 == 0 { _ = try tickets.last?.wait(timeoutNanoseconds: deadlineNanoseconds) }
            tickets.append(try writer.save(step, bytes))
        }
        for ticket in tickets { _ = try ticket.wait(timeoutNanoseconds: deadlineNanoseconds) }
        storage.setFaultHook(nil)
        let statistics = writer.statistics
        #expect(statistics.inFlightCount == 0)
        let failed = tickets.filter { if case .failed = $0.outcome { true } else { false } }
        #expect(statistics.failedCount == UInt64(failed.count))
        #expect(
            statistics.savedCount
                == statistics.durableCount + statistics.supersededCount + statistics.failedCount)
        #expect(!failed.isEmpty && statistics.durableCount > 0)
        // A whole state needs the whole pool: it would hang if a buffer were missing.
        for step in UInt64(301)...304 {
            #expect(try writer.outcome(step, pattern(step, count: 3 << 16)) == .durable)
        }
        try writer.close()
        #expect(try storage.newest().bytes == pattern(304, count: 3 << 16))
    }
}
