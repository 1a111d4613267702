internal import CheckpointFormat
internal import Metrics

/// Feeds swift-metrics: what an operator plots.
struct CommitObserver: Sendable {
    private let durable = Counter(label: "pccheck_checkpoints_durable_total")
    private let payloadBytes = Counter(label: "pccheck_payload_bytes_total")
    private let storedBytes = Counter(label: "pccheck_stored_bytes_total")
    private let stagedTime = Metrics.Timer(label: "pccheck_staged_nanoseconds")
    private let durableTime = Metrics.Timer(label: "pccheck_durable_nanoseconds")

    func observe(_ line: WriterStatistics.TimeLine) {
        durable.increment()
        payloadBytes.increment(by: Int64(clamping: line.payloadByteCount))
        storedBytes.increment(by: Int64(clamping: line.storedByteCount))
        stagedTime.recordNanoseconds(Int64(clamping: line.stagedNanoseconds))
        durableTime.recordNanoseconds(Int64(clamping: line.durableNanoseconds))
    }
}
