import CheckpointFormat
import FuzzTargets
import StorageFaults
import Testing

/// Mutants get past the checksums, or fuzzing would stop at them.
@Suite struct FuzzMutatorTests {
    private static let count = 400

    /// How many mutants of a slot's header and table are no longer refused for a digest.
    private func acceptedSealCount(isSealing: Bool) throws -> Int {
        let seed = try #require(
            try Seeds.inputs(.decoder).first { DecoderTarget.kind(of: $0) == .slot })
        var count = 0
        for number in 0..<UInt64(Self.count) {
            var random = SplitMix64(seed: number)
            var mutator = FuzzMutator(seed: number, isSealing: isSealing) { bytes, _ in
                var bytes = bytes
                if !bytes.isEmpty {
                    bytes[Int(random.next() % UInt64(bytes.count))] ^= UInt8(
                        truncatingIfNeeded: random.next() | 1)
                }
                return bytes
            }
            let mutant = mutator.mutate(seed, for: .decoder, byteCountMaximum: 1 << 16)
            guard mutant != seed else { continue }
            let image = SparseImage.decode(Array(mutant.dropFirst()))
            do throws(FormatError) {
                _ = try SlotHeader(
                    decoding: image, slot: DecoderTarget.slot, identity: DecoderTarget.identity)
                count += 1
            } catch {
                switch error {
                case .checksumMismatch, .wrongMagic, .blank, .truncated: break
                default: count += 1
                }
            }
        }
        return count
    }

    @Test func sealedMutantsGetPastTheChecksum() throws {
        let sealed = try acceptedSealCount(isSealing: true)
        let plain = try acceptedSealCount(isSealing: false)
        #expect(sealed > Self.count * 6 / 10, "\(sealed) of \(Self.count)")
        // What is left are mutations of the table alone.
        #expect(plain < sealed, "\(plain) of \(Self.count)")
    }

    @Test func sparseImagesComeBack() throws {
        for image in try Seeds.images() {
            let sparse = SparseImage.encode(image)
            #expect(SparseImage.decode(sparse) == image)
            #expect(sparse.count < 16 << 10)
        }
    }

    @Test func everyInputIsAnImage() {
        var random = SplitMix64(seed: 7)
        for _ in 0..<200 {
            let input = ImageBuilder.bytes(Int(random.next() % 60), seed: random.next())
            let image = SparseImage.decode(input)
            #expect(image.count <= SparseImage.byteCountMaximum)
            #expect(SparseImage.decode(SparseImage.encode(image)) == image)
        }
    }
}
