import CheckpointStorage
import Foundation
import Testing

@Suite struct NewFolderTests {
    let directory = FileManager.default.temporaryDirectory.appending(
        path: "pcc-\(UUID().uuidString)")

    init() throws {
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    }

    /// A folder that appeared after the last look is left alone, also an empty one.
    @Test func aFolderOfThatNameStays() throws {
        defer { try? FileManager.default.removeItem(at: directory) }
        func path(_ name: String) -> String { directory.appending(path: name).path }
        let (made, taken, free) = (path("made"), path("taken"), path("free"))
        for path in [made, taken] {
            try FileManager.default.createDirectory(
                atPath: path, withIntermediateDirectories: false)
        }
        let error = #expect(throws: StorageError.self) {
            try NewFolder.publish(made, as: taken)
        }
        #expect(error?.osErrorNumber == EEXIST)
        #expect(FileManager.default.fileExists(atPath: made))
        try NewFolder.publish(made, as: free)
        #expect(!FileManager.default.fileExists(atPath: made))
        #expect(FileManager.default.fileExists(atPath: free))
    }
}
