import CheckpointCheck
import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import CheckpointWriter
import Foundation
import StorageFaults

/// The valid fixtures: files as the writer leaves them, each with a few small checkpoints.
struct ValidFixture {
    let name: String
    let description: String
    /// Findings of a full check.
    let findings: [Fixture.ExpectedFinding]
    /// What the file is created with.
    let options: CheckpointFile.Options
    let codec: Codec
    /// The saves, in order; each is durable before the next begins.
    let saves: [(step: UInt64, content: ImageBuilder.Content)]
    let endsCleanly: Bool

    static func all() throws -> [ValidFixture] {
        [
            .init("empty", "Created and never written to.", saves: []),
            .init(
                "opaque", "Three opaque payloads, closed.",
                saves: (1...3).map { (UInt64($0) * 10, opaque(seed: UInt64($0))) }),
            .init(
                "safetensors", "Four safetensors payloads, closed.",
                saves: try (1...4).map { (UInt64($0) * 10, try tensors(seed: UInt64($0))) }),
            .init(
                "zstd", "Three safetensors payloads, each chunk one zstd frame, closed.",
                codec: .zstd,
                saves: try (1...3).map { (UInt64($0) * 10, try tensors(seed: UInt64($0))) }),
            .init(
                "planes", "Three safetensors payloads, byte planes and zstd, closed.",
                codec: .planesZstd,
                saves: try (1...3).map { (UInt64($0) * 10, try tensors(seed: UInt64($0))) }),
            .init(
                "retain3", "Six opaque payloads in a file that retains three, closed.",
                options: options { $0.retain = 3 },
                saves: (1...6).map { (UInt64($0) * 10, opaque(seed: UInt64($0))) }),
            .init(
                "killed", "Four safetensors payloads; the writer stopped without closing.",
                findings: [.init(id: "PCK-B010", severity: "info", slot: nil)],
                saves: try (1...4).map { (UInt64($0) * 10, try tensors(seed: UInt64($0))) },
                endsCleanly: false),
            .init(
                "rewound",
                "Rank 1 of 4 with a fingerprint; training went back from step 30 to step 10.",
                options: options {
                    $0.rank = 1
                    $0.worldSize = 4
                    $0.fingerprint = "gpt-small"
                },
                saves: [10, 20, 30, 11].map { ($0, opaque(seed: $0)) }),
        ]
    }

    private init(
        _ name: String, _ description: String, findings: [Fixture.ExpectedFinding] = [],
        options: CheckpointFile.Options = Self.options(), codec: Codec = .none,
        saves: [(UInt64, ImageBuilder.Content)], endsCleanly: Bool = true
    ) {
        self.name = "valid/v1/" + name
        self.description = description
        self.findings = findings
        self.options = options
        self.codec = codec
        self.saves = saves.map { (step: $0.0, content: $0.1) }
        self.endsCleanly = endsCleanly
    }

    private static func options(
        _ change: (inout CheckpointFile.Options) -> Void = { _ in }
    ) -> CheckpointFile.Options {
        var options = CheckpointFile.Options(capacity: 256 << 10)
        options.chunkByteCount = 64 << 10
        change(&options)
        return options
    }

    /// Two chunks of four repeated kilobytes: large enough to matter, small in the repository.
    private static func opaque(seed: UInt64) -> ImageBuilder.Content {
        let block = ImageBuilder.bytes(4001, seed: seed)
        return ImageBuilder.Content(
            kind: .opaque, bytes: Array((0..<20).map { _ in block }.joined()),
            manifestByteCount: 0)
    }

    private static func tensors(seed: UInt64) throws -> ImageBuilder.Content {
        try .tensors([16_000, 1, 16_384], metadata: [("seed", "\(seed)")], seed: seed)
    }

    /// Makes the file with the real writer and returns its bytes.
    func make() throws -> [UInt8] {
        let folder = FileManager.default.temporaryDirectory.appending(
            path: "pccheck-fixture-\(UUID())")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        let path = folder.appending(path: "run.pcc").path
        try CheckpointFile.create(path: path, options: options)
        if !saves.isEmpty { try write(path) }
        return [UInt8](try Data(contentsOf: URL(filePath: path)))
    }

    private func write(_ path: String) throws {
        var writerOptions = WriterOptions()
        writerOptions.codec = codec
        writerOptions.backend = .buffered
        writerOptions.rank = options.rank
        writerOptions.worldSize = options.worldSize
        let writer = try CheckpointWriter(path: path, options: writerOptions)
        for save in saves {
            try writer.rewind(to: save.step)
            let ticket = try writer.save(
                step: save.step, payload: Self.payload(save.content),
                userMetadata: "{\"step\":\(save.step)}")
            _ = try ticket.wait()
        }
        if endsCleanly { try writer.close() } else { writer.abandon() }
    }

    /// The same bytes as a writer's payload; tensors are handed over one by one.
    private static func payload(_ content: ImageBuilder.Content) throws -> CheckpointPayload {
        guard content.kind == .safetensors else {
            return CheckpointPayload(opaque: content.bytes)
        }
        let manifest = try SafetensorsManifest(
            decoding: content.bytes, payloadByteCount: UInt64(content.bytes.count))
        // Kept for the life of the process: the writer reads it until the ticket is staged.
        let memory = UnsafeMutableRawBufferPointer.allocate(
            byteCount: content.bytes.count, alignment: 64)
        unsafe memory.copyBytes(from: content.bytes)
        let tensors = manifest.tensors.map { tensor in
            let start = Int(manifest.dataOffset + tensor.dataRange.lowerBound)
            let part = unsafe UnsafeRawBufferPointer(
                rebasing: memory[start..<start + tensor.dataRange.count])
            return (
                description: TensorDescription(
                    name: tensor.name, elementType: tensor.elementType, shape: tensor.shape),
                memory: unsafe CheckpointPayload.Region(part, elementByteCount: 4)
            )
        }
        return try CheckpointPayload(tensors: tensors, metadata: manifest.metadata)
    }
}
