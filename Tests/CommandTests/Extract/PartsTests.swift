import CheckpointFormat
import Foundation
import Testing

@testable import CheckpointCommands

/// The parts that the tools are made of, without a process.
@Suite struct PartsTests {
    @Test(
        arguments: [
            ("0", 0), ("4096", 4096), ("1k", 1024), ("1K", 1024), ("2KiB", 2048), ("3kb", 3000),
            ("512M", 536_870_912), ("1.5G", 1_610_612_736), ("2 GiB", 2_147_483_648),
            ("1TB", 1_000_000_000_000), ("17179869183G", 18_446_744_072_635_809_792),
        ] as [(String, UInt64)])
    func sizesAreRead(text: String, byteCount: UInt64) {
        #expect(ByteSize(argument: text)?.byteCount == byteCount)
    }

    @Test(arguments: [
        "", "G", "-1", "1.5", "1x", "1.2.3G", "17179869184G", "99999999999999999999", "1e9", "0x10",
        "NaN", "1.5QiB", "9999999999.5T",
    ])
    func sizesThatMakeNoSenseAreRefused(text: String) {
        #expect(ByteSize(argument: text) == nil)
    }

    @Test(
        arguments: [
            (0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.50 KiB"), (10_752, "10.5 KiB"),
            (1_048_575, "1023 KiB"), (268_435_456, "256 MiB"), (1_127_428_915, "1.04 GiB"),
            (.max, "16383 PiB"),
        ] as [(UInt64, String)])
    func bytesAreWritten(byteCount: UInt64, text: String) {
        #expect(Quantity.bytes(byteCount) == text)
    }

    @Test(
        arguments: [
            (0, "—"), (1_000_000_000, "1970-01-01 00:00:01 UTC"),
            (951_782_399_000_000_000, "2000-02-28 23:59:59 UTC"),
            (951_782_400_000_000_000, "2000-02-29 00:00:00 UTC"),
            (1_709_251_199_000_000_000, "2024-02-29 23:59:59 UTC"),
            (4_102_444_800_000_000_000, "2100-01-01 00:00:00 UTC"),
            (.max, "2554-07-21 23:34:33 UTC"),
        ] as [(UInt64, String)])
    func datesAreWritten(time: UInt64, text: String) {
        #expect(Quantity.date(time) == text)
    }

    @Test func agesAreWritten() {
        let second: UInt64 = 1_000_000_000
        let now = 1_000_000 * second
        #expect(Quantity.age(of: now - 41 * second, now: now) == "41 s ago")
        #expect(Quantity.age(of: now - 180 * second, now: now) == "3 min ago")
        #expect(Quantity.age(of: now - 7200 * second, now: now) == "2 h ago")
        #expect(Quantity.age(of: now - second / 2, now: now) == "just now")
        #expect(Quantity.age(of: now + 5 * second, now: now) == "in the future")
        #expect(Quantity.age(of: 0, now: now) == "—")
    }

    @Test(
        arguments: [
            ("*", "anything/at.all", true), ("", "", true), ("", "a", false),
            ("a*c", "abbbc", true),
            ("a*c", "abbb", false), ("layer.?.weight", "layer.3.weight", true),
            ("layer.?.weight", "layer.10.weight", false), ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false), ("[!a-c]x", "dx", true), ("[]]", "]", true), ("[", "[", true),
            ("[a", "[a", true), ("\\*", "*", true), ("\\*", "x", false),
            ("*.weight", "é.weight", true),
            ("**a**", "xay", true), ("[a-]", "-", true), ("[z-a]", "m", true), ("a\\", "a\\", true),
        ] as [(String, String, Bool)])
    func globs(pattern: String, name: String, matches: Bool) {
        #expect(Glob(pattern).matches(name) == matches)
    }

    @Test(.timeLimit(.minutes(1))) func hostileGlobsEnd() {
        let pattern = String(repeating: "*a", count: 200) + "b"
        #expect(!Glob(pattern).matches(String(repeating: "a", count: 4000)))
    }

    @Test func nothingFromAFileReachesTheTerminalRaw() {
        let evil = "a\u{1B}[31mb\u{7}\u{9B}2J\u{202E}c\n\u{2028}\u{FEFF}é漢"
        let text: StyledText = "\(evil, .red) and \(evil)"
        #expect(!text.plain.unicodeScalars.contains { $0.value < 0x20 || $0.value == 0x9B })
        #expect(text.plain.hasPrefix("a\\u{1b}[31mb\\u{7}\\u{9b}2J\\u{202e}c\\n\\u{2028}"))
        #expect(text.plain.hasSuffix("é漢"))
        let colored = text.rendered(isColored: true)
        #expect(colored.hasPrefix("\u{1B}[31ma\\u{1b}"))
        #expect(colored.filter { $0 == "\u{1B}" }.count == 2)
    }

    @Test func columnsCountWideCharacters() {
        #expect(PrintableText.columnCount("abc") == 3)
        #expect(PrintableText.columnCount("漢字") == 4)
        #expect(PrintableText.columnCount("e\u{301}") == 1)
        #expect(PrintableText.shortened("abcdefghij", to: 5) == "ab…ij")
        #expect(PrintableText.columnCount(PrintableText.shortened("漢字漢字漢字", to: 6)) <= 6)
    }

    @Test func tablesFitTheTerminal() {
        var table = TableLayout([.flexible("name"), .right("size")])
        table.add(["\(String(repeating: "n", count: 200))", "1 KiB"])
        table.add(["short", "\("12 MiB", .green)"])
        #expect(table.lines(width: 80).allSatisfy { $0.columnCount <= 80 })
        #expect(table.lines(width: nil)[1].columnCount > 200)
        #expect(table.lines(width: 80)[2].plain.hasSuffix(" 12 MiB"))
    }

    @Test func proseIsWrapped() {
        let words = Array(repeating: "word", count: 60).joined(separator: " ")
        let lines = TextWrap.lines(words, indent: 4, width: 80)
        #expect(lines.count > 3)
        #expect(lines.allSatisfy { $0.columnCount <= 80 && $0.plain.hasPrefix("    word") })
        #expect(TextWrap.lines(words, indent: 4, width: nil).count == 1)
    }

    @Test func jsonIsJSON() throws {
        let value = JSONValue.dictionary([
            "text": .string("a\"\\\n\u{1B}\u{9B}\u{202E}é𝄞"), "big": .integer(.max),
            "list": .array([.integer(1), .integer(2)]), "none": .null, "yes": .bool(true),
            "empty": .array([]), "object": .object([]),
        ])
        let text = String(decoding: value.bytes, as: UTF8.self)
        #expect(!text.unicodeScalars.contains("\u{1B}") && !text.unicodeScalars.contains("\u{9B}"))
        let object = try #require(
            JSONSerialization.jsonObject(with: Data(value.bytes)) as? [String: Any])
        #expect(object["text"] as? String == "a\"\\\n\u{1B}\u{9B}\u{202E}é𝄞")
        #expect(object["big"] as? UInt64 == .max)
        #expect(object["list"] as? [Int] == [1, 2])
        #expect(object["none"] is NSNull)
    }
}
