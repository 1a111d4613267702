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
        /// Not named, but what a load falls back to when the anchored checkpoint, which opening did
        /// not read, is rotten. Free once something newer is durable.
        case held(SequenceNumber)
        /// Unused until the file is opened again: a flush failed while it was being written, so
        /// nothing is known of what reached the medium; or it holds a newer checkpoint than the one
        /// that the writer continued from, and could not be read.
        case quarantined
    }

    private var uses: [SlotIndex: Use] = [:]
    /// Free slots, the longest free first: a slot that just failed is tried last.
    private(set) var free: [SlotIndex] = []

    init(
        slots: [SlotIndex], kept: [SlotIndex: SequenceNumber],
        held: [SlotIndex: SequenceNumber] = [:], unreadable: [SlotIndex]
    ) {
        for slot in slots {
            if unreadable.contains(slot) {
                uses[slot] = .quarantined
            } else if let sequence = kept[slot] {
                uses[slot] = .kept(sequence)
            } else if let sequence = held[slot] {
                uses[slot] = .held(sequence)
            } else {
                uses[slot] = .free
                free.append(slot)
            }
        }
    }

    func use(_ slot: SlotIndex) -> Use { uses[slot] ?? .free }

    /// Neither in flight nor doubtful, and not named.
    func isUnused(_ slot: SlotIndex) -> Bool {
        switch use(slot) {
        case .free, .held: true
        case .inFlight, .kept, .quarantined: false
        }
    }

    var quarantinedCount: Int { uses.values.count { $0 == .quarantined } }
    var holdsSlot: Bool { uses.values.contains { if case .held = $0 { true } else { false } } }
    /// In order, so that a run can be repeated.
    var keptSlots: [SlotIndex] {
        uses.keys.filter { if case .kept = use($0) { true } else { false } }
            .sorted { $0.rawValue < $1.rawValue }
    }

    mutating func take(_ slot: SlotIndex, for sequence: SequenceNumber) {
        precondition(use(slot) == .free, "slot \(slot) is not free")
        uses[slot] = .inFlight(sequence)
        free.removeAll { $0 == slot }
    }

    /// Something newer than what opening continued from is durable.
    mutating func releaseHeld() {
        let held = uses.keys.filter { if case .held = use($0) { true } else { false } }
        for slot in held.sorted(by: { $0.rawValue < $1.rawValue }) { release(slot) }
    }

    /// The superblock that names `slot` is durable.
    mutating func keep(_ slot: SlotIndex, sequence: SequenceNumber) {
        uses[slot] = .kept(sequence)
        free.removeAll { $0 == slot }
    }

    mutating func release(_ slot: SlotIndex) {
        precondition(use(slot) != .free, "slot \(slot) is free already")
        uses[slot] = .free
        free.append(slot)
    }

    mutating func quarantine(_ slot: SlotIndex) { uses[slot] = .quarantined }
}
