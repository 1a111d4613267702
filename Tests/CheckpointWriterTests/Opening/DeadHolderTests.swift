import CheckpointFormat
import CheckpointStorage
import CheckpointWriter
import Foundation
import StorageFaults
import Testing

/// The kernel may release a dead writer's lock a little later than its process.
@Suite struct DeadHolderTests {
    /// A file that was last written by process `writerPID` of this boot.
    private func file(writerPID: UInt32) throws -> MemoryStorage {
        var builder = try ImageBuilder(
            inFlight: 1, retain: 1, capacity: 65_536, chunkByteCount: 65_536)
        let parent = builder.commit(builder.superblock(generation: 1, anchor: nil))
        var superblock = builder.superblock(generation: 2, anchor: nil, parent: parent)
        superblock.writerPID = writerPID
        superblock.writerBootID = ThisMachine.bootID
        builder.commit(superblock)
        return MemoryStorage(contents: builder.bytes)
    }

    private func endedProcess() throws -> UInt32 {
        let process = Process()
        process.executableURL = URL(filePath: "/bin/true")
        try process.run()
        process.waitUntilExit()
        return UInt32(process.processIdentifier)
    }

    @Test func openingWaitsForTheLockOfADeadWriter() throws {
        let holder = try file(writerPID: try endedProcess())
        #expect(try holder.tryLock(.writer, exclusive: true))
        let release = try WorkerThread(name: "kernel") {
            SystemClock.sleep(nanoseconds: 100_000_000)
            try? holder.unlock(.writer)
        }
        let writer = try CheckpointWriter(storage: MemoryStorage(openerOf: holder))
        release.join()
        try writer.close()
    }

    @Test func aLiveWriterIsNotWaitedFor() throws {
        let holder = try file(writerPID: ThisProcess.id)
        #expect(try holder.tryLock(.writer, exclusive: true))
        let began = SystemClock.monotonicTime
        let error = #expect(throws: CheckpointError.self) {
            try CheckpointWriter(storage: MemoryStorage(openerOf: holder))
        }
        #expect(error?.code == .locked)
        // The patience with the dead is 2 s.
        #expect(SystemClock.monotonicTime - began < 1_900_000_000)
    }

    /// Not for ever: a number may have been given to nobody, and the lock to somebody else.
    @Test func patienceEnds() throws {
        let holder = try file(writerPID: try endedProcess())
        #expect(try holder.tryLock(.writer, exclusive: true))
        let error = #expect(throws: CheckpointError.self) {
            try CheckpointWriter(storage: MemoryStorage(openerOf: holder))
        }
        #expect(error?.code == .locked)
        #expect(error?.message.contains("opened it last and is gone") == true)
        #expect(error?.message.contains("fuser -v, run as root, names it") == true)
    }

    /// What another boot wrote says nothing of the processes of this one.
    @Test func aNumberOfAnotherBootIsNotNamed() throws {
        var builder = try ImageBuilder(
            inFlight: 1, retain: 1, capacity: 65_536, chunkByteCount: 65_536)
        var superblock = builder.superblock(generation: 1, anchor: nil)
        superblock.writerPID = ThisProcess.id
        superblock.writerBootID = Identifier128(bytes: [UInt8](repeating: 9, count: 16))
        builder.commit(superblock)
        let holder = MemoryStorage(contents: builder.bytes)
        #expect(try holder.tryLock(.writer, exclusive: true))
        let error = #expect(throws: CheckpointError.self) {
            try CheckpointWriter(storage: MemoryStorage(openerOf: holder))
        }
        #expect(error?.code == .locked)
        #expect(error?.message.contains("\(ThisProcess.id)") == false)
        #expect(error?.message.contains("a process that this user cannot see") == true)
    }
}
