#if canImport(Glibc)
    internal import Glibc
#endif

/// One quantity, measured several times.
package struct MeasuredValues: Equatable, Sendable {
    /// In rising order.
    package private(set) var samples: [Double]

    package init(_ samples: [Double]) { self.samples = samples.sorted() }

    /// The mean of the largest of `count` values with the distribution of the samples.
    ///
    /// The largest is at most x with the probability F(x)^count, so that the mean is
    /// Σ x₍ᵢ₎·((i/s)^count − ((i−1)/s)^count) over the s samples. It is the mean for 1, and comes
    /// near the largest sample, which it never exceeds. Source: H. A. David, H. N. Nagaraja,
    /// "Order Statistics", 3rd edition, 2003, section 2.1.
    package func meanLargest(of count: Int) -> Double { meanLargest(of: count) { $0 } }

    /// The same for what takes `1 / rate` seconds: the slowest of `count`, as a rate.
    package func slowestRate(of count: Int) -> Double { 1 / meanLargest(of: count) { 1 / $0 } }

    private func meanLargest(of count: Int, _ value: (Double) -> Double) -> Double {
        let values = samples.map(value).sorted()
        let total = Double(values.count)
        var sum = 0.0
        var before = 0.0
        for (index, value) in values.enumerated() {
            let below = pow(Double(index + 1) / total, Double(max(1, count)))
            sum += value * (below - before)
            before = below
        }
        return sum
    }

    /// As many samples, drawn from these with replacement.
    package func resampled(_ random: inout SeededRandom) -> MeasuredValues {
        guard !samples.isEmpty else { return self }
        return MeasuredValues(samples.map { _ in samples[random.index(below: samples.count)] })
    }

    package func scaled(by factor: Double) -> MeasuredValues {
        MeasuredValues(samples.map { $0 * factor })
    }

    func check(_ what: String, in range: ClosedRange<Double>) throws(TuningError) {
        guard samples.count >= TuningLimits.sampleCount.lowerBound else {
            throw TuningError(
                .tooFewSamples,
                "\(what) has \(samples.count) samples, expected at least "
                    + "\(TuningLimits.sampleCount.lowerBound)")
        }
        try TuningError.check(
            samples.count, "the number of samples of \(what)", in: TuningLimits.sampleCount)
        for sample in samples { try TuningError.check(sample, what, in: range) }
    }
}
