import CheckpointFormat
import CheckpointRecovery
import CheckpointSimulation
import CheckpointStorage
import StorageFaults

@testable import CheckpointCheck

/// Faults at random places of a whole file, metadata and payload, each pair in place and taken
/// back.
struct DoubleFaults {
    /// Bytes that come to lie where others were.
    struct Fault: CustomStringConvertible {
        let kind: String
        let offset: Int
        let bytes: [UInt8]
        var range: Range<Int> { offset..<offset + bytes.count }
        var description: String { "\(kind) at byte \(offset)" }
    }

    private static let sectorByteCount = 512

    let base: MutationBase
    private let storage: MemoryStorage
    private var random: SplitMix64
    private let metadataEnd: Int
    private(set) var count = 0
    private(set) var checkedCount = 0
    private(set) var fallbackCount = 0
    private(set) var lostCount = 0

    init(_ base: MutationBase, seed: UInt64) {
        self.base = base
        storage = MemoryStorage(contents: base.bytes)
        random = SplitMix64(seed: seed)
        metadataEnd = Int(base.geometry.dataOffset)
    }

    /// Draws the next pair.
    mutating func nextPair() -> [Fault] { [nextFault(), nextFault()] }

    /// Every second fault hits metadata, which is a small part of the file; and every second of
    /// those the start of a block, where the fields are.
    private mutating func nextFault() -> Fault {
        var place = Int.random(in: base.bytes.indices, using: &random)
        if Bool.random(using: &random), let block = base.blocks.randomElement(using: &random) {
            let isField = Bool.random(using: &random)
            let limit = isField ? Self.sectorByteCount : block.byteCount
            place = block.offset + Int.random(in: 0..<limit, using: &random)
        }
        let sector = place / Self.sectorByteCount * Self.sectorByteCount
        let block = place / Limits.blockByteCount * Limits.blockByteCount
        switch Int.random(in: 0..<8, using: &random) {
        case 0, 1, 2:
            let bit = UInt8(1) << UInt8.random(in: 0..<8, using: &random)
            return Fault(kind: "flipped bit", offset: place, bytes: [base.bytes[place] ^ bit])
        case 3, 4:
            let value = UInt8.random(in: 0...255, using: &random)
            return Fault(kind: "other byte", offset: place, bytes: [value])
        case 5:
            let zeros = [UInt8](repeating: 0, count: Self.sectorByteCount)
            return Fault(kind: "zeroed sector", offset: sector, bytes: zeros)
        case 6:
            let garbage = ImageBuilder.bytes(64, seed: random.next())
            return Fault(kind: "garbage", offset: sector, bytes: garbage)
        default:
            let other = base.blocks.randomElement(using: &random)?.offset ?? 0
            let copy = Array(base.bytes[other..<other + Limits.blockByteCount])
            return Fault(kind: "block of byte \(other)", offset: block, bytes: copy)
        }
    }

    /// Why the image with these faults breaks an invariant; nil when it keeps them all.
    mutating func problem(_ faults: [Fault], checks: Bool) -> String? {
        count += 1
        for fault in faults { storage.overwrite(fault.bytes, at: UInt64(fault.offset)) }
        defer {
            for fault in faults {
                storage.overwrite(Array(base.bytes[fault.range]), at: UInt64(fault.offset))
            }
        }
        let expected = expectedCandidate(faults)
        if expected == nil {
            lostCount += 1
        } else if expected?.sequence != base.candidates.first?.sequence {
            fallbackCount += 1
        }
        let found = resume(faults)
        if let found, found.digest != base.payloads[found.candidate.sequence.rawValue] {
            return "I2: the bytes of sequence \(found.candidate.sequence) are not what was saved"
        }
        if found?.candidate.sequence != expected?.sequence {
            return "I1: sequence \(found?.candidate.sequence ?? .none) loads, expected "
                + "\(expected?.sequence ?? .none), the newest that no fault touched"
        }
        return checks ? verdictProblem(found?.candidate) : nil
    }

    /// The newest checkpoint that no fault touched; nil when both identity blocks are hit, too.
    private func expectedCandidate(_ faults: [Fault]) -> Candidate? {
        let size = Limits.blockByteCount
        let isLost = base.geometry.identityOffsets.allSatisfy {
            isHit(Int($0)..<Int($0) + size, faults)
        }
        if isLost { return nil }
        return base.candidates.first { candidate in
            !base.ranges(candidate).contains { isHit($0, faults) }
        }
    }

    private func isHit(_ range: Range<Int>, _ faults: [Fault]) -> Bool {
        faults.contains { fault in
            let part = fault.range.clamped(to: range)
            return !part.isEmpty && storage.bytes(in: part) != Array(base.bytes[part])
        }
    }

    /// What loads. Metadata that no fault touched decides as in the whole file, and a slot that
    /// none touched holds what it held there; everything else is read.
    private func resume(_ faults: [Fault]) -> (candidate: Candidate, digest: Digest)? {
        let tail = Int(base.geometry.tailOffset)
        let isSame = !faults.contains {
            $0.range.lowerBound < metadataEnd || $0.range.upperBound > tail
        }
        let fresh = isSame ? nil : try? SlotSelection.decide(MetadataImage.read(from: storage))
        guard let decision = isSame ? base.decision : fresh else { return nil }
        let reader = CheckpointReader(storage: storage, decision: decision, workerCount: 1)
        for candidate in decision.candidates {
            let start = Int(candidate.dataOffset)
            let data = start..<start + Int(base.geometry.slotByteCount)
            let isWhole =
                !faults.contains { $0.range.overlaps(data) }
                && base.candidates.contains { $0.slot == candidate.slot && $0 == candidate }
            if isWhole, let digest = base.payloads[candidate.sequence.rawValue] {
                return (candidate, digest)
            }
            if let digest = try? Self.load(candidate, reader) { return (candidate, digest) }
        }
        return nil
    }

    private static func load(
        _ candidate: Candidate, _ reader: CheckpointReader
    ) throws(CheckpointError) -> Digest {
        let selected = try reader.select(candidate)
        defer { selected.close() }
        if candidate.kind == .unanchored { try selected.verify() }
        return try ResumeTrial.load(selected)
    }

    /// pcfsck says what a resume then does, is not silent about a loss, and its repair changes
    /// neither, nor has anything left to do.
    private mutating func verdictProblem(_ candidate: Candidate?) -> String? {
        checkedCount += 1
        let copy = MemoryStorage(contents: storage.contents)
        if let problem = Self.verdictProblem(copy, loads: candidate) { return problem }
        let options = CheckOptions(depth: .full, workerCount: 1)
        let before = FileChecker(storage: copy).run(options: options)
        let anchor = base.decision.superblock?.anchor?.sequence ?? .none
        if candidate?.sequence ?? .none < anchor, before.isClean {
            return "a durable checkpoint is lost, and pcfsck is silent"
        }
        if let problem = Self.fullRepairProblem(storage.contents) { return problem }
        if before.plan.isEmpty { return nil }
        do throws(CheckpointError) {
            try before.plan.apply(to: copy)
        } catch {
            return "I4: the repair failed: \(error)"
        }
        let after = FileChecker(storage: copy).run(options: options)
        if !after.plan.isEmpty { return "I4: after the repair, another one is planned" }
        return after.resume == before.resume
            ? nil : "I4: the repair changed the verdict: \(after.resume), was \(before.resume)"
    }

    /// `-y` loses nothing, leaves nothing that it could do, and its undo file takes it back.
    static func fullRepairProblem(_ image: [UInt8]) -> String? {
        let copy = MemoryStorage(contents: image)
        let plan = FullRepairTests.plan(copy)
        guard let undo = plan.undoFile(stamp: FullRepairTests.stamp) else { return nil }
        let before = FullRepairTests.Standing(copy)
        do throws(CheckpointError) {
            try plan.apply(to: copy)
            if let problem = FullRepairTests.Standing(copy).problem(since: before) {
                return "after a full repair, \(problem)"
            }
            let again = FullRepairTests.plan(copy)
            if !again.isEmpty { return "I4: another full repair is planned: \(again.repairs)" }
            _ = try Undoing(undo).apply(to: copy)
        } catch {
            return "I4: the full repair or its undo failed: \(error)"
        }
        return copy.contents == image ? nil : "the undo did not bring every byte back"
    }

    /// A resume loads `candidate`, in its own way and in pcfsck's verdict.
    static func verdictProblem(
        _ storage: MemoryStorage, loads candidate: Candidate?, depth: CheckOptions.Depth = .full
    ) -> String? {
        let trial = ResumeTrial(storage, workerCount: 1)
        if !trial.isClear { return "an error that says little: \(trial.error.debugDescription)" }
        let loaded = trial.loaded?.candidate
        if loaded != candidate {
            return "I1: a resume loads \(loaded?.sequence ?? .none), expected "
                + "\(candidate?.sequence ?? .none)"
        }
        let report = FileChecker(storage: storage).run(
            options: CheckOptions(depth: depth, workerCount: 1))
        let choice = report.resume.choice
        guard choice?.slot == loaded?.slot, choice?.sequence == loaded?.sequence,
            choice?.kind == loaded?.kind
        else {
            return "I4: pcfsck says \(choice?.sequence ?? .none) would load, and "
                + "\(loaded?.sequence ?? .none) does"
        }
        if loaded == nil, report.isClean { return "nothing loads, and pcfsck is silent" }
        return nil
    }
}
