import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import StorageFaults
import Testing

@testable import CheckpointCheck

/// A dump is checked as the file itself would be, and holds nothing but metadata.
@Suite struct MetadataDumpTests {
    private func dump(
        _ storage: MemoryStorage, obfuscatesNames: Bool
    ) throws -> (MemoryStorage, MetadataDump.Report) {
        var image = [UInt8](repeating: 0, count: Int(storage.byteCount))
        let report = try MetadataDump.run(storage, obfuscatesNames: obfuscatesNames) {
            offset, bytes in
            image.replaceSubrange(Int(offset)..<Int(offset) + bytes.count, with: bytes)
        }
        return (MemoryStorage(contents: image), report)
    }

    private func findings(_ storage: MemoryStorage) -> [String] {
        FileChecker(storage: storage).run(options: CheckOptions(depth: .metadata)).findings.map {
            "\($0.id) \($0.severity) slot \($0.slot.map { "\($0)" } ?? "-") "
                + "chunk \($0.chunk.map { "\($0)" } ?? "-") "
                + "at \($0.byteOffset.map { "\($0)" } ?? "-")"
        }
    }

    @Test(arguments: Fixture.allNames) func findingsAreTheSame(_ name: String) throws {
        let image = try Fixture.image(name)
        let storage = MemoryStorage(contents: image)
        let expected = findings(storage)
        for obfuscatesNames in [false, true] {
            let (copy, _) = try dump(storage, obfuscatesNames: obfuscatesNames)
            #expect(findings(copy) == expected, "names hidden: \(obfuscatesNames)")
        }
        #expect(storage.contents == image, "a dump must not write to the file")
    }

    /// Eight bytes in a row of a payload behind its manifest, which is random here.
    private func runs(_ bytes: [UInt8]) -> Set<UInt64> {
        var (window, runs) = (UInt64(0), Set<UInt64>())
        for (index, byte) in bytes.enumerated() {
            window = window << 8 | UInt64(byte)
            if index >= 7 { runs.insert(window) }
        }
        return runs
    }

    @Test(arguments: ["opaque", "retain3", "named"])
    func noTensorByteIsInTheDump(_ name: String) throws {
        let image =
            name == "named" ? try NamedImage("x").image : try Fixture.image("valid/v1/\(name)")
        let storage = MemoryStorage(contents: image)
        let reader = try CheckpointReader(storage: storage)
        let selected = try reader.select(#require(reader.decision.candidates.first))
        defer { selected.close() }
        let header = selected.candidate.header
        let secret = runs(
            try selected.readBytes(header.manifestByteCount..<header.payloadByteCount))
        let isInFile = !runs(image).isDisjoint(with: secret)
        #expect(isInFile, "the file itself has them")
        for obfuscatesNames in [false, true] {
            let (copy, _) = try dump(storage, obfuscatesNames: obfuscatesNames)
            let isClean = runs(copy.contents).subtracting([0]).isDisjoint(with: secret)
            #expect(isClean, "names hidden: \(obfuscatesNames)")
        }
    }

    /// A torn write may leave tensor bytes where metadata belongs; they are no metadata either.
    @Test func whatLiesOverMetadataIsLeftOut() throws {
        let named = try NamedImage("x")
        let geometry = named.builder.geometry
        let secret = ImageBuilder.bytes(4096, seed: 99)
        for offset in [0, 4096, geometry.headerOffset(SlotIndex(0)), geometry.tailOffset] {
            for start in [0, 512] {
                var builder = named.builder
                builder.put(Array(secret[start...]), at: offset + UInt64(start))
                let storage = builder.storage()
                let (copy, _) = try dump(storage, obfuscatesNames: false)
                #expect(findings(copy) == findings(storage), "at \(offset) + \(start)")
                // Whole fields of a block that keeps its magic stay; what follows them does not.
                let text = runs(Array(secret[600...]))
                let isClean = runs(copy.contents).isDisjoint(with: text)
                #expect(isClean, "at \(offset) + \(start)")
            }
        }
    }

    @Test func namesAreHiddenWhereverTheyStand() throws {
        let secret = "Geheimnis"
        let named = try NamedImage(secret)
        for obfuscatesNames in [false, true] {
            let (copy, report) = try dump(
                MemoryStorage(contents: named.image), obfuscatesNames: obfuscatesNames)
            let bytes = copy.contents
            let needle = Array(secret.utf8)
            let count = (0..<bytes.count - needle.count).count {
                bytes[$0] == needle[0] && bytes[$0..<$0 + needle.count].elementsEqual(needle)
            }
            // Fingerprint twice, user metadata, a name, a key, a value, and one behind a tear.
            #expect(obfuscatesNames ? count == 0 : count >= 6, "\(count)")
            #expect(report.manifestCount == 1)
            let reader = try CheckpointReader(storage: copy)
            let candidate = try #require(reader.decision.candidates.first)
            let selected = try reader.select(candidate)
            defer { selected.close() }
            let manifest = try SafetensorsManifest(
                decoding: selected.manifest(),
                payloadByteCount: candidate.header.payloadByteCount)
            let names = manifest.tensors.map(\.name)
            #expect(Set(names).count == 3)
            let first = names[0].split(separator: ".")
            #expect(first.map(\.count) == [5, 9, 6])
            #expect(names[1].split(separator: ".").prefix(2) == first.prefix(2))
        }
    }

    @Test func pseudonymsKeepFormAndStayDistinct() {
        var scrubber = NameScrubber(key: [1])
        let letters = Array("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz".utf8)
        let hidden = letters.map { scrubber.text([$0]) }
        #expect(Set(hidden).count == 62)
        #expect(scrubber.text(Array("0".utf8)) == hidden[0], "the same word, the same pseudonym")
        #expect(scrubber.text(Array("_/ -.".utf8)) == Array("_/ -.".utf8))
        #expect(scrubber.text([0x41, 0xFF, 0x80]).suffix(2) == [0xFF, 0xFF])
        #expect(scrubber.text(Array("größe".utf8)).count == 7)
        var json = Array(#"{"dtype":"F32","a\"\u00e9\ud83d\ude00b":[1],"\ud83d":true}"#.utf8)
        let before = json
        scrubber.json(&json, json.indices)
        let text = String(decoding: json, as: UTF8.self)
        #expect(json.count == before.count)
        #expect(text.hasPrefix(#"{"dtype":"F32","#) && text.hasSuffix(#""\ud83d":????}"#))
        #expect(!text.contains("00e9") && !text.contains("ude00"), "\(text)")
    }
}

/// A file whose texts all hold a word that must not leave.
private struct NamedImage {
    let builder: ImageBuilder
    var image: [UInt8] { builder.bytes }

    init(_ secret: String) throws {
        var builder = try ImageBuilder(
            capacity: 128 << 10, chunkByteCount: 64 << 10, fingerprint: "\(secret)/7")
        let type = try #require(ElementType(name: "F32"))
        let tensors = ["weight", "bias12", "scale1"].map {
            TensorDescription(name: "model.\(secret).\($0)", elementType: type, shape: [9000])
        }
        let manifest = try SafetensorsManifest.encode(
            tensors, metadata: [(secret, #"{"x": "\#(secret)"}"#)])
        let data = ImageBuilder.bytes(Int(manifest.dataByteCount), seed: 5)
        let content = ImageBuilder.Content(
            kind: .safetensors, bytes: manifest.bytes + data,
            manifestByteCount: UInt64(manifest.bytes.count))
        let anchor = builder.complete(
            slot: 0, sequence: 1, content: content, userMetadata: "by \(secret)")
        let first = builder.commit(builder.superblock(generation: 1, anchor: nil))
        builder.commit(builder.superblock(generation: 2, anchor: anchor, parent: first))
        self.builder = builder
    }
}
