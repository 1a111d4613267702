internal import CPCCheck
internal import CheckpointFormat
internal import CheckpointStorage
internal import CheckpointWriter
internal import Synchronization

#if canImport(Glibc)
    internal import Glibc
#endif

/// What the handle of a writer holds.
final class OpenWriter: Sendable {
    let writer: CheckpointWriter
    let last = LastTensors()

    init(_ writer: CheckpointWriter) { self.writer = writer }

    static func of(_ handle: OpaquePointer?) throws(CheckpointError) -> OpenWriter {
        try Handle.object(handle, OpenWriter.self, "writer")
    }
}

/// Makes payloads, faster for the tensors of the one before.
final class LastTensors: Sendable {
    /// Several threads may describe saves at once.
    private let known = Mutex<KnownTensors?>(nil)

    func payload(
        _ tensors: UnsafeBufferPointer<pcc_tensor>, metadata: [(key: String, value: String)]
    ) throws(CheckpointError) -> CheckpointPayload {
        if let last = known.withLock({ $0 }), last.are(tensors) {
            return try last.payload(tensors, metadata: metadata)
        }
        let described = try tensors.map(tensor)
        let payload = try CheckpointPayload(tensors: described, metadata: metadata)
        if let layout = payload.layout {
            let now = KnownTensors(described.map(\.description), layout)
            known.withLock { $0 = now }
        }
        return payload
    }
}

/// Tensors of a save as C described them, and their layout.
///
/// Training saves the same tensors again and again: to see that they are the same costs a fraction
/// of describing them. What C gives is compared, never where it is: an address may hold something
/// else by now.
final class KnownTensors: Sendable {
    private struct Numbers {
        let rank: UInt32
        let elementByteCount: Int
    }

    /// The name and the dtype of each tensor, all with their NUL.
    private let texts: [CChar]
    private let numbers: [Numbers]
    /// Of all tensors, one after another.
    private let extents: [UInt64]
    private let layout: TensorLayout

    init(_ tensors: [TensorDescription], _ layout: TensorLayout) {
        var texts: [CChar] = []
        for tensor in tensors {
            texts += tensor.name.utf8CString
            texts += tensor.elementType.name.utf8CString
        }
        self.texts = texts
        numbers = tensors.map {
            Numbers(rank: UInt32($0.shape.count), elementByteCount: $0.elementType.planeWidth)
        }
        extents = tensors.flatMap(\.shape)
        self.layout = layout
    }

    /// Whether `given` are these tensors, in this order, and each has all of its memory.
    func are(_ given: UnsafeBufferPointer<pcc_tensor>) -> Bool {
        guard given.count == numbers.count else { return false }
        // Safe: the comparison of a text ends at the first difference, or at the NUL that all have.
        return texts.withUnsafeBufferPointer { texts in
            extents.withUnsafeBufferPointer { extents in
                var text = texts.baseAddress
                var extent = extents.baseAddress
                for (index, tensor) in given.enumerated() {
                    let rank = Int(numbers[index].rank)
                    guard tensor.rank == numbers[index].rank,
                        tensor.byte_count == layout.byteCounts[index],
                        tensor.data != nil || tensor.byte_count == 0,
                        skip(tensor.name, in: &text), skip(tensor.dtype, in: &text),
                        areEqual(tensor.shape, extent, count: rank)
                    else { return false }
                    extent = extent.map { $0 + rank }
                }
                return true
            }
        }
    }

    /// The payload of `given`, which are these tensors.
    func payload(
        _ given: UnsafeBufferPointer<pcc_tensor>, metadata: [(key: String, value: String)]
    ) throws(CheckpointError) -> CheckpointPayload {
        var memory: [CheckpointPayload.Region] = []
        memory.reserveCapacity(given.count)
        for (tensor, numbers) in zip(given, numbers) {
            memory.append(
                try region(
                    tensor, byteCount: Int(tensor.byte_count),
                    elementByteCount: numbers.elementByteCount))
        }
        return try CheckpointPayload(layout: layout, memory: memory, metadata: metadata)
    }
}

/// Whether C gave the text that `known` points to, which is then moved behind it.
private func skip(_ given: UnsafePointer<CChar>?, in known: inout UnsafePointer<CChar>?) -> Bool {
    guard let given, let text = known, strcmp(given, text) == 0 else { return false }
    known = text + strlen(text) + 1
    return true
}

private func areEqual(
    _ given: UnsafePointer<UInt64>?, _ known: UnsafePointer<UInt64>?, count: Int
) -> Bool {
    if count == 0 { return true }
    guard let given, let known else { return false }
    return memcmp(given, known, count * MemoryLayout<UInt64>.stride) == 0
}
