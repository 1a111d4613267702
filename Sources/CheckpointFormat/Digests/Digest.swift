internal import CDigest

/// A 128-bit XXH3 digest.
///
/// It detects accidents (rot, torn, stale and misdirected writes), not deliberate tampering: XXH3
/// has no key. On disk the low 64-bit half comes first, each half little-endian.
public struct Digest: Hashable, Sendable {
    public static let byteCount = 16
    public static let zero = Digest(low: 0, high: 0)

    public var low: UInt64
    public var high: UInt64

    public init(low: UInt64, high: UInt64) {
        self.low = low
        self.high = high
    }

    /// XXH3-128 of `bytes` with seed 0.
    public init(of bytes: RawSpan) {
        // Safe: the call reads exactly `count` bytes of a buffer that the span keeps alive.
        let hash = unsafe bytes.withUnsafeBytes { buffer in
            unsafe pccp_xxh3_128(buffer.baseAddress, buffer.count)
        }
        self.init(low: hash.low, high: hash.high)
    }

    /// XXH3-128 of the part `range` of `bytes`, or of all of it.
    public init(of bytes: [UInt8], _ range: Range<Int>? = nil) {
        // Safe: the buffer outlives the closure.
        self = unsafe bytes.withUnsafeBytes { buffer in
            let part = unsafe UnsafeRawBufferPointer(rebasing: buffer[range ?? bytes.indices])
            return Digest(of: unsafe RawSpan(_unsafeBytes: part))
        }
    }
}

extension Digest: CustomStringConvertible {
    /// 32 hexadecimal digits, most significant first: what `xxh128sum` prints.
    public var description: String { Hexadecimal.string(high) + Hexadecimal.string(low) }
}

enum Hexadecimal {
    static func string(_ value: UInt64) -> String {
        let digits = String(value, radix: 16)
        return String(repeating: "0", count: 16 - digits.count) + digits
    }
}
