import CheckpointFormat
import CheckpointGroup
import CheckpointRecovery
import Testing

/// The files of a folder, one text each, and what they are together.
struct GroupState: Sendable, CustomTestStringConvertible {
    let name: String
    let files: [String]
    /// `resume 1.20/2`, `begin`, or `refuse 1.20`: an attempt, a step, and a number of ranks.
    let outcome: String
    /// Newer than the choice, each with what is missing.
    let newer: [String]
    let next: UInt64?
    let watermark: String?
    /// Kinds and paths.
    let problems: [String]
    let rejected: [GroupDecision.Rejection]

    /// - Parameter rejected: `1.20`, or `1.20=void`.
    init(
        _ name: String, _ files: [String], _ outcome: String, newer: [String] = [],
        next: UInt64? = 2, watermark: String? = nil, problems: [String] = [],
        rejected: String...
    ) {
        self.name = name
        self.files = files
        self.outcome = outcome
        self.newer = newer
        self.next = next
        self.watermark = watermark
        self.problems = problems
        self.rejected = rejected.compactMap(Self.rejection)
    }

    var testDescription: String { name }

    var reports: [GroupReport] { get throws { try files.map(Self.report) } }

    /// `0/2 a1 w1.10 1.20u 1.10a h`: rank 0 of 2, attempt 1, watermark, and the slots, the newest
    /// first; `~h` is a slot that no superblock names. `run=B`, `file=7`, `gen=4`, `path=…`,
    /// `fresh` and `!message` change the rest.
    static func report(_ text: String) throws -> GroupReport {
        let words = text.split(separator: " ", omittingEmptySubsequences: true).map(String.init)
        let numbers = try #require(words.first).split(separator: "/").compactMap { UInt32($0) }
        let name = try #require(RankFileName(rank: numbers[0], worldSize: numbers[1]))
        var path = "run/\(name)"
        var (run, file) = (identifier(0xA), identifier(UInt8(numbers[0]), UInt8(numbers[1])))
        var (attempt, generation) = (UInt64(1), UInt64(2))
        var (watermark, isFresh) = (GroupCheckpointName?.none, false)
        var slots: [GroupFileReport.Slot] = []
        for word in words.dropFirst() {
            let value = word.split(separator: "=").last.map(String.init) ?? ""
            switch word.first {
            case "!": return .failure(path: path, message: String(word.dropFirst()))
            case "p": path = value
            case "r": run = identifier(value == "none" ? 0 : try #require(UInt8(value, radix: 16)))
            case "f" where word == "fresh": isFresh = true
            case "f": file = identifier(try #require(UInt8(value)))
            case "g": generation = try #require(UInt64(value))
            case "a": attempt = try #require(UInt64(word.dropFirst()))
            case "w": watermark = checkpointName(String(word.dropFirst()))
            default: slots.append(slot(word, index: slots.count))
            }
        }
        return .file(
            GroupFileReport(
                path: path, fileUUID: file, runUUID: run, rank: name.rank,
                worldSize: name.worldSize, generation: Generation(rawValue: generation),
                attempt: attempt, watermark: watermark, mayHoldDurable: !isFresh, slots: slots))
    }

    private static func identifier(_ first: UInt8, _ second: UInt8 = 0) -> Identifier128 {
        Identifier128(bytes: [first, second] + [UInt8](repeating: 0, count: 14))
    }

    private static func rejection(_ text: String) -> GroupDecision.Rejection? {
        let words = text.split(separator: "=").map(String.init)
        return checkpointName(words[0]).map { .init($0, words.count == 1 ? .damaged : .void) }
    }

    private static func checkpointName(_ text: String) -> GroupCheckpointName? {
        let numbers = text.split(separator: ".").compactMap { UInt64($0) }
        return numbers.count == 2
            ? GroupCheckpointName(attempt: numbers[0], step: numbers[1]) : nil
    }

    private static let reasons: [Character: SlotReason] = [
        "a": .anchored, "r": .retained, "u": .unanchored, "o": .older, "s": .stale, "w": .writing,
        "t": .tableDamaged, "x": .payloadDamaged, "h": .headerDamaged, "?": .unreadable,
        "-": .empty,
    ]

    private static func slot(_ text: String, index: Int) -> GroupFileReport.Slot {
        let isNamed = text.first != "~"
        let word = isNamed ? text[...] : text.dropFirst()
        let name = checkpointName(String(word.dropLast()))
        return GroupFileReport.Slot(
            slot: SlotIndex(index), reason: word.last.flatMap { reasons[$0] } ?? .empty,
            sequence: name.map { _ in SequenceNumber(rawValue: UInt64(100 - index)) }, name: name,
            isNamed: isNamed)
    }
}

extension GroupCheckpointName {
    var short: String { "\(attempt).\(step)" }
}

extension GroupDecision {
    var outcomeText: String {
        switch outcome {
        case .resume(let checkpoint): "resume \(checkpoint.short)"
        case .begin: "begin"
        case .refuse(let name): "refuse \(name?.short ?? "")"
        }
    }
}

extension GroupDecision.Checkpoint {
    var short: String { "\(name.short)/\(worldSize)" }
    /// `1.20/2 rank 1: no file`.
    var missingText: String {
        "\(short) " + missing.map(\.description).joined(separator: "; ")
    }
}
