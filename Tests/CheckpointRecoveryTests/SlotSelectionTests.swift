import CheckpointFormat
import CheckpointRecovery
import StorageFaults
import Testing

@Suite struct SlotSelectionTests {
    static let states: [CrashState] = [
        // Files that closed in peace.
        .init(
            "new file", "- - -", "g1=-", "empty empty empty", tries: "", highest: (0, 1)),
        .init(
            "first checkpoint", "1 - -", "g1=- g2=0:1", "anchored empty empty",
            tries: "1(anchored)", highest: (1, 2)),
        .init(
            "third checkpoint, nothing retained", "3 1 2", "g3=2:2 g4=0:3",
            "anchored older older", tries: "3(anchored) 2(older) 1(older)", highest: (3, 4)),
        .init(
            "one retained", "3 1 2", "g3=2:2+1:1 g4=0:3+2:2", "anchored older retained",
            tries: "3(anchored) 2(retained) 1(older)", highest: (3, 4)),
        // A crash somewhere in the commit of sequence 4.
        .init(
            "crash before the writing header", "3 1 2", "g3=2:2 g4=0:3", "anchored older older",
            tries: "3(anchored) 2(older) 1(older)", highest: (3, 4)),
        .init(
            "crash while chunks are written", "3 4w 2", "g3=2:2 g4=0:3",
            "anchored writing older", tries: "3(anchored) 2(older)", highest: (4, 4)),
        .init(
            "crash in the write of the header", "3 4h 2", "g3=2:2 g4=0:3",
            "anchored header-damaged older", tries: "3(anchored) 2(older)", highest: (4, 4)),
        .init(
            "crash with the header written before the table", "3 4t 2", "g3=2:2 g4=0:3",
            "anchored table-damaged older", tries: "3(anchored) 2(older)", highest: (4, 4)),
        .init(
            "crash between the barriers", "3 4 2", "g3=2:2 g4=0:3", "anchored unanchored older",
            tries: "4(unanchored) 3(anchored) 2(older)", highest: (4, 4)),
        .init(
            "crash with both copies of the new superblock torn", "3 4 2", "g4=0:3 g5=1:4B",
            "anchored unanchored older", tries: "4(unanchored) 3(anchored) 2(older)",
            highest: (4, 4)),
        .init(
            "crash with the head copy torn", "3 4 2", "g4=0:3 g5=1:4H",
            "older anchored older", tries: "4(anchored) 3(older) 2(older)", highest: (4, 5)),
        .init(
            "crash with the tail copy torn", "3 4 2", "g4=0:3 g5=1:4T",
            "older anchored older", tries: "4(anchored) 3(older) 2(older)", highest: (4, 5)),
        .init(
            "first commit, crash between the barriers", "1 - -", "g1=-",
            "unanchored empty empty", tries: "1(unanchored)", highest: (1, 1)),
        .init(
            "first commit, torn", "1w - -", "g1=-", "writing empty empty", tries: "",
            highest: (1, 1)),
        // Several in flight.
        .init(
            "two in flight, the newer one complete", "3 4w 5", "g3=2:2 g4=0:3",
            "anchored writing unanchored", tries: "5(unanchored) 3(anchored)", highest: (5, 4)),
        .init(
            "a late older one was superseded", "6 5 4", "g5=2:4 g6=0:6",
            "anchored older older", tries: "6(anchored) 5(older) 4(older)", highest: (6, 6)),
        .init(
            "both in flight torn", "3 4w 5w", "g3=2:2 g4=0:3", "anchored writing writing",
            tries: "3(anchored)", highest: (5, 4)),
        // Damage to what was durable.
        .init(
            "anchored header rotten", "3h 1 2", "g3=2:2 g4=0:3", "header-damaged older older",
            tries: "2(older) 1(older)", highest: (3, 4)),
        .init(
            "anchored header rotten, both superblocks point at it", "5h 4 3",
            "g3=0:5 g4=0:5", "header-damaged older older",
            tries: "4(older) 3(older)", highest: (5, 4)),
        .init(
            "anchored table rotten", "3t 1 2", "g3=2:2 g4=0:3", "table-damaged older older",
            tries: "2(older) 1(older)", highest: (3, 4)),
        .init(
            "anchored header blank", "0 1 2", "g3=2:2 g4=0:3", "blank older older",
            tries: "2(older) 1(older)", highest: (3, 4)),
        .init(
            "anchored header unreadable", "? 1 2", "g3=2:2 g4=0:3", "unreadable older older",
            tries: "2(older) 1(older)", highest: (3, 4)),
        .init(
            "retained header rotten", "3 1h 2", "g3=2:2+1:1 g4=0:3+1:1",
            "anchored header-damaged older", tries: "3(anchored) 2(older)", highest: (3, 4)),
        .init(
            "header of another file", "3 9f 2", "g3=2:2 g4=0:3", "anchored foreign older",
            tries: "3(anchored) 2(older)", highest: (3, 4)),
        .init(
            "header of another slot", "3 9m 2", "g3=2:2 g4=0:3", "anchored misdirected older",
            tries: "3(anchored) 2(older)", highest: (3, 4)),
        .init(
            "the anchored header's write was lost", "1 2 -", "g2=1:2 g3=0:3",
            "stale older empty", tries: "2(older) 1(older)", highest: (3, 3)),
        .init(
            "the anchored header has another digest", "3o 2 -", "g2=1:2 g3=0:3+1:2",
            "stale retained empty", tries: "3(older) 2(retained)", highest: (3, 3)),
        .init(
            "a retained slot holds another checkpoint", "3 1 -", "g4=0:3+1:2 g3=-",
            "anchored stale empty", tries: "3(anchored) 1(older)", highest: (3, 4)),
        .init(
            "newest generation lost, its slots reused", "7 6 5w", "g4=0:4 g5=1:5B",
            "unanchored unanchored writing", tries: "7(unanchored) 6(unanchored)",
            highest: (7, 4)),
        .init(
            "all superblocks lost", "3 1 2w", "g3=2:2B g4=0:3B",
            "unanchored unanchored writing", tries: "3(unanchored) 1(unanchored)",
            highest: (3, 0)),
        .init(
            "everything lost but one old slot", "0 1 3h", "g3=2:2B g4=0:3B",
            "blank unanchored header-damaged", tries: "1(unanchored)", highest: (3, 0)),
        .init(
            "two writers", "3 4 2", "g4=0:3 g5=1:4F", "older anchored older",
            tries: "4(anchored) 3(older) 2(older)", highest: (4, 5), isFork: true),
    ]

    @Test(arguments: states) func crashState(_ state: CrashState) throws {
        let decision = try SlotSelection.decide(try state.image())
        #expect(decision.slots.map(\.reason.rawValue).joined(separator: " ") == state.reasons)
        let candidates = decision.candidates.map { "\($0.sequence)(\($0.kind.rawValue))" }
        #expect(candidates.joined(separator: " ") == state.candidates)
        #expect(decision.highestSequence.rawValue == state.highest.0)
        #expect(decision.highestGeneration.rawValue == state.highest.1)
        #expect(decision.isFork == state.isFork)
    }

    /// Every reason but the one that only reading the payload can find.
    @Test func statesCoverEveryReason() throws {
        let seen = Set(Self.states.flatMap { $0.reasons.split(separator: " ").map(String.init) })
        let expected = Set(SlotReason.allCases.map(\.rawValue)).subtracting(["payload-damaged"])
        #expect(seen == expected)
    }

    @Test func superblockReportsSayWhatTheirSlotHolds() throws {
        let state = try #require(
            Self.states.first { $0.name == "the anchored header's write was lost" })
        let decision = try SlotSelection.decide(try state.image())
        #expect(decision.superblock?.generation.rawValue == 3)
        let newest = decision.superblockFindings.filter {
            $0.superblock?.generation.rawValue == 3
        }
        #expect(newest.count == 2)
        #expect(
            newest.allSatisfy {
                $0.target == .differs(found: SequenceNumber(rawValue: 1))
            })
        #expect(decision.superblockDigest == decision.superblock?.encoded().digest)
    }

    @Test func superblockInTheOtherParitysPlaceIsMisdirected() throws {
        var builder = try ImageBuilder()
        builder.commit(builder.superblock(generation: 2, anchor: nil))
        let odd = builder.superblock(generation: 3, anchor: nil).encoded().bytes
        builder.put(odd, at: builder.geometry.superblockOffsets(parity: 0)[1])
        let decision = try SlotSelection.decide(MetadataImage.read(from: builder.storage()))
        #expect(decision.superblock?.generation.rawValue == 2)
        let wrong = decision.superblockFindings.first { $0.position == .tail && $0.parity == 0 }
        guard case .failure(.misdirected(let found, let expected)) = wrong?.result else {
            Issue.record("expected a misdirected copy, found \(String(describing: wrong))")
            return
        }
        #expect(found == builder.geometry.superblockOffsets(parity: 1)[1])
        #expect(expected == builder.geometry.superblockOffsets(parity: 0)[1])
    }

    @Test func theHeadsCopyToo() throws {
        var builder = try ImageBuilder()
        let even = builder.superblock(generation: 2, anchor: nil).encoded().bytes
        builder.put(even, at: builder.geometry.superblockOffsets(parity: 1)[0])
        let decision = try SlotSelection.decide(MetadataImage.read(from: builder.storage()))
        #expect(decision.superblock == nil && decision.highestGeneration.rawValue == 0)
        let wrong = decision.superblockFindings.first { $0.position == .head && $0.parity == 1 }
        guard case .failure(.misdirected(4096, 8192)) = wrong?.result else {
            Issue.record("expected a misdirected copy, found \(String(describing: wrong))")
            return
        }
    }

    /// Of two copies of one generation the one whose anchor is there is followed, wherever it is.
    @Test(arguments: [0, 1]) func theCopyThatIsFollowedWins(side: Int) throws {
        var builder = try ImageBuilder()
        let anchor = builder.complete(slot: 0, sequence: 3)
        var lost = anchor
        lost.headerDigest = .zero
        let offsets = builder.geometry.superblockOffsets(parity: 0)
        for (index, named) in [anchor, lost].enumerated() {
            let superblock = builder.superblock(generation: 2, anchor: named)
            builder.put(superblock.encoded().bytes, at: offsets[index ^ side])
        }
        let decision = try SlotSelection.decide(MetadataImage.read(from: builder.storage()))
        #expect(decision.superblock?.anchor == anchor && decision.isFork)
        #expect(decision.candidates.map(\.kind) == [.anchored])
    }

    /// A copy that names nothing vouches for nothing: it never wins over one that names a
    /// checkpoint, whether that is there or not.
    @Test(arguments: [0, 1], [true, false])
    func theCopyThatNamesNothingLoses(side: Int, isThere: Bool) throws {
        var builder = try ImageBuilder()
        var anchor = builder.complete(slot: 0, sequence: 3)
        if !isThere { anchor.headerDigest = .zero }
        let offsets = builder.geometry.superblockOffsets(parity: 0)
        for (index, named) in [anchor, nil].enumerated() {
            let superblock = builder.superblock(generation: 2, anchor: named)
            builder.put(superblock.encoded().bytes, at: offsets[index ^ side])
        }
        let decision = try SlotSelection.decide(MetadataImage.read(from: builder.storage()))
        #expect(decision.superblock?.anchor == anchor && decision.isFork)
        #expect(decision.candidates.map(\.kind) == [isThere ? .anchored : .older])
        #expect(decision.mayHoldDurable)
    }

    /// Where nothing else tells two copies of one generation apart, the head's is followed.
    @Test(arguments: [true, false]) func theHeadsCopyWinsATie(namesOne: Bool) throws {
        var builder = try ImageBuilder()
        let anchor = builder.complete(slot: 0, sequence: 3)
        for (index, offset) in builder.geometry.superblockOffsets(parity: 0).enumerated() {
            var superblock = builder.superblock(generation: 2, anchor: namesOne ? anchor : nil)
            superblock.writerPID = UInt32(index + 1)
            builder.put(superblock.encoded().bytes, at: offset)
        }
        let decision = try SlotSelection.decide(MetadataImage.read(from: builder.storage()))
        #expect(decision.superblock?.writerPID == 1 && decision.isFork)
    }

    /// What this version does not know is kept: digests are those that lie in the blocks.
    @Test func theDigestOfASuperblockIsTheOneThatIsStored() throws {
        var builder = try ImageBuilder()
        let anchor = builder.complete(slot: 0, sequence: 3)
        var block = builder.superblock(generation: 2, anchor: anchor).encoded().bytes
        block[Superblock.Layout.storageKind.offset] = 9
        let stored = reseal(&block, Superblock.Layout.checksum)
        for offset in builder.geometry.superblockOffsets(parity: 0) {
            builder.put(block, at: offset)
        }
        builder.commit(builder.superblock(generation: 3, anchor: anchor, parent: stored))
        let decision = try SlotSelection.decide(MetadataImage.read(from: builder.storage()))
        let older = decision.superblockFindings.filter {
            $0.superblock?.generation.rawValue == 2
        }
        #expect(older.map(\.digest) == [stored, stored])
        #expect(decision.superblock?.parentDigest == stored)
    }

    /// Copies that differ only in a value that this version does not know are still a fork.
    @Test func copiesThatDifferInAnUnknownValueAreAFork() throws {
        var builder = try ImageBuilder()
        let anchor = builder.complete(slot: 0, sequence: 3)
        for (index, offset) in builder.geometry.superblockOffsets(parity: 0).enumerated() {
            var block = builder.superblock(generation: 2, anchor: anchor).encoded().bytes
            block[Superblock.Layout.storageKind.offset] = UInt8(9 + index)
            reseal(&block, Superblock.Layout.checksum)
            builder.put(block, at: offset)
        }
        let decision = try SlotSelection.decide(MetadataImage.read(from: builder.storage()))
        #expect(decision.isFork)
    }

    @Test func onlyWhatHoldsACheckpointIsUsable() {
        let usable = SlotReason.allCases.filter(\.isUsable)
        #expect(usable == [.anchored, .retained, .unanchored, .older, .stale])
    }

    /// What is found beside sequence 3, and the highest that counts.
    static let damagedSequences: [(found: UInt64, highest: UInt64)] = [
        (9, 9), (0x0102, 0x0102), (1_048_579, 1_048_579), (1_048_580, 3), (1 << 60, 3),
    ]

    /// Rot in a header must not burn the number space; a torn header's number counts.
    @Test(arguments: damagedSequences)
    func sequenceOfADamagedHeader(_ found: UInt64, _ highest: UInt64) throws {
        var builder = try ImageBuilder()
        let anchor = builder.complete(slot: 0, sequence: 3)
        builder.commit(builder.superblock(generation: 2, anchor: anchor))
        builder.writing(slot: 1, sequence: found)
        builder.flip(builder.geometry.headerOffset(SlotIndex(1)) + 1000)
        let decision = try SlotSelection.decide(MetadataImage.read(from: builder.storage()))
        #expect(decision.slots[1].reason == .headerDamaged)
        #expect(decision.highestSequence.rawValue == highest)
    }

    @Test func aSuperblockThatIsMissingSaysSo() throws {
        var image = try MetadataImage.read(from: ImageBuilder().storage())
        image.superblocks[0].bytes = nil
        let report = try #require(SlotSelection.decide(image).superblockFindings.first)
        #expect(report.result == .failure(.truncated(found: 0, expected: 512)))
        #expect(report.isUnreadable && report.target == nil)
    }

    @Test func aHeaderThatIsCutShortIsDamaged() throws {
        var image = try MetadataImage.read(from: ImageBuilder().storage())
        image.slots[1].header = SlotHeader.magic
        let decision = try SlotSelection.decide(image)
        #expect(decision.slots.map(\.reason) == [.empty, .headerDamaged, .empty])
        #expect(decision.highestSequence == .none)
    }

    @Test func candidatesSayWhereTheyLie() throws {
        var builder = try ImageBuilder()
        builder.complete(slot: 1, sequence: 3)
        let decision = try SlotSelection.decide(MetadataImage.read(from: builder.storage()))
        let candidate = try #require(decision.candidates.first)
        #expect(candidate.headerOffset == builder.geometry.headerOffset(SlotIndex(1)))
        #expect(candidate.dataOffset == builder.geometry.slotDataOffset(SlotIndex(1)))
        #expect(candidate.step == 30)
    }
}
