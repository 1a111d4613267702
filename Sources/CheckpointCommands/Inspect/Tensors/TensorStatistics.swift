internal import CheckpointFormat

/// What the elements of a tensor are like.
///
/// Least, largest, mean and standard deviation are those of the finite elements; what is not
/// finite is counted. A complex element counts with its absolute value.
struct TensorStatistics: Sendable {
    /// Elements that were read.
    private(set) var elementCount: UInt64 = 0
    private(set) var notANumberCount: UInt64 = 0
    private(set) var infinityCount: UInt64 = 0
    private(set) var zeroCount: UInt64 = 0
    private(set) var finiteCount: UInt64 = 0
    private(set) var mean = 0.0
    /// The sum of the squared distances from the mean.
    private var squares = 0.0
    private var leastNumber = Double.infinity
    private var largestNumber = -Double.infinity
    /// Of 64-bit integers, which a Double may not hold.
    private var integers: ClosedRange<Int128>?

    /// A number as it is shown: exact for integers.
    enum Extreme: Equatable, Sendable {
        case integer(Int128)
        case real(Double)
    }

    /// nil when no element is finite.
    var least: Extreme? {
        finiteCount == 0
            ? nil : integers.map { .integer($0.lowerBound) } ?? .real(leastNumber)
    }
    var largest: Extreme? {
        finiteCount == 0
            ? nil : integers.map { .integer($0.upperBound) } ?? .real(largestNumber)
    }

    /// Of all elements, not of a sample: divided by their count.
    var standardDeviation: Double? {
        finiteCount == 0 ? nil : (squares / Double(finiteCount)).squareRoot()
    }

    /// Joins two parts of a tensor: Chan, Golub and LeVeque, "Updating Formulae and a Pairwise
    /// Algorithm for Computing Sample Variances".
    mutating func merge(_ other: TensorStatistics) {
        elementCount += other.elementCount
        notANumberCount += other.notANumberCount
        infinityCount += other.infinityCount
        zeroCount += other.zeroCount
        if let found = other.integers {
            integers =
                integers.map {
                    min($0.lowerBound, found.lowerBound)...max($0.upperBound, found.upperBound)
                } ?? found
        }
        leastNumber = min(leastNumber, other.leastNumber)
        largestNumber = max(largestNumber, other.largestNumber)
        guard other.finiteCount > 0 else { return }
        let total = Double(finiteCount + other.finiteCount)
        let share = Double(other.finiteCount) / total
        let distance = other.mean - mean
        if finiteCount == 0 {
            (mean, squares) = (other.mean, other.squares)
        } else {
            mean += distance * share
            squares += other.squares + distance * distance * share * Double(finiteCount)
        }
        finiteCount += other.finiteCount
    }

    /// Adds whole units of elements.
    mutating func add(_ bytes: UnsafeRawBufferPointer, _ decoder: ElementDecoder) {
        guard let start = bytes.baseAddress else { return }
        let size = decoder.unitByteCount
        precondition(bytes.count % size == 0, "whole units")
        let room = ElementDecoder.blockUnitCount * decoder.unitNumberCount
        // Safe: the memory is used during the call only.
        unsafe withUnsafeTemporaryAllocation(of: Double.self, capacity: room) { numbers in
            guard let target = numbers.baseAddress else { return }
            var offset = 0
            while offset < bytes.count {
                let unitCount = min(ElementDecoder.blockUnitCount, (bytes.count - offset) / size)
                // Safe: the units are in `bytes`, and the memory has room for a block's numbers.
                unsafe decoder.decode(start + offset, unitCount: unitCount, into: target)
                if decoder.isComplex { unsafe Self.takeAbsolutes(target, unitCount) }
                var block = TensorStatistics()
                unsafe block.addBlock(target, unitCount * decoder.unitElementCount)
                // Safe: the units are in `bytes`.
                block.integers = unsafe decoder.integerRange(start + offset, unitCount: unitCount)
                merge(block)
                offset += unitCount * size
            }
        }
    }

    /// Replaces pairs of parts by absolute values; NaN where a part is NaN.
    private static func takeAbsolutes(_ numbers: UnsafeMutablePointer<Double>, _ count: Int) {
        for index in 0..<count {
            // Safe: there are `count` pairs.
            let (real, imaginary) = unsafe (numbers[2 * index], numbers[2 * index + 1])
            // Parts have single precision, so that their squares cannot overflow.
            unsafe numbers[index] = (real * real + imaginary * imaginary).squareRoot()
        }
    }

    private typealias Lanes = SIMD8<Double>

    /// One block of numbers, in two passes: the mean, then the distances from it.
    private mutating func addBlock(_ numbers: UnsafePointer<Double>, _ count: Int) {
        let wholeCount = count / Lanes.scalarCount * Lanes.scalarCount
        var sums = Lanes(repeating: 0)
        var least = Lanes(repeating: .infinity)
        var largest = Lanes(repeating: -.infinity)
        var (finites, zeros, nots) = (Lanes(), Lanes(), Lanes())
        let one = Lanes(repeating: 1)
        func lanes(_ index: Int) -> Lanes {
            // Safe: eight numbers lie there.
            unsafe UnsafeRawPointer(numbers + index).loadUnaligned(as: Lanes.self)
        }
        for index in stride(from: 0, to: wholeCount, by: Lanes.scalarCount) {
            let values = lanes(index)
            // What is not finite is NaN when subtracted from itself.
            let isFinite = values - values .== 0
            sums += Lanes().replacing(with: values, where: isFinite)
            least = least.replacing(with: values, where: isFinite .& (values .< least))
            largest = largest.replacing(with: values, where: isFinite .& (values .> largest))
            finites += Lanes().replacing(with: one, where: isFinite)
            zeros += Lanes().replacing(with: one, where: values .== 0)
            nots += Lanes().replacing(with: one, where: values .!= values)
        }
        elementCount = UInt64(count)
        finiteCount = UInt64(finites.sum())
        zeroCount = UInt64(zeros.sum())
        notANumberCount = UInt64(nots.sum())
        var sum = sums.sum()
        (leastNumber, largestNumber) = (least.min(), largest.max())
        for index in wholeCount..<count {
            // Safe: below `count`.
            let value = unsafe numbers[index]
            if value.isNaN { notANumberCount += 1 }
            guard value.isFinite else { continue }
            finiteCount += 1
            if value == 0 { zeroCount += 1 }
            sum += value
            leastNumber = min(leastNumber, value)
            largestNumber = max(largestNumber, value)
        }
        infinityCount = elementCount - finiteCount - notANumberCount
        guard finiteCount > 0 else { return }
        mean = sum / Double(finiteCount)
        var distances = Lanes(repeating: 0)
        for index in stride(from: 0, to: wholeCount, by: Lanes.scalarCount) {
            let values = lanes(index)
            let distance = values - mean
            distances += Lanes().replacing(
                with: distance * distance, where: values - values .== 0)
        }
        squares = distances.sum()
        for index in wholeCount..<count {
            // Safe: below `count`.
            let value = unsafe numbers[index]
            if value.isFinite { squares += (value - mean) * (value - mean) }
        }
    }
}
