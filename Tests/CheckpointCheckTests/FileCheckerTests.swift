import CheckpointCheck
import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import StorageFaults
import Testing

/// What fixtures cannot show: a medium that fails, a writer at work, a repair that is interrupted.
@Suite struct FileCheckerTests {
    private func builder() throws -> ImageBuilder {
        var builder = try ImageBuilder(capacity: 256 << 10)
        builder.complete(slot: 1, sequence: 1)
        let anchor = builder.complete(slot: 0, sequence: 2)
        let parent = builder.commit(builder.superblock(generation: 4, anchor: anchor))
        builder.commit(
            builder.superblock(generation: 5, anchor: anchor, parent: parent, isCleanClose: true))
        return builder
    }

    private func check(
        _ storage: MemoryStorage, _ depth: CheckOptions.Depth = .full
    ) -> CheckReport {
        FileChecker(storage: storage).run(options: CheckOptions(depth: depth))
    }

    /// A medium whose block at `bad` cannot be read.
    private func storage(_ builder: ImageBuilder, bad: UInt64) -> MemoryStorage {
        let storage = builder.storage()
        storage.setFaultHook { call in
            guard case .read(let offset, let byteCount) = call else { return nil }
            return (offset..<offset + UInt64(byteCount)).contains(bad) ? 5 : nil
        }
        return storage
    }

    @Test func healthyFileHasNoFindings() throws {
        let report = check(try builder().storage())
        #expect(report.findings.isEmpty && report.exitCode == 0)
        #expect(report.resume.choice?.sequence.rawValue == 2 && report.resume.isProven)
        #expect(report.slots.map(\.isVerified) == [true, true, false])
    }

    /// One chunk holds the manifest and all else: it matches its digest, so it is not damaged,
    /// though the payload's digest says that it is not what was saved.
    @Test func aWrongPayloadDigestIsNoDamageOfTheManifest() throws {
        var builder = try ImageBuilder()
        builder.complete(
            slot: 0, sequence: 1, content: try .tensors([100], metadata: [], seed: 1))
        try builder.edit(SlotIndex(0)) { $0.logicalDigest = .zero }
        let header = try builder.header(SlotIndex(0))
        builder.commit(
            builder.superblock(
                generation: 2,
                anchor: Anchor(
                    slot: SlotIndex(0), sequence: header.sequence, step: header.step,
                    headerDigest: header.encoded().digest)))
        let storage = builder.storage()
        #expect(check(storage, .metadata).findings.map(\.id) == ["PCK-B002", "PCK-B010"])
        #expect(
            check(storage).findings.map(\.id)
                == ["PCK-B002", "PCK-B010", "PCK-C004", "PCK-X001"])
    }

    @Test func unreadableBlocksAreFindingsOfTheirOwn() throws {
        let builder = try builder()
        let geometry = builder.geometry
        let table: [(UInt64, String, String?)] = [
            (0, "PCK-I012", "anchored"),
            (geometry.identityOffsets[1], "PCK-I012", "anchored"),
            (geometry.superblockOffsets(parity: 1)[0], "PCK-B008", "anchored"),
            (geometry.superblockOffsets(parity: 0)[1], "PCK-B008", "anchored"),
            (geometry.headerOffset(SlotIndex(1)), "PCK-S007", "anchored"),
            (geometry.slotDataOffset(SlotIndex(0)) + 65536, "PCK-C003", "older"),
        ]
        for (offset, id, kind) in table {
            let report = check(storage(builder, bad: offset))
            #expect(report.findings.map(\.id) == [id], "byte \(offset)")
            #expect(report.resume.choice?.kind.rawValue == kind, "byte \(offset)")
            #expect(report.hasMediumFailure && report.exitCode == 12, "byte \(offset)")
            // A sector that cannot be read is not rewritten: nobody knows what it does then.
            #expect(report.plan.isEmpty, "byte \(offset)")
        }
    }

    @Test func unreadableAnchoredHeaderFallsBack() throws {
        let builder = try builder()
        let bad = builder.geometry.headerOffset(SlotIndex(0))
        let report = check(storage(builder, bad: bad))
        #expect(report.findings.map(\.id) == ["PCK-B006", "PCK-S007"])
        #expect(report.resume.choice?.sequence.rawValue == 1)
        #expect(report.resume.rejected.map(\.slot.rawValue) == [0])
    }

    @Test func deadMediumIsAReportToo() throws {
        let storage = try builder().storage()
        storage.setFaultHook { _ in 5 }
        let report = check(storage)
        #expect(report.findings.map(\.id) == ["PCK-I012", "PCK-I012"])
        #expect(report.exitCode == 12 && report.resume.choice == nil && report.slots.isEmpty)
    }

    @Test func slotThatAWriterTookIsNotDamage() throws {
        let builder = try builder()
        let storage = builder.storage()
        let writer = MemoryStorage(openerOf: storage)
        #expect(try writer.tryLock(.slot(SlotIndex(1)), exclusive: true))
        let report = check(storage)
        #expect(report.findings.map(\.id) == ["PCK-S009"])
        #expect(report.exitCode == 0)
        #expect(report.resume.choice?.sequence.rawValue == 2)
    }

    /// A safetensors checkpoint in slot 0, anchored.
    private func tensors(_ change: (inout SlotHeader) -> Void = { _ in }) throws -> ImageBuilder {
        var builder = try ImageBuilder(capacity: 256 << 10)
        let content = try ImageBuilder.Content.tensors([1000], metadata: [], seed: 1)
        var anchor = builder.complete(slot: 0, sequence: 2, content: content)
        try builder.edit(anchor.slot, change)
        anchor.headerDigest = try builder.header(anchor.slot).encoded().digest
        let parent = builder.commit(builder.superblock(generation: 4, anchor: anchor))
        builder.commit(
            builder.superblock(generation: 5, anchor: anchor, parent: parent, isCleanClose: true))
        return builder
    }

    @Test func aManifestWhoseHeaderLiesAboutItsSizeIsInvalid() throws {
        #expect(check(try tensors().storage()).findings.isEmpty)
        let report = check(try tensors { $0.manifestByteCount += 8 }.storage(), .metadata)
        // And so there is nothing left to load.
        #expect(report.findings.map(\.id) == ["PCK-T004", "PCK-X001"])
        let finding = try #require(report.findings.first)
        #expect(finding.slot == SlotIndex(0))
        #expect(finding.found.contains("manifest_byte_count is 4104, expected 4096"))
        #expect(report.resume.choice == nil)
    }

    /// Both passes that read payload meet the writer, and one finding says so.
    @Test func aManifestThatAWriterTookIsNotDamage() throws {
        let storage = try tensors().storage()
        let writer = MemoryStorage(openerOf: storage)
        #expect(try writer.tryLock(.slot(SlotIndex(0)), exclusive: true))
        for depth in CheckOptions.Depth.allCases {
            let report = check(storage, depth)
            #expect(report.findings.map(\.id) == ["PCK-S009"])
            #expect(report.resume.choice?.sequence.rawValue == 2)
        }
    }

    @Test func aManifestThatCannotBeReadIsTheMediumsFault() throws {
        let builder = try tensors()
        let bad = storage(builder, bad: builder.geometry.slotDataOffset(SlotIndex(0)))
        let report = check(bad, .metadata)
        #expect(report.findings.map(\.id) == ["PCK-T003", "PCK-X001"])
        #expect(report.hasMediumFailure)
        let rejected = try #require(report.resume.rejected.first)
        #expect(rejected.explanation.contains("its manifest cannot be read"))
    }

    /// The metadata was read; the header is gone when the payload is looked at.
    @Test func aSlotThatFailsLaterIsUnreadable() throws {
        let storage = try builder().storage()
        let header = try builder().geometry.headerOffset(SlotIndex(0))
        storage.setFaultHook { call in
            if case .read(header, Limits.blockByteCount) = call { 5 } else { nil }
        }
        let report = check(storage)
        #expect(report.findings.map(\.id) == ["PCK-C003"])
        #expect(report.hasMediumFailure && report.resume.choice?.sequence.rawValue == 1)
    }

    @Test func manyDamagedChunksAreCountedAndCapped() throws {
        var builder = try ImageBuilder(capacity: 80 * 65536)
        let anchor = builder.complete(
            slot: 0, sequence: 1, content: .opaque(byteCount: 70 * 65536, seed: 1))
        builder.commit(builder.superblock(generation: 1, anchor: anchor))
        builder.commit(builder.superblock(generation: 2, anchor: anchor))
        for chunk in 0..<70 {
            builder.flip(
                builder.geometry.slotDataOffset(SlotIndex(0)) + UInt64(chunk) * 65536 + 5)
        }
        let report = check(builder.storage())
        let chunks = report.findings.filter { $0.id == "PCK-C001" }
        #expect(chunks.map(\.chunk) == Array(0..<64))
        #expect(chunks.last?.found.hasSuffix("and 6 more damaged chunks in this slot") == true)
        #expect(report.slots[0].damagedChunkCount == 70)
        #expect(report.slots[0].reason == .payloadDamaged)
    }

    @Test func progressReachesTheEnd() throws {
        let seen = Monitor([CheckProgress]())
        _ = FileChecker(storage: try builder().storage()).run(
            options: CheckOptions(depth: .full)
        ) { progress in seen.withLock { $0.append(progress) } }
        let steps = seen.withLock { $0 }
        let starts = steps.filter { $0.totalByteCount == 0 }.map(\.stage)
        #expect(starts == CheckProgress.Stage.allCases)
        #expect(steps.map(\.doneByteCount).max() == 200_000)
        #expect(steps.allSatisfy { $0.doneByteCount <= 200_000 })
    }

    @Test func findingReadsLikeASentence() throws {
        var builder = try builder()
        let offset = builder.geometry.slotDataOffset(SlotIndex(0))
        builder.flip(offset)
        let finding = try #require(check(builder.storage()).findings.first)
        #expect(
            "\(finding)".hasPrefix(
                "PCK-C001 slot 0 chunk 0 at byte \(offset): chunk damaged: found digest "))
    }

    // MARK: Repair

    /// Both kinds of repair at once: a bad mirror and a bad superblock copy.
    private func damaged() throws -> ImageBuilder {
        var builder = try builder()
        builder.flip(builder.geometry.identityOffsets[1] + 1)
        builder.flip(builder.geometry.superblockOffsets(parity: 1)[0] + 1)
        return builder
    }

    @Test func repairWritesOnlyTheBadBlocks() throws {
        let damaged = try damaged()
        let storage = damaged.storage()
        let plan = check(storage).plan
        #expect(plan.repairs.map(\.problem.id) == ["PCK-I001", "PCK-B001"])
        let mirror = damaged.geometry.identityOffsets[1]
        #expect(
            plan.repairs.first?.description
                == "PCK-I001: rewrite the block at byte \(mirror) from the intact copy at byte 0")
        #expect(try plan.apply(to: storage).count == 2)
        #expect(storage.contents == (try builder().bytes))
        #expect(check(storage).findings.isEmpty)
        // The lock is free again.
        #expect(try MemoryStorage(openerOf: storage).tryLock(.writer, exclusive: true))
    }

    @Test func repairIsRefusedBesideAWriter() throws {
        let storage = try damaged().storage()
        let before = storage.contents
        let plan = check(storage).plan
        let writer = MemoryStorage(openerOf: storage)
        #expect(try writer.tryLock(.writer, exclusive: true))
        let error = #expect(throws: CheckpointError.self) { try plan.apply(to: storage) }
        #expect(error?.code == .locked)
        #expect(storage.contents == before)
    }

    @Test func repairIsRefusedWhenTheFileChanged() throws {
        let damaged = try damaged()
        let storage = damaged.storage()
        let plan = check(storage).plan
        storage.flip(1, at: damaged.geometry.superblockOffsets(parity: 1)[1] + 1)
        let before = storage.contents
        let error = #expect(throws: CheckpointError.self) { try plan.apply(to: storage) }
        #expect(error?.code == .busy)
        #expect(storage.contents == before)
    }

    /// A mirror that no other block vouches for is not copied over the head.
    @Test func identityWithoutAWitnessIsNotRepaired() throws {
        var builder = try builder()
        let foreign = try ImageBuilder(
            capacity: 256 << 10, fileUUID: Identifier128(bytes: Array(0x70..<0x80)))
        builder.flip(50)
        builder.put(foreign.identity.encoded(), at: builder.geometry.identityOffsets[1])
        let report = check(builder.storage())
        #expect(report.findings.first?.id == "PCK-I001")
        #expect(report.findings.first?.isFixable == false)
        #expect(report.plan.isEmpty)
    }

    /// The power fails at each call of the repair, and each write is torn at each sector: what a
    /// resume loads never changes, and a second repair finishes the work.
    @Test func interruptedRepairIsHarmless() throws {
        let damaged = try damaged()
        let expected = check(damaged.storage()).resume
        for lastCall in 0..<20 {
            for sector in [0, 1, 4, 8] {
                let storage = damaged.storage()
                let plan = check(storage).plan
                let calls = Monitor(0)
                let torn = Monitor<(UInt64, Int)?>(nil)
                storage.setFaultHook { call in
                    let number = calls.withLock {
                        $0 += 1; return $0 - 1
                    }
                    guard number >= lastCall else { return nil }
                    if case .write(let offset, let byteCount) = call, number == lastCall {
                        torn.withLock { $0 = (offset, byteCount) }
                    }
                    return 5
                }
                let isDone = (try? plan.apply(to: storage)) != nil
                storage.setFaultHook(nil)
                if let (offset, _) = torn.withLock({ $0 }),
                    let repair = plan.repairs.first(where: { $0.byteOffset == offset })
                {
                    storage.overwrite(Array(repair.bytes[..<(sector * 512)]), at: offset)
                }
                let after = check(storage)
                #expect(after.resume == expected, "call \(lastCall), sector \(sector)")
                #expect(!isDone || after.findings.isEmpty)
                try after.plan.apply(to: storage)
                #expect(check(storage).findings.isEmpty, "call \(lastCall), sector \(sector)")
            }
        }
    }

    @Test func lostWriteIsNoticed() throws {
        let damaged = try damaged()
        let storage = damaged.storage()
        let plan = check(storage).plan
        // The medium acknowledges the write, and what it holds is something else.
        storage.setFaultHook { [storage] call in
            if case .flush = call { storage.flip(1, at: plan.repairs[0].byteOffset + 9) }
            return nil
        }
        #expect(throws: CheckpointError.self) { try plan.apply(to: storage) }
    }
}
