import CheckpointCheck
import CheckpointFormat
import CheckpointRecovery
import Foundation
import StorageFaults
import Testing

/// Writes Fixtures/: only when asked, because valid images must stay as the first release of
/// their format wrote them.
///
///     PCCHECK_WRITE_FIXTURES=corrupt swift test --filter FixtureGenerator
///     PCCHECK_WRITE_FIXTURES=all swift test --filter FixtureGenerator
@Suite(.serialized) struct FixtureGenerator {
    private static let request = ProcessInfo.processInfo.environment["PCCHECK_WRITE_FIXTURES"]

    @Test(.enabled(if: request == "all")) func writeValid() throws {
        try FileManager.default.createDirectory(
            at: Fixture.root.appending(path: "valid/v1"), withIntermediateDirectories: true)
        for fixture in try ValidFixture.all() {
            let image = try fixture.make()
            try Fixture.saveImage(image, fixture.name)
            let decision = try SlotSelection.decide(
                MetadataImage.read(from: MemoryStorage(contents: image)))
            let resume = decision.candidates.first.map {
                Fixture.ExpectedResume(
                    slot: Int($0.slot.rawValue), sequence: $0.sequence.rawValue, step: $0.step,
                    kind: $0.kind.rawValue)
            }
            let json = Fixture(
                description: fixture.description, fileByteCount: image.count,
                findings: fixture.findings, exitCode: 0, resume: resume,
                checkpoints: checkpoints(fixture, decision))
            try json.save(fixture.name)
        }
    }

    /// From what was saved, not from what is read back: sequence n is the n-th save.
    private func checkpoints(
        _ fixture: ValidFixture, _ decision: RecoveryDecision
    ) -> [Fixture.ExpectedCheckpoint] {
        decision.candidates.map { candidate in
            let save = fixture.saves[Int(candidate.sequence.rawValue) - 1]
            return Fixture.ExpectedCheckpoint(
                slot: Int(candidate.slot.rawValue), sequence: candidate.sequence.rawValue,
                step: save.step, kind: candidate.kind.rawValue,
                payloadKind: "\(save.content.kind)",
                payloadByteCount: UInt64(save.content.bytes.count),
                payloadXXH128: "\(Digest(of: save.content.bytes))")
        }
    }

    @Test(.enabled(if: request != nil)) func writeCorrupt() throws {
        try FileManager.default.createDirectory(
            at: Fixture.root.appending(path: "corrupt"), withIntermediateDirectories: true)
        for fixture in CorruptFixture.all {
            let base = try Fixture.validImage(fixture.base)
            var editor = try ImageEditor(base)
            let original = editor
            try fixture.edit(&editor)
            let image = editor.builder.bytes
            let patches =
                fixture.name == "corrupt/text-mode"
                ? [Fixture.Patch(convertsLineEnds: true)] : Fixture.difference(base, image)
            #expect(try Fixture.apply(patches, to: base) == image, "\(fixture.name)")
            func expected(_ list: [CorruptFixture.Expected]) -> [Fixture.ExpectedFinding] {
                list.map { item in
                    Fixture.ExpectedFinding(
                        id: item.id, severity: item.severity,
                        slot: item.role.map { Int(original.slot($0).rawValue) })
                }
            }
            let json = Fixture(
                description: fixture.description, base: fixture.base, patches: patches,
                fileByteCount: image.count, findings: expected(fixture.findings),
                exitCode: fixture.findings.contains { $0.severity == "error" } ? 4 : 0,
                findingsAfterRepair: fixture.leftByRepair.map(expected),
                resume: try resume(fixture, original, editor))
            try json.save(fixture.name)
        }
    }

    private func resume(
        _ fixture: CorruptFixture, _ original: ImageEditor, _ editor: ImageEditor
    ) throws -> Fixture.ExpectedResume? {
        guard case .loads(let role, let kind) = fixture.resume else { return nil }
        let slot = original.slot(role)
        // The editor's identity is that of the base, which some fixtures damage.
        let header = try editor.builder.header(slot)
        return Fixture.ExpectedResume(
            slot: Int(slot.rawValue), sequence: header.sequence.rawValue, step: header.step,
            kind: kind)
    }
}
