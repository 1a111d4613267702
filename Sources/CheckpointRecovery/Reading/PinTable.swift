internal import CheckpointFormat
internal import CheckpointStorage

/// Counts the pins of each slot: locks belong to the opener, so the first pin locks and the last
/// one unlocks.
///
/// Where there are no locks a slot is used without one: FORMAT.md, section 12. `PayloadReader` then
/// finds out when a writer has taken it.
final class PinTable: Sendable {
    private struct Pin {
        var count: Int
        let isLocked: Bool
    }

    private let storage: any Storage
    private let pins = Monitor([SlotIndex: Pin]())

    init(storage: any Storage) { self.storage = storage }

    /// - Returns: false when a writer is overwriting the slot.
    func pin(_ slot: SlotIndex) throws(CheckpointError) -> Bool {
        try pins.withLock { pins throws(CheckpointError) in
            if let pin = pins[slot] {
                pins[slot]?.count = pin.count + 1
                return true
            }
            do throws(StorageError) {
                guard try storage.tryLock(.slot(slot), exclusive: false) else { return false }
                pins[slot] = Pin(count: 1, isLocked: true)
            } catch {
                guard error.saysNoLocks else { throw CheckpointError(error, slot: slot) }
                pins[slot] = Pin(count: 1, isLocked: false)
            }
            return true
        }
    }

    /// Whether a lock keeps writers from the slot.
    func isLocked(_ slot: SlotIndex) -> Bool { pins.withLock { $0[slot]?.isLocked ?? false } }

    func unpin(_ slot: SlotIndex) {
        pins.withLock { pins in
            guard let pin = pins[slot] else { return }
            if pin.count > 1 {
                pins[slot]?.count = pin.count - 1
                return
            }
            pins[slot] = nil
            // An unlock that fails leaves the slot pinned until the storage is closed, which
            // costs the writer a slot but never a checkpoint.
            if pin.isLocked { try? storage.unlock(.slot(slot)) }
        }
    }
}
