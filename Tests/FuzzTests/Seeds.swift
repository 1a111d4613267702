import CheckpointFormat
import FuzzTargets
import StorageFaults

/// Small inputs from which fuzzing starts.
enum Seeds {
    /// Mostly zeros, so that their images are small.
    private static func opaque(_ byteCount: Int, _ mark: UInt8) -> ImageBuilder.Content {
        var bytes = [UInt8](repeating: 0, count: byteCount)
        bytes[0] = mark
        bytes[byteCount - 1] = mark
        return ImageBuilder.Content(kind: .opaque, bytes: bytes, manifestByteCount: 0)
    }

    private static func tensors() throws -> ImageBuilder.Content {
        try .tensors([12, 30], metadata: [("run", "7\n")], seed: 1)
    }

    /// Files of 52 KiB to 1 MiB in states that writers and crashes leave.
    static func images() throws -> [[UInt8]] {
        var images: [[UInt8]] = []
        var empty = try ImageBuilder(inFlight: 1, retain: 1, capacity: 4096)
        let first = empty.commit(empty.superblock(generation: 1, anchor: nil))
        empty.commit(empty.superblock(generation: 2, anchor: nil, parent: first))
        images.append(empty.bytes)

        var single = empty
        let anchor = single.complete(slot: 0, sequence: 3, content: opaque(700, 5))
        single.commit(single.superblock(generation: 3, anchor: anchor, isCleanClose: true))
        images.append(single.bytes)
        single.writing(slot: 1, sequence: 4)
        images.append(single.bytes)
        single.complete(slot: 1, sequence: 4, content: opaque(1100, 6))
        images.append(single.bytes)

        for codec in Codec.allCases {
            var file = try ImageBuilder(inFlight: 1, retain: 2, capacity: 128 << 10)
            let older = file.complete(
                slot: 0, sequence: 1, content: opaque(66_000, 9), codec: codec)
            let parent = file.commit(file.superblock(generation: 6, anchor: older))
            let newer = file.complete(slot: 2, sequence: 2, content: try tensors(), codec: codec)
            file.commit(
                file.superblock(
                    generation: 7, anchor: newer, retained: [(slot: 0, sequence: 1)],
                    parent: parent))
            images.append(file.bytes)
        }
        return images
    }

    static func inputs(_ target: FuzzTarget) throws -> [[UInt8]] {
        if target != .decoder { return try images().map { SparseImage.encode($0) } }
        var file = try ImageBuilder(inFlight: 2, retain: 2, capacity: 1 << 20)
        let content = try tensors()
        let anchor = file.complete(slot: 1, sequence: 9, content: content, codec: .planesZstd)
        file.complete(slot: 2, sequence: 8, content: opaque(70_000, 3), codec: .zstd)
        let superblock = file.superblock(
            generation: 7, anchor: anchor, retained: [(slot: 2, sequence: 8)])
        let offset = Int(file.geometry.headerOffset(DecoderTarget.slot))
        let size = (0..<8).map { UInt8(truncatingIfNeeded: content.bytes.count >> (8 * $0)) }
        func input(_ kind: DecoderTarget.Kind, _ bytes: [UInt8]) -> [UInt8] {
            [kind.rawValue] + SparseImage.encode(bytes)
        }
        var inputs = [
            input(.identity, file.identity.encoded()),
            input(.superblock, superblock.encoded().bytes),
            input(.slot, Array(file.bytes[offset..<offset + 2 * Limits.blockByteCount])),
            input(.manifest, size + content.bytes),
        ]
        for slot in [1, 2] {
            let table = try file.table(SlotIndex(slot))
            for entry in table.entries {
                let start = Int(file.geometry.slotDataOffset(SlotIndex(slot)) + entry.storedOffset)
                let raw = entry.rawByteCount - 1
                inputs.append(
                    input(
                        .chunk,
                        [entry.codec.rawValue, entry.planeWidth == 4 ? 1 : 0]
                            + [0, 8, 16].map { UInt8(truncatingIfNeeded: raw >> $0) }
                            + file.bytes[start..<start + entry.storedByteCount]))
            }
        }
        return inputs
    }
}
