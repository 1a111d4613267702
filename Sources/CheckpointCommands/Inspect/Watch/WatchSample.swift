internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

/// What one look at the file's metadata showed.
struct WatchSample {
    enum Writer: String {
        /// It holds the file's lock.
        case atWork = "at_work"
        /// The lock is free, and the last writer closed the file with nothing in flight.
        case closed
        /// The lock is free, and the last writer did not close the file: killed, or crashed.
        case gone
        /// There are no locks that show it, and the last writer has not closed the file.
        case unknown
    }

    /// Nanoseconds since 1970.
    let time: UInt64
    let writer: Writer
    let decision: RecoveryDecision
    /// Slots that readers keep from a writer.
    let pins: [SlotPin]

    /// Reads the metadata of `path`, which is opened again each time, so that a file that was
    /// renamed over the path is seen. Takes no lock.
    init(path: String) throws(CheckpointError) {
        let inspection = try Inspection(path: path)
        (decision, pins, time) = (inspection.decision, inspection.pins, inspection.now)
        let isLocked = inspection.isWriterAtWork
        if decision.isTruncated {
            throw CheckpointError(
                .corrupt,
                "\(path) is truncated: it has \(inspection.storage.byteCount) bytes, expected "
                    + "\(decision.identity.geometry.fileByteCount); run pcfsck \(path)")
        }
        let isClosed = decision.superblock?.isCleanClose ?? false
        // A writer takes the mark of a clean close away before it writes anything else, so that
        // mark is believed without a lock.
        writer =
            isLocked == true ? .atWork : isClosed ? .closed : isLocked == nil ? .unknown : .gone
    }

    /// nil when nothing shows it.
    var isWriterAtWork: Bool? { writer == .unknown ? nil : writer == .atWork }

    var fileUUID: Identifier128 { decision.identity.fileUUID }
    var generation: UInt64 { decision.highestGeneration.rawValue }
    var anchor: Anchor? { decision.superblock?.anchor }

    /// The newest durable checkpoint's header.
    var newest: SlotHeader? { decision.slots.first { $0.reason == .anchored }?.header }

    /// Checkpoints that have begun and are not durable yet, oldest first. Empty when nobody is at
    /// work: then they are torn.
    var inFlight: [SlotHeader] {
        guard writer == .atWork || writer == .unknown else { return [] }
        let durable = anchor?.sequence ?? .none
        return decision.slots.filter { $0.reason == .writing || $0.reason == .unanchored }
            .compactMap(\.header).filter { $0.sequence > durable }
            .sorted { $0.sequence < $1.sequence }
    }

    /// The superblock names this checkpoint, as the newest or as one that it keeps.
    func names(_ header: SlotHeader) -> Bool {
        let reason = decision.slots.first { $0.slot == header.slot }?.reason
        return reason == .anchored || reason == .retained
    }

    /// Complete checkpoints up to the newest durable one, oldest first.
    var finished: [SlotHeader] {
        let durable = anchor?.sequence ?? .none
        return decision.slots.compactMap(\.header)
            .filter { $0.state == .complete && $0.sequence <= durable }
            .sorted { $0.sequence < $1.sequence }
    }
}
