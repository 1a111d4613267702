import Foundation
import FuzzTargets
import Testing

/// Every input that fuzzing found worth keeping, without libFuzzer: no input traps, and none
/// breaks a promise.
@Suite struct CorpusTests {
    static let root = URL(filePath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        .appending(path: "Fixtures/fuzz")

    static func files(_ target: FuzzTarget) throws -> [URL] {
        try FileManager.default.contentsOfDirectory(
            at: root.appending(path: target.rawValue), includingPropertiesForKeys: nil)
    }

    @Test(arguments: FuzzTarget.allCases) func keepsEveryPromise(target: FuzzTarget) throws {
        let files = try Self.files(target)
        #expect(files.count >= 20, "the corpus was found")
        for file in files {
            let problem = target.problem(in: [UInt8](try Data(contentsOf: file)))
            #expect(problem == nil, "\(file.lastPathComponent)")
        }
    }

    /// What once trapped or broke a promise; each name begins with its target's.
    @Test func whatWasFoundStaysMended() throws {
        let files = try FileManager.default.contentsOfDirectory(
            at: Self.root.appending(path: "found"), includingPropertiesForKeys: nil)
        #expect(!files.isEmpty)
        for file in files {
            let name = file.lastPathComponent
            let target = try #require(
                FuzzTarget.allCases.first { name.hasPrefix($0.rawValue + "-") })
            #expect(target.problem(in: [UInt8](try Data(contentsOf: file))) == nil, "\(name)")
        }
    }

    @Test(arguments: FuzzTarget.allCases) func seedsKeepEveryPromise(target: FuzzTarget) throws {
        for seed in try Seeds.inputs(target) { #expect(target.problem(in: seed) == nil) }
    }

    @Test func isSmall() throws {
        let sizes = try FuzzTarget.allCases.flatMap { try Self.files($0) }.map {
            try $0.resourceValues(forKeys: [.fileSizeKey]).fileSize ?? 0
        }
        #expect(sizes.reduce(0, +) <= 1 << 20)
    }
}

/// Writes the inputs that fuzzing starts from into a folder for each target; see `make
/// fuzz-corpus`.
@Suite struct SeedWriter {
    private static let folder = ProcessInfo.processInfo.environment["PCCHECK_WRITE_FUZZ_SEEDS"]

    @Test(.enabled(if: folder != nil)) func write() throws {
        for target in FuzzTarget.allCases {
            let place = URL(filePath: Self.folder ?? "").appending(path: target.rawValue)
            try FileManager.default.createDirectory(at: place, withIntermediateDirectories: true)
            for (index, seed) in try Seeds.inputs(target).enumerated() {
                try Data(seed).write(to: place.appending(path: "seed-\(index)"))
            }
        }
    }
}
