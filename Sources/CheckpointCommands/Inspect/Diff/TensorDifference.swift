internal import CheckpointFormat

#if canImport(Glibc)
    internal import Glibc
#endif

/// How far two tensors of one type are apart.
struct TensorDifference: Sendable {
    /// Elements that were compared.
    private(set) var elementCount: UInt64 = 0
    /// Elements whose bits differ: a zero and a negative zero do, two equal NaN do not.
    private(set) var changedCount: UInt64 = 0
    /// Changed elements of which one or both are not finite; they have no distance.
    private(set) var changedNotFiniteCount: UInt64 = 0
    /// The largest distance between two finite elements; of complex ones, its absolute value.
    private(set) var largest = 0.0
    private var squares = 0.0
    private var firstSquares = 0.0

    /// ‖second − first‖₂ / ‖first‖₂ over the elements that are finite in both; nil when the first
    /// has only zeros and the second does not.
    var relativeNorm: Double? {
        if squares == 0 { return 0 }
        return firstSquares == 0 ? nil : (squares / firstSquares).squareRoot()
    }

    mutating func merge(_ other: TensorDifference) {
        elementCount += other.elementCount
        changedCount += other.changedCount
        changedNotFiniteCount += other.changedNotFiniteCount
        largest = max(largest, other.largest)
        squares += other.squares
        firstSquares += other.firstSquares
    }

    /// Adds two runs of the same number of whole units.
    mutating func add(
        _ first: UnsafeRawBufferPointer, _ second: UnsafeRawBufferPointer,
        _ decoder: ElementDecoder
    ) {
        precondition(first.count == second.count, "as many elements on either side")
        guard let a = first.baseAddress, let b = second.baseAddress else { return }
        let size = decoder.unitByteCount
        precondition(first.count % size == 0, "whole units")
        let room = ElementDecoder.blockUnitCount * decoder.unitNumberCount
        // Safe: the memory is used during the call only.
        unsafe withUnsafeTemporaryAllocation(of: Double.self, capacity: 2 * room) { numbers in
            guard let x = numbers.baseAddress else { return }
            var offset = 0
            while offset < first.count {
                let unitCount = min(ElementDecoder.blockUnitCount, (first.count - offset) / size)
                // Safe: here and below, the units are in both runs, and the memory has room for
                // the numbers of two blocks.
                let (p, q, y) = unsafe (a + offset, b + offset, x + room)
                unsafe decoder.decode(p, unitCount: unitCount, into: x)
                elementCount += UInt64(unitCount * decoder.unitElementCount)
                if unsafe memcmp(p, q, unitCount * size) == 0 {
                    unsafe addEqual(x, unitCount * decoder.unitNumberCount)
                } else {
                    unsafe decoder.decode(q, unitCount: unitCount, into: y)
                    unsafe addBlock(p, q, x, y, unitCount, decoder)
                }
                offset += unitCount * size
            }
        }
    }

    private mutating func addEqual(_ numbers: UnsafePointer<Double>, _ count: Int) {
        var sum = firstSquares
        for index in 0..<count {
            // Safe: below `count`.
            let value = unsafe numbers[index]
            if value - value == 0 { sum += value * value }
        }
        firstSquares = sum
    }

    private mutating func addBlock(
        _ p: UnsafeRawPointer, _ q: UnsafeRawPointer, _ x: UnsafePointer<Double>,
        _ y: UnsafePointer<Double>, _ unitCount: Int, _ decoder: ElementDecoder
    ) {
        let count = unitCount * decoder.unitElementCount
        for element in 0..<count {
            // Safe: here and below, the elements are in both runs, and each has its numbers.
            if unsafe Self.differs(p, q, x, y, element, decoder) { changedCount += 1 }
        }
        var (sum, firstSum, farthest) = (squares, firstSquares, largest)
        let width = decoder.isComplex ? 2 : 1
        for element in 0..<count {
            var distance = unsafe y[element * width] - x[element * width]
            var norm = unsafe x[element * width] * x[element * width]
            if width == 2 {
                // Parts have single precision, so that their squares cannot overflow.
                let other = unsafe y[element * 2 + 1] - x[element * 2 + 1]
                distance = (distance * distance + other * other).squareRoot()
                norm += unsafe x[element * 2 + 1] * x[element * 2 + 1]
            }
            // What is not finite is NaN when subtracted from itself.
            if distance - distance == 0 {
                sum += distance * distance
                firstSum += norm
                farthest = max(farthest, abs(distance))
            } else if unsafe Self.differs(p, q, x, y, element, decoder) {
                changedNotFiniteCount += 1
            }
        }
        (squares, firstSquares, largest) = (sum, firstSum, farthest)
        if decoder.is64BitInteger {
            // Safe: as above.
            largest = max(largest, unsafe decoder.largestDistance(p, q, unitCount: unitCount))
        }
    }

    /// Whether the bits of an element differ.
    @inline(__always)
    private static func differs(
        _ p: UnsafeRawPointer, _ q: UnsafeRawPointer, _ x: UnsafePointer<Double>,
        _ y: UnsafePointer<Double>, _ element: Int, _ decoder: ElementDecoder
    ) -> Bool {
        func load<Bits: FixedWidthInteger & BitwiseCopyable>(_ type: Bits.Type) -> Bool {
            let offset = element * MemoryLayout<Bits>.size
            // Safe: the caller's memory holds the element on both sides.
            return unsafe p.loadUnaligned(fromByteOffset: offset, as: type)
                != q.loadUnaligned(fromByteOffset: offset, as: type)
        }
        // Packed types have a value for each bit pattern, so that the numbers show it.
        if decoder.unitElementCount > 1 {
            // Safe: there is a number for each element.
            return unsafe x[element].bitPattern != y[element].bitPattern
        }
        switch decoder.unitByteCount {
        case 1: return load(UInt8.self)
        case 2: return load(UInt16.self)
        case 4: return load(UInt32.self)
        default: return load(UInt64.self)
        }
    }
}
