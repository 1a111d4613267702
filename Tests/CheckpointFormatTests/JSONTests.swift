import Testing

@testable import CheckpointFormat

/// The one writer of JSON and the one reader of it.
@Suite struct JSONTests {
    typealias Scanner = JSONScanner<FormatError>

    private func scan(_ text: String) -> Scanner { Scanner(Array(text.utf8)) }

    // MARK: Writing

    private let document = JSONValue.dictionary([
        "shape": .array([.integer(2), .integer(3)]), "list": .array([.null, .bool(true)]),
        "nested": .dictionary(["least": .signed(-5), "nan": .decimal(.nan)]),
        "nothing": .array([]), "name": .string("a\n\"\u{202E}"),
    ])

    @Test func aDocumentIsIndentedAndNumbersStayOnOneLine() {
        let text = String(decoding: document.bytes, as: UTF8.self)
        #expect(
            text == """
                {
                  "shape": [2, 3],
                  "list": [
                    null,
                    true
                  ],
                  "nested": {
                    "least": -5,
                    "nan": null
                  },
                  "nothing": [],
                  "name": "a\\n\\"\\u202e"
                }

                """)
    }

    @Test func aLineIsAsHarmlessAsADocument() {
        let text = String(decoding: document.line, as: UTF8.self)
        #expect(text.hasSuffix(#""nothing":[],"name":"a\n\"\u202e"}"# + "\n"))
    }

    /// What stands on disk, and what the C ABI returns, escapes no more than JSON demands.
    @Test func textEscapesOnlyWhatItMust() {
        #expect(document.text.hasSuffix(#""name":"a\u000a\"\#u{202E}"}"#))
    }

    // MARK: Reading

    @Test(arguments: [
        (#""\u00e9\ud834\udd1e""#, Array("é𝄞".utf8)), (#""\ud834""#, [0xED, 0xA0, 0xB4]),
        (#""\udd1ex""#, [0xED, 0xB4, 0x9E, 0x78]),
        (#""\ud834\u0041""#, [0xED, 0xA0, 0xB4, 0x41]),
    ])
    func halfPairsAreKeptWhenTheyAreWanted(text: String, bytes: [UInt8]) throws {
        var scanner = scan(text)
        let found = try scanner.string(halfPairs: .kept)
        #expect(found == bytes)
        try scanner.expectEnd()
    }

    @Test(arguments: [#""\ud834""#, #""\udd1e""#, #""\ud834\u0041""#])
    func halfPairsAreRefusedOtherwise(text: String) {
        var scanner = scan(text)
        #expect(throws: FormatError.self) { _ = try scanner.string() }
    }

    @Test(arguments: [
        ("  {", Scanner.Kind.object), ("[", .array), ("\"", .string), ("null", .null),
        ("true", .bool(true)), ("false", .bool(false)), ("-1", .number), ("9", .number),
    ])
    func theNextValueHasAKind(text: String, kind: Scanner.Kind) throws {
        var scanner = scan(text)
        let found = try scanner.kind()
        #expect(found == kind)
    }

    @Test func aNumberIsTextOfABoundedLength() throws {
        var scanner = scan(" -1.5e+300,")
        let number = try scanner.number()
        #expect(number == "-1.5e+300")
        try scanner.expect(",")
        var long = scan(String(repeating: "1", count: 65))
        #expect(throws: FormatError.self) { _ = try long.number() }
    }

    @Test func aWordIsConsumedWhole() throws {
        var scanner = scan("nul")
        #expect(
            throws: FormatError.invalidManifest("byte 3 is past the end of the JSON, expected null")
        ) { try scanner.expect(word: "null") }
    }

    @Test func theBytesSinceAPositionAreWhatStoodThere() throws {
        var scanner = scan(#" "a\n" : NaN}"#)
        scanner.skipSpace()
        let start = scanner.position
        _ = try scanner.string()
        #expect(Array(scanner.bytes(since: start)) == Array(#""a\n""#.utf8))
        try scanner.expect(":")
        scanner.skipSpace()
        scanner.skip { $0 != UInt8(ascii: "}") }
        #expect(scanner.isNext("}"))
    }
}
