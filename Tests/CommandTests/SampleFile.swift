import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import CheckpointWriter
import Foundation
import Testing

/// A checkpoint file made by the real writer.
final class SampleFile {
    let directory: TemporaryDirectory
    let path: String

    /// Tensors whose names try to do harm on a terminal.
    static let tensors: [(name: String, type: String, shape: [UInt64])] = [
        ("model.weight", "F32", [64, 300]), ("model.bias", "F32", [300]),
        ("optimizer/\u{1B}[31mred\n", "BF16", [17]), ("steps", "I64", []),
    ]

    /// A file with checkpoints of `steps`; slot i holds the one at index i.
    init(
        steps: [UInt64] = [10, 20, 30], codec: Codec = .none, opaqueByteCount: Int? = nil,
        fingerprint: String = ""
    ) throws {
        directory = try TemporaryDirectory()
        path = directory.file("run.pcc")
        var options = CheckpointFile.Options(capacity: 1 << 20)
        options.inFlight = 1
        options.retain = max(steps.count, 1)
        options.chunkByteCount = 64 << 10
        options.fingerprint = fingerprint
        try CheckpointFile.create(path: path, options: options)
        if steps.isEmpty { return }
        var writerOptions = WriterOptions()
        writerOptions.codec = codec
        let writer = try CheckpointWriter(path: path, options: writerOptions)
        for step in steps {
            let memory = unsafe Self.memory(step: step, opaqueByteCount: opaqueByteCount)
            // Safe: the memory is freed only after the ticket's end.
            defer { unsafe memory.forEach { unsafe $0.deallocate() } }
            let payload = try unsafe Self.payload(
                memory, isOpaque: opaqueByteCount != nil, step: step)
            let ticket = try writer.save(step: step, payload: payload, userMetadata: "run é")
            let outcome = try ticket.wait()
            try #require(outcome == .durable, "\(outcome)")
        }
        try writer.close()
    }

    /// The bytes of a tensor at `step`.
    static func content(step: UInt64, tensor: Int, byteCount: Int) -> [UInt8] {
        (0..<byteCount).map {
            UInt8(truncatingIfNeeded: $0 % 4 == 3 ? 0x3C : $0 &* 7 &+ Int(step) &+ tensor)
        }
    }

    static func byteCount(_ tensor: (name: String, type: String, shape: [UInt64])) throws -> Int {
        let type = try #require(ElementType(name: tensor.type))
        return Int(try type.byteCount(shape: tensor.shape))
    }

    private static func memory(
        step: UInt64, opaqueByteCount: Int?
    ) -> [UnsafeMutableRawBufferPointer] {
        let sizes = opaqueByteCount.map { [$0] } ?? tensors.compactMap { try? byteCount($0) }
        return unsafe sizes.enumerated().map { index, size in
            let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: size, alignment: 64)
            unsafe buffer.copyBytes(from: content(step: step, tensor: index, byteCount: size))
            return unsafe buffer
        }
    }

    private static func payload(
        _ memory: [UnsafeMutableRawBufferPointer], isOpaque: Bool, step: UInt64
    ) throws -> CheckpointPayload {
        // Safe: the caller keeps the memory until the ticket's end.
        let regions = unsafe memory.map {
            unsafe CheckpointPayload.Region(UnsafeRawBufferPointer($0))
        }
        if isOpaque { return CheckpointPayload(opaque: regions) }
        let described = try zip(tensors, regions).map { tensor, region in
            let type = try #require(ElementType(name: tensor.type))
            return (
                description: TensorDescription(
                    name: tensor.name, elementType: type, shape: tensor.shape), memory: region
            )
        }
        return try CheckpointPayload(
            tensors: described, metadata: [("step", "\(step)"), ("note", "a\u{1B}[2Jb")])
    }

    func decision() throws -> RecoveryDecision { try CheckpointReader(path: path).decision }

    /// Flips a bit of the byte at `offset`.
    func damage(_ offset: UInt64) throws {
        let handle = try FileHandle(forUpdating: URL(filePath: path))
        defer { try? handle.close() }
        try handle.seek(toOffset: offset)
        let byte = try #require(try handle.read(upToCount: 1)?.first)
        try handle.seek(toOffset: offset)
        try handle.write(contentsOf: [byte ^ 1])
    }

    /// Damages chunk `index` of the checkpoint of `step`.
    func damageChunk(_ index: Int, step: UInt64) throws {
        let candidate = try #require(decision().candidates.first { $0.step == step })
        try damage(candidate.dataOffset + candidate.table.entries[index].storedOffset + 5)
    }

    func truncate(to byteCount: UInt64) throws {
        let handle = try FileHandle(forUpdating: URL(filePath: path))
        defer { try? handle.close() }
        try handle.truncate(atOffset: byteCount)
    }
}
