import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import CheckpointWriter
import Foundation
import StorageFaults
import Testing

/// How long and where to look.
enum MutationRun {
    private static let environment = ProcessInfo.processInfo.environment

    /// The seed of a run: fixed, unless the environment asks for another.
    static let seed = environment["PCCHECK_CRASH_SEED"].flatMap { UInt64($0) } ?? 20_260_101
    /// Every value of every byte, instead of a sample.
    static let isExhaustive = environment["PCCHECK_CRASH_SCALE"] == "all"
    /// How much longer than for each change to look.
    static let scale =
        isExhaustive ? 100 : environment["PCCHECK_CRASH_SCALE"].flatMap { Int($0) } ?? 1

    static let replay =
        "PCCHECK_CRASH_SEED=\(seed) "
        + (environment["PCCHECK_CRASH_SCALE"].map { "PCCHECK_CRASH_SCALE=\($0) " } ?? "")
        + "swift test --filter MutationTests"
}

/// A part of the metadata that is written and sealed as a whole.
struct MetadataBlock: Sendable {
    enum Kind: Hashable, Sendable {
        case identity(Int), superblock(Int), reserved, header(Int), table(Int)
    }

    let kind: Kind
    let offset: Int
    let byteCount: Int
    /// The first so many bytes are covered by a checksum; what follows is padding.
    let sealedByteCount: Int
}

/// A valid image, and what was saved in it.
struct MutationBase: Sendable, CustomTestStringConvertible {
    let name: String
    let bytes: [UInt8]
    let payloads: [UInt64: Digest]
    let image: MetadataImage
    let decision: RecoveryDecision
    let blocks: [MetadataBlock]

    var testDescription: String { name }
    var geometry: Geometry { decision.identity.geometry }
    /// Every checkpoint of the whole image, newest first.
    var candidates: [Candidate] { decision.candidates }

    private init(_ name: String, _ bytes: [UInt8], _ payloads: [UInt64: Digest]) throws {
        self.name = name
        self.bytes = bytes
        self.payloads = payloads
        let storage = MemoryStorage(contents: bytes)
        image = try MetadataImage.read(from: storage)
        decision = try SlotSelection.decide(image)
        let geometry = decision.identity.geometry
        let size = Limits.blockByteCount
        func block(_ kind: MetadataBlock.Kind, _ offset: UInt64, sealed: Int) -> MetadataBlock {
            MetadataBlock(
                kind: kind, offset: Int(offset), byteCount: size, sealedByteCount: sealed)
        }
        var blocks = image.identityBlocks.enumerated().map {
            block(.identity($0), $1.offset, sealed: size)
        }
        for (index, copy) in image.superblocks.enumerated() {
            blocks.append(
                block(.superblock(index), copy.offset, sealed: Superblock.recordByteCount))
        }
        blocks.append(block(.reserved, 3 * Geometry.block, sealed: 0))
        for (index, report) in decision.slots.enumerated() {
            blocks.append(block(.header(index), report.headerOffset, sealed: size))
            let table = report.table == nil ? 0 : report.header?.tableByteCount ?? 0
            blocks.append(
                MetadataBlock(
                    kind: .table(index), offset: Int(geometry.tableOffset(report.slot)),
                    byteCount: geometry.tableCapacityByteCount, sealedByteCount: table))
        }
        self.blocks = blocks
    }

    /// One slot is kept, and the slot of the checkpoint before is not overwritten yet.
    static func oneKept() throws -> MutationBase {
        try written("one kept", inFlight: 1, retain: 1, saveCount: 4, codec: .none)
    }

    /// Two are kept, compressed; the other slots hold what is not kept any more.
    static func twoKept() throws -> MutationBase {
        try written("two kept", inFlight: 2, retain: 2, saveCount: 6, codec: .zstd)
    }

    /// A real writer's file, closed.
    private static func written(
        _ name: String, inFlight: Int, retain: Int, saveCount: UInt64, codec: Codec
    ) throws -> MutationBase {
        var builder = try ImageBuilder(inFlight: inFlight, retain: retain)
        let parent = builder.commit(builder.superblock(generation: 1, anchor: nil))
        builder.commit(builder.superblock(generation: 2, anchor: nil, parent: parent))
        let storage = builder.storage()
        var options = WriterOptions()
        options.codec = codec
        options.poolByteCount = 4 << 16
        options.snapshotWorkerCount = 1
        options.writerWorkerCount = 2
        let writer = try CheckpointWriter(
            storage: MemoryStorage(openerOf: storage), options: options)
        var payloads: [UInt64: Digest] = [:]
        for step in 1...saveCount {
            // Half noise, half not: a chunk that compresses, and by content its own.
            var payload = ImageBuilder.bytes(4096 + Int(step) * 700, seed: step)
            payload += payload
            if step % 2 == 0 { payload += [UInt8](repeating: UInt8(step), count: 65_536) }
            let ticket = try writer.save(step: step, payload: CheckpointPayload(opaque: payload))
            try #require(try ticket.wait() == .durable)
            payloads[ticket.sequence.rawValue] = Digest(of: payload)
        }
        try writer.close()
        return try MutationBase(name, storage.contents, payloads)
    }

    /// What a crash between the barriers leaves: the newest checkpoint is complete and not
    /// anchored, and behind it one is torn. Two are kept.
    static func crashed() throws -> MutationBase {
        var builder = try ImageBuilder(inFlight: 2, retain: 2)
        var payloads: [UInt64: Digest] = [:]
        func content(_ sequence: UInt64) throws -> ImageBuilder.Content {
            let content = try ImageBuilder.Content.tensors(
                [1500, 600 * Int(sequence)], metadata: [("run", "7")], seed: sequence)
            payloads[sequence] = Digest(of: content.bytes)
            return content
        }
        let first = builder.complete(slot: 0, sequence: 1, content: try content(1))
        let parent = builder.commit(builder.superblock(generation: 4, anchor: first))
        let second = builder.complete(
            slot: 1, sequence: 2, content: try content(2), codec: .planesZstd)
        builder.commit(
            builder.superblock(
                generation: 5, anchor: second, retained: [(slot: 0, sequence: 1)],
                parent: parent))
        builder.complete(slot: 2, sequence: 3, content: try content(3))
        builder.writing(slot: 3, sequence: 4)
        return try MutationBase("crashed", builder.bytes, payloads)
    }

    /// The bytes of the file that the checkpoint needs besides identity and superblocks.
    func ranges(_ candidate: Candidate) -> [Range<Int>] {
        let header = Int(candidate.headerOffset)
        let table = header + Limits.blockByteCount
        return [
            header..<header + Limits.blockByteCount,
            table..<table + candidate.header.tableByteCount,
        ]
            + candidate.table.entries.map { entry in
                let start = Int(candidate.dataOffset + entry.storedOffset)
                return start..<start + entry.storedByteCount
            }
    }
}
