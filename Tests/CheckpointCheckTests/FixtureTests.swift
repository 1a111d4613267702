import CheckpointCheck
import CheckpointFormat
import CheckpointRecovery
import CheckpointSimulation
import CheckpointStorage
import StorageFaults
import Testing

/// Every image under Fixtures/: checked twice, repaired, checked again, and compared with what a
/// load really does.
@Suite struct FixtureTests {
    private func check(
        _ storage: MemoryStorage, _ depth: CheckOptions.Depth = .full
    ) -> CheckReport {
        FileChecker(storage: storage).run(options: CheckOptions(depth: depth))
    }

    private func findings(_ report: CheckReport) -> [Fixture.ExpectedFinding] {
        report.findings.map { Fixture.ExpectedFinding($0) }
    }

    @Test func thereAreEnough() {
        #expect(Fixture.names(in: "valid/v1").count >= 8)
        #expect(Fixture.names(in: "composed").count >= 16)
        #expect(Fixture.names(in: "corrupt").count >= 400)
    }

    @Test(arguments: Fixture.allNames) func checkerFindsWhatIsThere(_ name: String) throws {
        let fixture = try Fixture.load(name)
        let image = try Fixture.image(name)
        #expect(image.count == fixture.fileByteCount)
        let storage = MemoryStorage(contents: image)
        let first = check(storage)
        #expect(findings(first) == fixture.findings)
        #expect(first.resume.choice.map { Fixture.ExpectedResume($0) } == fixture.resume)
        #expect(first.exitCode == fixture.exitCode)
        #expect(first.resume.isProven == (fixture.resume != nil))
        let second = check(storage)
        #expect(second.findings == first.findings)
        #expect(second.resume == first.resume)
        #expect(second.slots == first.slots)
        #expect(storage.contents == image, "a check must not write")
    }

    /// Without the payload, nothing else is found than with it.
    @Test(arguments: Fixture.allNames) func metadataFindingsAreAPart(_ name: String) throws {
        let storage = MemoryStorage(contents: try Fixture.image(name))
        let full = check(storage)
        let metadata = check(storage, .metadata)
        #expect(
            metadata.findings.filter { $0.id != "PCK-X001" }
                == full.findings.filter { !$0.id.hasPrefix("PCK-C") && $0.id != "PCK-X001" })
        #expect(!metadata.resume.isProven)
    }

    @Test(arguments: Fixture.allNames) func repairsAreSafeAndDoneOnce(_ name: String) throws {
        let fixture = try Fixture.load(name)
        let image = try Fixture.image(name)
        let storage = MemoryStorage(contents: image)
        let before = check(storage)
        #expect(before.plan.isEmpty == (fixture.findingsAfterRepair == nil))
        #expect(before.plan.repairs.count == before.findings.count { $0.isFixable })
        if let refusal = before.plan.refusal {
            #expect(before.findings.count { $0.isFixable } == 0, "\(refusal)")
            #expect(throws: CheckpointError.self) { try before.plan.apply(to: storage) }
            return
        }
        #expect(try before.plan.apply(to: storage) == before.plan.repairs)
        let repaired = storage.contents
        #expect(try before.plan.apply(to: storage).isEmpty)
        #expect(storage.contents == repaired)
        let after = check(storage)
        #expect(findings(after) == fixture.findingsAfterRepair ?? fixture.findings)
        #expect(after.plan.isEmpty)
        #expect(after.resume == before.resume)
        if fixture.findingsAfterRepair == nil { #expect(repaired == image) }
    }

    /// The verdict is what a load then does.
    @Test(arguments: Fixture.allNames) func verdictIsWhatALoadDoes(_ name: String) throws {
        let fixture = try Fixture.load(name)
        let storage = MemoryStorage(contents: try Fixture.image(name))
        let trial = ResumeTrial(storage)
        #expect(trial.isClear, "\(trial.error.map { "\($0)" } ?? "")")
        let loaded = trial.loaded.map { loaded in
            Fixture.ExpectedResume(
                slot: Int(loaded.candidate.slot.rawValue),
                sequence: loaded.candidate.sequence.rawValue, step: loaded.candidate.step,
                kind: loaded.candidate.kind.rawValue)
        }
        #expect(loaded == fixture.resume)
    }

    @Test(arguments: Fixture.wholeNames)
    func validImagesHoldWhatWasSaved(_ name: String) throws {
        let fixture = try Fixture.load(name)
        let reader = try CheckpointReader(
            storage: MemoryStorage(contents: try Fixture.image(name)))
        var found: [Fixture.ExpectedCheckpoint] = []
        for candidate in reader.decision.candidates {
            let selected = try reader.select(candidate)
            defer { selected.close() }
            try selected.verify()
            let header = candidate.header
            let bytes = try selected.readBytes(0..<header.payloadByteCount)
            found.append(
                Fixture.ExpectedCheckpoint(
                    slot: Int(candidate.slot.rawValue), sequence: candidate.sequence.rawValue,
                    step: candidate.step, kind: candidate.kind.rawValue,
                    payloadKind: "\(header.payloadKind)", payloadByteCount: UInt64(bytes.count),
                    payloadXXH128: "\(Digest(of: bytes))"))
        }
        #expect(found == fixture.checkpoints)
    }

    /// Each problem has a fixture; those that need a failing medium or a live writer have a test
    /// in FileCheckerTests. Those of the files of a group together have tests in FolderTests.
    @Test func everyProblemHasAFixture() throws {
        let withoutFixture: Set = ["PCK-I012", "PCK-B008", "PCK-S007", "PCK-S009", "PCK-C005"]
        let seen = Set(try Fixture.allNames.flatMap { try Fixture.load($0).findings.map(\.id) })
        let known = ProblemCatalogue.all.map(\.id).filter { !$0.hasPrefix("PCK-G") }
        #expect(seen == Set(known).subtracting(withoutFixture))
    }
}
