import CheckpointFormat
import Foundation
import Testing

@testable import CheckpointCommands

/// The formats of pcextract, without files; Python's tests open real ones.
@Suite struct ExtractFormatTests {
    static let sample: [UInt8] = (0..<1000).map { UInt8(truncatingIfNeeded: $0 * $0 + 7) }

    /// The definition, bit by bit.
    static func slowChecksum(_ bytes: [UInt8]) -> UInt32 {
        ~bytes.reduce(UInt32.max) { crc, byte in
            (0..<8).reduce(crc ^ UInt32(byte)) { value, _ in
                value & 1 == 1 ? value >> 1 ^ 0xEDB8_8320 : value >> 1
            }
        }
    }

    @Test func theChecksumIsTheOneOfTheStandard() {
        #expect(CRC32.of(Array("123456789".utf8)) == 0xCBF4_3926)
        for count in [0, 1, 7, 8, 9, 15, 16, 17, 1000] {
            let bytes = Array(Self.sample.prefix(count))
            #expect(CRC32.of(bytes) == Self.slowChecksum(bytes), "\(count)")
            #expect(
                CRC32.ofZeros(UInt64(count))
                    == Self.slowChecksum([UInt8](repeating: 0, count: count)), "\(count)")
        }
    }

    @Test func checksumsOfPartsAreCombined() {
        let whole = CRC32.of(Self.sample)
        for cut in [0, 1, 500, 999, 1000] {
            let second = Array(Self.sample.dropFirst(cut))
            let combined = CRC32.combine(
                CRC32.of(Array(Self.sample.prefix(cut))), CRC32.of(second),
                secondByteCount: UInt64(second.count))
            #expect(combined == whole, "\(cut)")
        }
    }

    @Test func partsMayComeInAnyOrderAndLeaveHoles() {
        var layout = ZipLayout()
        _ = layout.add(name: "a", byteCount: 1000)
        let start = layout.members[0].dataOffset
        var expected = Self.sample
        expected.replaceSubrange(200..<300, with: [UInt8](repeating: 0, count: 100))
        expected.replaceSubrange(900..<1000, with: [UInt8](repeating: 0, count: 100))
        var ledger = ChecksumLedger()
        for range in [300..<900, 0..<50, 50..<200] {
            ledger.add(
                member: 0, offset: start + UInt64(range.lowerBound),
                byteCount: UInt64(range.count), checksum: CRC32.of(Array(Self.sample[range])))
        }
        #expect(ledger.checksums(of: layout) == [Self.slowChecksum(expected)])
    }

    /// An archive of more than 4 GiB, as a sparse file, is what Python says that it is.
    @Test func largeArchivesAreReadByOthers() throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("large.zip")
        #expect(FileManager.default.createFile(atPath: path, contents: nil))
        let file = try FileHandle(forWritingTo: URL(filePath: path))
        let sizes: [UInt64] = [5, 1 << 32, UInt64(UInt32.max), 3, 0]
        var layout = ZipLayout()
        for (number, size) in sizes.enumerated() {
            let offset = layout.end
            let header = layout.add(name: "m/\(number)", byteCount: size, alignment: 64)
            #expect(layout.members[number].dataOffset % 64 == 0)
            try file.seek(toOffset: offset)
            try file.write(contentsOf: header)
        }
        try file.seek(toOffset: layout.end)
        // Small members are checked to the last byte, large ones by their headers.
        let checksums = sizes.map { CRC32.ofZeros($0) }
        try file.write(contentsOf: layout.directory(checksums: checksums))
        for (member, checksum) in zip(layout.members, checksums) {
            var bytes: [UInt8] = []
            bytes.appendLittleEndian(checksum)
            try file.seek(toOffset: member.checksumOffset)
            try file.write(contentsOf: bytes)
        }
        try file.close()
        let script = """
            import sys, zipfile
            archive = zipfile.ZipFile(sys.argv[1])
            for info in archive.infolist():
                stream = archive.open(info)
                content = stream.read() if info.file_size < 100 else stream.read(100)
                print(info.filename, info.file_size, len(content))
            """
        let run = try ToolRun(shell: "python3 -c '\(script)' '\(path)'")
        #expect(run.status == 0, "\(run.diagnostics)")
        let expected = sizes.enumerated().map { "m/\($0) \($1) \(min($1, 100))\n" }.joined()
        #expect(run.text == expected)
    }

    @Test func manyMembersNeedLargeFields() {
        var layout = ZipLayout()
        for number in 0..<70_000 { _ = layout.add(name: "\(number)", byteCount: 0) }
        let directory = layout.directory(checksums: [UInt32](repeating: 0, count: 70_000))
        let end = Array(directory.suffix(22))
        #expect(Array(end[..<4]) == [0x50, 0x4B, 5, 6] && Array(end[10..<12]) == [0xFF, 0xFF])
        let large = Array(directory.suffix(22 + 20 + 56).prefix(56))
        #expect(Array(large[..<4]) == [0x50, 0x4B, 6, 6])
        #expect(Array(large[32..<40]) == [0x70, 0x11, 1, 0, 0, 0, 0, 0])
    }

    @Test(arguments: [
        ("plain.name", "plain.name"), ("a/b", "a/b"), ("../x", "%2E%2E/x"), ("a/./b", "a/%2E/b"),
        ("/abs", "%2Fabs"), ("", "%"), ("%", "%25"), ("x.npy", "x%2Enpy"), ("nul\0", "nul%00"),
        ("__pccheck__", "%5F_pccheck__"), ("..\u{2F}\u{301}x", "%2E%2E/\u{301}x"), ("...", "..."),
        ("a\\b:c", "a%5Cb%3Ac"), ("日本", "日本"), ("\u{202E}x", "%E2%80%AEx"),
    ])
    func namesBecomeKeys(name: String, key: String) {
        #expect(Array(NumpyArchive.key(of: name).utf8) == Array(key.utf8))
    }

    @Test(
        arguments: [
            ("0x20000000000000", [0, 0, 0, 0, 0, 0, 0x20, 0]), ("-0x1", [0xFF, 0xFF]),
            ("-0x100", [0, 0xFF, 0xFF]), ("0xff", [0xFF, 0]),
        ] as [(String, [UInt8])])
    func longIntegersAreTwosComplement(text: String, bytes: [UInt8]) {
        #expect(NumpyScalar.twosComplement(hexadecimal: text) == bytes)
    }

    @Test(arguments: ["", "0x", "12", "0xg", "0x+1", "0x-1", "--0x1"])
    func whatIsNoIntegerIsRefused(text: String) {
        #expect(NumpyScalar.twosComplement(hexadecimal: text) == nil)
    }

    /// Documents that break the rules end in an error, never in a trap.
    @Test(arguments: [
        "", "{", "[]", "{}", "{\"version\":2,\"state\":1}", "{\"version\":1}",
        "{\"version\":1,\"state\":{\"$tensor\":\"nope\"}}",
        "{\"version\":1,\"state\":{\"$torch.dtype\":\"float32\\nos\\nsystem\"}}",
        "{\"version\":1,\"state\":{\"$unknown\":\"x\"}}", "{\"version\":1,\"state\":01e}",
        "{\"version\":1,\"state\":{\"$scalar\":\"<f4\",\"bytes\":\"AA==\"}}",
        "{\"version\":1,\"state\":{\"$bytes\":\"A\"}}", "{\"version\":1,\"state\":\"\\ud8\"}",
        "{\"version\":1,\"state\":{\"$complex\":[1]}}",
        "{\"version\":1,\"state\":99999999999999999999}",
        "{\"version\":1,\"state\":" + String(repeating: "[", count: 100_000),
        "{\"version\":1,\"state\":" + String(repeating: "{\"$tuple\":[", count: 100_000),
    ])
    func brokenDocumentsAreRefused(document: String) {
        #expect(throws: StateDocumentError.self) {
            try TorchPickle.nested([], document: document)
        }
    }

    /// A view of `x`, which has twelve bytes, with some of its keys.
    private func pickleOfView(_ keys: String) throws -> [UInt8] {
        try pickle("{\"$view\":\"x\"\(keys)}")
    }

    private func pickle(_ state: String) throws -> [UInt8] {
        let header = "{\"x\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]}}"
        let length = [UInt8(header.utf8.count)] + [UInt8](repeating: 0, count: 7)
        let payload = length + Array(header.utf8)
        let manifest = try SafetensorsManifest(
            decoding: payload, payloadByteCount: UInt64(payload.count) + 12)
        let document = "{\"version\":1,\"state\":\(state)}"
        return try TorchPickle.nested(manifest.tensors, document: document)
    }

    @Test(arguments: [
        (",\"dtype\":\"float32\",\"offset\":4,\"shape\":[2],\"stride\":[1]", "_rebuild_tensor_v2"),
        (",\"stride\":[2],\"shape\":[2],\"offset\":0,\"dtype\":\"float32\"", "_rebuild_tensor_v2"),
        (",\"dtype\":\"int16\",\"offset\":2,\"shape\":[5],\"stride\":[1]", "_rebuild_tensor_v3"),
        (",\"dtype\":\"float32\",\"offset\":12,\"shape\":[9,0],\"stride\":[1,1]", "_v2"),
        (",\"dtype\":\"float32\",\"offset\":8,\"shape\":[],\"stride\":[]", "_rebuild_tensor_v2"),
    ])
    func viewsBecomeTensors(keys: String, function: String) throws {
        let pickle = try pickleOfView(keys)
        #expect(String(decoding: pickle, as: UTF8.self).contains(function))
    }

    /// torch gives a storage the type that its first tensor names, and all that leave the type to
    /// the storage get that one.
    @Test(arguments: [("float32", "int32", 1), ("int32", "float32", 2), ("float32", "float32", 0)])
    func viewsOfAnotherTypeNameIt(first: String, second: String, named: Int) throws {
        func view(_ type: String, _ offset: Int) -> String {
            "{\"$view\":\"x\",\"dtype\":\"\(type)\",\"offset\":\(offset),"
                + "\"shape\":[1],\"stride\":[1]}"
        }
        let text = String(
            decoding: try pickle("[\(view(first, 0)),\(view(second, 4))]"), as: UTF8.self)
        // The second time a name is a reference to the first.
        #expect(text.contains("_rebuild_tensor_v2") == (named < 2))
        #expect(text.contains("_rebuild_tensor_v3") == (named > 0))
    }

    /// torch would take none of these for an error of the file, or see other memory.
    @Test(arguments: [
        "", ",\"dtype\":\"float32\",\"offset\":0,\"shape\":[3]",
        ",\"dtype\":\"float32\",\"offset\":0,\"shape\":[4],\"stride\":[1]",
        ",\"dtype\":\"float32\",\"offset\":4,\"shape\":[3],\"stride\":[1]",
        ",\"dtype\":\"float32\",\"offset\":2,\"shape\":[1],\"stride\":[1]",
        ",\"dtype\":\"float32\",\"offset\":16,\"shape\":[0],\"stride\":[1]",
        ",\"dtype\":\"float32\",\"offset\":0,\"shape\":[3],\"stride\":[1,1]",
        ",\"dtype\":\"float32\",\"offset\":0,\"shape\":[2],\"stride\":[281474976710655]",
        ",\"dtype\":\"int8\",\"offset\":0,\"shape\":[99999999,99999999],\"stride\":[0,0]",
        ",\"dtype\":\"int8\",\"offset\":0,\"shape\":[281474976710656],\"stride\":[0]",
        ",\"dtype\":\"int8\",\"offset\":-1,\"shape\":[1],\"stride\":[1]",
        ",\"dtype\":\"object\",\"offset\":0,\"shape\":[1],\"stride\":[1]",
        ",\"dtype\":\"int8\",\"offset\":0,\"offset\":0,\"shape\":[1],\"stride\":[1]",
        ",\"dtype\":\"int8\",\"offset\":0,\"shape\":[1],\"stride\":[1],\"more\":1",
    ])
    func brokenViewsAreRefused(keys: String) {
        #expect(throws: StateDocumentError.self) { try pickleOfView(keys) }
    }

    /// torch knows none of these types with `weights_only`; each becomes its content.
    @Test(arguments: [
        ("{\"$path\":\"a/b\",\"class\":\"PosixPath\"}", "\"a/b\""),
        ("{\"$date\":\"2026-01-31\"}", "\"2026-01-31\""),
        (
            "{\"$time\":\"13:00:00\",\"fold\":1,\"zone\":{\"$zone\":\"UTC\"}}",
            "\"13:00:00\""
        ),
        ("{\"$timedelta\":[1,2,3]}", "{\"$tuple\":[1,2,3]}"),
        ("{\"$timezone\":[0,0,0],\"name\":\"x\"}", "{\"$tuple\":[0,0,0]}"),
        ("{\"$decimal\":\"-0\"}", "\"-0\""), ("{\"$uuid\":\"12\"}", "\"12\""),
        ("{\"$fraction\":[{\"$int\":\"0x1\"},2]}", "{\"$tuple\":[{\"$int\":\"0x1\"},2]}"),
        ("{\"$slice\":[null,1.5,[]]}", "{\"$tuple\":[null,1.5,[]]}"),
        ("{\"$deque\":[1,[2]],\"maxlen\":5}", "[1,[2]]"), ("{\"$deque\":[]}", "[]"),
        ("{\"$defaultdict\":{\"a\":1},\"factory\":null}", "{\"a\":1}"),
        ("{\"$defaultdict\":[[1,2]],\"factory\":\"int\"}", "{\"$dict\":[[1,2]]}"),
        (
            "{\"$namedtuple\":[{\"$tensor\":\"x\"}],\"class\":\"a:b\",\"fields\":[\"x\"]}",
            "{\"$tuple\":[{\"$tensor\":\"x\"}]}"
        ),
        ("{\"$set\":[{\"$frozenset\":[1]}]}", "{\"$set\":[{\"$tuple\":[1]}]}"),
        (
            "{\"$dict\":[[{\"$frozenset\":[]},{\"$set\":[]}]]}",
            "{\"$dict\":[[{\"$tuple\":[]},{\"$set\":[]}]]}"
        ),
        ("{\"$namedtuple\":[],\"class\":\"a:b\",\"fields\":[]}", "{\"$tuple\":[]}"),
        (
            "{\"$enum\":\"A\",\"class\":\"a:b\",\"value\":{\"x\":[1,true,{\"y\":{}},[]]}}",
            "\"A\""
        ),
        ("{\"$enum\":[\"A\",\"B\"],\"class\":\"a:b\"}", "{\"$tuple\":[\"A\",\"B\"]}"),
        (
            "{\"$random\":{\"key\":{\"$array\":\"x\"}},\"class\":\"c\",\"seed\":{}}",
            "{\"key\":{\"$array\":\"x\"}}"
        ),
    ])
    func typesOfPythonsLibraryBecomeTheirContent(state: String, content: String) throws {
        // Every tensor must be named, so the list names one.
        let tensor = "{\"$tensor\":\"x\"}"
        let expected = try pickle("[\(content),\(tensor)]")
        #expect(try pickle("[\(state),\(tensor)]") == expected)
    }

    @Test(arguments: [
        "{\"$path\":}", "{\"$path\":\"a\",}", "{\"$path\":\"a\",\"class\"}",
        "{\"$deque\":[1],\"maxlen\":[}", "{\"$defaultdict\":3}", "{\"$enum\":\"A\" 5}",
        "{\"$path\":\"a\",\"class\":" + String(repeating: "[", count: 100_000),
        String(repeating: "{\"$path\":", count: 100_000),
    ])
    func brokenTypesOfPythonsLibraryAreRefused(state: String) {
        #expect(throws: StateDocumentError.self) { try pickle(state) }
    }

    @Test func shardedTensorsAreNamed() {
        let document = "{\"version\":1,\"state\":{\"$sharded\":{\"local\":null}}}"
        let error = #expect(throws: StateDocumentError.self) {
            try TorchPickle.nested([], document: document)
        }
        #expect(error?.message.contains("sharded tensor") == true)
    }
}
