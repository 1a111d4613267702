internal import CheckpointFormat
internal import CheckpointRecovery

/// How fast checkpoints were written, as the headers of the slots show.
struct SlotRates {
    /// Of the newest complete slot: stored bytes over the time from its begin to its last chunk.
    let storedBytesPerSecond: Double?
    /// From the oldest complete slot to the newest, with those between whose slots were reused.
    let checkpointsPerHour: Double?
    /// Payload bytes over stored bytes, of all complete slots.
    let compressionRatio: Double?

    private static let nanosecondsPerHour = 3600e9

    init(_ slots: [SlotReport]) {
        let complete = slots.filter { $0.reason.isUsable }.compactMap(\.header)
            .sorted { $0.sequence < $1.sequence }
        storedBytesPerSecond = complete.last?.storedBytesPerSecond
        let payload = complete.reduce(0.0) { $0 + Double($1.payloadByteCount) }
        let stored = complete.reduce(0.0) { $0 + Double($1.storedByteCount) }
        compressionRatio = stored > 0 ? payload / stored : nil
        guard let first = complete.first, let last = complete.last,
            last.sequence > first.sequence, last.completedTime > first.completedTime
        else {
            checkpointsPerHour = nil
            return
        }
        let count = Double(last.sequence.rawValue - first.sequence.rawValue)
        checkpointsPerHour =
            count / Double(last.completedTime - first.completedTime) * Self.nanosecondsPerHour
    }

    var json: JSONValue {
        .dictionary([
            "stored_bytes_per_second": .figure(storedBytesPerSecond),
            "checkpoints_per_hour": .figure(checkpointsPerHour),
            "compression_ratio": .figure(compressionRatio),
        ])
    }
}

extension SlotHeader {
    /// nil while writing, and when the times make no sense.
    var storedBytesPerSecond: Double? {
        guard state == .complete, completedTime > beganTime else { return nil }
        return Double(storedByteCount) / Double(completedTime - beganTime) * 1e9
    }
}
