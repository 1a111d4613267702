import CheckpointFormat
import CheckpointRecovery
import StorageFaults
import Testing

/// One state of a file, in words, and what recovery must make of it.
///
/// `slots` has one word per slot: `-` empty, `5` complete with sequence 5, `5w` torn while
/// writing, `5h` header damaged, `5t` table damaged, `5f` foreign, `5m` misdirected, `5o`
/// complete but one digit off in its header (another digest), `0` all zero, `?` unreadable.
///
/// `superblocks` has one word per superblock: `g3=1:5` is generation 3 that anchors slot 1 with
/// sequence 5, `g1=-` anchors nothing; `+0:4` behind it retains slot 0 with sequence 4; a last
/// letter damages a copy: `H` head, `T` tail, `B` both, `F` gives the tail copy other content.
struct CrashState: CustomTestStringConvertible {
    let name: String
    let slots: String
    let superblocks: String
    /// Reason codes by slot.
    let reasons: String
    /// `sequence(kind)` in the order in which recovery tries them.
    let candidates: String
    /// Highest sequence, highest generation.
    let highest: (UInt64, UInt64)
    let isFork: Bool

    init(
        _ name: String, _ slots: String, _ superblocks: String, _ reasons: String,
        tries candidates: String, highest: (UInt64, UInt64), isFork: Bool = false
    ) {
        self.name = name
        self.slots = slots
        self.superblocks = superblocks
        self.reasons = reasons
        self.candidates = candidates
        self.highest = highest
        self.isFork = isFork
    }

    var testDescription: String { name }

    /// The file's bytes in this state.
    func image() throws -> MetadataImage {
        let words = slots.split(separator: " ").map(String.init)
        var builder = try ImageBuilder(inFlight: words.count - 1, retain: 1)
        var anchors: [Int: Anchor] = [:]
        for (slot, word) in words.enumerated() {
            anchors[slot] = try Self.write(word, slot: slot, to: &builder)
        }
        for word in superblocks.split(separator: " ") {
            Self.write(String(word), anchors: anchors, to: &builder)
        }
        var image = try MetadataImage.read(from: builder.storage())
        for (slot, word) in words.enumerated() where word == "?" { image.slots[slot].header = nil }
        return image
    }

    private static func write(
        _ word: String, slot: Int, to builder: inout ImageBuilder
    ) throws -> Anchor? {
        let index = SlotIndex(slot)
        let headerOffset = builder.geometry.headerOffset(index)
        if word == "-" || word == "?" { return nil }
        if word == "0" {
            builder.zero(headerOffset, byteCount: Limits.blockByteCount)
            return nil
        }
        let digits = word.prefix { $0.isNumber }
        let sequence = UInt64(digits) ?? 0
        if word.hasSuffix("w") {
            builder.writing(slot: slot, sequence: sequence)
            return nil
        }
        let anchor = builder.complete(slot: slot, sequence: sequence)
        switch word.dropFirst(digits.count) {
        case "h": builder.flip(headerOffset + 2000)
        case "t": builder.flip(headerOffset + 4096 + 30)
        case "f":
            var foreign = builder.header(.complete, slot: index, sequence: sequence, step: 1)
            foreign.fileUUID = Identifier128(bytes: Array(0x80..<0x90))
            builder.put(foreign.encoded().bytes, at: index)
        case "m":
            var misdirected = builder.header(.complete, slot: index, sequence: sequence, step: 1)
            misdirected.ownOffset += builder.geometry.metadataStride
            builder.put(misdirected.encoded().bytes, at: index)
        case "o": return builder.complete(slot: slot, sequence: sequence, step: 77)
        default: break
        }
        return anchor
    }

    private static func write(
        _ word: String, anchors: [Int: Anchor], to builder: inout ImageBuilder
    ) {
        let damage = word.last { "HTBF".contains($0) }
        let body = word.filter { !"gHTBF".contains($0) }
        let sides = body.split(separator: "=")
        let names = sides[1].split(separator: "+")
        func pair(_ text: Substring) -> (slot: Int, sequence: UInt64)? {
            let parts = text.split(separator: ":")
            guard parts.count == 2, let slot = Int(parts[0]), let sequence = UInt64(parts[1])
            else { return nil }
            return (slot, sequence)
        }
        var anchor: Anchor?
        if let (slot, sequence) = pair(names[0]) {
            let number = SequenceNumber(rawValue: sequence)
            let real = anchors[slot].flatMap { $0.sequence == number ? $0 : nil }
            // "5o" is complete with another digest than the one the superblock was written for.
            anchor = Anchor(
                slot: SlotIndex(slot), sequence: number, step: sequence * 10,
                headerDigest: real.map { $0.step == 77 ? .zero : $0.headerDigest } ?? .zero)
        }
        var superblock = builder.superblock(
            generation: UInt64(sides[0]) ?? 0, anchor: anchor,
            retained: names.dropFirst().compactMap(pair))
        builder.commit(superblock)
        let offsets = builder.geometry.superblockOffsets(parity: superblock.generation.parity)
        if damage == "H" || damage == "B" { builder.flip(offsets[0] + 30) }
        if damage == "T" || damage == "B" { builder.flip(offsets[1] + 30) }
        if damage == "F" {
            superblock.writerPID += 1
            builder.put(superblock.encoded().bytes, at: offsets[1])
        }
    }
}

/// Makes the checksum of a block fit its bytes again, and returns it.
@discardableResult
func reseal(_ block: inout [UInt8], _ field: LayoutField) -> Digest {
    let digest = Digest(of: block, 0..<field.offset)
    for index in 0..<8 {
        block[field.offset + index] = UInt8(truncatingIfNeeded: digest.low >> (8 * index))
        block[field.offset + 8 + index] = UInt8(truncatingIfNeeded: digest.high >> (8 * index))
    }
    return digest
}
