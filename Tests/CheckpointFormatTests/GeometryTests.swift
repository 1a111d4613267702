import Testing

@testable import CheckpointFormat

@Suite struct GeometryTests {
    static let validSizes: [(UInt64, Int, Int, Int)] = [
        (1, 1, 1, 65_536), (4096, 2, 1, 65_536), (300_000, 3, 2, 65_536),
        (2_093_056, 2, 1, 4_194_304), (2_097_152, 2, 1, 4_194_304),
        (1_073_741_824, 4, 16, 4_194_304), (70_368_744_177_664, 64, 16, 268_435_456),
    ]

    @Test(arguments: validSizes)
    func regionsDoNotOverlap(
        capacity: UInt64, inFlight: Int, retain: Int, chunkByteCount: Int
    ) throws {
        let geometry = try Geometry(
            capacity: capacity, inFlight: inFlight, retain: retain, chunkByteCount: chunkByteCount)
        #expect(geometry.slotCount == inFlight + retain)
        #expect(geometry.slotByteCount >= capacity)
        #expect(geometry.slotByteCount - capacity < 4096)
        var regions: [(start: UInt64, end: UInt64)] = [(0, 4096), (12_288, 16_384)]
        regions += geometry.identityOffsets.dropFirst().map { ($0, $0 + 4096) }
        for parity in 0...1 {
            regions += geometry.superblockOffsets(parity: parity).map { ($0, $0 + 4096) }
        }
        for slot in geometry.slots {
            let header = geometry.headerOffset(slot)
            let table = geometry.tableOffset(slot)
            let data = geometry.slotDataOffset(slot)
            regions.append((header, header + 4096))
            regions.append((table, table + UInt64(geometry.tableCapacityByteCount)))
            regions.append((data, data + geometry.dataStride))
            #expect(geometry.tableCapacityByteCount >= geometry.chunkCapacity * 48)
            #expect(data % (geometry.slotByteCount >= 2 << 20 ? 2 << 20 : 4096) == 0)
        }
        regions.sort { $0.start < $1.start }
        for (first, second) in zip(regions, regions.dropFirst()) {
            #expect(first.end <= second.start)
        }
        #expect(regions.last?.end == geometry.fileByteCount)
        #expect(regions.allSatisfy { $0.start % 4096 == 0 })
    }

    static let invalidSizes: [(String, UInt64, Int, Int, Int)] = [
        ("capacity", 0, 2, 1, 4_194_304),
        ("capacity", 70_368_744_177_665, 2, 1, 4_194_304),
        ("capacity", .max, 2, 1, 4_194_304),
        ("in-flight", 4096, 0, 1, 4_194_304), ("in-flight", 4096, 65, 1, 4_194_304),
        ("in-flight", 4096, -1, 1, 4_194_304), ("in-flight", 4096, .max, 1, 4_194_304),
        ("retain", 4096, 2, 0, 4_194_304), ("retain", 4096, 2, 17, 4_194_304),
        ("chunk size", 4096, 2, 1, 0), ("chunk size", 4096, 2, 1, 4096),
        ("chunk size", 4096, 2, 1, 65_537), ("chunk size", 4096, 2, 1, 536_870_912),
        ("chunk size", 4096, 2, 1, .max), ("chunks per slot", 1_099_511_627_777, 2, 1, 65_536),
    ]

    @Test(arguments: invalidSizes)
    func limitsAreKept(
        name: String, capacity: UInt64, inFlight: Int, retain: Int, chunkByteCount: Int
    ) {
        let error = #expect(throws: FormatError.self) {
            try Geometry(
                capacity: capacity, inFlight: inFlight, retain: retain,
                chunkByteCount: chunkByteCount)
        }
        guard case .invalidField(name, _, _) = error else {
            Issue.record("\(name) is wrong, but the error is \(String(describing: error))")
            return
        }
    }

    @Test(arguments: [(65_536, 1), (65_537, 2), (4 * 65_536, 4)] as [(UInt64, Int)])
    func everyByteHasItsChunk(capacity: UInt64, chunkCapacity: Int) throws {
        let geometry = try Geometry(
            capacity: capacity, inFlight: 1, retain: 1, chunkByteCount: 65_536)
        #expect(geometry.chunkCapacity == chunkCapacity)
        #expect(geometry.slots == [SlotIndex(0), SlotIndex(1)])
        let last = ChunkEntry.rawByteCount(
            index: chunkCapacity - 1, payloadByteCount: capacity, chunkByteCount: 65_536)
        #expect(UInt64(last) == capacity - UInt64(chunkCapacity - 1) << 16)
    }

    @Test func aDeviceKeepsItsTailAtItsEnd() throws {
        let exact = try Geometry(
            capacity: 1 << 20, inFlight: 2, retain: 1, chunkByteCount: 65_536)
        let device = try Geometry(
            capacity: 1 << 20, inFlight: 2, retain: 1, chunkByteCount: 65_536,
            fileByteCount: (1 << 30) + 512)
        #expect(device.fileByteCount == 1 << 30)
        #expect(device.identityOffsets == [0, (1 << 30) - 4096])
        #expect(device.dataOffset == exact.dataOffset)
        let snug = try Geometry(
            capacity: 1 << 20, inFlight: 2, retain: 1, chunkByteCount: 65_536,
            fileByteCount: exact.fileByteCount)
        #expect(snug == exact)
        #expect(throws: FormatError.self) {
            try Geometry(
                capacity: 1 << 20, inFlight: 2, retain: 1, chunkByteCount: 65_536,
                fileByteCount: exact.fileByteCount - 1)
        }
    }

    @Test func overflowIsNil() {
        let rounded = ([0, 1, 4095, 4096, 4097] as [UInt64]).map { $0.roundedUp(to: 4096) }
        #expect(rounded == [0, 4096, 4096, 4096, 8192])
        #expect(UInt64.max.multiplied(by: 2, plus: 0) == nil)
        #expect(UInt64.max.multiplied(by: 1, plus: 1) == nil)
        #expect(UInt64(7).multiplied(by: 10, plus: 3) == 73)
    }
}

@Suite struct DigestTests {
    /// Made with `xxh128sum` of the xxHash project.
    @Test(arguments: [
        ("", "99aa06d3014798d86001c324468d497f"), ("abc", "06b05ab6733a618578af5f94892f3950"),
    ])
    func knownAnswers(text: String, expected: String) {
        #expect(Digest(of: Array(text.utf8)).description == expected)
    }

    @Test(arguments: [0, 1, 65_535, 65_536, 65_537, 200_000])
    func treeDigestFollowsItsDefinition(byteCount: Int) {
        let payload = (0..<byteCount).map { UInt8(truncatingIfNeeded: $0 &* 7) }
        var concatenation: [UInt8] = []
        for start in stride(from: 0, to: byteCount, by: 65_536) {
            let leaf = Digest(of: Array(payload[start..<min(start + 65_536, byteCount)]))
            for half in [leaf.low, leaf.high] {
                concatenation += (0..<8).map { UInt8(truncatingIfNeeded: half >> (8 * $0)) }
            }
        }
        concatenation += (0..<8).map { UInt8(truncatingIfNeeded: byteCount >> (8 * $0)) }
        let expected = Digest(of: concatenation)
        for chunkByteCount in [65_536, 131_072] {
            var logical = TreeDigest(byteCount: UInt64(byteCount))
            let starts = stride(from: 0, to: byteCount, by: chunkByteCount).reversed()
            for start in starts {
                let chunk = Array(payload[start..<min(start + chunkByteCount, byteCount)])
                // Safe: the buffer outlives the closure.
                let leaves = unsafe chunk.withUnsafeBytes {
                    TreeDigest.leaves(of: unsafe RawSpan(_unsafeBytes: $0))
                }
                logical.setLeaves(leaves, at: UInt64(start))
            }
            #expect(logical.finish() == expected)
        }
    }

    /// A header may claim any size; memory goes with what was read.
    @Test func aTreeDigestTakesMemoryForWhatItHasSeen() {
        var digest = TreeDigest(byteCount: .max)
        digest.setLeaves([], at: UInt64.max / 65_536 * 65_536)
        digest.setLeaves([Digest(low: 1, high: 2)], at: 0)
        var other = TreeDigest(byteCount: .max)
        other.setLeaves([Digest(low: 1, high: 2)], at: 0)
        #expect(digest.finish() == other.finish())
    }
}
