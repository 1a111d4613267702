import CheckpointFormat
import CheckpointRecovery
import CheckpointSimulation
import CheckpointStorage
import StorageFaults
import Testing

@testable import CheckpointCheck

/// `pccheck rescue` on images: what was asked for is what loads, numbers never go back, and nothing
/// that was set aside is lost.
@Suite struct RescueTests {
    private func storage(_ name: String) throws -> MemoryStorage {
        MemoryStorage(contents: try Fixture.image(name))
    }

    private func rescue(
        _ goal: RescueGoal, _ storage: any Storage
    ) throws(CheckpointError) -> Rescue {
        try Rescue(
            goal, image: MetadataImage.read(from: storage), stamp: FullRepairTests.stamp
        ) { candidate throws(CheckpointError) in
            try SlotVerifier.verify(candidate, in: storage, workerCount: 1)
            try SlotVerifier.verifyManifest(candidate, in: storage)
        }
    }

    private func slot(_ step: UInt64, _ storage: MemoryStorage) throws -> SlotIndex {
        let decision = try #require(FullRepairTests.check(storage).decision)
        return try #require(decision.candidates.first { $0.step == step }).slot
    }

    private func expectLoads(
        _ target: Candidate, _ storage: MemoryStorage, since before: FullRepairTests.Standing
    ) {
        let after = FullRepairTests.Standing(storage)
        #expect(after.slot == target.slot && after.sequence == target.sequence)
        #expect(after.nextSequence >= before.nextSequence)
        #expect(after.generation > before.generation)
        let report = FullRepairTests.check(storage)
        #expect(report.isClean, "\(report.findings)")
        #expect(report.resume.choice?.kind == .anchored && report.resume.isProven)
    }

    @Test(arguments: Fixture.names(in: "valid/v1"))
    func goesBackToEachAndForwardAgain(_ name: String) throws {
        let candidates = try CheckpointReader(storage: storage(name)).decision.candidates
        for candidate in candidates {
            let storage = try storage(name)
            let image = storage.contents
            let before = FullRepairTests.Standing(storage)
            let back = try rescue(.backTo(candidate.slot), storage)
            #expect(back.target.step == candidate.step)
            let newer = candidates.filter { $0.sequence > candidate.sequence }
            #expect(back.setAside == newer.reversed().map(\.slot))
            try back.plan.apply(to: storage)
            expectLoads(back.target, storage, since: before)
            if let newest = newer.first {
                // What was set aside is complete again, with the bytes that it had.
                let forward = try rescue(.promote(newest.slot), storage)
                let middle = FullRepairTests.Standing(storage)
                try forward.plan.apply(to: storage)
                expectLoads(forward.target, storage, since: middle)
                #expect(FullRepairTests.Standing(storage).digest == before.digest)
                let undo = try #require(forward.plan.undoFile(stamp: FullRepairTests.stamp))
                _ = try Undoing(undo).apply(to: storage)
            }
            let undo = try #require(back.plan.undoFile(stamp: FullRepairTests.stamp))
            _ = try Undoing(undo).apply(to: storage)
            #expect(storage.contents == image)
        }
    }

    @Test func promotesWhatTheCrashLeft() throws {
        let storage = try storage("corrupt/slot-unanchored")
        let before = FullRepairTests.Standing(storage)
        let rescue = try rescue(.promote(slot(50, storage)), storage)
        #expect(rescue.target.step == 50 && rescue.setAside.isEmpty)
        try rescue.plan.apply(to: storage)
        expectLoads(rescue.target, storage, since: before)
    }

    @Test(arguments: [
        "superblocks-lost", "fork", "history-broken", "anchor-stale", "header-damaged-anchored",
        "identity-head-damaged", "identity-copies-differ", "superblock-newest-pair-damaged",
    ])
    func rebuildsFromSlotHeaders(_ name: String) throws {
        let storage = try storage("corrupt/\(name)")
        let before = FullRepairTests.Standing(storage)
        let rescue = try rescue(.rebuild, storage)
        try rescue.plan.apply(to: storage)
        let after = FullRepairTests.Standing(storage)
        #expect(after.slot == before.slot && after.digest == before.digest)
        #expect(after.nextSequence >= before.nextSequence && after.generation > before.generation)
        let decision = try #require(FullRepairTests.check(storage).decision)
        #expect(!decision.isFork && decision.superblockFindings.allSatisfy { $0.superblock != nil })
        #expect(decision.identityFindings.allSatisfy { $0.agreesWithChosen })
    }

    /// The newest slot's bytes are whole, but no reader accepts its manifest.
    @Test func rebuildPassesOverWhatNobodyLoads() throws {
        let storage = try storage("valid/v1/opaque")
        let decision = try #require(FullRepairTests.check(storage).decision)
        let newest = try #require(decision.candidates.first)
        var header = newest.header
        header.payloadKind = .safetensors
        storage.overwrite(header.encoded().bytes, at: newest.headerOffset)
        for copy in decision.superblockFindings {
            storage.overwrite([UInt8](repeating: 0, count: 4096), at: copy.offset)
        }
        let before = FullRepairTests.Standing(storage)
        #expect(before.slot != nil && before.slot != newest.slot)
        let rescue = try rescue(.rebuild, storage)
        #expect(rescue.target.slot == before.slot)
        try rescue.plan.apply(to: storage)
        let after = FullRepairTests.Standing(storage)
        #expect(after.slot == before.slot && after.digest == before.digest)
        let error = #expect(throws: CheckpointError.self) {
            _ = try self.rescue(.backTo(newest.slot), storage)
        }
        #expect(error?.code == .corrupt)
    }

    /// The head's identity block is another file's: only the mirror belongs to the slots.
    @Test func rebuildTakesTheIdentityThatFits() throws {
        let storage = try storage("valid/v1/safetensors")
        let before = FullRepairTests.Standing(storage)
        var identity = try #require(FullRepairTests.check(storage).identity)
        let uuid = identity.fileUUID
        identity.fileUUID = Identifier128(bytes: Array(0x50..<0x60))
        storage.overwrite(identity.encoded(), at: 0)
        let image = storage.contents
        #expect(FullRepairTests.Standing(storage).slot == nil)
        #expect(FullRepairTests.plan(storage).isEmpty)
        let rescue = try rescue(.rebuild, storage)
        try rescue.plan.apply(to: storage)
        #expect(FullRepairTests.check(storage).identity?.fileUUID == uuid)
        #expect(FullRepairTests.Standing(storage).digest == before.digest)
        let undo = try #require(rescue.plan.undoFile(stamp: FullRepairTests.stamp))
        _ = try Undoing(undo).apply(to: storage)
        #expect(storage.contents == image)
        #expect(try Undoing(undo).apply(to: storage) == 0)
    }

    @Test func whatIsNotThereIsRefused() throws {
        func refusal(_ goal: RescueGoal, _ name: String) throws -> CheckpointError? {
            let storage = try storage(name)
            let before = storage.contents
            let error = #expect(throws: CheckpointError.self) { _ = try rescue(goal, storage) }
            #expect(storage.contents == before)
            return error
        }
        let none = try refusal(.backTo(SlotIndex(77)), "valid/v1/safetensors")
        #expect(none?.code == .invalidArgument && none?.message.contains("no slot 77") == true)
        let damaged = try refusal(
            .backTo(slot(40, storage("corrupt/chunk-damaged-anchored"))),
            "corrupt/chunk-damaged-anchored")
        #expect(damaged?.code == .corrupt)
        let torn = try storage("corrupt/slot-torn")
        let writing = try #require(
            FullRepairTests.check(torn).decision?.slots.first { $0.reason == .writing }?.slot)
        #expect(try refusal(.backTo(writing), "corrupt/slot-torn")?.code == .noCheckpoint)
        let older = try slot(30, storage("valid/v1/safetensors"))
        let message = try refusal(.promote(older), "valid/v1/safetensors")?.message ?? ""
        #expect(message.contains("--back-to"))
        #expect(try refusal(.rebuild, "corrupt/chunks-damaged-all")?.code == .corrupt)
        #expect(try refusal(.rebuild, "corrupt/sequence-repeated")?.code == .invalidArgument)
        #expect(try refusal(.rebuild, "corrupt/unknown-ro-compat")?.code == .unsupported)
    }

    /// The power fails at every call, and writes are torn: until the last step the newest loads,
    /// after it what was asked for; and the undo file brings every byte back.
    @Test func interruptedRescueIsOneOrTheOther() throws {
        let image = try Fixture.image("valid/v1/retain3")
        let storage = RecordingStorage(contents: image)
        let before = FullRepairTests.Standing(storage)
        let oldest = try #require(CheckpointReader(storage: storage).decision.candidates.last)
        let rescue = try rescue(.backTo(oldest.slot), storage)
        #expect(rescue.setAside.count >= 2)
        try rescue.plan.apply(to: storage)
        let undo = try #require(rescue.plan.undoFile(stamp: FullRepairTests.stamp))
        let recording = storage.recording
        var (oldCount, newCount) = (0, 0)
        for point in recording.crashPoints {
            let states = CrashStates(recording, at: point, seed: 3)
            for fates in states.fates(limit: 6) {
                let cut = MemoryStorage(contents: states.durableImage())
                _ = states.apply(fates, to: cut)
                let standing = FullRepairTests.Standing(cut)
                if standing.digest == before.digest { oldCount += 1 }
                if standing.sequence == oldest.sequence { newCount += 1 }
                #expect(
                    standing.digest == before.digest || standing.sequence == oldest.sequence,
                    "\(states.describe(fates))")
                #expect(standing.nextSequence >= before.nextSequence)
                _ = try Undoing(undo).apply(to: cut)
                #expect(cut.contents == image, "\(states.describe(fates))")
            }
        }
        #expect(oldCount > 10 && newCount > 0)
    }
}
