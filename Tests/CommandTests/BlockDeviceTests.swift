import CheckpointCommands
import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import CheckpointWriter
import Foundation
import Testing

/// A block device over a file, attached as long as the object lives. Needs root.
final class LoopDevice {
    static let isPossible = geteuid() == 0 && (try? LoopDevice(byteCount: 1 << 20)) != nil

    let directory: TemporaryDirectory
    private(set) var path = ""
    var image: String { directory.file("image") }

    init(byteCount: UInt64, sectorByteCount: Int = 512) throws {
        directory = try TemporaryDirectory()
        try Data().write(to: URL(filePath: image))
        try resize(to: byteCount)
        try attach(["-b", "\(sectorByteCount)"])
    }

    deinit { detach() }

    func attach(_ options: [String] = []) throws {
        let run = try ToolRun(
            shell: "losetup \(options.joined(separator: " ")) -f --show '\(image)'")
        try #require(run.status == 0, "\(run.diagnostics)")
        path = run.text.trimmingCharacters(in: .newlines)
    }

    func detach() { _ = try? ToolRun(shell: "losetup -d '\(path)'") }

    /// Of the image; a device that is attached anew has this size.
    func resize(to byteCount: UInt64) throws {
        let handle = try FileHandle(forWritingTo: URL(filePath: image))
        try handle.truncate(atOffset: byteCount)
        try handle.close()
    }
}

/// Checkpoint files that are raw block devices, through the writer and all tools.
@Suite(
    .serialized, .enabled(if: LoopDevice.isPossible, "attaching a loop device needs root"),
    .timeLimit(.minutes(2)))
struct BlockDeviceTests {
    private static let payloadByteCount = 300_001

    private func create(on device: LoopDevice, capacity: String = "512K") throws {
        let run = try ToolRun(
            .pccheck,
            ["create", device.path, "--capacity", capacity, "--chunk", "64K", "--replace"])
        try #require(run.status == 0, "\(run.diagnostics)")
    }

    private func content(_ step: UInt64) -> [UInt8] {
        SampleFile.content(step: step, tensor: 0, byteCount: Self.payloadByteCount)
    }

    private func save(
        _ step: UInt64, to path: String, backend: StorageBackend = .automatic,
        isAbandoned: Bool = false
    ) throws {
        var options = WriterOptions()
        options.backend = backend
        let writer = try CheckpointWriter(path: path, options: options)
        let ticket = try writer.save(step: step, payload: CheckpointPayload(opaque: content(step)))
        #expect(try ticket.wait() == .durable)
        if isAbandoned { writer.abandon() } else { try writer.close() }
    }

    private func expectNewest(_ step: UInt64, on path: String) throws {
        let newest = try CheckpointReader(path: path).loadNewest {
            selected throws(CheckpointError) in
            try selected.readBytes(0..<selected.candidate.header.payloadByteCount)
        }
        #expect(newest.candidate.step == step)
        #expect(newest.value == content(step))
    }

    private func refusal(
        _ path: String, backend: StorageBackend = .automatic
    ) throws -> CheckpointError {
        var options = WriterOptions()
        options.backend = backend
        let error = #expect(throws: CheckpointError.self) {
            try CheckpointWriter(path: path, options: options)
        }
        return try #require(error)
    }

    @Test(arguments: [512, 4096]) func aWholeLifeOnADevice(sectorByteCount: Int) throws {
        let device = try LoopDevice(byteCount: 4 << 20, sectorByteCount: sectorByteCount)
        try create(on: device)
        for (step, backend) in [(UInt64(1), StorageBackend.direct), (2, .buffered), (3, .direct)] {
            try save(step, to: device.path, backend: backend, isAbandoned: step == 2)
            try expectNewest(step, on: device.path)
        }
        let check = try ToolRun(.pcfsck, ["--verify", "full", device.path])
        #expect(check.status == 0, "\(check.text)")
        #expect(check.text.contains("step 3"))
        let inspection = try ToolRun(.pcinspect, ["super", "--json", device.path]).json()
        let identity = try #require(inspection["identity"] as? [String: Any])
        let geometry = try #require(
            (identity["geometry"] as? [String: Any] ?? identity)["file_byte_count"] as? Int)
        #expect(geometry == 4 << 20, "the tail lies at the device's end")
        #expect(try ToolRun(.pcinspect, [device.path]).status == 0)
        let target = device.directory.file("out")
        let extraction = try ToolRun(
            .pcextract, [device.path, "-o", target, "--format", "raw"])
        #expect(extraction.status == 0, "\(extraction.diagnostics)")
        #expect(try [UInt8](Data(contentsOf: URL(filePath: target))) == content(3))
    }

    @Test func aDeviceIsOnlyOverwrittenWhenAskedTo() throws {
        let device = try LoopDevice(byteCount: 4 << 20)
        try Data(repeating: 0x5A, count: 4 << 20).write(to: URL(filePath: device.image))
        let before = try Data(contentsOf: URL(filePath: device.image))
        let run = try ToolRun(.pccheck, ["create", device.path, "--capacity", "512K"])
        #expect(run.status == 8)
        #expect(run.diagnostics.contains("block device"), "\(run.diagnostics)")
        let tooSmall = try ToolRun(
            .pccheck, ["create", device.path, "--capacity", "2M", "--replace"])
        #expect(tooSmall.status == 16)
        #expect(
            tooSmall.diagnostics.contains("the device has 4194304 bytes"),
            "\(tooSmall.diagnostics)")
        #expect(try Data(contentsOf: URL(filePath: device.image)) == before)
        #expect(try refusal(device.path).code == .notACheckpointFile)
    }

    /// What the device held before, another checkpoint file too, is no part of the new one.
    @Test func nothingStaleIsFoundOnAnOldDevice() throws {
        let device = try LoopDevice(byteCount: 4 << 20)
        try create(on: device)
        try save(1, to: device.path)
        try create(on: device, capacity: "400K")
        let check = try ToolRun(.pcfsck, ["--verify", "full", device.path])
        #expect(check.status == 0, "\(check.text)")
        #expect(check.text.contains("nothing was saved yet"))
        try save(5, to: device.path)
        try expectNewest(5, on: device.path)
    }

    @Test func aDeviceThatIsInUseIsNotWritten() throws {
        let device = try LoopDevice(byteCount: 4 << 20)
        try create(on: device)
        do {
            let writer = try CheckpointWriter(path: device.path)
            let ticket = try writer.save(
                step: 1, payload: CheckpointPayload(opaque: content(1)))
            #expect(try ticket.wait() == .durable)
            let second = try refusal(device.path)
            #expect(second.code == .locked)
            #expect(second.message.contains("another writer"), "\(second.message)")
            // Byte locks belong to a node, not to the device behind it.
            let node = device.directory.file("node")
            let other = try ToolRun(
                shell: "mknod '\(node)' b $(stat -c '0x%t 0x%T' '\(device.path)')")
            if other.status == 0 { #expect(try refusal(node).code == .locked) }
            let replacement = try ToolRun(
                .pccheck, ["create", device.path, "--capacity", "512K", "--replace"])
            #expect(replacement.status == 8, "\(replacement.diagnostics)")
            // Readers are welcome.
            try expectNewest(1, on: device.path)
            #expect(try ToolRun(.pcinspect, [device.path]).status == 0)
            try writer.close()
        }
        try save(2, to: device.path)
        try expectNewest(2, on: device.path)
    }

    @Test func aMountedDeviceIsNotWritten() throws {
        let device = try LoopDevice(byteCount: 8 << 20)
        let folder = device.directory.file("mounted")
        let mount = try ToolRun(
            shell: """
                mkdir '\(folder)' && mkfs.ext4 -q '\(device.path)' && \
                mount '\(device.path)' '\(folder)' && echo precious > '\(folder)/file'
                """)
        try #require(mount.status == 0, "\(mount.diagnostics)")
        defer { _ = try? ToolRun(shell: "umount '\(folder)'") }
        let run = try ToolRun(
            .pccheck, ["create", device.path, "--capacity", "512K", "--replace"])
        #expect(run.status == 8)
        #expect(run.diagnostics.contains("mounted"), "\(run.diagnostics)")
        let check = try ToolRun(
            shell: """
                umount '\(folder)' && e2fsck -fn '\(device.path)' && \
                mount '\(device.path)' '\(folder)' && cat '\(folder)/file'
                """)
        #expect(check.status == 0 && check.text.hasSuffix("precious\n"), "\(check.text)")
    }

    @Test func aReadOnlyDeviceIsReadButNotWritten() throws {
        let device = try LoopDevice(byteCount: 4 << 20)
        try create(on: device)
        try save(4, to: device.path)
        device.detach()
        try device.attach(["-r"])
        let error = try refusal(device.path)
        #expect(error.code == .readOnly, "\(error)")
        #expect(error.message.contains(device.path))
        try expectNewest(4, on: device.path)
        #expect(try ToolRun(.pcfsck, ["--verify", "full", device.path]).status == 0)
        let run = try ToolRun(
            .pccheck, ["create", device.path, "--capacity", "512K", "--replace"])
        #expect(run.status == 8, "\(run.diagnostics)")
    }

    /// An image that was restored onto another device.
    @Test func aDeviceOfAnotherSizeIsToldApart() throws {
        let device = try LoopDevice(byteCount: 4 << 20)
        try create(on: device)
        try save(4, to: device.path)
        device.detach()
        try device.resize(to: 6 << 20)
        try device.attach()
        // Larger does no harm: the geometry says where the tail lies.
        try expectNewest(4, on: device.path)
        try save(5, to: device.path)
        #expect(try ToolRun(.pcfsck, ["--verify", "full", device.path]).status == 0)
        device.detach()
        try device.resize(to: 3 << 20)
        try device.attach()
        let error = try refusal(device.path)
        #expect(error.message.contains("the end of the file is missing"), "\(error)")
        #expect(error.message.contains("3145728") && error.message.contains("4194304"))
        let check = try ToolRun(.pcfsck, [device.path])
        #expect(check.status == 4, "\(check.text)")
        #expect(try ToolRun(.pcinspect, [device.path]).status == 4)
    }

    @Test func damageOnADeviceIsRepaired() throws {
        let device = try LoopDevice(byteCount: 4 << 20)
        try create(on: device)
        try save(4, to: device.path)
        let handle = try FileHandle(forUpdating: URL(filePath: device.path))
        try handle.seek(toOffset: 0)
        try handle.write(contentsOf: [UInt8](repeating: 0, count: 4096))
        try handle.synchronize()
        try handle.close()
        #expect(try ToolRun(.pcfsck, [device.path]).status == 4)
        let repair = try ToolRun(.pcfsck, ["-p", device.path])
        #expect(repair.status == 1, "\(repair.text)\(repair.diagnostics)")
        #expect(try ToolRun(.pcfsck, ["--verify", "full", device.path]).status == 0)
        try expectNewest(4, on: device.path)
    }

    @Test func aDeviceIsNoPersistentMemory() throws {
        let device = try LoopDevice(byteCount: 4 << 20)
        try create(on: device)
        let error = try refusal(device.path, backend: .persistentMemory)
        #expect(error.code == .unsupported)
        #expect(error.message.contains("block device"))
    }
}
