#if canImport(Glibc)
    internal import Glibc
#endif

/// Random numbers that follow from a seed on every machine: Sebastiano Vigna's splitmix64.
package struct SeededRandom: RandomNumberGenerator, Sendable {
    private var state: UInt64
    private var spareNormal: Double?

    package init(seed: UInt64) { state = seed }

    /// The generator of one of many replications.
    package init(seed: UInt64, stream: Int) {
        var mixed = SeededRandom(seed: seed ^ UInt64(truncatingIfNeeded: stream) &* 0xD6E8_FEB8)
        self.init(seed: mixed.next())
    }

    package mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var word = state
        word = (word ^ (word >> 30)) &* 0xBF58_476D_1CE4_E5B9
        word = (word ^ (word >> 27)) &* 0x94D0_49BB_1331_11EB
        return word ^ (word >> 31)
    }

    /// Above 0 and below 1.
    package mutating func uniform() -> Double {
        (Double(next() >> 11) + 0.5) * 0x1p-53
    }

    /// 0 ..< `count`, by the high half of a product; the bias is below count/2⁶⁴.
    package mutating func index(below count: Int) -> Int {
        Int(next().multipliedFullWidth(by: UInt64(max(1, count))).high)
    }

    package mutating func exponential(mean: Double) -> Double { -mean * log(uniform()) }

    /// With this mean: scale·(−ln U)^(1/shape), scale = mean / Γ(1 + 1/shape).
    package mutating func weibull(shape: Double, mean: Double) -> Double {
        mean / tgamma(1 + 1 / shape) * pow(-log(uniform()), 1 / shape)
    }

    /// From any moment until the next of a long series of such gaps: a part of a gap that is the
    /// likelier to be met the longer it is. Its power `shape` has a gamma distribution.
    package mutating func weibullRest(shape: Double, mean: Double) -> Double {
        let scale = mean / tgamma(1 + 1 / shape)
        return uniform() * scale * pow(gamma(shape: 1 + 1 / shape), 1 / shape)
    }

    /// With the scale 1, for a shape of 1 and more: G. Marsaglia, W. W. Tsang, "A Simple Method
    /// for Generating Gamma Variables", 2000.
    private mutating func gamma(shape: Double) -> Double {
        let d = shape - 1.0 / 3
        let c = 1 / (9 * d).squareRoot()
        while true {
            let x = normal()
            let v = (1 + c * x) * (1 + c * x) * (1 + c * x)
            guard v > 0 else { continue }
            if log(uniform()) < 0.5 * x * x + d - d * v + d * log(v) { return d * v }
        }
    }

    /// Marsaglia's polar method.
    package mutating func normal() -> Double {
        if let spare = spareNormal {
            spareNormal = nil
            return spare
        }
        while true {
            let (x, y) = (2 * uniform() - 1, 2 * uniform() - 1)
            let square = x * x + y * y
            guard square < 1, square > 0 else { continue }
            let factor = (-2 * log(square) / square).squareRoot()
            spareNormal = y * factor
            return x * factor
        }
    }

    /// With this median and mean: σ² = 2·ln(mean/median); the median itself when that is larger.
    package mutating func logNormal(median: Double, mean: Double) -> Double {
        guard mean > median, median > 0 else { return median }
        return median * exp((2 * log(mean / median)).squareRoot() * normal())
    }
}
