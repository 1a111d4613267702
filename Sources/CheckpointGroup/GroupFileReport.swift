public import CheckpointFormat
public import CheckpointRecovery

/// What one file of a group reports: recovery's view of its metadata, as far as the other ranks
/// need it.
public struct GroupFileReport: Hashable, Sendable {
    /// One slot of the file.
    public struct Slot: Hashable, Sendable {
        public let slot: SlotIndex
        public let reason: SlotReason
        /// nil where the header does not record them.
        public let sequence: SequenceNumber?
        public let name: GroupCheckpointName?
        /// The newest superblock names the slot, or there is none. What was durable and is not yet
        /// decided on, or is complete, is in a named slot.
        public let isNamed: Bool

        public init(
            slot: SlotIndex, reason: SlotReason, sequence: SequenceNumber?,
            name: GroupCheckpointName?, isNamed: Bool = true
        ) {
            self.slot = slot
            self.reason = reason
            self.sequence = sequence
            self.name = name
            self.isNamed = isNamed
        }

        /// A durable part may have been here. A torn write damages only slots that nothing names.
        var isDamaged: Bool {
            guard isNamed else { return false }
            switch reason {
            case .anchored, .retained, .unanchored, .older, .stale, .empty, .writing: return false
            default: return true
            }
        }
    }

    public let path: String
    public let fileUUID: Identifier128
    /// Zero: the file belongs to no group.
    public let runUUID: Identifier128
    public let rank: UInt32
    public let worldSize: UInt32
    /// Of the newest superblock: of two reports on one file, the higher one is the later one.
    public let generation: Generation
    public let attempt: UInt64
    public let watermark: GroupCheckpointName?
    /// A checkpoint of it may have been acknowledged: `RecoveryDecision.mayHoldDurable`.
    public let mayHoldDurable: Bool
    public let slots: [Slot]

    public init(
        path: String, fileUUID: Identifier128, runUUID: Identifier128, rank: UInt32,
        worldSize: UInt32, generation: Generation, attempt: UInt64,
        watermark: GroupCheckpointName?, mayHoldDurable: Bool, slots: [Slot]
    ) {
        precondition(rank < worldSize, "a rank is below the number of ranks")
        self.path = path
        self.fileUUID = fileUUID
        self.runUUID = runUUID
        self.rank = rank
        self.worldSize = worldSize
        self.generation = generation
        self.attempt = attempt
        self.watermark = watermark
        self.mayHoldDurable = mayHoldDurable
        self.slots = slots
    }

    /// - Parameters:
    ///   - decision: of the file at `path`.
    ///   - damaged: slots of which reading the payload found damage.
    public init(path: String, _ decision: RecoveryDecision, damaged: Set<SlotIndex> = []) {
        self.init(
            path: path, fileUUID: decision.identity.fileUUID, runUUID: decision.identity.runUUID,
            rank: decision.identity.rank, worldSize: decision.identity.worldSize,
            generation: decision.highestGeneration, attempt: decision.superblock?.attempt ?? 0,
            watermark: decision.superblock?.watermark, mayHoldDurable: decision.mayHoldDurable,
            slots: decision.slots.map { report in
                let isNamed = decision.superblock.map { $0.names(report.slot) } ?? true
                let header = report.header.flatMap { $0.state == .empty ? nil : $0 }
                return Slot(
                    slot: report.slot,
                    reason: damaged.contains(report.slot) ? .payloadDamaged : report.reason,
                    sequence: header?.sequence, name: header?.groupName, isNamed: isNamed)
            })
    }

    /// The same file under another name.
    func isCopy(of other: GroupFileReport) -> Bool {
        fileUUID == other.fileUUID && generation == other.generation && slots == other.slots
    }

    /// The slot from which each name is loaded: of several, the one that recovery tries first.
    var candidates: [GroupCheckpointName: Slot] {
        var found: [GroupCheckpointName: Slot] = [:]
        for slot in slots where slot.reason.isUsable {
            guard let name = slot.name else { continue }
            if let other = found[name], !slot.precedes(other) { continue }
            found[name] = slot
        }
        return found
    }
}

extension GroupFileReport.Slot {
    /// RECOVERY.md, step 5.
    fileprivate func precedes(_ other: Self) -> Bool {
        (other.sequence ?? .none, order, slot) < (sequence ?? .none, other.order, other.slot)
    }

    private var order: Int {
        switch reason {
        case .anchored: 0
        case .retained: 1
        case .unanchored: 2
        default: 3
        }
    }
}

/// What is known of one file of the folder.
public enum GroupReport: Hashable, Sendable {
    case file(GroupFileReport)
    /// The file cannot be used; the message reports why.
    case failure(path: String, message: String)

    public var path: String {
        switch self {
        case .file(let file): file.path
        case .failure(let path, _): path
        }
    }
}

/// The name of a rank's file: `rank-00003-of-00008.pcc`.
public struct RankFileName: Hashable, Sendable, CustomStringConvertible {
    public let rank: UInt32
    public let worldSize: UInt32

    /// - Returns: nil unless `rank` is below `worldSize`.
    public init?(rank: UInt32, worldSize: UInt32) {
        guard rank < worldSize else { return nil }
        self.rank = rank
        self.worldSize = worldSize
    }

    /// - Parameter path: a name, with or without folders before it.
    /// - Returns: nil for a file of another name.
    public init?(path: String) {
        let name = path.utf8.split(separator: UInt8(ascii: "/")).last.map(Array.init) ?? []
        let words = name.split(separator: UInt8(ascii: "-"), omittingEmptySubsequences: false)
        guard words.count == 4, words[0].elementsEqual("rank".utf8),
            words[2].elementsEqual("of".utf8), words[3].suffix(4).elementsEqual(".pcc".utf8),
            let rank = Self.number(words[1]), let worldSize = Self.number(words[3].dropLast(4))
        else { return nil }
        self.init(rank: rank, worldSize: worldSize)
    }

    /// Five digits, or more where the number has more.
    private static func number(_ digits: ArraySlice<UInt8>) -> UInt32? {
        guard digits.count >= digitCount, digits.count == digitCount || digits.first != 0x30,
            digits.allSatisfy({ (0x30...0x39).contains($0) })
        else { return nil }
        return UInt32(String(decoding: digits, as: UTF8.self))
    }

    private static let digitCount = 5

    public var description: String {
        "rank-\(Self.text(rank))-of-\(Self.text(worldSize)).pcc"
    }

    private static func text(_ number: UInt32) -> String {
        let digits = "\(number)"
        return String(repeating: "0", count: max(0, digitCount - digits.utf8.count)) + digits
    }
}
