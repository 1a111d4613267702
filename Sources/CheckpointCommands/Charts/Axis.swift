#if canImport(Glibc)
    internal import Glibc
#endif

/// Where values lie along one side of a chart.
struct Axis {
    enum Scale { case linear, logarithmic }

    struct Tick: Equatable {
        let value: Double
        let label: String
    }

    /// With the unit.
    let label: String
    let scale: Scale
    let range: ClosedRange<Double>
    /// Of the range's ends, in this order: the second is the smaller one of an upright axis.
    let pixels: (start: Double, end: Double)
    let ticks: [Tick]

    /// - Parameter range: of a logarithmic axis, above 0.
    init(
        _ label: String, _ scale: Scale, _ range: ClosedRange<Double>,
        pixels: (start: Double, end: Double), isWhole: Bool = false
    ) {
        self.label = label
        self.scale = scale
        self.range = range
        self.pixels = pixels
        switch scale {
        case .linear: ticks = Self.linearTicks(range, isWhole: isWhole)
        case .logarithmic: ticks = Self.logarithmicTicks(range)
        }
    }

    /// Outside of the pixels for a value outside of the range.
    func position(_ value: Double) -> Double {
        let share: Double
        switch scale {
        case .linear:
            share = (value - range.lowerBound) / (range.upperBound - range.lowerBound)
        case .logarithmic:
            share = log(value / range.lowerBound) / log(range.upperBound / range.lowerBound)
        }
        return pixels.start + share * (pixels.end - pixels.start)
    }

    /// The same, at most a little outside: a far value must not make a long path.
    func clippedPosition(_ value: Double) -> Double {
        let margin = 10.0
        let least = min(pixels.start, pixels.end) - margin
        let most = max(pixels.start, pixels.end) + margin
        return min(max(position(value), least), most)
    }

    // MARK: Ticks

    private static let tickCount = 6.0

    /// At 1, 2 or 5 times a power of ten.
    private static func linearTicks(_ range: ClosedRange<Double>, isWhole: Bool) -> [Tick] {
        let length = range.upperBound - range.lowerBound
        let power = pow(10, log10(length / tickCount).rounded(.down))
        let steps = [1, 2, 5, 10].map { $0 * power }
        var step = steps.first { length / $0 <= tickCount } ?? length
        if isWhole { step = max(1, step) }
        let digits = max(0, Int(-log10(step * 1.0001).rounded(.down)))
        let first = (range.lowerBound / step - 1e-9).rounded(.up)
        let last = (range.upperBound / step + 1e-9).rounded(.down)
        guard first <= last else { return [] }
        return stride(from: first, through: last, by: 1).map {
            Tick(value: $0 * step, label: Figure.decimal($0 * step, digits))
        }
    }

    /// At powers of ten; at 2 and 5 times them too where they are few.
    private static func logarithmicTicks(_ range: ClosedRange<Double>) -> [Tick] {
        let first = Int(log10(range.lowerBound).rounded(.down))
        let last = Int(log10(range.upperBound).rounded(.up))
        let factors: [Double] = last - first <= 3 ? [1, 2, 5] : [1]
        let values = (first...max(first, last)).flatMap { exponent in
            factors.map { $0 * pow(10, Double(exponent)) }
        }
        return values.filter { range.contains($0) }.map {
            Tick(value: $0, label: Quantity.count(UInt64(saturating: $0.rounded())))
        }
    }
}
