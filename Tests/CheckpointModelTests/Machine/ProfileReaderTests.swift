import CheckpointFormat
import Testing

@testable import CheckpointModel

/// Profiles in JSON.
@Suite struct ProfileReaderTests {
    private static let text = """
        {"processor_count": 8, "device": [
          {"write_byte_count": 1048576, "queue_depth": 2, "other_bytes_per_second": 5e7,
           "bytes_per_second": [3e8, 1e8, 2e8]}],
         "flush_seconds": [0.1, 0.2, 0.3], "block_seconds": [0.01, 0.01, 0.01],
         "commit_seconds": [0.24, 0.24, 0.24],
         "call_seconds": [0, 0, 1], "memory_bytes_per_second": [4e10, 4e10, 4e10],
         "digest_bytes_per_second": [1e10, 1e10, 1e10], "writer": [
          {"chunk_byte_count": 4194304, "writer_worker_count": 3,
           "bytes_per_second": [2e8, 2e8, 2e8],
           "crowded_bytes_per_second": [1e8, 1e8, 1e8]}], "codecs": [
          {"codec": "planes-zstd", "bytes_per_second": [5e8, 5e8, 4e8],
           "compression_ratio": 1.5}]}
        """

    private func code(_ text: String) -> TuningError.Code? {
        do throws(TuningError) {
            _ = try ProfileReader.profile(Array(text.utf8))
            return nil
        } catch {
            return error.code
        }
    }

    @Test func everyMemberIsRead() throws {
        let profile = try ProfileReader.profile(Array(Self.text.utf8))
        let expected = MachineProfile(
            processorCount: 8,
            device: [
                MachineProfile.DevicePoint(
                    writeByteCount: 1 << 20, queueDepth: 2, otherBytesPerSecond: 5e7,
                    bytesPerSecond: MeasuredValues([1e8, 2e8, 3e8]))
            ],
            flushSeconds: MeasuredValues([0.1, 0.2, 0.3]),
            blockSeconds: SampleMachine.same(0.01), commitSeconds: SampleMachine.same(0.24),
            memoryBytesPerSecond: SampleMachine.same(4e10),
            digestBytesPerSecond: SampleMachine.same(1e10),
            callSeconds: MeasuredValues([0, 0, 1]),
            writer: [
                MachineProfile.WriterPoint(
                    chunkByteCount: 4 << 20, writerWorkerCount: 3,
                    bytesPerSecond: SampleMachine.same(2e8),
                    crowdedBytesPerSecond: SampleMachine.same(1e8))
            ],
            codecs: [
                MachineProfile.CodecPoint(
                    codec: .planesZstd, bytesPerSecond: MeasuredValues([4e8, 5e8, 5e8]),
                    compressionRatio: 1.5)
            ])
        #expect(profile == expected)
        #expect(try ProfileReader.profile(expected.json.bytes) == expected, "as it is written")
    }

    /// Each of these texts differs from a good one in one place.
    @Test(arguments: [
        ("\"processor_count\": 8, ", "", TuningError.Code.notMeasured),
        ("\"call_seconds\": [0, 0, 1], ", "", .notMeasured),
        ("\"queue_depth\": 2, ", "", .notMeasured),
        ("planes-zstd", "lz4", .malformed), ("planes-zstd", "none", .malformed),
        ("call_seconds", "save_seconds", .malformed),
        ("queue_depth", "depth", .malformed),
        ("compression_ratio", "ratio", .malformed), ("writer_worker_count", "workers", .malformed),
        ("\"call_seconds\"", "\"flush_seconds\"", .malformed),
        ("8, \"device\"", "8.5, \"device\"", .malformed),
        ("8, \"device\"", "-8, \"device\"", .malformed),
        ("8, \"device\"", "0, \"device\"", .outOfRange),
        ("8, \"device\"", "18446744073709551615, \"device\"", .outOfRange),
        ("8, \"device\"", "99999999999999999999, \"device\"", .malformed),
        ("[0, 0, 1]", "[0, 1]", .tooFewSamples), ("[0, 0, 1]", "[]", .tooFewSamples),
        ("[0, 0, 1]", "[0, 0, -1]", .outOfRange), ("[0, 0, 1]", "[0, 0, 1e400]", .malformed),
        ("[0, 0, 1]", "[0, 0, NaN]", .malformed), ("[0, 0, 1]", "[0, 0, \"1\"]", .malformed),
        ("[0, 0, 1]", "[[0, 0, 1]]", .malformed), ("[0, 0, 1]", "0", .malformed),
        ("1.5}]}", "1.5}]} {}", .malformed),
    ])
    func aBadProfileIsRefused(part: String, other: String, expected: TuningError.Code) {
        #expect(code(Self.text) == nil)
        let text = Self.text.replacing(part, with: other)
        #expect(text != Self.text)
        #expect(code(text) == expected, "\(text)")
    }

    /// Every beginning, and every damaged byte, is an error or a profile that passes its check.
    @Test func noTextTraps() throws {
        let bytes = Array(Self.text.utf8)
        for count in bytes.indices {
            #expect(throws: TuningError.self) { try ProfileReader.profile(Array(bytes[..<count])) }
            for bit in 0..<8 {
                var damaged = bytes
                damaged[count] ^= 1 << bit
                guard let profile = try? ProfileReader.profile(damaged) else { continue }
                try profile.check()
            }
        }
    }
}
