/// How CheckFreq chooses the number of steps between two checkpoints.
///
/// Source: J. Mohan, A. Phanishayee, V. Chidambaram, "CheckFreq: Frequent, Fine-Grained DNN
/// Checkpointing", FAST '21.
package enum CheckFreq {
    /// The smallest k for which the blocked time is at most the share `budget` of the training
    /// time, and the checkpoint before is durable when the next one begins:
    /// k = max(⌈δ / (p·t)⌉, ⌈Tw / t⌉), at least 1.
    ///
    /// - Parameters:
    ///   - blockedSeconds: δ, what one checkpoint blocks training.
    ///   - commitSeconds: Tw, from the start of a checkpoint until it is durable.
    ///   - stepSeconds: t.
    ///   - budget: p, such as 0.035 for the 3.5 % of the paper.
    /// - Returns: nil when an input is no positive number, or the result is above 10^15 steps.
    package static func intervalSteps(
        blockedSeconds: Double, commitSeconds: Double, stepSeconds: Double, budget: Double
    ) -> Int? {
        guard blockedSeconds >= 0, commitSeconds >= 0, stepSeconds > 0, budget > 0 else {
            return nil
        }
        let steps = max(
            1, (blockedSeconds / (budget * stepSeconds)).rounded(.up),
            (commitSeconds / stepSeconds).rounded(.up))
        return steps <= 1e15 ? Int(steps) : nil
    }
}
