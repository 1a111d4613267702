internal import CheckpointFormat

/// Which slot is used for what. This is where the reuse rule lives: a slot is handed out only
/// when the newest durable superblock names it neither as its anchor nor as retained.
struct SlotTable {
    enum Use: Hashable {
        /// May be overwritten.
        case free
        /// Belongs to a checkpoint that has not ended.
        case inFlight(SequenceNumber)
        /// Named by the newest durable superblock.
        case kept(SequenceNumber)
        /// A flush failed while it was being written. Nothing is known of what reached the
        /// medium, so it stays unused until the file is opened again.
        case quarantined
    }

    private var uses: [SlotIndex: Use] = [:]
    /// Free slots, the longest free first: a slot that just failed is tried last.
    private(set) var free: [SlotIndex] = []

    init(slots: [SlotIndex], kept: [SlotIndex: SequenceNumber]) {
        for slot in slots {
            if let sequence = kept[slot] {
                uses[slot] = .kept(sequence)
            } else {
                uses[slot] = .free
                free.append(slot)
            }
        }
    }

    func use(_ slot: SlotIndex) -> Use { uses[slot] ?? .free }

    var quarantinedCount: Int { uses.values.count { $0 == .quarantined } }
    var keptSlots: [SlotIndex] {
        uses.keys.filter { if case .kept = use($0) { true } else { false } }
    }

    mutating func take(_ slot: SlotIndex, for sequence: SequenceNumber) {
        precondition(use(slot) == .free, "slot \(slot) is not free")
        uses[slot] = .inFlight(sequence)
        free.removeAll { $0 == slot }
    }

    /// The superblock that names `slot` is durable.
    mutating func keep(_ slot: SlotIndex, sequence: SequenceNumber) {
        uses[slot] = .kept(sequence)
    }

    mutating func release(_ slot: SlotIndex) {
        precondition(use(slot) != .free, "slot \(slot) is free already")
        uses[slot] = .free
        free.append(slot)
    }

    mutating func quarantine(_ slot: SlotIndex) { uses[slot] = .quarantined }
}
