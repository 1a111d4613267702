/// How often traces hit a running job, and how sure that is.
package struct HitRate: Equatable, Sendable {
    /// Of one placement of the job on the nodes of the trace, in the mean.
    package let hitCount: Double
    package let meanSeconds: Double
    /// The mean again, of resampled traces.
    package let replicates: [Double]

    /// Fewer hits show too little of how much the times between them vary.
    package static let fewCount = 10.0

    /// - Parameters:
    ///   - results: of the same job on each trace, and in each placement.
    ///   - placementCount: how many of them are one trace.
    /// - Returns: nil when nothing ever hits the job.
    package init?(
        _ results: [ReplayResult], placementCount: Int = 1, replicateCount: Int, seed: UInt64
    ) {
        let times = results.flatMap { result in
            zip(result.hitSeconds, [0] + result.hitSeconds).map { $0 - $1 }
        }
        guard let bootstrap = BlockBootstrap(parts: [[times]], seed: seed) else { return nil }
        let running = results.reduce(0) { $0 + $1.runningSeconds }
        // After the last hit the job runs on to the end of the trace.
        let rest = (running - times.reduce(0, +)) / Double(times.count)
        hitCount = Double(times.count) / Double(placementCount)
        meanSeconds = running / Double(times.count)
        // Consecutive times are drawn together, so that a burst stays one; and no more of them than
        // one placement has, as the others show the same failures.
        let drawnCount = max(1, Int(hitCount.rounded()))
        replicates = (0..<replicateCount).map {
            bootstrap.replicate($0, partCount: drawnCount)[0] + rest
        }
    }
}
