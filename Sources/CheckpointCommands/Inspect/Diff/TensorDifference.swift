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
                // Safe: here and below, the units lie in both runs, and the memory has room for
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
        for index in 0..<count {
            // Safe: below `count`.
            let value = unsafe numbers[index]
            if value.isFinite { firstSquares += value * value }
        }
    }

    private mutating func addBlock(
        _ p: UnsafeRawPointer, _ q: UnsafeRawPointer, _ x: UnsafePointer<Double>,
        _ y: UnsafePointer<Double>, _ unitCount: Int, _ decoder: ElementDecoder
    ) {
        let width = decoder.unitNumberCount / decoder.unitElementCount
        for element in 0..<unitCount * decoder.unitElementCount {
            var (isFinite, square) = (true, 0.0)
            for part in element * width..<(element + 1) * width {
                // Safe: there are as many numbers as parts.
                let (first, second) = unsafe (x[part], y[part])
                isFinite = isFinite && first.isFinite && second.isFinite
                square += (second - first) * (second - first)
                if first.isFinite && second.isFinite { firstSquares += first * first }
            }
            // Safe: the elements lie in both runs.
            let isChanged = unsafe Self.differs(p, q, x, y, element, decoder)
            if isChanged { changedCount += 1 }
            if isFinite {
                squares += square
                largest = max(largest, square.squareRoot())
            } else if isChanged {
                changedNotFiniteCount += 1
            }
        }
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
        // Packed types have a value for each bit pattern, so that the numbers tell.
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
