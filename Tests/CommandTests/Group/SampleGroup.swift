import CheckpointFormat
import CheckpointRecovery
import CheckpointWriter
import Foundation
import Testing

/// The files of a group, each made by the real writer.
final class SampleGroup {
    static let run = Identifier128(bytes: [UInt8](1...16))

    let directory: TemporaryDirectory
    var path: String { directory.path }

    init() throws { directory = try TemporaryDirectory() }

    /// Two ranks: both have steps 10 and 20, and rank 0 has step 30, too.
    static func unequal() throws -> SampleGroup {
        let group = try SampleGroup()
        try group.save(rank: 0, of: 2, steps: [10, 20, 30], complete: [10, 20])
        try group.save(rank: 1, of: 2, steps: [10, 20], complete: [10, 20])
        return group
    }

    static func name(_ rank: Int, of worldSize: Int) -> String {
        func digits(_ number: Int) -> String { String("0000\(number)".suffix(5)) }
        return "rank-\(digits(rank))-of-\(digits(worldSize)).pcc"
    }

    func file(_ rank: Int, of worldSize: Int) -> String {
        directory.file(Self.name(rank, of: worldSize))
    }

    /// Creates the file of `rank`, which saves `steps` in its attempt, and learns that `complete`
    /// are durable on all ranks.
    func save(
        rank: Int, of worldSize: Int, attempt: UInt64 = 1, run: Identifier128 = run,
        steps: [UInt64], complete: Set<UInt64> = []
    ) throws {
        var options = CheckpointFile.Options(capacity: 64 << 10)
        options.inFlight = 1
        options.retain = 2
        options.chunkByteCount = 64 << 10
        options.rank = UInt32(rank)
        options.worldSize = UInt32(worldSize)
        options.runUUID = run
        try CheckpointFile.create(path: file(rank, of: worldSize), options: options)
        var writerOptions = WriterOptions()
        writerOptions.acceptsGroup = true
        writerOptions.rank = UInt32(rank)
        writerOptions.worldSize = UInt32(worldSize)
        let writer = try CheckpointWriter(
            path: file(rank, of: worldSize), options: writerOptions)
        if run != .zero { try writer.beginAttempt(GroupAttempt(number: attempt)) }
        for step in steps {
            let bytes = [UInt8](repeating: UInt8(truncatingIfNeeded: step), count: 5000)
            let ticket = try writer.save(step: step, payload: CheckpointPayload(opaque: bytes))
            let outcome = try ticket.wait()
            try #require(outcome == .durable, "\(outcome)")
            if complete.contains(step) { writer.decide(ticket.sequence, isComplete: true) }
        }
        try writer.close()
    }

    /// Flips a bit.
    func damage(_ rank: Int, of worldSize: Int, at offset: UInt64) throws {
        let handle = try FileHandle(forUpdating: URL(filePath: file(rank, of: worldSize)))
        defer { try? handle.close() }
        try handle.seek(toOffset: offset)
        let byte = try #require(try handle.read(upToCount: 1)?.first)
        try handle.seek(toOffset: offset)
        try handle.write(contentsOf: [byte ^ 1])
    }

    /// Flips a bit of the payload of `step`.
    func damagePayload(_ rank: Int, of worldSize: Int, step: UInt64) throws {
        let decision = try CheckpointReader(path: file(rank, of: worldSize)).decision
        let candidate = try #require(decision.candidates.first { $0.step == step })
        try damage(rank, of: worldSize, at: candidate.dataOffset + 5)
    }

    func remove(_ rank: Int, of worldSize: Int) throws {
        try FileManager.default.removeItem(atPath: file(rank, of: worldSize))
    }
}
