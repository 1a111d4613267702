#if canImport(Glibc)
    internal import Glibc
#endif

/// The interval between checkpoints that loses least, where failures are a Poisson process and
/// one blocking checkpoint is taken at a time.
///
/// Symbols: δ is the time that one checkpoint blocks training, M the mean time between failures
/// of the job, R the time of a restart, τ the training time between two checkpoints. All are in
/// seconds, and a result is nil when an input is not a positive number.
package enum YoungDaly {
    /// Young: τ = √(2·δ·M), for δ ≪ M.
    ///
    /// Source: J. W. Young, "A First Order Approximation to the Optimum Checkpoint Interval",
    /// Communications of the ACM 17 (9), 1974.
    package static func youngSeconds(
        blockedSeconds: Double, meanTimeBetweenFailuresSeconds: Double
    ) -> Double? {
        positive((2 * blockedSeconds * meanTimeBetweenFailuresSeconds).squareRoot())
    }

    /// Daly's first order: τ = √(2·δ·(M + R)), for τ + δ ≪ M.
    ///
    /// Source: J. T. Daly, "A Model for Predicting the Optimum Checkpoint Interval for Restart
    /// Dumps", ICCS 2003.
    package static func dalyFirstOrderSeconds(
        blockedSeconds: Double, meanTimeBetweenFailuresSeconds: Double, restartSeconds: Double
    ) -> Double? {
        guard restartSeconds >= 0 else { return nil }
        return positive(
            (2 * blockedSeconds * (meanTimeBetweenFailuresSeconds + restartSeconds)).squareRoot())
    }

    /// Daly's higher order: τ = √(2·δ·M)·(1 + ⅓·√(δ/2M) + ⅑·δ/2M) − δ for δ < 2·M, else τ = M.
    ///
    /// Source: J. T. Daly, "A Higher Order Estimate of the Optimum Checkpoint Interval for
    /// Restart Dumps", Future Generation Computer Systems 22 (3), 2006.
    package static func dalyHigherOrderSeconds(
        blockedSeconds: Double, meanTimeBetweenFailuresSeconds: Double
    ) -> Double? {
        let (delta, mean) = (blockedSeconds, meanTimeBetweenFailuresSeconds)
        guard delta > 0, positive(mean) != nil else { return nil }
        guard delta < 2 * mean else { return mean }
        let ratio = delta / (2 * mean)
        let series = 1 + ratio.squareRoot() / 3 + ratio / 9
        return positive((2 * delta * mean).squareRoot() * series - delta)
    }

    /// The share of the time that is useful: τ / (M·e^(R/M)·(e^((τ+δ)/M) − 1)).
    ///
    /// It is exact for exponential failures, which may also come during a checkpoint or a
    /// restart. Source: the same paper of Daly, which has the reciprocal as a time to solution.
    package static func goodput(
        intervalSeconds: Double, blockedSeconds: Double, restartSeconds: Double,
        meanTimeBetweenFailuresSeconds mean: Double
    ) -> Double? {
        guard intervalSeconds > 0, blockedSeconds >= 0, restartSeconds >= 0, mean > 0 else {
            return nil
        }
        let cycle = expm1((intervalSeconds + blockedSeconds) / mean)
        return positive(intervalSeconds / (mean * exp(restartSeconds / mean) * cycle))
    }

    private static func positive(_ value: Double) -> Double? {
        value > 0 && value.isFinite ? value : nil
    }
}
