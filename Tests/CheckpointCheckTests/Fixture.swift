import CheckpointCheck
import CheckpointFormat
import CheckpointRecovery
import Foundation
import StorageFaults
import Synchronization

/// What a fixture's JSON says; Fixtures/README.md explains the fields.
struct Fixture: Codable, Equatable {
    struct ExpectedFinding: Codable, Equatable {
        var id: String
        var severity: String
        var slot: Int?
    }

    struct ExpectedResume: Codable, Equatable {
        var slot: Int
        var sequence: UInt64
        var step: UInt64
        var kind: String
    }

    struct ExpectedCheckpoint: Codable, Equatable {
        var slot: Int
        var sequence: UInt64
        var step: UInt64
        var kind: String
        var payloadKind: String
        var payloadByteCount: UInt64
        /// XXH3-128 of the restored payload, as `xxh128sum` prints it.
        var payloadXXH128: String

        enum CodingKeys: String, CodingKey {
            case slot, sequence, step, kind
            case payloadKind = "payload_kind"
            case payloadByteCount = "payload_byte_count"
            case payloadXXH128 = "payload_xxh128"
        }
    }

    struct Patch: Codable, Equatable {
        /// Hexadecimal bytes to put at `offset`.
        var offset: Int?
        var bytes: String?
        /// The new size of the file.
        var truncate: Int?
        /// Hexadecimal bytes to put behind the end.
        var append: String?
        /// How often `bytes` or `append` are put there, one after another; nil: once.
        var `repeat`: Int?
        /// Replace each CR LF by LF, as a text-mode transfer does.
        var convertsLineEnds: Bool?

        enum CodingKeys: String, CodingKey {
            case offset, bytes, truncate, append, `repeat`
            case convertsLineEnds = "converts_line_ends"
        }
    }

    var description: String
    /// nil in a valid fixture, whose image lies beside its JSON.
    var base: String?
    var patches: [Patch]?
    var fileByteCount: Int
    /// Of `pcfsck --verify full`, in order.
    var findings: [ExpectedFinding]
    var exitCode: Int32
    /// What is left after `pcfsck -p`; nil when it changes nothing.
    var findingsAfterRepair: [ExpectedFinding]?
    var resume: ExpectedResume?
    /// Everything that can be loaded, newest first; in valid fixtures only.
    var checkpoints: [ExpectedCheckpoint]?

    enum CodingKeys: String, CodingKey {
        case description, base, patches, findings, resume, checkpoints
        case fileByteCount = "file_byte_count"
        case exitCode = "exit_code"
        case findingsAfterRepair = "findings_after_repair"
    }

    // MARK: Files

    static let root = URL(filePath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        .appending(path: "Fixtures")

    /// Names relative to Fixtures, without extension: `valid/v1/empty`, `corrupt/fork`.
    static func names(in folder: String) -> [String] {
        let files =
            (try? FileManager.default.contentsOfDirectory(
                atPath: root.appending(path: folder).path)) ?? []
        return files.filter { $0.hasSuffix(".json") }.sorted()
            .map { "\(folder)/\($0.dropLast(5))" }
    }

    static let wholeNames = names(in: "valid/v1") + names(in: "composed")
    static let allNames = wholeNames + names(in: "corrupt")

    static func load(_ name: String) throws -> Fixture {
        try JSONDecoder().decode(
            Fixture.self, from: Data(contentsOf: root.appending(path: name + ".json")))
    }

    func save(_ name: String) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        var data = try encoder.encode(self)
        data.append(UInt8(ascii: "\n"))
        try data.write(to: Self.root.appending(path: name + ".json"))
    }

    // MARK: Images

    private static let wholeImages = Mutex<[String: [UInt8]]>([:])

    /// The bytes of a valid or composed fixture, which many others are patches over.
    static func validImage(_ name: String) throws -> [UInt8] {
        if let image = wholeImages.withLock({ $0[name] }) { return image }
        let image = try storedImage(name)
        wholeImages.withLock { $0[name] = image }
        return image
    }

    /// The image is one zstd frame.
    private static func storedImage(_ name: String) throws -> [UInt8] {
        let fixture = try load(name)
        let frame = [UInt8](try Data(contentsOf: root.appending(path: name + ".pcc.zst")))
        var image = [UInt8](repeating: 0, count: fixture.fileByteCount)
        let entry = ChunkEntry(
            storedOffset: 0, storedByteCount: frame.count, rawByteCount: image.count,
            codec: .zstd, planeWidth: 1, digest: .zero)
        // Safe: both arrays outlive the call.
        let result = unsafe frame.withUnsafeBytes { stored in
            unsafe image.withUnsafeMutableBytes { raw in
                Result { () throws(FormatError) in
                    try unsafe ChunkCompression.decode(entry, stored: stored, into: raw)
                }
            }
        }
        try result.get()
        return image
    }

    static func saveImage(_ bytes: [UInt8], _ name: String) throws {
        var frame = bytes
        let compressor = ChunkCompressor(level: 19, chunkByteCount: bytes.count)
        // Safe: both arrays have the same size and outlive the call.
        let size = unsafe bytes.withUnsafeBytes { raw in
            unsafe frame.withUnsafeMutableBytes { output in
                unsafe compressor.encode(raw, codec: .zstd, planeWidth: 1, into: output)
            }
        }
        guard let size else { throw CocoaError(.coderInvalidValue) }
        try Data(frame[..<size]).write(to: root.appending(path: name + ".pcc.zst"))
    }

    /// The bytes of any fixture.
    static func image(_ name: String) throws -> [UInt8] {
        let fixture = try load(name)
        guard let base = fixture.base else { return try validImage(name) }
        return try Self.apply(fixture.patches ?? [], to: validImage(base))
    }

    static func apply(_ patches: [Patch], to base: [UInt8]) throws -> [UInt8] {
        var image = base
        for patch in patches {
            if let offset = patch.offset, let hexadecimal = patch.bytes {
                let bytes = try Self.bytes(hexadecimal, patch.repeat)
                image.replaceSubrange(offset..<offset + bytes.count, with: bytes)
            }
            if let size = patch.truncate { image.removeSubrange(size...) }
            if let hexadecimal = patch.append { image += try Self.bytes(hexadecimal, patch.repeat) }
            if patch.convertsLineEnds == true {
                image = Self.convertingLineEnds(image)
            }
        }
        return image
    }

    static func convertingLineEnds(_ bytes: [UInt8]) -> [UInt8] {
        var converted: [UInt8] = []
        converted.reserveCapacity(bytes.count)
        for (index, byte) in bytes.enumerated() {
            let isDropped = byte == 0x0D && index + 1 < bytes.count && bytes[index + 1] == 0x0A
            if !isDropped { converted.append(byte) }
        }
        return converted
    }

    private static func bytes(_ hexadecimal: String, _ count: Int?) throws -> [UInt8] {
        var bytes: [UInt8] = []
        var rest = Substring(hexadecimal)
        while !rest.isEmpty {
            guard let byte = UInt8(rest.prefix(2), radix: 16) else {
                throw CocoaError(.coderInvalidValue)
            }
            bytes.append(byte)
            rest = rest.dropFirst(2)
        }
        guard let count else { return bytes }
        if bytes.count == 1 { return [UInt8](repeating: bytes[0], count: count) }
        return Array(repeatElement(bytes, count: count).joined())
    }

    static func hexadecimal(_ bytes: some Sequence<UInt8>) -> String {
        bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
    }

    /// The patches that make `image` of `base`, for images of the same size or cut or extended.
    static func difference(_ base: [UInt8], _ image: [UInt8]) -> [Patch] {
        var patches: [Patch] = []
        let common = min(base.count, image.count)
        var index = 0
        while index < common {
            guard base[index] != image[index] else {
                index += 1
                continue
            }
            // A run ends before 16 equal bytes.
            let start = index
            var last = index
            while index < common && index - last < 16 {
                if base[index] != image[index] { last = index }
                index += 1
            }
            patches.append(
                Patch(offset: start, bytes: hexadecimal(image[start...last])))
            index = last + 1
        }
        if image.count < base.count { patches.append(Patch(truncate: image.count)) }
        if image.count > base.count {
            patches.append(Patch(append: hexadecimal(image[base.count...])))
        }
        return patches
    }
}

extension Fixture.ExpectedFinding {
    init(_ finding: Finding) {
        self.init(
            id: finding.id, severity: finding.severity.rawValue,
            slot: finding.slot.map { Int($0.rawValue) })
    }
}

extension Fixture.ExpectedResume {
    init(_ choice: ResumeVerdict.Choice) {
        self.init(
            slot: Int(choice.slot.rawValue), sequence: choice.sequence.rawValue,
            step: choice.step, kind: choice.kind.rawValue)
    }
}
