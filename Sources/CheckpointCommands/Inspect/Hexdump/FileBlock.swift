internal import CheckpointFormat
internal import CheckpointRecovery

/// A block of a checkpoint file, by the name that `pcinspect hexdump` knows it by.
enum FileBlock: Equatable {
    case identity(Position)
    case superblock(Position, parity: Int)
    case reserved
    case header(SlotIndex)
    case table(SlotIndex)
    case chunk(SlotIndex, Int)

    static let help = """
        identity, identity-tail, head-even, head-odd, tail-even, tail-odd (or super 0 to super 3, \
        in this order), reserved, slot I, table I, chunk I J
        """

    /// The superblock copies in the order of their places.
    static let superblocks: [FileBlock] = Position.allCases.flatMap { position in
        [0, 1].map { .superblock(position, parity: $0) }
    }

    /// nil when the words name no block.
    init?(words: [String]) {
        let numbers = words.dropFirst().map { UInt32($0) }
        switch (words.first, numbers.count) {
        case ("identity", 0): self = .identity(.head)
        case ("identity-tail", 0): self = .identity(.tail)
        case ("reserved", 0): self = .reserved
        case ("super", 1):
            guard let number = numbers[0], Int(number) < Self.superblocks.count else { return nil }
            self = Self.superblocks[Int(number)]
        case ("slot", 1):
            guard let slot = numbers[0] else { return nil }
            self = .header(SlotIndex(rawValue: slot))
        case ("table", 1):
            guard let slot = numbers[0] else { return nil }
            self = .table(SlotIndex(rawValue: slot))
        case ("chunk", 2):
            guard let slot = numbers[0], let chunk = numbers[1] else { return nil }
            self = .chunk(SlotIndex(rawValue: slot), Int(chunk))
        case (let name?, 0):
            guard let found = Self.superblocks.first(where: { $0.name == name }) else {
                return nil
            }
            self = found
        default: return nil
        }
    }

    var name: String {
        switch self {
        case .identity(.head): "identity"
        case .identity(.tail): "identity-tail"
        case .superblock(let position, let parity):
            "\(position.rawValue)-\(parity == 0 ? "even" : "odd")"
        case .reserved: "reserved"
        case .header(let slot): "slot \(slot)"
        case .table(let slot): "table \(slot)"
        case .chunk(let slot, let chunk): "chunk \(slot) \(chunk)"
        }
    }
}
