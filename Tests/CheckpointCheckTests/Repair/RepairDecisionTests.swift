import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import StorageFaults
import Testing

@testable import CheckpointCheck

/// What `-y` decides, fixture by fixture, and what it leaves to a person.
@Suite struct RepairDecisionTests {
    private func storage(_ name: String) throws -> MemoryStorage {
        MemoryStorage(contents: try Fixture.image("corrupt/\(name)"))
    }

    private func repaired(
        _ name: String, consents: Set<String> = []
    ) throws -> (report: CheckReport, plan: RepairPlan, decision: RecoveryDecision) {
        let storage = try storage(name)
        let plan = FullRepairTests.plan(storage, consents: consents)
        try plan.apply(to: storage)
        let report = FullRepairTests.check(storage)
        return (report, plan, try #require(report.decision))
    }

    @Test(arguments: [
        "superblocks-lost", "superblock-newest-pair-damaged", "superblock-previous-pair-damaged",
        "anchor-stale", "header-damaged-anchored", "header-blank-anchored",
        "table-damaged-anchored", "chunk-damaged-anchored", "manifest-damaged",
        "slot-unanchored", "anchored-and-unanchored", "retained-header-damaged",
        "retained-chunk-damaged", "retained-stale", "step-differs", "header-damaged-older",
        "header-foreign", "header-misdirected", "reserved-block-used", "superblock-not-updated",
    ])
    func ofOneRightAnswerNothingIsLeft(_ name: String) throws {
        let (report, plan, decision) = try repaired(name)
        #expect(!plan.isEmpty)
        #expect(report.isClean, "\(report.findings)")
        let anchor = try #require(decision.superblock?.anchor)
        #expect(report.resume.choice?.slot == anchor.slot, "what is anchored is what loads")
        #expect(report.resume.isProven)
        for entry in decision.superblock?.retained ?? [] {
            #expect(report.slots[Int(entry.slot.rawValue)].isVerified)
        }
    }

    @Test(arguments: [
        ("fork", "PCK-B005"), ("history-broken", "PCK-B009"),
        ("writers-fork-nothing-head", "PCK-B005"), ("writers-fork-unknown-kind", "PCK-B005"),
        ("identity-copies-differ", "PCK-I002"), ("sequence-repeated", "PCK-X003"),
    ])
    func aChoiceBetweenDataIsAskedAbout(name: String, id: String) throws {
        let storage = try storage(name)
        let image = storage.contents
        let left = FullRepairTests.plan(storage)
        #expect(left.isEmpty && left.questions.map(\.problem.id) == [id])
        #expect(storage.contents == image)
        let (report, plan, decision) = try repaired(name, consents: [id])
        #expect(plan.questions.isEmpty && plan.repairs.contains { $0.fixClass == .asked })
        #expect(report.isClean, "\(report.findings)")
        #expect(report.resume.choice == FullRepairTests.check(storage).resume.choice)
        #expect(!decision.isFork)
    }

    /// The successor of a superblock keeps a number that this version does not know.
    @Test func anUnknownStorageKindIsKept() throws {
        let (_, _, decision) = try repaired("writers-fork-unknown-kind", consents: ["PCK-B005"])
        #expect(decision.superblock?.storageKind == StorageKind(rawValue: 9))
    }

    /// What a device held beyond the slots is not made of zeros: its size is a person's to give.
    @Test(arguments: ["end-lost-device-gap", "end-lost-device-exact"])
    func aDevicesEndIsNotRestored(_ name: String) throws {
        let storage = try storage(name)
        let plan = FullRepairTests.plan(storage)
        #expect(plan.isEmpty && plan.refusal?.contains("truncate -s 1048576") == true)
        try storage.resize(to: 1_048_576)
        try FullRepairTests.plan(storage).apply(to: storage)
        #expect(FullRepairTests.check(storage).isClean)
    }

    /// A wreck is left as it is: what is in it is for pcextract.
    @Test(arguments: ["nothing-left", "chunks-damaged-all"])
    func aWreckIsLeft(_ name: String) throws {
        let plan = FullRepairTests.plan(try storage(name))
        #expect(plan.isEmpty && plan.notes.contains { $0.contains("no checkpoint is intact") })
    }

    @Test(arguments: ["appended", "manifest-invalid", "payload-digest-wrong", "table-overlap"])
    func whatNoWriteWouldHelpIsLeft(_ name: String) throws {
        #expect(FullRepairTests.plan(try storage(name)).isEmpty)
    }

    @Test(arguments: ["unknown-compat-damaged", "truncated-data"])
    func whatMustNotBeWrittenIsRefused(_ name: String) throws {
        let plan = FullRepairTests.plan(try storage(name))
        #expect(plan.isEmpty)
    }

    /// What cannot be read now may be read tomorrow: nothing is given up for it.
    @Test func aFailingMediumIsLeftAlone() throws {
        let storage = try storage("superblocks-lost")
        let image = try MetadataImage.read(from: storage)
        let decision = try SlotSelection.decide(image)
        let bad = decision.candidates[0].dataOffset
        storage.setFaultHook { call in
            if case .read(let offset, let count) = call, offset <= bad, bad < offset + UInt64(count)
            {
                return 5
            }
            return nil
        }
        let plan = FullRepairTests.plan(storage)
        #expect(plan.isEmpty && plan.notes.contains { $0.contains("medium") }, "\(plan.notes)")
    }

    /// Without a full check before it, a repair still names nothing that it has not read.
    @Test(arguments: ["slot-unanchored-damaged", "superblocks-lost"])
    func whatDoesNotVerifyIsNotAnchored(_ name: String) throws {
        let storage = try storage(name)
        let metadata = FileChecker(storage: storage).run(options: CheckOptions())
        let newest = try #require(metadata.decision?.candidates.first)
        storage.flip(1, at: newest.dataOffset + 70_000)
        #expect(
            metadata.fullPlan(stamp: FullRepairTests.stamp).repairs.contains {
                $0.action.contains("in slot \(newest.slot)")
            }, "before anything is read, hope is allowed")
        let plan = metadata.fullPlan(stamp: FullRepairTests.stamp) {
            candidate throws(CheckpointError) in
            try SlotVerifier.verify(candidate, in: storage, workerCount: 1)
        }
        try plan.apply(to: storage)
        let report = FullRepairTests.check(storage)
        #expect(report.decision?.superblock?.anchor?.slot != newest.slot)
        #expect(report.decision?.superblock?.anchor?.slot == report.resume.choice?.slot)
    }

    /// The limit covers the sequence that an emptied header may have told.
    @Test func anEmptiedHeaderTakesNoSequenceAway() throws {
        let storage = try storage("header-torn")
        let report = FullRepairTests.check(storage)
        let slot = try #require(report.decision?.slots.first { $0.reason == .headerDamaged })
        // The torn header tells a sequence that no superblock knows of.
        typealias Layout = SlotHeader.Layout
        var bytes = try storage.readBlocks(at: slot.headerOffset, count: 4096)
        for (index, byte) in [0x39, 0x05, 0, 0, 0, 0, 0, 0].enumerated() {
            bytes[Layout.sequence.offset + index] = UInt8(byte)
        }
        storage.overwrite(bytes, at: slot.headerOffset)
        let before = FullRepairTests.Standing(storage)
        #expect(before.nextSequence == 0x53A)
        let plan = FullRepairTests.plan(storage)
        try plan.apply(to: storage)
        #expect(FullRepairTests.Standing(storage).problem(since: before) == nil)
        #expect(plan.repairs.last?.problem.id == "PCK-S003")
        #expect(plan.repairs.count == 3, "a superblock with a higher limit comes first")
    }

    @Test func aWriterThatCameInBetweenIsNoticed() throws {
        let storage = try storage("slot-unanchored")
        let plan = FullRepairTests.plan(storage)
        // Another block than those that are written.
        let header = try #require(FullRepairTests.check(storage).decision?.slots[0].headerOffset)
        storage.flip(1, at: header + 50)
        let image = storage.contents
        let error = #expect(throws: CheckpointError.self) { try plan.apply(to: storage) }
        #expect(error?.code == .busy)
        #expect(storage.contents == image)
    }
}
