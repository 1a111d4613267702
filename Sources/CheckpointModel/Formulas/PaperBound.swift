/// The bound of the PCcheck paper on the number of steps between two checkpoints.
///
/// Source: F. Strati, M. Friedman, A. Klimovic, "PCcheck: Persistent Concurrent Checkpointing for
/// ML", ASPLOS '25.
package enum PaperBound {
    /// f ≥ Tw / (N·q·t): with N checkpoints in flight, of which each takes Tw, a checkpoint
    /// begins every Tw/N at most, and f steps may take q·f·t.
    ///
    /// - Parameters:
    ///   - writeSeconds: Tw, for one of N checkpoints that are written at once.
    ///   - inFlightCount: N.
    ///   - slowdown: q, the slowdown that is allowed, such as 1.05.
    ///   - stepSeconds: t.
    /// - Returns: the smallest such f, at least 1; nil when an input is no positive number, or
    ///   the result is above 10^15.
    package static func intervalSteps(
        writeSeconds: Double, inFlightCount: Int, slowdown: Double, stepSeconds: Double
    ) -> Int? {
        guard writeSeconds >= 0, inFlightCount > 0, slowdown > 0, stepSeconds > 0 else {
            return nil
        }
        let bound = writeSeconds / (Double(inFlightCount) * slowdown * stepSeconds)
        return bound <= 1e15 ? Int(max(1, bound.rounded(.up))) : nil
    }
}
