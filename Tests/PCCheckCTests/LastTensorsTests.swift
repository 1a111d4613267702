import CPCCheck
import CheckpointFormat
import CheckpointStorage
import Testing

@testable import CheckpointWriter
@testable import PCCheckC

/// Tensors as C describes them, in memory that a test changes.
private final class Described {
    private(set) var rows: [pcc_tensor] = []
    private var blocks: [UnsafeMutableRawPointer] = []

    deinit { for block in blocks { block.deallocate() } }

    private func block(_ bytes: [UInt8]) -> UnsafeMutableRawPointer {
        // Safe: every block has room for what a test puts in its place later.
        let block = UnsafeMutableRawPointer.allocate(
            byteCount: max(bytes.count, 64), alignment: 16)
        block.copyMemory(from: bytes, byteCount: bytes.count)
        blocks.append(block)
        return block
    }

    func text(_ text: String) -> UnsafePointer<CChar> {
        UnsafePointer(
            block(Array(text.utf8) + [0]).bindMemory(to: CChar.self, capacity: 64))
    }

    func numbers(_ numbers: [UInt64]) -> UnsafePointer<UInt64> {
        let bytes = numbers.withUnsafeBytes { Array($0) }
        return UnsafePointer(block(bytes).bindMemory(to: UInt64.self, capacity: 8))
    }

    func add(_ name: String, _ dtype: String, _ shape: [UInt64], _ content: [UInt8]) {
        var row = pcc_tensor()
        row.name = text(name)
        row.dtype = text(dtype)
        row.shape = numbers(shape)
        row.rank = UInt32(shape.count)
        row.data = UnsafeRawPointer(block(content))
        row.byte_count = UInt64(content.count)
        rows.append(row)
    }

    func move(_ index: Int, _ content: [UInt8]) {
        rows[index].data = UnsafeRawPointer(block(content))
    }

    func change(_ index: Int, _ change: (inout pcc_tensor) -> Void) { change(&rows[index]) }

    func swap(_ first: Int, _ second: Int) { rows.swapAt(first, second) }

    func remove(_ index: Int) { rows.remove(at: index) }
}

private func state() -> Described {
    let state = Described()
    state.add("bias", "U8", [3], [1, 2, 3])
    state.add("größe \"weight\"", "F32", [2, 3], Array(10..<34))
    state.add("nothing", "I64", [0, 5], [])
    state.add("scalar", "F32", [], [5, 6, 7, 8])
    state.add("half", "BF16", [2, 3], Array(40..<52))
    return state
}

private typealias Metadata = [(key: String, value: String)]

private let plain: Metadata = [("state", "{\"a\":1}")]

private func bytes(_ payload: CheckpointPayload) -> [UInt8] {
    let count = Int(payload.byteCount)
    let buffer = AlignedBuffer(byteCount: count)
    _ = payload.copyHostParts(from: 0, count: count, to: buffer)
    // Safe: the buffer has that size.
    return Array(UnsafeRawBufferPointer(start: buffer.baseAddress, count: count))
}

private func payload(
    _ state: Described, _ metadata: Metadata = plain, after last: LastTensors
) throws -> [UInt8] {
    bytes(try state.rows.withUnsafeBufferPointer { try last.payload($0, metadata: metadata) })
}

/// As `payload`, of somebody who never saw the tensors.
private func fresh(_ state: Described, _ metadata: Metadata = plain) throws -> [UInt8] {
    let tensors = try state.rows.map { try tensor($0) }
    return bytes(try CheckpointPayload(tensors: tensors, metadata: metadata))
}

/// A payload is the same whatever was saved before.
@Suite struct LastTensorsTests {
    @Test func metadataAndValuesAreThoseOfTheSave() throws {
        let state = state()
        let last = LastTensors()
        let none: Metadata = []
        let more: Metadata = plain + [("more\n\u{1}", String(repeating: "\"\\ü", count: 5000))]
        for metadata in [plain, plain, more, none, none, plain] {
            #expect(try payload(state, metadata, after: last) == fresh(state, metadata))
        }
        state.move(4, Array(60..<72))
        let moved = try payload(state, after: last)
        #expect(try moved == fresh(state) && moved.suffix(15) == Array(60..<72) + [1, 2, 3])
    }

    @Test(arguments: 0..<12) func whatChangesIsSeen(_ change: Int) throws {
        let last = LastTensors()
        let before = state()
        let known = try payload(before, after: last)
        let changed = state()
        switch change {
        case 0: changed.change(0) { $0.name = changed.text("bias2") }
        case 1: changed.change(0) { $0.name = changed.text("bia") }
        case 2: changed.change(3) { $0.name = changed.text("scalaR") }
        case 3: changed.change(1) { $0.dtype = changed.text("I32") }
        case 4: changed.change(4) { $0.dtype = changed.text("F16") }
        case 5: changed.change(1) { $0.shape = changed.numbers([3, 2]) }
        case 6: changed.change(1) { ($0.shape, $0.rank) = (changed.numbers([6]), 1) }
        case 7: changed.change(3) { ($0.shape, $0.rank) = (changed.numbers([1, 1]), 2) }
        case 8: changed.change(0) { ($0.shape, $0.byte_count) = (changed.numbers([2]), 2) }
        case 9: changed.swap(0, 3)
        case 10: changed.remove(4)
        default: changed.add("new", "U8", [2], [8, 9])
        }
        let expected = try fresh(changed)
        #expect(expected != known)
        #expect(try payload(changed, after: last) == expected)
        #expect(try payload(changed, after: last) == expected)
        #expect(try payload(before, after: last) == known)
    }

    @Test func whatLiesBehindTheSamePointersMayChange() throws {
        let state = state()
        let last = LastTensors()
        _ = try payload(state, after: last)
        let row = state.rows[0]
        // Safe: the texts and the numbers are memory of the state, with room.
        UnsafeMutablePointer(mutating: row.name!).pointee = CChar(UInt8(ascii: "B"))
        #expect(try payload(state, after: last) == fresh(state))
        UnsafeMutablePointer(mutating: row.dtype!).pointee = CChar(UInt8(ascii: "I"))
        #expect(try payload(state, after: last) == fresh(state))
        let extents = UnsafeMutablePointer(mutating: state.rows[1].shape!)
        (extents[0], extents[1]) = (6, 1)
        #expect(try payload(state, after: last) == fresh(state))
    }

    @Test func whatIsWrongIsRefusedAfterAKnownSaveToo() throws {
        let changes: [(inout pcc_tensor) -> Void] = [
            { $0.name = nil }, { $0.dtype = nil }, { $0.shape = nil }, { $0.data = nil },
            { $0.byte_count -= 4 }, { $0.rank = 65 }, { $0.place.device = 99 },
        ]
        for change in changes {
            let last = LastTensors()
            let state = state()
            let known = try payload(state, after: last)
            let good = state.rows[1]
            state.change(1, change)
            let found = #expect(throws: CheckpointError.self) { try payload(state, after: last) }
            let expected = #expect(throws: CheckpointError.self) { try fresh(state) }
            #expect(found?.message == expected?.message)
            state.change(1) { $0 = good }
            #expect(try payload(state, after: last) == known)
        }
    }

    @Test func severalThreadsMaySaveAtOnce() async throws {
        let last = LastTensors()
        await withTaskGroup(of: Bool.self) { group in
            for task in 0..<4 {
                group.addTask {
                    let state = state()
                    if task % 2 == 1 { state.swap(0, 1) }
                    let expected = try? fresh(state)
                    return (0..<200).allSatisfy { _ in
                        (try? payload(state, after: last)) == expected
                    }
                }
            }
            for await isRight in group { #expect(isRight) }
        }
    }
}
