package import CheckpointFormat
package import CheckpointWriter
internal import StorageFaults

/// SmallFile geometry: chunks of 64 KiB, slots of three.
package enum SmallFile {
    package static let chunkByteCount = 64 << 10

    /// A new file.
    package static func file(
        inFlight: Int, retain: Int, chunkCount: Int = 3, rank: UInt32 = 0,
        worldSize: UInt32 = 1, runUUID: Identifier128 = .zero
    ) throws -> [UInt8] {
        var builder = try ImageBuilder(
            inFlight: inFlight, retain: retain, capacity: UInt64(chunkCount * chunkByteCount),
            chunkByteCount: chunkByteCount, rank: rank, worldSize: worldSize, runUUID: runUUID)
        let parent = builder.commit(builder.superblock(generation: 1, anchor: nil))
        builder.commit(builder.superblock(generation: 2, anchor: nil, parent: parent))
        return builder.bytes
    }

    package static func payload(step: UInt64, chunkCount: Int = 3) -> [UInt8] {
        let counts = [1, 65_536, 70_001, 131_072, 196_608, 4096, 140_003].filter {
            $0 <= chunkCount * chunkByteCount
        }
        let count = counts[Int(step % UInt64(counts.count))]
        // Noise that repeats at no multiple of a block; doubling is quick also in debug builds.
        var bytes = ImageBuilder.bytes(509, seed: step)
        while bytes.count < count { bytes += bytes }
        bytes.removeSubrange(count...)
        return bytes
    }

    package static func options(_ codec: Codec = .none) -> WriterOptions {
        var options = WriterOptions()
        options.snapshotWorkerCount = 1
        options.writerWorkerCount = 2
        options.poolByteCount = UInt64(4 * chunkByteCount)
        options.codec = codec
        return options
    }
}
