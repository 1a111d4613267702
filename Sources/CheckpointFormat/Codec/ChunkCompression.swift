internal import CZstd

/// Compresses chunks, one after another; a worker keeps one for its life.
// The context and the scratch memory belong to this object alone and are freed once, in deinit.
@safe public final class ChunkCompressor {
    private let context: OpaquePointer?
    private let scratch: UnsafeMutableRawBufferPointer

    /// Memory for chunks of up to `chunkByteCount` bytes, compressed at zstd's `level`.
    public init(level: Int32, chunkByteCount: Int) {
        // Safe: nil only when memory is exhausted.
        unsafe context = ZSTD_createCCtx()
        precondition(unsafe context != nil, "out of memory for a zstd context")
        // Safe: the context was just created; a level out of range is clamped by zstd.
        unsafe ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, level)
        // zstd then records the content size, which decoding needs, and no checksum: the digest of
        // the stored bytes already covers the frame.
        unsafe scratch = .allocate(byteCount: chunkByteCount, alignment: 64)
    }

    deinit {
        // Safe: both are owned and freed once.
        unsafe scratch.deallocate()
        unsafe ZSTD_freeCCtx(context)
    }

    /// Encodes `raw` into `output`, which must have room for as many bytes as `raw` has.
    ///
    /// - Returns: the encoded size, below `raw.count`; nil when the chunk does not shrink and is
    ///   to be stored as it is, with codec `none`. `output` then holds nothing of use.
    public func encode(
        _ raw: UnsafeRawBufferPointer, codec: Codec, planeWidth: Int,
        into output: UnsafeMutableRawBufferPointer
    ) -> Int? {
        guard codec != .none, unsafe !raw.isEmpty, var source = raw.baseAddress else { return nil }
        precondition(output.count >= raw.count, "the output has room for the raw chunk")
        if codec == .planesZstd {
            // Safe: the scratch memory belongs to self; only its size and start are read here.
            precondition(unsafe raw.count <= scratch.count, "a chunk of the announced size")
            guard let planes = unsafe scratch.baseAddress else { return nil }
            // Safe: both have at least raw.count bytes.
            unsafe BytePlanes.split(source, planes, byteCount: raw.count, width: planeWidth)
            unsafe source = UnsafeRawPointer(planes)
        }
        // Safe: zstd writes at most raw.count − 1 bytes and reports an error when that is too few.
        let size = unsafe ZSTD_compress2(
            context, output.baseAddress, raw.count - 1, source, raw.count)
        return ZSTD_isError(size) == 0 ? size : nil
    }
}

/// Restores chunks from their stored form.
public enum ChunkCompression {
    private static let zstdMagic: [UInt8] = [0x28, 0xB5, 0x2F, 0xFD]

    /// Restores the chunk that `entry` describes from its stored bytes.
    ///
    /// Call it only after the digest of `stored` matched `entry.digest`: the frame is then the
    /// writer's own. It is nevertheless checked as if it came from an attacker, and the decoder
    /// never writes outside `raw`.
    ///
    /// - Throws: `FormatError.invalidCompression` when the bytes are not exactly one zstd frame
    ///   without a dictionary, whose recorded content size is the chunk's raw size.
    public static func decode(
        _ entry: ChunkEntry, stored: UnsafeRawBufferPointer,
        into raw: UnsafeMutableRawBufferPointer
    ) throws(FormatError) {
        precondition(stored.count == entry.storedByteCount, "the stored bytes of this entry")
        precondition(raw.count == entry.rawByteCount, "room for exactly the raw chunk")
        switch entry.codec {
        case .none:
            precondition(stored.count == raw.count, "a chunk without a codec keeps its size")
            // Safe: both have the same size.
            unsafe raw.copyMemory(from: stored)
        case .zstd:
            unsafe try decompress(stored, into: raw)
        case .planesZstd:
            let planes = UnsafeMutableRawBufferPointer.allocate(
                byteCount: raw.count, alignment: 64)
            defer { unsafe planes.deallocate() }
            unsafe try decompress(stored, into: planes)
            guard let source = planes.baseAddress, let target = raw.baseAddress else { return }
            // Safe: both have raw.count bytes.
            unsafe BytePlanes.join(
                source, target, byteCount: raw.count, width: entry.planeWidth)
        }
    }

    private static func decompress(
        _ stored: UnsafeRawBufferPointer, into raw: UnsafeMutableRawBufferPointer
    ) throws(FormatError) {
        guard unsafe stored.prefix(zstdMagic.count).elementsEqual(zstdMagic) else {
            throw .invalidCompression("a chunk does not begin with a zstd frame")
        }
        // Safe: the calls read inside `stored` only.
        let contentByteCount = unsafe ZSTD_getFrameContentSize(stored.baseAddress, stored.count)
        guard contentByteCount == UInt64(raw.count) else {
            // The two largest values mean "unknown" and "not a frame".
            let found = contentByteCount >= .max - 1 ? "no" : "\(contentByteCount)"
            throw .invalidCompression(
                "the frame records \(found) content bytes, expected \(raw.count)")
        }
        // An error, here and below, is a number that no size reaches.
        let frameByteCount = unsafe ZSTD_findFrameCompressedSize(stored.baseAddress, stored.count)
        guard frameByteCount == stored.count else {
            throw .invalidCompression(
                "the \(stored.count) stored bytes are not exactly one zstd frame")
        }
        let dictionary = unsafe ZSTD_getDictID_fromFrame(stored.baseAddress, stored.count)
        guard dictionary == 0 else {
            throw .invalidCompression("the frame needs dictionary \(dictionary), expected none")
        }
        // Safe: zstd writes at most raw.count bytes, straight into `raw`: the window needs no
        // memory of its own, whatever size the frame asks for.
        let size = unsafe ZSTD_decompress(
            raw.baseAddress, raw.count, stored.baseAddress, stored.count)
        guard size == raw.count else {
            // Safe: a constant C string.
            let name = unsafe String(cString: ZSTD_getErrorName(size))
            throw .invalidCompression("zstd says: \(name)")
        }
    }
}
