@testable import CheckpointStorage

import CheckpointFormat
import Foundation
import Testing

/// Who has a slot pinned, as /proc tells it.
@Suite struct SlotPinTests {
    @Test func linesOfDescriptorsAreRead() {
        let text = """
            pos:\t0
            flags:\t02100000
            mnt_id:\t29
            ino:\t5246
            lock:\t1: OFDLCK ADVISORY  READ  -1 fe:00:5246 1024 1024
            lock:\t2: OFDLCK ADVISORY  WRITE -1 fe:00:5246 1026 1030
            lock:\t3: OFDLCK ADVISORY  READ -1 00:2c:18446744073709551615 0 EOF
            lock:\t4: POSIX  ADVISORY  READ 311 fe:00:5246 1024 1024
            lock:\t5: FLOCK  ADVISORY  READ 311 fe:00:5246 0 EOF
            """
        #expect(
            DescriptorLock.parse(text) == [
                DescriptorLock(isExclusive: false, bytes: 1024...1024),
                DescriptorLock(isExclusive: true, bytes: 1026...1030),
                DescriptorLock(isExclusive: false, bytes: 0...UInt64.max),
            ])
    }

    @Test(arguments: [
        "", "lock:", "lock:\t1: OFDLCK ADVISORY  READ  -1 fe:00:5246 1024",
        "lock:\t1: OFDLCK ADVISORY  READ  -1 fe:00:5246 -1 1024",
        "lock:\t1: OFDLCK ADVISORY  READ  -1 fe:00:5246 1025 1024",
        "lock:\t1: OFDLCK ADVISORY  NONE  -1 fe:00:5246 1024 1024",
        "lock:\t1: OFDLCK ADVISORY  READ  -1 fe:00:5246 1024 99999999999999999999",
    ])
    func otherLinesArePassedOver(line: String) {
        #expect(DescriptorLock.parse(line).isEmpty)
    }

    @Test func aCommandIsOneShortLine() {
        let arguments = Array("python\0train.py\0--lr=1\0".utf8)
        #expect(LockHolders.oneLine(arguments) == "python train.py --lr=1")
        #expect(LockHolders.oneLine(Array("cat\n".utf8)) == "cat")
        #expect(LockHolders.oneLine(Array("a\u{1B}[2J\0b".utf8)) == "a?[2J b")
        #expect(LockHolders.oneLine([]) == "?")
        let long = LockHolders.oneLine([UInt8](repeating: 65, count: 4000))
        #expect(long.count == PinHolder.commandLimit && long.hasSuffix("…"))
    }

    private func storages(_ count: Int) throws -> [FileStorage] {
        let path = FileManager.default.temporaryDirectory.path + "/pins-\(UUID()).pcc"
        #expect(FileManager.default.createFile(atPath: path, contents: Data(count: 4096)))
        defer { try? FileManager.default.removeItem(atPath: path) }
        return try (0..<count).map { _ in try FileStorage(path: path, access: .write) }
    }

    @Test func pinsNameTheirProcess() throws {
        let files = try storages(3)
        let slots = (0..<4).map { SlotIndex($0) }
        #expect(files[0].slotPins(slots).isEmpty)
        #expect(try files[1].tryLock(.slot(SlotIndex(1)), exclusive: false))
        #expect(try files[2].tryLock(.slot(SlotIndex(1)), exclusive: false))
        // A writer's own lock is no pin.
        #expect(try files[2].tryLock(.slot(SlotIndex(3)), exclusive: true))
        let pins = files[0].slotPins(slots)
        #expect(pins.map(\.slot) == [SlotIndex(1)])
        let holder = try #require(pins.first?.holders.first)
        #expect(pins.first?.holders.count == 1)
        #expect(holder.processID == ThisProcess.id)
        #expect(!holder.command.isEmpty && holder.command != "?")
        #expect(pins.first?.description.contains("slot 1 is pinned by this process") == true)
        try files[1].unlock(.slot(SlotIndex(1)))
        try files[2].unlock(.slot(SlotIndex(1)))
        #expect(files[0].slotPins(slots).isEmpty)
    }

    @Test func theWritersLockNamesItsProcess() throws {
        let files = try storages(2)
        #expect(files[0].writerLockHolders.isEmpty)
        // A pin is no writer's lock.
        #expect(try files[1].tryLock(.slot(SlotIndex(0)), exclusive: true))
        #expect(files[0].writerLockHolders.isEmpty)
        #expect(try files[1].tryLock(.writer, exclusive: true))
        withExtendedLifetime(files) {
            #expect(files[0].writerLockHolders.map(\.processID) == [ThisProcess.id])
        }
    }

    @Test func sentencesNameAFewProcesses() {
        let holders = (1...5).map { PinHolder(processID: UInt32($0) << 23, command: "load \($0)") }
        let slot = SlotIndex(2)
        #expect(
            SlotPin(slot: slot, holders: []).description
                == "slot 2 is pinned by a process that this user cannot see")
        #expect(
            SlotPin(slot: slot, holders: Array(holders.prefix(1))).description
                == "slot 2 is pinned by process 8388608 (load 1)")
        #expect(
            SlotPin(slot: slot, holders: holders).description.hasSuffix(
                "process 25165824 (load 3) and 2 more"))
    }
}
