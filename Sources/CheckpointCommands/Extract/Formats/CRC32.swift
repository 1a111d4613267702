/// The checksum of zip archives: CRC-32 with the reflected polynomial 0xEDB88320.
///
/// The checksums of parts can be combined, so that parts may be read in any order. The
/// arithmetic of polynomials is that of zlib's `crc32_combine`.
enum CRC32 {
    private static let polynomial: UInt32 = 0xEDB8_8320

    /// Eight tables of 256, one after another: table k advances a byte by k more bytes.
    private static let tables: [UInt32] = {
        var tables = (0..<256 as Range<UInt32>).map { byte in
            (0..<8).reduce(byte) { value, _ in halved(value) }
        }
        for index in 256..<2048 {
            let before = tables[index - 256]
            tables.append(before >> 8 ^ tables[Int(before & 0xFF)])
        }
        return tables
    }()

    private static func halved(_ value: UInt32) -> UInt32 {
        value & 1 == 1 ? value >> 1 ^ polynomial : value >> 1
    }

    /// The checksum of `bytes`, eight at a time.
    static func of(_ bytes: RawSpan) -> UInt32 {
        // Safe: both views are read inside their bounds and outlive the closures. Checked
        // accesses would halve the speed of what every byte of an archive passes through.
        unsafe tables.withUnsafeBufferPointer { tables in
            unsafe bytes.withUnsafeBytes { bytes in unsafe update(bytes, tables) }
        }
    }

    private static func update(
        _ bytes: UnsafeRawBufferPointer, _ tables: UnsafeBufferPointer<UInt32>
    ) -> UInt32 {
        var crc: UInt32 = .max
        var position = 0
        while position + 8 <= bytes.count {
            // Safe: eight bytes from `position` are in the buffer, and an index is below 2048.
            unsafe crc ^= UInt32(
                littleEndian: bytes.loadUnaligned(fromByteOffset: position, as: UInt32.self))
            let next = unsafe UInt32(
                littleEndian: bytes.loadUnaligned(fromByteOffset: position + 4, as: UInt32.self))
            // Safe: as above.
            let low =
                unsafe tables[1792 + Int(crc & 0xFF)] ^ tables[1536 + Int(crc >> 8 & 0xFF)]
                ^ tables[1280 + Int(crc >> 16 & 0xFF)] ^ tables[1024 + Int(crc >> 24)]
            // Safe: as above.
            let high =
                unsafe tables[768 + Int(next & 0xFF)] ^ tables[512 + Int(next >> 8 & 0xFF)]
                ^ tables[256 + Int(next >> 16 & 0xFF)] ^ tables[Int(next >> 24)]
            crc = low ^ high
            position += 8
        }
        while position < bytes.count {
            // Safe: the position is in the buffer, and the index is below 256.
            unsafe crc = crc >> 8 ^ tables[Int(crc & 0xFF ^ UInt32(bytes[position]))]
            position += 1
        }
        return ~crc
    }

    static func of(_ bytes: [UInt8]) -> UInt32 {
        // Safe: every byte of the array is set, and it outlives the call.
        unsafe of(bytes.span.bytes)
    }

    /// The checksum of `byteCount` zeros.
    static func ofZeros(_ byteCount: UInt64) -> UInt32 {
        ~product(power(ofBytes: byteCount), .max)
    }

    /// The checksum of two parts in a row.
    static func combine(
        _ first: UInt32, _ second: UInt32, secondByteCount: UInt64
    ) -> UInt32 {
        product(power(ofBytes: secondByteCount), first) ^ second
    }

    /// The product of two polynomials, modulo that of the checksum.
    private static func product(_ left: UInt32, _ right: UInt32) -> UInt32 {
        var (sum, factor) = (UInt32(0), right)
        for bit in (0..<32).reversed() {
            if left >> UInt32(bit) & 1 == 1 { sum ^= factor }
            factor = halved(factor)
        }
        return sum
    }

    /// x to the power of 8 × `byteCount`.
    private static func power(ofBytes byteCount: UInt64) -> UInt32 {
        var result: UInt32 = 1 << 31
        var square: UInt32 = 1 << 23
        var rest = byteCount
        while rest > 0 {
            if rest & 1 == 1 { result = product(square, result) }
            square = product(square, square)
            rest >>= 1
        }
        return result
    }
}
