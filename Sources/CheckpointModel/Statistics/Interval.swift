/// A figure and how sure it is.
package struct Estimate: Equatable, Sendable {
    package var value: Double
    package var low: Double
    package var high: Double

    /// The percentile interval of replicates: the middle `confidence` of them.
    ///
    /// Source: B. Efron, R. J. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    package init(value: Double, replicates: [Double], confidence: Double = 0.95) {
        self.value = value
        let sorted = replicates.sorted()
        let tail = (1 - min(max(confidence, 0), 1)) / 2
        low = Self.quantile(tail, ofSorted: sorted)
        high = Self.quantile(1 - tail, ofSorted: sorted)
    }

    /// Linear between the two nearest values; NaN of none.
    package static func quantile(_ share: Double, ofSorted values: [Double]) -> Double {
        guard let last = values.last else { return .nan }
        let place = min(max(share, 0), 1) * Double(values.count - 1)
        let index = Int(place)
        guard index + 1 < values.count else { return last }
        return values[index] + (place - Double(index)) * (values[index + 1] - values[index])
    }
}
