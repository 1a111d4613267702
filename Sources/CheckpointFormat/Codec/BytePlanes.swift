/// The byte-plane filter: the first bytes of all elements, then the second bytes, and so on.
///
/// The exponents of floating-point numbers are then side by side, where they compress well.
/// For `n` bytes of elements `w` bytes wide there are m = n / w elements, and
/// `out[p · m + i] = in[i · w + p]`; the n mod w bytes that fill no element follow unchanged.
enum BytePlanes {
    /// Elements handled at once, so that the planes of one block stay in the first-level cache.
    private static let blockElementCount = 2048

    static func split(
        _ source: UnsafeRawPointer, _ target: UnsafeMutableRawPointer, byteCount: Int, width: Int
    ) {
        let count = byteCount / width
        var start = 0
        while start < count {
            let end = min(start + blockElementCount, count)
            switch width {
            // Safe: elements start..<end and their planes lie inside the `byteCount` bytes.
            case 2: unsafe split(source, target, count, start..<end, as: UInt16.self)
            case 4: unsafe split(source, target, count, start..<end, as: UInt32.self)
            case 8: unsafe split(source, target, count, start..<end, as: UInt64.self)
            default: preconditionFailure("planes are 2, 4 or 8 bytes wide")
            }
            start = end
        }
        // Safe: both have `byteCount` bytes.
        unsafe copyTail(source, target, byteCount: byteCount, width: width)
    }

    static func join(
        _ source: UnsafeRawPointer, _ target: UnsafeMutableRawPointer, byteCount: Int, width: Int
    ) {
        let count = byteCount / width
        var start = 0
        while start < count {
            let end = min(start + blockElementCount, count)
            switch width {
            // Safe: elements start..<end and their planes lie inside the `byteCount` bytes.
            case 2: unsafe join(source, target, count, start..<end, as: UInt16.self)
            case 4: unsafe join(source, target, count, start..<end, as: UInt32.self)
            case 8: unsafe join(source, target, count, start..<end, as: UInt64.self)
            default: preconditionFailure("planes are 2, 4 or 8 bytes wide")
            }
            start = end
        }
        // Safe: both have `byteCount` bytes.
        unsafe copyTail(source, target, byteCount: byteCount, width: width)
    }

    @inline(__always)
    private static func split<Element: FixedWidthInteger & BitwiseCopyable>(
        _ source: UnsafeRawPointer, _ target: UnsafeMutableRawPointer, _ count: Int,
        _ elements: Range<Int>, as type: Element.Type
    ) {
        let width = MemoryLayout<Element>.size
        for plane in 0..<width {
            // Safe: the plane begins at plane · count and has `count` bytes.
            let output = unsafe (target + plane * count).assumingMemoryBound(to: UInt8.self)
            for index in elements {
                // Safe: element `index` lies inside the source.
                let element = unsafe source.loadUnaligned(
                    fromByteOffset: index &* width, as: Element.self)
                unsafe output[index] = UInt8(
                    truncatingIfNeeded: Element(littleEndian: element) &>> Element(8 &* plane))
            }
        }
    }

    @inline(__always)
    private static func join<Element: FixedWidthInteger & BitwiseCopyable>(
        _ source: UnsafeRawPointer, _ target: UnsafeMutableRawPointer, _ count: Int,
        _ elements: Range<Int>, as type: Element.Type
    ) {
        let width = MemoryLayout<Element>.size
        // Safe: the source has `width` planes of `count` bytes.
        let input = unsafe source.assumingMemoryBound(to: UInt8.self)
        for index in elements {
            var element: Element = 0
            for plane in 0..<width {
                // Safe: byte `index` of plane `plane`.
                let byte = unsafe input[plane &* count &+ index]
                element |= Element(truncatingIfNeeded: byte) &<< Element(8 &* plane)
            }
            // Safe: element `index` lies inside the target.
            unsafe target.storeBytes(
                of: element.littleEndian, toByteOffset: index &* width, as: Element.self)
        }
    }

    private static func copyTail(
        _ source: UnsafeRawPointer, _ target: UnsafeMutableRawPointer, byteCount: Int, width: Int
    ) {
        let tail = byteCount % width
        // Safe: the last `tail` bytes of two regions of `byteCount` bytes.
        unsafe (target + byteCount - tail).copyMemory(
            from: source + byteCount - tail, byteCount: tail)
    }
}
