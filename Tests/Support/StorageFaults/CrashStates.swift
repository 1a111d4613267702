/// What became of one write that no flush had covered when the power was cut.
public enum WriteFate: Hashable, Sendable {
    case absent
    case whole
    /// One letter per 512-byte sector.
    case torn([Sector])

    public enum Sector: Character, Hashable, Sendable, CaseIterable {
        case old = "o"
        case new = "n"
        case zero = "z"
        case garbage = "g"
    }
}

extension WriteFate: CustomStringConvertible {
    public var description: String {
        switch self {
        case .absent: "absent"
        case .whole: "whole"
        case .torn(let sectors): "torn " + String(sectors.prefix(16).map(\.rawValue))
        }
    }
}

/// The media that a power cut can leave at one point of a recording.
///
/// All subsets of the uncovered writes are tried when there are at most `exhaustiveCount` of them,
/// with each write torn in turn; beyond that, and for tears, choices are drawn from a seed.
public struct CrashStates: Sendable {
    public static let sectorByteCount = 512
    public static let exhaustiveCount = 4

    private let recording: Recording
    public let point: Recording.CrashPoint
    private let seed: UInt64

    public init(_ recording: Recording, at point: Recording.CrashPoint, seed: UInt64) {
        self.recording = recording
        self.point = point
        self.seed = seed &+ UInt64(point.eventCount) &* 0x9E37_79B9
    }

    /// The fates of `point.pending` in each state to try, at most `limit` of them.
    public func fates(limit: Int) -> [[WriteFate]] {
        let pending = point.pending
        guard !pending.isEmpty else { return [[]] }
        var random = SplitMix64(seed: seed)
        var states: [[WriteFate]] = []
        if pending.count <= Self.exhaustiveCount {
            for mask in 0..<(1 << pending.count) {
                states.append(pending.indices.map { mask >> $0 & 1 == 1 ? .whole : .absent })
            }
            for (position, write) in pending.enumerated() {
                for shape in TornShape.allCases {
                    var state = pending.map { _ in
                        Bool.random(using: &random) ? WriteFate.whole : .absent
                    }
                    state[position] = tear(write, shape, &random)
                    states.append(state)
                }
            }
        } else {
            states.append(pending.map { _ in .whole })
            states.append(pending.map { _ in .absent })
        }
        while states.count < limit, pending.count > 1 {
            states.append(
                pending.map { write in
                    switch UInt8.random(in: 0..<8, using: &random) {
                    case 0..<2: .absent
                    case 2..<6: .whole
                    default: tear(write, .allCases.randomElement(using: &random) ?? .head, &random)
                    }
                })
        }
        if states.count > limit {
            states.shuffle(using: &random)
            states.removeSubrange(limit...)
        }
        return states
    }

    private enum TornShape: CaseIterable {
        case head, tail, zeroTail, garbageTail, sectors
    }

    private func tear(
        _ write: Int, _ shape: TornShape, _ random: inout SplitMix64
    ) -> WriteFate {
        let count = recording.writes[write].bytes.count / Self.sectorByteCount
        guard count > 1 else { return .absent }
        let cut = Int.random(in: 1..<count, using: &random)
        return .torn(
            (0..<count).map { index in
                switch shape {
                case .head: index < cut ? .new : .old
                case .tail: index < cut ? .old : .new
                case .zeroTail: index < cut ? .new : .zero
                case .garbageTail: index < cut ? .new : .garbage
                case .sectors:
                    WriteFate.Sector.allCases.randomElement(using: &random) ?? .old
                }
            })
    }

    /// The medium with the durable writes only.
    public func durableImage() -> [UInt8] {
        var image = recording.initial
        for index in point.durable {
            let write = recording.writes[index]
            image.replaceSubrange(write.range, with: write.bytes)
        }
        return image
    }

    /// Applies `fates` to `image`, which holds the durable writes. Returns what was there before.
    public func apply(_ fates: [WriteFate], to image: MemoryStorage) -> [Undo] {
        var undo: [Undo] = []
        for (index, fate) in zip(point.pending, fates) where fate != .absent {
            let write = recording.writes[index]
            let old = image.bytes(in: write.range)
            undo.append(Undo(offset: write.offset, bytes: old))
            var bytes = write.bytes
            if case .torn(let sectors) = fate {
                for (number, sector) in sectors.enumerated() where sector != .new {
                    let range = number * Self.sectorByteCount..<(number + 1) * Self.sectorByteCount
                    bytes.replaceSubrange(range, with: content(sector, range, old))
                }
            }
            // A write that failed long ago may still be pending: what was written over it since,
            // and flushed, is newer.
            for newer in point.durable where newer > index {
                let other = recording.writes[newer]
                guard other.range.overlaps(write.range) else { continue }
                let common = other.range.clamped(to: write.range)
                bytes.replaceSubrange(
                    common.lowerBound - write.offset..<common.upperBound - write.offset,
                    with: other.bytes[
                        common.lowerBound - other.offset..<common.upperBound - other.offset])
            }
            image.overwrite(bytes, at: UInt64(write.offset))
        }
        return undo
    }

    private func content(
        _ sector: WriteFate.Sector, _ range: Range<Int>, _ old: [UInt8]
    ) -> [UInt8] {
        switch sector {
        case .garbage:
            [UInt8](
                repeating: UInt8(truncatingIfNeeded: seed &+ UInt64(range.lowerBound) / 512 | 1),
                count: range.count)
        case .old, .new: Array(old[range])
        case .zero: [UInt8](repeating: 0, count: range.count)
        }
    }

    /// Bytes that `apply` replaced.
    public struct Undo: Sendable {
        let offset: Int
        let bytes: [UInt8]
    }

    /// Takes back what `apply` did.
    public static func revert(_ undo: [Undo], in image: MemoryStorage) {
        for step in undo.reversed() { image.overwrite(step.bytes, at: UInt64(step.offset)) }
    }

    /// The fates in words, for a failure report.
    public func describe(_ fates: [WriteFate]) -> String {
        zip(point.pending, fates).map { index, fate in
            let write = recording.writes[index]
            return "\(write.bytes.count) bytes at \(write.offset) \(fate)"
        }.joined(separator: "; ")
    }
}
