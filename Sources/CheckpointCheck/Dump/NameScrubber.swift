internal import CheckpointFormat

/// Replaces the words of texts by pseudonyms of the same length.
///
/// A word is a run of letters, digits and characters beyond ASCII; what stands between words
/// stays, so that `layers.0.weight` keeps its form. One word always gets one pseudonym, and two
/// words get two, so that names stay distinct. Pseudonyms follow from the word and a key without a
/// secret: they hide names from readers, but a reader who guesses a name can check it.
struct NameScrubber {
    private static let alphabet = Array(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789".utf8)
    private static let attemptCount = 4096

    private let key: [UInt8]
    private let keptStrings: Set<[UInt8]>
    private var pseudonyms: [[UInt8]: [UInt8]] = [:]
    private var used: Set<[UInt8]> = []

    init(key: [UInt8]) {
        self.key = key
        let names =
            ["dtype", "shape", "data_offsets", "__metadata__"] + ElementType.all.map(\.name)
        keptStrings = Set(names.map { Array($0.utf8) })
    }

    // MARK: Texts

    /// `bytes` with every word replaced; bytes that are no UTF-8 become 0xFF, which is none either.
    mutating func text(_ bytes: [UInt8]) -> [UInt8] {
        var output = bytes
        scrub(&output, bytes.indices, hasEscapes: false)
        return output
    }

    /// A safetensors header, sound or not: strings are scrubbed, but for those that the format
    /// gives a meaning, and letters outside of strings, which the format does not have, are hidden.
    mutating func json(_ bytes: inout [UInt8], _ range: Range<Int>) {
        var position = range.lowerBound
        while position < range.upperBound {
            if bytes[position] == 0x22 {
                let start = position + 1
                position = start
                while position < range.upperBound, bytes[position] != 0x22 {
                    position += bytes[position] == 0x5C ? 2 : 1
                }
                let end = min(position, range.upperBound)
                if !keptStrings.contains(Array(bytes[start..<end])) {
                    scrub(&bytes, start..<end, hasEscapes: true)
                }
                position = end + 1
            } else {
                if !Self.isStructure(bytes[position]) { bytes[position] = UInt8(ascii: "?") }
                position += 1
            }
        }
    }

    /// What JSON has outside of strings, but for the names of constants.
    private static func isStructure(_ byte: UInt8) -> Bool {
        switch byte {
        case 0x20, 0x09, 0x0A, 0x0D, 0x30...0x39, 0x2B, 0x2C, 0x2D, 0x2E, 0x3A, 0x5B, 0x5D, 0x7B,
            0x7D:
            true
        default: false
        }
    }

    /// One unit of a word: its bytes are replaced by as many, of which one shows a character.
    private struct Unit {
        var range: Range<Int>
        /// It is written as `\uXXXX`.
        var isEscape: Bool
    }

    private mutating func scrub(_ bytes: inout [UInt8], _ range: Range<Int>, hasEscapes: Bool) {
        var word: [Unit] = []
        var position = range.lowerBound
        while position < range.upperBound {
            let byte = bytes[position]
            if hasEscapes, byte == 0x5C {
                switch Self.escape(bytes, position, range.upperBound) {
                case .scalar:
                    word.append(Unit(range: position..<position + 6, isEscape: true))
                    position += 6
                case .half:
                    replace(&bytes, &word)
                    position += 6
                case .other:
                    replace(&bytes, &word)
                    position += 2
                }
            } else if Self.isWordCharacter(byte) {
                word.append(Unit(range: position..<position + 1, isEscape: false))
                position += 1
            } else if byte < 0x80 {
                replace(&bytes, &word)
                position += 1
            } else {
                let count = Self.scalarByteCount(bytes[position..<range.upperBound])
                for index in 0..<count {
                    word.append(
                        Unit(range: position + index..<position + index + 1, isEscape: false))
                }
                if count == 0 {
                    replace(&bytes, &word)
                    bytes[position] = 0xFF
                }
                position += max(count, 1)
            }
        }
        replace(&bytes, &word)
    }

    private static func isWordCharacter(_ byte: UInt8) -> Bool {
        switch byte {
        case 0x30...0x39, 0x41...0x5A, 0x61...0x7A: true
        default: false
        }
    }

    private enum Escape {
        /// `\uXXXX` of a scalar, or of half of a whole pair.
        case scalar
        /// Half of a pair alone, which no text may have.
        case half
        case other
    }

    private static func escape(_ bytes: [UInt8], _ position: Int, _ end: Int) -> Escape {
        func unit(_ start: Int) -> UInt32? {
            guard start >= 0, start + 6 <= end, bytes[start] == 0x5C, bytes[start + 1] == 0x75
            else { return nil }
            let digits = String(decoding: bytes[start + 2..<start + 6], as: UTF8.self)
            return digits.allSatisfy(\.isHexDigit) ? UInt32(digits, radix: 16) : nil
        }
        let (highs, lows): (Range<UInt32>, Range<UInt32>) = (0xD800..<0xDC00, 0xDC00..<0xE000)
        guard let value = unit(position) else { return .other }
        let other = highs.contains(value) ? unit(position + 6) : unit(position - 6)
        if highs.contains(value) { return other.map(lows.contains) ?? false ? .scalar : .half }
        if lows.contains(value) { return other.map(highs.contains) ?? false ? .scalar : .half }
        return .scalar
    }

    /// The bytes of the scalar that `bytes` begin with; 0 when they are no UTF-8.
    private static func scalarByteCount(_ bytes: ArraySlice<UInt8>) -> Int {
        (2...4).first { count in
            guard bytes.count >= count,
                let text = String(validating: bytes.prefix(count), as: UTF8.self)
            else { return false }
            return text.unicodeScalars.count == 1
        } ?? 0
    }

    private mutating func replace(_ bytes: inout [UInt8], _ word: inout [Unit]) {
        guard let first = word.first, let last = word.last else { return }
        let original = Array(bytes[first.range.lowerBound..<last.range.upperBound])
        for (unit, letter) in zip(word, pseudonym(of: original, count: word.count)) {
            if unit.isEscape {
                let digits = Array(String(letter, radix: 16).utf8)
                bytes.replaceSubrange(
                    unit.range, with: [0x5C, 0x75, 0x30, 0x30] + digits)
            } else {
                bytes[unit.range.lowerBound] = letter
            }
        }
        word.removeAll(keepingCapacity: true)
    }

    // MARK: Pseudonyms

    private mutating func pseudonym(of word: [UInt8], count: Int) -> [UInt8] {
        if let known = pseudonyms[word] { return known }
        var found = candidate(word, count, attempt: 0)
        var attempt = 1
        while used.contains(found), attempt < Self.attemptCount {
            found = candidate(word, count, attempt: attempt)
            attempt += 1
        }
        // A short word may find most of its length taken: then the first that is free.
        if used.contains(found) { found = firstFree(found) }
        used.insert(found)
        pseudonyms[word] = found
        return found
    }

    private func candidate(_ word: [UInt8], _ count: Int, attempt: Int) -> [UInt8] {
        var letters: [UInt8] = []
        while letters.count < count {
            let seed = key + word + [UInt8(attempt & 255), UInt8(attempt >> 8)]
            var digest = Digest(of: seed + Array("\(letters.count)".utf8))
            for _ in 0..<min(10, count - letters.count) {
                letters.append(Self.alphabet[Int(digest.low % 62)])
                digest.low /= 62
            }
        }
        return letters
    }

    /// Counts up from `start`, in base 62; `start` itself when every word of its length is taken.
    private func firstFree(_ start: [UInt8]) -> [UInt8] {
        var letters = start
        for _ in 0..<62 * 62 {
            for index in letters.indices.reversed() {
                let digit = (Self.alphabet.firstIndex(of: letters[index]) ?? 0) + 1
                letters[index] = Self.alphabet[digit % 62]
                if digit < 62 { break }
            }
            if !used.contains(letters) { return letters }
        }
        return start
    }
}
