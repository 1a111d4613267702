/// Checkpoints in the memory of other machines.
///
/// Source: Z. Wang et al., "GEMINI: Fast Failure Recovery in Distributed Training with In-Memory
/// Checkpoints", SOSP '23.
package enum Gemini {
    /// The mean time that one failure wastes, in seconds: T = t_ckpt + 1/(2·f) + t_rtvl
    ///, where 1/f is `intervalSeconds`.
    ///
    /// The interval is at least t_ckpt, because checkpoints do not overlap.
    /// - Returns: nil when an input is negative or not finite.
    package static func meanWastedSeconds(
        checkpointSeconds: Double, intervalSeconds: Double, retrievalSeconds: Double
    ) -> Double? {
        guard checkpointSeconds >= 0, intervalSeconds >= 0, retrievalSeconds >= 0 else {
            return nil
        }
        let waste =
            checkpointSeconds + max(intervalSeconds, checkpointSeconds) / 2 + retrievalSeconds
        return waste.isFinite ? waste : nil
    }

    /// The probability that memory still holds the state of every machine after `lostCount` of
    /// `machineCount` were lost, with `replicaCount` copies in groups of as many machines.
    ///
    /// It is 1 for k < m, and else at least 1 − (N/m)·C(N−m, k−m)/C(N, k), their lower
    /// bound: the union over the groups of the probability that all of a group are lost.
    package static func survivalProbability(
        machineCount: Int, lostCount: Int, replicaCount: Int
    ) -> Double {
        guard lostCount > 0 else { return 1 }
        guard replicaCount > 0, machineCount > lostCount else { return 0 }
        guard lostCount >= replicaCount else { return 1 }
        // C(N−m, k−m)/C(N, k) = k·(k−1)…(k−m+1) / (N·(N−1)…(N−m+1)), without large factors.
        var share = 1.0
        for index in 0..<replicaCount {
            share *= Double(lostCount - index) / Double(machineCount - index)
            if share == 0 { break }
        }
        return max(0, 1 - share * Double(machineCount) / Double(replicaCount))
    }
}
