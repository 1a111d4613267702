import CheckpointFormat
import CheckpointStorage
import Foundation
import Testing

/// What a killed creation leaves, and who may remove it.
@Suite struct NewFileTests {
    let directory = FileManager.default.temporaryDirectory.appending(
        path: "pcc-\(UUID().uuidString)")
    var path: String { directory.appending(path: "run.pcc").path }

    init() throws {
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    }

    private var entries: [String] {
        get throws { try FileManager.default.contentsOfDirectory(atPath: directory.path).sorted() }
    }

    private func put(_ name: String) throws {
        try Data("left".utf8).write(to: directory.appending(path: name))
    }

    @Test func leftoversOfTheSameFileGo() throws {
        defer { try? FileManager.default.removeItem(at: directory) }
        try put("run.pcc.creating-1")
        try put("run.pcc.creating-4294967295")
        var file = try NewFile(beside: path, byteCount: 4096)
        #expect(try entries.count == 1, "only the new one")
        try file.publish(replacing: false)
        #expect(try entries == ["run.pcc"])
    }

    @Test func nothingElseGoes() throws {
        defer { try? FileManager.default.removeItem(at: directory) }
        let others = [
            "other.pcc.creating-1", "run.pcc.creating-", "run.pcc.creating-1x", "run.pcc.undo-7",
            "run.pccx.creating-1",
        ]
        for name in others { try put(name) }
        // A link and a directory of such a name are not what a creation leaves.
        try FileManager.default.createSymbolicLink(
            atPath: path + ".creating-2", withDestinationPath: "other.pcc.creating-1")
        try FileManager.default.createDirectory(
            atPath: path + ".creating-3", withIntermediateDirectories: false)
        do { _ = try NewFile(beside: path, byteCount: 4096) }
        #expect(
            try entries == (others + ["run.pcc.creating-2", "run.pcc.creating-3"]).sorted())
    }

    @Test func aLivingCreationKeepsItsFile() throws {
        defer { try? FileManager.default.removeItem(at: directory) }
        var first = try NewFile(beside: path, byteCount: 4096)
        var second = try NewFile(beside: path, byteCount: 8192)
        #expect(try entries.count == 2)
        try first.publish(replacing: false)
        try second.publish(replacing: true)
        #expect(try FileStorage(path: path, access: .read).byteCount == 8192)
        #expect(try entries == ["run.pcc"])
    }

    /// The lock of a writer counts too: another program may give a file such a name while it fills
    /// it.
    @Test(arguments: [LockByte.writer, .slot(SlotIndex(2))])
    func aLockedFileStays(byte: LockByte) throws {
        defer { try? FileManager.default.removeItem(at: directory) }
        try put("run.pcc.creating-5")
        let holder = try FileStorage(
            path: path + ".creating-5", access: .write, mode: .buffered)
        #expect(try holder.tryLock(byte, exclusive: true))
        do { _ = try NewFile(beside: path, byteCount: 4096) }
        #expect(try entries == ["run.pcc.creating-5"])
        try holder.unlock(byte)
        NewFile.removeLeftovers(beside: path)
        #expect(try entries.isEmpty)
    }

    /// Many at once remove each other's leftovers and nothing that lives.
    @Test func creationsAtOnceDoNotHarmEachOther() async throws {
        defer { try? FileManager.default.removeItem(at: directory) }
        let path = path
        try await withThrowingTaskGroup(of: Void.self) { group in
            for _ in 0..<8 {
                group.addTask {
                    for _ in 0..<40 {
                        var file = try NewFile(beside: path, byteCount: 4096)
                        try file.publish(replacing: true)
                    }
                }
            }
            try await group.waitForAll()
        }
        #expect(try entries == ["run.pcc"])
    }
}
