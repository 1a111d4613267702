import CheckpointCheck
import CheckpointFormat
import CheckpointRecovery
import CheckpointWriter
import StorageFaults
import Testing

/// Every fixture, opened for writing: what a resume loads does not change by it, numbers never go
/// back, and a new checkpoint becomes the newest.
@Suite struct ReopeningTests {
    private func check(_ storage: MemoryStorage) -> CheckReport {
        FileChecker(storage: storage).run(options: CheckOptions(depth: .full))
    }

    private func open(_ storage: MemoryStorage) throws(CheckpointError) -> CheckpointWriter {
        var options = WriterOptions()
        if let identity = check(storage).identity {
            options.rank = identity.rank
            options.worldSize = identity.worldSize
            options.acceptsGroup = identity.runUUID != .zero
        }
        return try CheckpointWriter(storage: MemoryStorage(openerOf: storage), options: options)
    }

    /// Refused, with nothing changed: what cannot be read, and what must not be written.
    private static func isRefused(_ report: CheckReport) -> Bool {
        guard let decision = report.decision else { return true }
        let numbers = [decision.highestSequence.rawValue, decision.highestGeneration.rawValue]
        return decision.end != .whole || decision.isFork
            || decision.identity.features.unknownReadOnlyCompatible != 0
            // Something durable was there, and nothing is whole.
            || report.findings.contains { $0.id == "PCK-X001" }
            // No number is left to go on with.
            || numbers.contains { $0 >= 1 << 63 - 1 }
    }

    @Test(arguments: Fixture.allNames) func openingKeepsTheVerdict(_ name: String) throws {
        let image = try Fixture.image(name)
        let storage = MemoryStorage(contents: image)
        let before = check(storage)
        do throws(CheckpointError) {
            let writer = try open(storage)
            #expect(!Self.isRefused(before))
            writer.abandon()
        } catch {
            #expect(Self.isRefused(before), "\(error)")
            #expect(storage.contents == image)
            return
        }
        let after = check(storage)
        #expect(after.resume.choice?.sequence == before.resume.choice?.sequence)
        #expect(after.resume.choice?.slot == before.resume.choice?.slot)
        let old = try #require(before.decision)
        let new = try #require(after.decision)
        #expect(new.highestGeneration > old.highestGeneration)
        #expect(new.highestSequence >= old.highestSequence)
        #expect(!new.isFork)
    }

    /// Two slots with one sequence, neither of which is the newest: a superblock may name one only.
    @Test func aRepeatedSequenceIsRetainedOnce() throws {
        let storage = MemoryStorage(contents: try Fixture.image("valid/v1/retain3"))
        let before = try #require(check(storage).decision)
        let twin = before.candidates[1]
        let other = try #require(before.candidates.first { $0.kind == .older })
        var header = other.header
        header.sequence = twin.sequence
        storage.overwrite(header.encoded().bytes, at: other.headerOffset)
        try open(storage).abandon()
        let after = try #require(check(storage).decision)
        #expect(after.highestGeneration > before.highestGeneration)
        #expect(after.superblock?.retained.map(\.slot).first == twin.slot)
        #expect(after.superblockFindings.allSatisfy { $0.superblock != nil })
    }

    @Test(arguments: Fixture.allNames) func aNewCheckpointIsTheNewest(_ name: String) throws {
        let storage = MemoryStorage(contents: try Fixture.image(name))
        let found = check(storage)
        if Self.isRefused(found) { return }
        let before = try #require(found.decision)
        let writer = try open(storage)
        if before.identity.runUUID != .zero {
            let number = before.superblock?.attempt ?? 0
            try writer.beginAttempt(GroupAttempt(number: number + 1, base: nil))
        }
        let room = Int(clamping: before.identity.geometry.slotByteCount)
        let content = ImageBuilder.bytes(min(70_000, room), seed: 99)
        let ticket = try writer.save(step: 1000, payload: CheckpointPayload(opaque: content))
        #expect(try ticket.wait() == .durable)
        try writer.close()
        let report = check(storage)
        let choice = try #require(report.resume.choice)
        #expect(choice.step == 1000 && choice.kind == .anchored)
        #expect(choice.sequence > before.highestSequence)
        #expect(report.resume.isProven)
        #expect(report.decision?.superblock?.isCleanClose == true)
        let loaded = try CheckpointReader(storage: storage).loadNewest {
            selected throws(CheckpointError) in
            try selected.readBytes(0..<selected.candidate.header.payloadByteCount)
        }
        #expect(loaded.value == content)
    }
}
