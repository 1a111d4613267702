internal import CheckpointStorage

/// Readers' pins that keep a save from every slot that it could have.
///
/// It reads the clock itself, under the lock of the engine's state: a time that was read before
/// the lock was taken may be from before the beginning.
struct PinStall {
    /// On the clock of `SystemClock.monotonicTime`.
    let beganTime = SystemClock.monotonicTime
    private var lookedTime: UInt64?
    /// What the last look showed.
    private(set) var pins: [SlotPin] = []
    /// It was logged.
    private var isReported = false

    /// Pins that pass in no time are nobody's business, and looking takes milliseconds.
    private static let firstLookNanoseconds: UInt64 = 200_000_000
    private static let lookIntervalNanoseconds: UInt64 = 1_000_000_000

    /// Whether it is time to look who they are; at once when there is an error to write.
    mutating func beginLook(isFailing: Bool) -> Bool {
        let now = SystemClock.monotonicTime
        let isDue =
            lookedTime.map { now - $0 >= Self.lookIntervalNanoseconds }
            ?? (isFailing || now - beganTime >= Self.firstLookNanoseconds)
        if isDue { lookedTime = now }
        return isDue
    }

    /// - Returns: how long saves have waited for these readers, when that is to be reported.
    mutating func endLook(_ found: [SlotPin], limit: UInt64) -> UInt64? {
        pins = found
        let waited = SystemClock.monotonicTime - beganTime
        guard !isReported, waited >= limit, !pins.isEmpty else { return nil }
        isReported = true
        return waited
    }
}
