import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import CheckpointWriter
import Foundation

/// A directory that is removed with its content.
final class TemporaryDirectory {
    let path: String

    init(in folder: String = FileManager.default.temporaryDirectory.path) throws {
        path = "\(folder)/pccheck-\(UUID().uuidString)"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    func file(_ name: String = "run.pcc") -> String { "\(path)/\(name)" }
}

/// Bytes that differ with `seed`, and at every position.
func pattern(_ seed: UInt64, count: Int) -> [UInt8] {
    var state = seed &* 0x9E37_79B9_7F4A_7C15 | 1
    return (0..<count).map { _ in
        state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        return UInt8(truncatingIfNeeded: state >> 56)
    }
}

/// A small file: chunks of 64 KiB.
func createFile(
    _ path: String, capacity: UInt64 = 1 << 20, inFlight: Int = 2, retain: Int = 1,
    chunkByteCount: Int = 64 << 10
) throws {
    var options = CheckpointFile.Options(capacity: capacity)
    options.inFlight = inFlight
    options.retain = retain
    options.chunkByteCount = chunkByteCount
    try CheckpointFile.create(path: path, options: options)
}

/// The payload of the newest checkpoint that loads, with its step.
func loadNewest(_ path: String) throws -> (step: UInt64, bytes: [UInt8]) {
    let reader = try CheckpointReader(path: path)
    return try reader.loadNewest { selected throws(CheckpointError) in
        let bytes = try selected.readBytes(0..<selected.candidate.header.payloadByteCount)
        return (selected.candidate.step, bytes)
    }.value
}
