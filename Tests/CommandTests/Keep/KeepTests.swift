import CheckpointCommands
import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import CheckpointWriter
import Foundation
import Synchronization
import Testing

/// `pccheck keep` with the real binary, and the copy below it.
@Suite struct KeepTests {
    private func bytes(_ path: String) throws -> Data { try Data(contentsOf: URL(filePath: path)) }

    private func keep(_ arguments: [String]) throws -> ToolRun {
        try ToolRun(.pccheck, ["keep"] + arguments)
    }

    private func payload(_ path: String, step: UInt64) throws -> [UInt8] {
        try CheckpointReader(path: path).loadNewest(where: { $0.step == step }) {
            selected throws(CheckpointError) in
            try selected.verify()
            return try selected.readBytes(0..<selected.candidate.header.payloadByteCount)
        }.value
    }

    @Test(arguments: Codec.allCases, [nil, 0, 1, 4096, 200_000] as [Int?])
    func aCopyIsTheCheckpoint(codec: Codec, opaqueByteCount: Int?) throws {
        let file = try SampleFile(
            codec: codec, opaqueByteCount: opaqueByteCount, fingerprint: "gpt/8")
        let before = try bytes(file.path)
        let out = file.directory.file("out.pcc")
        for step in [10, 30] as [UInt64] {
            let run = try keep([file.path, "--step", "\(step)", "--output", out])
            #expect(run.status == 0 && run.text.contains("holds step \(step)"), "\(run.text)")
            #expect(try payload(out, step: step) == payload(file.path, step: step))
            let check = try ToolRun(.pcfsck, ["--verify", "full", out])
            #expect(check.status == 0 && check.text.contains("clean"), "\(check.text)")
            #expect(!check.text.contains("note"), "\(check.text)")
            let source = try #require(file.decision().candidates.first { $0.step == step })
            let decision = try CheckpointReader(path: out).decision
            let copy = try #require(decision.candidates.first)
            #expect(decision.candidates.count == 1 && copy.kind == .anchored)
            #expect(copy.sequence == source.sequence)
            #expect(copy.header.userMetadata == "run é")
            #expect(copy.header.completedTime == source.header.completedTime)
            #expect(decision.identity.fingerprint == "gpt/8")
            #expect(decision.identity.fileUUID != (try file.decision().identity.fileUUID))
            try FileManager.default.removeItem(atPath: out)
        }
        #expect(try bytes(file.path) == before && file.directory.names == ["run.pcc"])
    }

    /// A writer goes on from a copy: its second slot gets its blocks then.
    @Test func aCopyIsContinued() throws {
        let file = try SampleFile()
        let out = file.directory.file("out.pcc")
        #expect(try keep([file.path, "-o", out]).status == 0)
        let writer = try CheckpointWriter(path: out)
        let bytes = [UInt8](repeating: 7, count: 1000)
        let ticket = try writer.save(step: 31, payload: CheckpointPayload(opaque: bytes))
        #expect(try ticket.wait() == .durable)
        #expect(ticket.sequence.rawValue > 3)
        try writer.close()
        #expect(try ToolRun(.pcfsck, ["--verify", "full", out]).status == 0)
    }

    @Test func aLiveFileIsCopiedAndRescueSaysSo() throws {
        let file = try SampleFile()
        let writer = try CheckpointWriter(path: file.path)
        let out = file.directory.file("out.pcc")
        let json = try keep([file.path, "--step", "20", "-o", out, "--json"]).json()
        #expect(json["step"] as? Int == 20 && json["sequence"] as? Int == 2)
        #expect((json["rejected"] as? [Any])?.isEmpty == true)
        let other = file.directory.file("other.pcc")
        let rescue = try ToolRun(
            .pccheck, ["rescue", file.path, "--step", "20", "--output", other])
        #expect(rescue.status == 8 && rescue.diagnostics.contains("pccheck keep"))
        try writer.close()
    }

    @Test func damageIsPassedOverOrRefused() throws {
        let file = try SampleFile()
        try file.damageChunk(1, step: 30)
        let out = file.directory.file("out.pcc")
        let refused = try keep([file.path, "--step", "30", "-o", out])
        #expect(refused.status == 4 && refused.diagnostics.contains("chunk 1 has digest"))
        #expect(file.directory.names == ["run.pcc"])
        let older = try keep([file.path, "-o", out])
        #expect(older.status == 4, "\(older.diagnostics)")
        #expect(older.diagnostics.contains("step 30 is damaged; falling back to step 20 in slot 1"))
        #expect(try payload(out, step: 20) == payload(file.path, step: 20))
    }

    /// What is not even a candidate is not passed over in silence.
    @Test func aLostHeaderIsSaid() throws {
        let file = try SampleFile()
        try file.damage(try file.decision().identity.geometry.headerOffset(SlotIndex(2)) + 48)
        let run = try keep([file.path, "-o", file.directory.file("out.pcc"), "--json"])
        #expect(run.status == 4, "\(run.diagnostics)")
        #expect(run.diagnostics.contains("step 30, the newest durable checkpoint, is lost"))
        let json = try run.json()
        #expect(json["step"] as? Int == 20 && (json["rejected"] as? [Any])?.count == 1)
    }

    @Test func whatCannotBeDoneIsRefused() throws {
        let file = try SampleFile()
        let out = file.directory.file("out.pcc")
        let cases: [(arguments: [String], status: Int32, text: String)] = [
            ([file.path, "-o", file.path], 8, "exists already"),
            ([file.path, "--step", "7", "-o", out], 8, "no checkpoint of step 7"),
            ([file.path, "-o", "/no/such/folder/out.pcc"], 8, "No such file"),
            ([file.path, "-o", file.directory.path], 8, "Is a directory"),
            (["/no/such/file", "-o", out], 8, "/no/such/file"),
            ([file.path, "-o", file.directory.file("out.safetensors")], 16, "pcextract"),
            ([file.path], 16, "--output"),
        ]
        for item in cases {
            let run = try keep(item.arguments)
            #expect(run.status == item.status, "\(item.arguments): \(run.diagnostics)")
            #expect(run.diagnostics.contains(item.text), "\(run.diagnostics)")
        }
        #expect(file.directory.names == ["run.pcc"])
    }

    /// The file becomes longer than its first slot, which alone gets blocks: that counts as well.
    @Test func aFileSizeLimitIsFoundBeforeAnythingIsCopied() throws {
        let file = try SampleFile(opaqueByteCount: 200_000)
        let run = try ToolRun(
            shell: """
                ulimit -f 400
                $pccheck keep '\(file.path)' -o '\(file.directory.file("out.pcc"))' 2>&1
                """)
        #expect(run.status == 8, "\(run.text)")
        #expect(run.text.contains("out.pcc: create of "), "\(run.text)")
        #expect(run.text.contains("ulimit -f"), "\(run.text)")
        #expect(run.text.contains("or give the copy a name on another file system"), "\(run.text)")
        #expect(!run.text.contains("capacity"), "\(run.text)")
        #expect(file.directory.names == ["run.pcc"])
    }

    /// A writer that opened the file that is being replaced would write what nobody finds.
    @Test func aFileThatIsReplacedIsLockedUntilTheEnd() throws {
        let file = try SampleFile()
        let other = try SampleFile(steps: [7])
        let out = other.path
        let reader = try CheckpointReader(path: file.path)
        let selected = try Load(reader, request: "that fits the request") { _ in true }.next()
        defer { selected.close() }
        var options = CheckpointCopy.Options()
        options.replacesExisting = true
        let refusals = Mutex(0)
        try CheckpointCopy.write(
            selected, of: reader.decision.identity, to: out, options: options
        ) { _, _ throws(CheckpointError) in
            do throws(CheckpointError) {
                try CheckpointWriter(path: out).close()
            } catch {
                if error.code == .locked { refusals.withLock { $0 += 1 } }
            }
        }
        // At its begin, and after each chunk.
        #expect(refusals.withLock { $0 } == 1 + selected.candidate.table.entries.count)
        #expect(try payload(out, step: 30) == payload(file.path, step: 30))
    }

    /// Nothing is above the highest number, which only a hostile file has.
    @Test func theHighestSequenceIsPassedOver() throws {
        let file = try SampleFile()
        let newest = try #require(file.decision().candidates.first)
        var header = newest.header
        header.sequence = SequenceNumber(rawValue: .max)
        let storage = try FileStorage(path: file.path, access: .write, mode: .buffered)
        try storage.writeBlocks(header.encoded().bytes, at: header.ownOffset)
        let run = try keep([file.path, "-o", file.directory.file("out.pcc")])
        #expect(run.status == 4, "\(run.diagnostics)")
        #expect(run.diagnostics.contains("falling back to step 20"), "\(run.diagnostics)")
    }

    /// Killed in the middle: no file under the name, and the next one removes what is left.
    @Test func aKilledCopyIsSwept() throws {
        let file = try SampleFile()
        let out = file.directory.file("out.pcc")
        for delay in [0.005, 0.01, 0.02, 0.03] {
            _ = try ToolRun(
                shell: """
                    timeout -s KILL \(delay) $pccheck keep '\(file.path)' -o '\(out)' \
                        >/dev/null 2>&1; true
                    """)
            if FileManager.default.fileExists(atPath: out) {
                #expect(try ToolRun(.pcfsck, ["--verify", "full", out]).status == 0)
                try FileManager.default.removeItem(atPath: out)
            }
        }
        try Data([1, 2]).write(to: URL(filePath: "\(out).creating-4711"))
        #expect(try keep([file.path, "-o", out]).status == 0)
        #expect(file.directory.names == ["out.pcc", "run.pcc"])
    }
}
