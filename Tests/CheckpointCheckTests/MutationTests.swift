import CheckpointCheck
import CheckpointFormat
import CheckpointRecovery
import StorageFaults
import Testing

/// Valid files with one or two faults, or cut short: recovery never gives back what was not saved,
/// loads the newest checkpoint that is whole, and pcfsck says so.
@Suite struct MutationTests {
    enum Base: String, CaseIterable, Sendable {
        case oneKept, twoKept, crashed

        func make() throws -> MutationBase {
            switch self {
            case .oneKept: try .oneKept()
            case .twoKept: try .twoKept()
            case .crashed: try .crashed()
            }
        }

        var seed: UInt64 {
            MutationRun.seed &+ UInt64(Self.allCases.firstIndex(of: self) ?? 0)
        }
    }

    /// So far a sealed block's fields reach; all their bits are flipped.
    private static let fieldByteCount = 512

    /// The bits of fields, and a sample of values of every byte, which is all in a long run.
    private static func masks(
        _ block: MetadataBlock, _ offset: Int, _ random: inout SplitMix64
    ) -> [UInt8] {
        if MutationRun.isExhaustive { return Array(1...255) }
        var masks = (0..<MutationRun.scale).map { _ in UInt8.random(in: 1...255, using: &random) }
        if offset < min(block.sealedByteCount, fieldByteCount) {
            masks += (0..<8).map { UInt8(1) << $0 }
        }
        return masks
    }

    @Test(arguments: Base.allCases) func oneByteOfMetadata(_ which: Base) throws {
        let base = try which.make()
        #expect(base.candidates.count >= 2, "there is something to fall back to")
        var random = SplitMix64(seed: which.seed)
        var faults = SingleFaults(base)
        let clock = ContinuousClock()
        let began = clock.now
        for block in base.blocks where block.kind != .reserved {
            for offset in 0..<block.byteCount {
                for mask in Self.masks(block, offset, &random) {
                    guard let problem = faults.problem(block, at: offset, mask: mask) else {
                        continue
                    }
                    Issue.record(
                        """
                        \(problem)
                          file: \(base.name); \(block.kind), byte \(block.offset + offset) of the \
                        file, bits \(mask) flipped
                          replay: \(MutationRun.replay)
                        """)
                    return
                }
            }
        }
        print(
            "\(base.name): \(faults.count) files with one byte of metadata changed,",
            "\(faults.detectedCount) detected; \(faults.decisionCount) recovered whole,",
            "\(faults.fallbackCount) of them from an older checkpoint;",
            "seed \(MutationRun.seed), \(clock.now - began)")
        #expect(faults.count > 60_000, "so few prove little")
        // Bytes behind a block's fields may have any value, and most values are tried there in a
        // long run.
        #expect(faults.detectedCount > faults.count / 3 && faults.fallbackCount > 0)
    }

    /// One byte of the newest payload costs that checkpoint and no other; padding costs nothing.
    @Test(arguments: Base.allCases) func oneByteOfPayload(_ which: Base) throws {
        let base = try which.make()
        var faults = DoubleFaults(base, seed: which.seed)
        let start = Int(base.candidates[0].dataOffset)
        var random = SplitMix64(seed: which.seed)
        for _ in 0..<(110_000 * MutationRun.scale) {
            let offset =
                start + Int.random(in: 0..<Int(base.geometry.slotByteCount), using: &random)
            let byte = base.bytes[offset] ^ UInt8.random(in: 1...255, using: &random)
            let fault = DoubleFaults.Fault(kind: "other byte", offset: offset, bytes: [byte])
            if let problem = faults.problem([fault], checks: faults.count % 16 == 0) {
                Issue.record(
                    "\(problem)\n  file: \(base.name); \(fault)\n  replay: \(MutationRun.replay)")
                return
            }
        }
        #expect(faults.fallbackCount > 20 && faults.lostCount == 0)
    }

    @Test(arguments: Base.allCases) func twoFaultsAnywhere(_ which: Base) throws {
        let base = try which.make()
        var faults = DoubleFaults(base, seed: which.seed)
        let clock = ContinuousClock()
        let began = clock.now
        for number in 0..<(34_000 * MutationRun.scale) {
            let pair = faults.nextPair()
            guard let problem = faults.problem(pair, checks: number % 64 == 0) else { continue }
            Issue.record(
                """
                \(problem)
                  file: \(base.name), pair \(number): \(pair)
                  replay: \(MutationRun.replay)
                """)
            return
        }
        print(
            "\(base.name): \(faults.count) files with two faults, \(faults.fallbackCount) fell",
            "back, \(faults.lostCount) held nothing, \(faults.checkedCount) also checked by",
            "pcfsck; seed \(MutationRun.seed), \(clock.now - began)")
        #expect(faults.fallbackCount > 200 && faults.lostCount > 0 && faults.checkedCount > 50)
    }

    /// A file that is cut short before its slots end is refused, by a resume and by pcfsck alike.
    /// Behind that, everything loads, and a full repair restores what is missing.
    @Test(arguments: Base.allCases) func cutAtEverySector(_ which: Base) throws {
        let base = try which.make()
        var count = 0
        let clock = ContinuousClock()
        let began = clock.now
        let slotsEnd = Int(base.decision.identity.geometry.slotsEndOffset)
        for size in stride(from: 0, to: base.bytes.count, by: 512) {
            let isComplete = size >= slotsEnd
            let storage = MemoryStorage(contents: Array(base.bytes[..<size]))
            count += 1
            // What is left of the payloads matters to no verdict; it is read now and then.
            let depth: CheckOptions.Depth = count % 16 == 0 ? .full : .metadata
            let newest = isComplete ? base.candidates.first : nil
            let problem =
                DoubleFaults.verdictProblem(storage, loads: newest, depth: depth)
                ?? (isComplete ? DoubleFaults.fullRepairProblem(storage.contents) : nil)
            if let problem {
                Issue.record("\(problem)\n  file: \(base.name), cut at byte \(size)")
                return
            }
        }
        print("\(base.name): cut at \(count) places, \(clock.now - began)")
    }
}
