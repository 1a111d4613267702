/// How fast chunks are copied, and what the writes beside them cost.
///
/// Copying and writing share the memory's bandwidth, and where processors are few those too. While
/// somebody waits for *staged*, writes may slow the copies by so much and no more: they pause when
/// the copies of this wait are behind what the same copies take alone. Where memory is fast nothing
/// ever pauses; where it is slow, the medium gets its share all the same.
struct CopyPace {
    /// The part of its time that a copy may lose to writes.
    static let allowance = 0.08
    /// The weight of the newest chunk.
    private static let weight = 0.125

    /// Nanoseconds for a byte, without a write beside it; nil before the first.
    private var alone: Double?
    /// How far the copies of this wait are behind, in nanoseconds.
    private var behind: Double = 0

    /// - Parameters:
    ///   - isAlone: nothing was written meanwhile.
    ///   - isUrgent: somebody waits for *staged*.
    mutating func note(byteCount: Int, nanoseconds: UInt64, isAlone: Bool, isUrgent: Bool) {
        guard byteCount > 0 else { return }
        let taken = Double(nanoseconds)
        if isAlone {
            let pace = taken / Double(byteCount)
            alone = alone.map { $0 + (pace - $0) * Self.weight } ?? pace
        }
        guard isUrgent, let alone else {
            behind = 0
            return
        }
        behind += taken - alone * Double(byteCount) * (1 + Self.allowance)
    }

    /// Whether writes may begin although somebody waits.
    var allowsWrites: Bool { alone != nil && behind <= 0 }
}
