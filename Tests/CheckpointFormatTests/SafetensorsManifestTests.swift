import Testing

@testable import CheckpointFormat

@Suite struct SafetensorsManifestTests {
    static func payloadHead(_ json: String) -> [UInt8] { payloadHead(Array(json.utf8)) }

    static func payloadHead(_ json: [UInt8]) -> [UInt8] {
        (0..<8).map { UInt8(truncatingIfNeeded: json.count >> (8 * $0)) } + json
    }

    static func decode(
        _ json: String, dataByteCount: Int
    ) throws(FormatError) -> SafetensorsManifest {
        let head = payloadHead(json)
        return try SafetensorsManifest(
            decoding: head, payloadByteCount: UInt64(head.count + dataByteCount))
    }

    static func tensor(_ name: String, _ type: String, _ shape: [UInt64]) throws
        -> TensorDescription
    {
        TensorDescription(
            name: name, elementType: try #require(ElementType(name: type)), shape: shape)
    }

    @Test func withoutMetadataTheTensorsStay() throws {
        let json =
            #"{"__metadata__":{"step":"12"},"#
            + #""a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#
        let manifest = try Self.decode(json, dataByteCount: 2)
        #expect(manifest.metadata.map(\.key) == ["step"])
        let bare = manifest.withoutMetadata()
        #expect(bare.metadata.isEmpty)
        #expect(bare.tensors == manifest.tensors && bare.dataOffset == manifest.dataOffset)
    }

    @Test func roundTrip() throws {
        let names = ["a", "", "weird \"\\\u{1}\n\u{7F}", "größe/層.0", "𝄞", "e\u{301}", "é"]
        var tensors: [TensorDescription] = []
        for (index, type) in ElementType.all.enumerated() {
            let name = names.indices.contains(index) ? names[index] : "t\(index)"
            tensors.append(
                TensorDescription(name: name, elementType: type, shape: [UInt64(index), 4]))
        }
        tensors.append(try Self.tensor("scalar", "F32", []))
        tensors.append(try Self.tensor("nothing", "I64", [3, 0, 5]))
        let metadata = [(key: "step", value: "12"), (key: "é\"", value: "{\"a\": [1, \"\\n\"]}\t")]
        let encoded = try SafetensorsManifest.encode(tensors, metadata: metadata)
        #expect(encoded.bytes.count % 4096 == 0)
        #expect(encoded.order.sorted() == Array(tensors.indices))

        let total = UInt64(encoded.bytes.count) + encoded.dataByteCount
        let manifest = try SafetensorsManifest(
            decoding: encoded.bytes, payloadByteCount: total)
        #expect(manifest.dataOffset == UInt64(encoded.bytes.count))
        #expect(manifest.metadata.map(\.key) == metadata.map(\.key))
        #expect(manifest.metadata.map(\.value) == metadata.map(\.value))
        #expect(manifest.tensors.count == tensors.count)
        for found in manifest.tensors {
            let expected = try #require(
                tensors.first { Array($0.name.utf8) == Array(found.name.utf8) })
            #expect(found.elementType == expected.elementType)
            #expect(found.shape == expected.shape)
            #expect(UInt64(found.dataRange.count) == (try expected.byteCount))
            #expect(
                found.dataRange.isEmpty || found.elementType.bitCount < 8
                    || found.dataRange.lowerBound % UInt64(found.elementType.bitCount / 8) == 0,
                "\(found.name) is aligned to its element")
        }
    }

    @Test func orderIsWidestFirstAndStable() throws {
        let tensors = [
            try Self.tensor("a", "U8", [3]), try Self.tensor("b", "F32", [1]),
            try Self.tensor("c", "F64", [1]), try Self.tensor("d", "I32", [1]),
            try Self.tensor("e", "I8", [1]),
        ]
        let encoded = try SafetensorsManifest.encode(tensors, metadata: [])
        #expect(encoded.order == [2, 1, 3, 0, 4])
        #expect(encoded.dataByteCount == 8 + 4 + 4 + 3 + 1)
    }

    @Test func anEmptyManifestIsOneBlock() throws {
        let encoded = try SafetensorsManifest.encode([], metadata: [])
        #expect(encoded.bytes.count == 4096)
        let manifest = try SafetensorsManifest(decoding: encoded.bytes, payloadByteCount: 4096)
        #expect(manifest.tensors.isEmpty && manifest.metadata.isEmpty)
    }

    @Test func encodingRefusesWhatDecodingWould() throws {
        let overflow = try Self.tensor("a", "F32", [1 << 40, 1 << 40])
        let packed = try Self.tensor("a", "F4", [3])
        let deep = try Self.tensor("a", "U8", [UInt64](repeating: 1, count: 65))
        let long = try Self.tensor(String(repeating: "n", count: 4097), "U8", [1])
        let reserved = try Self.tensor("__metadata__", "U8", [1])
        let huge = try Self.tensor("a", "U8", [1 << 47])
        let plain = try Self.tensor("a", "U8", [1])
        for tensors in [
            [overflow], [packed], [deep], [long], [reserved], [huge], [plain, plain],
        ] {
            #expect(throws: FormatError.self) {
                try SafetensorsManifest.encode(tensors, metadata: [])
            }
        }
        #expect(throws: FormatError.self) {
            try SafetensorsManifest.encode([plain], metadata: [("k", "1"), ("k", "2")])
        }
    }

    @Test func limitsAreKept() throws {
        let three = try ["a", "b", "c"].map { try Self.tensor($0, "U8", [1]) }
        typealias Bounds = SafetensorsManifest.Bounds
        // 8 bytes of length and the JSON fill one block.
        let tight = Bounds(tensorCount: 3, jsonByteCount: 4088)
        let encoded = try SafetensorsManifest.encode(three, metadata: [], within: tight)
        #expect(encoded.bytes.count == 4096)
        #expect(throws: FormatError.invalidManifest("4088 bytes, expected at most 4087")) {
            try SafetensorsManifest.encode(
                three, metadata: [], within: Bounds(jsonByteCount: 4087))
        }
        #expect(throws: FormatError.invalidManifest("3 tensors, expected at most 2")) {
            try SafetensorsManifest.encode(three, metadata: [], within: Bounds(tensorCount: 2))
        }
        let payloadByteCount = UInt64(encoded.bytes.count) + 3
        let decoded = try SafetensorsManifest(
            decoding: encoded.bytes, payloadByteCount: payloadByteCount, within: tight)
        #expect(decoded.tensors.count == 3)
        #expect(throws: FormatError.invalidManifest("more than 2 tensors")) {
            try SafetensorsManifest(
                decoding: encoded.bytes, payloadByteCount: payloadByteCount,
                within: Bounds(tensorCount: 2))
        }
        #expect(Bounds().tensorCount == 1 << 20 && Bounds().jsonByteCount == 100_000_000)
    }

    @Test func theLongestNamesAndMostDimensionsAreAccepted() throws {
        let name = String(repeating: "n", count: 4096)
        let shape = [4] + [UInt64](repeating: 1, count: 63)
        let encoded = try SafetensorsManifest.encode(
            [try Self.tensor(name, "U8", shape)], metadata: [])
        let manifest = try SafetensorsManifest(
            decoding: encoded.bytes, payloadByteCount: UInt64(encoded.bytes.count) + 4)
        #expect(manifest.tensors.map(\.name) == [name] && manifest.tensors[0].shape == shape)
        let escaped =
            "{\"" + name.dropLast() + #"\u006e":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}"#
        #expect(try Self.decode(escaped, dataByteCount: 1).tensors.map(\.name) == [name])
    }

    @Test func theLargestPayloadIsAccepted() throws {
        let largest = try Self.tensor("a", "U8", [1 << 46])
        let encoded = try SafetensorsManifest.encode([largest], metadata: [])
        #expect(encoded.dataByteCount == 1 << 46)
        let byte = try Self.tensor("b", "U8", [1])
        #expect(throws: FormatError.self) {
            try SafetensorsManifest.encode([largest, byte], metadata: [])
        }
    }

    @Test func typesAreKnownByName() {
        #expect(ElementType(name: "F33") == nil && ElementType(name: "f32") == nil)
        for type in ElementType.all { #expect(ElementType(name: type.name) == type) }
        #expect(ElementType(name: "BF16")?.description == "BF16")
        let widths = ["F4", "U8", "F16", "F32", "C64"].map { ElementType(name: $0)?.planeWidth }
        #expect(widths == [1, 1, 2, 4, 8])
    }

    /// Each is a header of 4 data bytes unless the first element says otherwise.
    static let hostile: [(String, String)] = [
        ("empty", ""),
        ("not an object", "[]"),
        ("white space first", " {}"),
        ("unclosed", "{"),
        ("text after the end", "{}x"),
        ("NUL after the end", "{}\u{0}"),
        ("trailing comma", #"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},}"#),
        ("missing dtype", #"{"a":{"shape":[1],"data_offsets":[0,4]}}"#),
        ("missing shape", #"{"a":{"dtype":"F32","data_offsets":[0,4]}}"#),
        ("missing offsets", #"{"a":{"dtype":"F32","shape":[1]}}"#),
        ("one offset", #"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}"#),
        ("three offsets", #"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,4]}}"#),
        ("unknown dtype", #"{"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#),
        ("lower-case dtype", #"{"a":{"dtype":"f32","shape":[1],"data_offsets":[0,4]}}"#),
        ("unknown key", #"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}"#),
        ("key twice", #"{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#),
        (
            "tensor twice",
            #"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"#
                + #""a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#
        ),
        (
            "tensor twice, one escaped",
            #"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"#
                + #""\u0061":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#
        ),
        ("metadata twice", #"{"__metadata__":{},"__metadata__":{}}"#),
        ("metadata key twice", #"{"__metadata__":{"a":"1","a":"2"}}"#),
        ("metadata with a number", #"{"__metadata__":{"a":1}}"#),
        ("nested metadata", #"{"__metadata__":{"a":{"b":"c"}}}"#),
        ("gap at the start", #"{"a":{"dtype":"U8","shape":[3],"data_offsets":[1,4]}}"#),
        ("gap at the end", #"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}"#),
        ("past the payload", #"{"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]}}"#),
        (
            "gap between",
            #"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"#
                + #""b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#
        ),
        (
            "overlap",
            #"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"#
                + #""b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#
        ),
        ("backwards", #"{"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}}"#),
        ("shape too small", #"{"a":{"dtype":"F32","shape":[],"data_offsets":[0,3]}}"#),
        ("shape too large", #"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#),
        (
            "shape overflow",
            #"{"a":{"dtype":"U8","shape":[4294967296,4294967296,4],"data_offsets":[0,4]}}"#
        ),
        (
            "bit overflow",
            #"{"a":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,4]}}"#
        ),
        ("packed bits", #"{"a":{"dtype":"F4","shape":[7],"data_offsets":[0,4]}}"#),
        ("negative", #"{"a":{"dtype":"U8","shape":[4],"data_offsets":[-0,4]}}"#),
        ("fraction", #"{"a":{"dtype":"U8","shape":[4.0],"data_offsets":[0,4]}}"#),
        ("exponent", #"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4e0]}}"#),
        ("leading zero", #"{"a":{"dtype":"U8","shape":[04],"data_offsets":[0,4]}}"#),
        (
            "integer of 2^64",
            #"{"a":{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,4]}}"#
        ),
        (
            "65 dimensions",
            #"{"a":{"dtype":"U8","shape":[4"# + String(repeating: ",1", count: 64)
                + #"],"data_offsets":[0,4]}}"#
        ),
        ("deep nesting", #"{"a":"# + String(repeating: "[", count: 100_000)),
        ("deep objects", String(repeating: #"{"a":"#, count: 100_000)),
        ("high surrogate alone", #"{"__metadata__":{"\ud834":""}}"#),
        ("high surrogate at the end", #"{"__metadata__":{"\ud834"#),
        ("high surrogate twice", #"{"__metadata__":{"\ud834\ud834":""}}"#),
        ("high surrogate and a backslash at the end", #"{"__metadata__":{"\ud834\"#),
        ("high surrogate and another escape", #"{"__metadata__":{"\ud834\ndd1e":""}}"#),
        ("high surrogate and a letter", #"{"__metadata__":{"\ud834\u0041":""}}"#),
        ("high surrogate and a private one", #"{"__metadata__":{"\ud834\ue000":""}}"#),
        ("low surrogate twice", #"{"__metadata__":{"\udc00\udc00":""}}"#),
        ("low surrogate alone", #"{"__metadata__":{"\udd1e":""}}"#),
        ("bad escape", #"{"__metadata__":{"\x41":""}}"#),
        ("short escape", #"{"__metadata__":{"\u00"#),
        ("the character before 0", #"{"__metadata__":{"\u00/0":""}}"#),
        ("the character behind 9", #"{"__metadata__":{"\u00:0":""}}"#),
        ("the character before A", #"{"__metadata__":{"\u00@0":""}}"#),
        ("the character behind F", #"{"__metadata__":{"\u00G0":""}}"#),
        ("the character before a", #"{"__metadata__":{"\u00`0":""}}"#),
        ("bad hexadecimal", #"{"__metadata__":{"\u00g0":""}}"#),
        ("raw control character", "{\"__metadata__\":{\"a\nb\":\"\"}}"),
        ("name of 4097 bytes", "{\"" + String(repeating: "n", count: 4097)),
        (
            "name of 4097 bytes, one escaped",
            "{\"" + String(repeating: "n", count: 4096) + #"\u006e":{"dtype":"U8","shape":[4],"#
                + #""data_offsets":[0,4]}}"#
        ),
        (
            "name of 4201 bytes around an escape",
            "{\"" + String(repeating: "n", count: 4000) + #"\u006e"#
                + String(repeating: "n", count: 200)
                + #"":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#
        ),
        ("single quotes", "{'a':1}"),
        ("comment", "{/**/}"),
        ("literal", "{\"a\":null}"),
    ]

    /// With the data that the tensors ask for, and without data, as far as there are no tensors.
    @Test(arguments: hostile) func hostileHeadersAreRefused(name: String, json: String) {
        for dataByteCount in [0, 4] {
            #expect(throws: FormatError.self, "\(name)") {
                try Self.decode(json, dataByteCount: dataByteCount)
            }
        }
    }

    @Test(
        arguments: [
            [0x80], [0xC0, 0x80], [0xC3], [0xE2, 0x82], [0xED, 0xA0, 0x80],
            [0xF4, 0x90, 0x80, 0x80],
            [0xF8, 0x88, 0x80, 0x80, 0x80], [0xFF],
        ] as [[UInt8]])
    func invalidUTF8IsRefused(bytes: [UInt8]) {
        let json = Array("{\"__metadata__\":{\"a".utf8) + bytes + Array("\":\"\"}}".utf8)
        let head = Self.payloadHead(json)
        #expect(throws: FormatError.self) {
            try SafetensorsManifest(decoding: head, payloadByteCount: UInt64(head.count))
        }
    }

    /// JSON of metadata, and where and how the error says that it goes wrong.
    static let complaints: [(String, String)] = [
        (#"{"__metadata__":{"\x41":""}}"#, "byte 27 is 'x', expected one of the escapes of JSON"),
        (#"{"__metadata__":{"\ud834\u"#, "past the end of the JSON, expected four hexadecimal"),
        (#"{"__metadata__":{"\ud834"}}"#, "byte 32 follows half of a surrogate pair"),
        (#"{"__metadata__":{"\ud834\u0041"}}"#, "byte 32 does not complete a surrogate pair"),
        (#"{"a":{"shape":[4.0]}}"#, "byte 24 is '.', expected an integer, not a fraction"),
        (#"{"a":{"shape":[4e0]}}"#, "byte 24 is 'e', expected an integer, not a fraction"),
        (#"{"a":{"shape":[4E0]}}"#, "byte 24 is 'E', expected an integer, not a fraction"),
        (" {}", "byte 8 is ' ', expected '{'"),
        ("{\u{1F}}", "byte 9 is byte 0x1f, expected"), ("{~}", "byte 9 is '~', expected"),
        ("{\u{7F}}", "byte 9 is byte 0x7f, expected"),
        ("{\"__metadata__\":{\"a\nb\":\"\"}}", "is byte 0xa, expected the rest of a string"),
    ]

    @Test(arguments: complaints) func errorsSayWhere(json: String, complaint: String) {
        let error = #expect(throws: FormatError.self) { try Self.decode(json, dataByteCount: 0) }
        guard case .invalidManifest(let message) = error else {
            Issue.record("expected an invalid manifest, found \(String(describing: error))")
            return
        }
        #expect(message.contains(complaint))
    }

    @Test func everyEscapeIsUnderstood() throws {
        let json =
            #"{"__metadata__":{"\"\\\/\b\f\n\r\t":"\u0041\u00aF\u00Fa\u0009\uFFFF","#
            + #""\ud800\udc00\udbff\udfff":"\ud7ff\ue000"}}"#
        let metadata = try Self.decode(json, dataByteCount: 0).metadata
        #expect(metadata.map(\.key) == ["\"\\/\u{8}\u{C}\n\r\t", "\u{10000}\u{10FFFF}"])
        #expect(
            metadata.map(\.value) == ["A\u{AF}\u{FA}\t\u{FFFF}", "\u{D7FF}\u{E000}"])
    }

    @Test func theTextIsTheShortest() throws {
        let tensors = [
            try Self.tensor("\u{9}\u{A}\u{F}\u{10}\u{1F} ~\u{7F}", "U8", [9, 10, 0]),
            try Self.tensor("b", "U8", [0, .max]),
        ]
        let bytes = try SafetensorsManifest.encode(tensors, metadata: [("k", "v")]).bytes
        let text = String(decoding: bytes[8...], as: UTF8.self)
        #expect(
            text.prefix { $0 != "}" } + "}"
                == #"{"__metadata__":{"k":"v"}"#)
        let first = #""\u0009\u000a\u000f\u0010\u001f ~"# + "\u{7F}\""
        #expect(
            text.contains(
                first + #":{"dtype":"U8","shape":[9,10,0],"data_offsets":[0,0]},"b":{"dtype":"U8","#
                    + #""shape":[0,18446744073709551615],"data_offsets":[0,0]}}   "#))
    }

    /// Tensors without bytes come before those that begin at the same place.
    @Test func emptyTensorsMayComeInAnyOrder() throws {
        let json =
            #"{"c":{"dtype":"U8","shape":[0],"data_offsets":[4,4]},"#
            + #""d":{"dtype":"U8","shape":[2,0],"data_offsets":[4,4]},"#
            + #""b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"#
            + #""a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#
        #expect(
            try Self.decode(json, dataByteCount: 4).tensors.map(\.name) == ["a", "b", "c", "d"])
    }

    @Test func theLengthOfTheJSONHasABound() throws {
        func offset(_ length: UInt64, payload: UInt64) throws(FormatError) -> UInt64 {
            let head = (0..<8).map { UInt8(truncatingIfNeeded: length >> (8 * $0)) }
            return try SafetensorsManifest.dataOffset(decoding: head, payloadByteCount: payload)
        }
        #expect(try offset(100_000_000, payload: 100_000_008) == 100_000_008)
        #expect(throws: FormatError.self) { try offset(100_000_000, payload: 100_000_007) }
        #expect(throws: FormatError.self) { try offset(100_000_001, payload: .max) }
    }

    @Test func harmlessOddityIsAccepted() throws {
        let json =
            "{ \"b\" :\t{\"data_offsets\": [2 , 4],\r\n\"shape\":[2],\"dtype\":\"U8\"}, "
            + #""\ud834\udd1e\/\b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}  "#
        let manifest = try Self.decode(json, dataByteCount: 4)
        #expect(manifest.tensors.map(\.name) == ["𝄞/\u{8}", "b"])
    }

    @Test func lengthIsCheckedBeforeAnythingIsAllocated() {
        for length in [100_000_001, UInt64(Int64.max), UInt64.max - 7, UInt64.max] {
            let head = (0..<8).map { UInt8(truncatingIfNeeded: length >> (8 * $0)) }
            #expect(throws: FormatError.self) {
                try SafetensorsManifest(decoding: head + [0x7B], payloadByteCount: .max)
            }
        }
        #expect(throws: FormatError.truncated(found: 3, expected: 8)) {
            try SafetensorsManifest(decoding: [1, 2, 3], payloadByteCount: 4096)
        }
        let head = Self.payloadHead("{}")
        #expect(throws: FormatError.self) {
            try SafetensorsManifest(decoding: head, payloadByteCount: 9)
        }
        #expect(throws: FormatError.truncated(found: 9, expected: 10)) {
            try SafetensorsManifest(decoding: Array(head.dropLast()), payloadByteCount: 10)
        }
    }

    @Test func everyPrefixIsRefusedWithoutATrap() throws {
        let tensors = [try Self.tensor("wéight", "F32", [2, 2]), try Self.tensor("b", "U8", [])]
        let whole = try SafetensorsManifest.encode(tensors, metadata: [("k", "v\u{1}")])
        let json = Array(whole.bytes[8...]).prefix { $0 != 0x20 }
        for count in 0..<json.count {
            let head = Self.payloadHead(Array(json.prefix(count)))
            #expect(throws: FormatError.self) {
                try SafetensorsManifest(
                    decoding: head, payloadByteCount: UInt64(head.count) + whole.dataByteCount)
            }
        }
    }

    @Test func everyByteMutationIsAnErrorOrAValidManifest() throws {
        let tensors = [try Self.tensor("w", "F32", [2, 2]), try Self.tensor("b", "U8", [3])]
        let whole = try SafetensorsManifest.encode(tensors, metadata: [("k", "v")])
        let payloadByteCount = UInt64(whole.bytes.count) + whole.dataByteCount
        for index in 0..<200 {
            for value in [0, 0x20, 0x22, 0x2C, 0x30, 0x39, 0x5C, 0x7B, 0x7D, 0x80, 0xFF] as [UInt8]
            {
                var bytes = whole.bytes
                bytes[index] = value
                let manifest = try? SafetensorsManifest(
                    decoding: bytes, payloadByteCount: payloadByteCount)
                guard let manifest else { continue }
                #expect(manifest.tensors.reduce(0) { $0 + $1.dataRange.count } == 19)
            }
        }
    }
}
