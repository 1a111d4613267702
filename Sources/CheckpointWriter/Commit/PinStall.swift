internal import CheckpointStorage

/// Readers' pins that keep a save from every slot that it could have.
struct PinStall {
    /// Times on the clock of `SystemClock.monotonicTime`.
    let beganTime: UInt64
    var lookedTime: UInt64?
    /// What the last look showed.
    var pins: [SlotPin] = []
    /// It was logged.
    var isReported = false

    init(beganTime: UInt64) { self.beganTime = beganTime }

    /// Pins that pass in no time are nobody's business, and looking takes milliseconds.
    private static let firstLookNanoseconds: UInt64 = 200_000_000
    private static let lookIntervalNanoseconds: UInt64 = 1_000_000_000

    /// Whether it is time to look who they are; at once when there is an error to write.
    func isLookDue(now: UInt64, isFailing: Bool) -> Bool {
        guard let lookedTime else {
            return isFailing || now - beganTime >= Self.firstLookNanoseconds
        }
        return now - lookedTime >= Self.lookIntervalNanoseconds
    }
}
