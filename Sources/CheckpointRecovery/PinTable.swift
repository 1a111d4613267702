internal import CheckpointFormat
internal import CheckpointStorage

/// Counts the pins of each slot: locks belong to the opener, so the first pin locks and the last
/// one unlocks.
final class PinTable: Sendable {
    private let storage: any Storage
    private let counts = Monitor([SlotIndex: Int]())

    init(storage: any Storage) { self.storage = storage }

    /// - Returns: false when a writer is overwriting the slot.
    func pin(_ slot: SlotIndex) throws(CheckpointError) -> Bool {
        try counts.withLock { counts throws(CheckpointError) in
            if let count = counts[slot] {
                counts[slot] = count + 1
                return true
            }
            do throws(StorageError) {
                guard try storage.tryLock(.slot(slot), exclusive: false) else { return false }
            } catch {
                throw CheckpointError(error, slot: slot)
            }
            counts[slot] = 1
            return true
        }
    }

    func unpin(_ slot: SlotIndex) {
        counts.withLock { counts in
            guard let count = counts[slot] else { return }
            counts[slot] = count > 1 ? count - 1 : nil
            // An unlock that fails leaves the slot pinned until the storage is closed, which
            // costs the writer a slot but never a checkpoint.
            if count == 1 { try? storage.unlock(.slot(slot)) }
        }
    }
}
