public import CheckpointFormat
import StorageFaults

/// One byte that says which decoder, then a sparse image of what it decodes.
///
/// Whatever is accepted must survive being encoded and decoded again, and a block has the same
/// bytes then: a repair loses no value, also none that this version does not know.
public enum DecoderTarget {
    public enum Kind: UInt8, CaseIterable, Sendable {
        case identity, superblock, slot, manifest, chunk
    }

    /// The file that superblocks and slots are checked against.
    public static let identity = makeIdentity()
    public static let slot = SlotIndex(1)
    /// Restored chunks are at most so large.
    private static let rawByteCountMaximum = 1 << 18

    private static func makeIdentity() -> IdentityBlock {
        guard let builder = try? ImageBuilder(inFlight: 2, retain: 2, capacity: 1 << 20) else {
            preconditionFailure("a valid geometry")
        }
        return builder.identity
    }

    public static func kind(of input: [UInt8]) -> Kind {
        Kind.allCases[Int(input.first ?? 0) % Kind.allCases.count]
    }

    static func problem(in input: [UInt8]) -> String? {
        let bytes = SparseImage.decode(Array(input.dropFirst()))
        return switch kind(of: input) {
        case .identity: identityProblem(bytes)
        case .superblock: superblockProblem(bytes)
        case .slot: slotProblem(bytes)
        case .manifest: manifestProblem(bytes)
        case .chunk: chunkProblem(bytes)
        }
    }

    private static func identityProblem(_ bytes: [UInt8]) -> String? {
        guard let block = try? IdentityBlock(decoding: bytes) else { return nil }
        if !bytes.starts(with: block.encoded()) { return "identity changes" }
        let geometry = block.geometry
        let end = geometry.dataOffset + UInt64(geometry.slotCount) * geometry.dataStride
        return end <= geometry.tailOffset ? nil : "slots reach into the tail"
    }

    private static func superblockProblem(_ bytes: [UInt8]) -> String? {
        func decode(_ bytes: [UInt8]) -> Superblock? {
            try? Superblock(
                decoding: bytes, fileUUID: identity.fileUUID,
                slotCount: identity.geometry.slotCount)
        }
        guard let superblock = decode(bytes) else { return nil }
        let encoded = superblock.encoded().bytes
        // Without a checkpoint, the digest of its header has no meaning.
        let isSame =
            superblock.anchor == nil
            ? decode(encoded) == superblock
            : bytes.starts(with: encoded.prefix(Superblock.recordByteCount))
        return isSame ? nil : "superblock changes"
    }

    /// A slot header, and its chunk table behind it.
    private static func slotProblem(_ bytes: [UInt8]) -> String? {
        func decode(_ bytes: [UInt8]) -> SlotHeader? {
            try? SlotHeader(decoding: bytes, slot: slot, identity: identity)
        }
        guard let header = decode(bytes) else { return nil }
        if !bytes.starts(with: header.encoded().bytes) { return "slot header changes" }
        let tableBytes = Array(bytes.dropFirst(Limits.blockByteCount))
        guard
            let table = try? ChunkTable(
                decoding: tableBytes, header: header, geometry: identity.geometry)
        else { return nil }
        let encoded = table.encoded().bytes.prefix(header.tableByteCount)
        return encoded == tableBytes.prefix(header.tableByteCount) ? nil : "chunk table changes"
    }

    /// Eight bytes of payload size, then the payload's first bytes.
    private static func manifestProblem(_ bytes: [UInt8]) -> String? {
        guard bytes.count > 8 else { return nil }
        let size = Sealing.integer(bytes, 0, LayoutField("payload_byte_count", 0, 8))
        let payload = Array(bytes[8...])
        guard let manifest = try? SafetensorsManifest(decoding: payload, payloadByteCount: size)
        else { return nil }
        let tensors = manifest.tensors.map {
            TensorDescription(name: $0.name, elementType: $0.elementType, shape: $0.shape)
        }
        do throws(FormatError) {
            let encoded = try SafetensorsManifest.encode(tensors, metadata: manifest.metadata)
            let again = try SafetensorsManifest(
                decoding: encoded.bytes,
                payloadByteCount: UInt64(encoded.bytes.count) + encoded.dataByteCount)
            let isSame =
                Set(again.tensors.map(\.name)) == Set(manifest.tensors.map(\.name))
                && again.metadata.map(\.key) == manifest.metadata.map(\.key)
                && again.metadata.map(\.value) == manifest.metadata.map(\.value)
                && encoded.dataByteCount == size - manifest.dataOffset
            return isSame ? nil : "manifest changes"
        } catch {
            return "a manifest that was accepted cannot be written: \(error)"
        }
    }

    /// Codec, plane width, three bytes of raw size, then the stored bytes.
    private static func chunkProblem(_ bytes: [UInt8]) -> String? {
        guard bytes.count > 5 else { return nil }
        let stored = Array(bytes[5...])
        let codec = Codec.allCases[Int(bytes[0]) % Codec.allCases.count]
        let asked = Int(Sealing.integer(bytes, 2, LayoutField("raw_byte_count", 0, 3)))
        let entry = ChunkEntry(
            storedOffset: 0, storedByteCount: stored.count,
            rawByteCount: codec == .none ? stored.count : asked % rawByteCountMaximum + 1,
            codec: codec, planeWidth: codec == .planesZstd ? 2 << Int(bytes[1] % 3) : 1,
            digest: .zero)
        let raw = UnsafeMutableRawBufferPointer.allocate(
            byteCount: entry.rawByteCount, alignment: 16)
        defer { unsafe raw.deallocate() }
        // Safe: the memory has exactly the size that the entry says.
        let result = unsafe stored.withUnsafeBytes { stored in
            Result { () throws(FormatError) in
                try unsafe ChunkCompression.decode(entry, stored: stored, into: raw)
            }
        }
        if case .success = result, codec == .none, unsafe !raw.elementsEqual(stored) {
            return "a chunk without a codec changes"
        }
        return nil
    }
}
