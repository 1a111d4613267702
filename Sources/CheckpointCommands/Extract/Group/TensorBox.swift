internal import CheckpointFormat

/// A rectangular part of a tensor.
struct TensorBox: Hashable, Sendable, CustomStringConvertible {
    var offsets: [UInt64]
    var sizes: [UInt64]

    /// The box that is the tensor itself.
    static func whole(_ shape: [UInt64]) -> TensorBox {
        TensorBox(offsets: [UInt64](repeating: 0, count: shape.count), sizes: shape)
    }

    /// It has an element; one without dimensions has one.
    var hasElements: Bool { !sizes.contains(0) }

    func isWithin(_ shape: [UInt64]) -> Bool {
        offsets.count == shape.count && sizes.count == shape.count
            && zip(zip(offsets, sizes), shape).allSatisfy { $0.0 <= $1 && $0.1 <= $1 - $0.0 }
    }

    /// What it has in common with another one; nil when that is nothing.
    func common(with other: TensorBox) -> TensorBox? {
        var common = self
        for axis in sizes.indices {
            let start = max(offsets[axis], other.offsets[axis])
            let end = min(
                offsets[axis] + sizes[axis], other.offsets[axis] + other.sizes[axis])
            if start >= end { return nil }
            common.offsets[axis] = start
            common.sizes[axis] = end - start
        }
        return common
    }

    /// The boxes that remain of it without `part`, which lies within it.
    func without(_ part: TensorBox) -> [TensorBox] {
        var rest = self
        var boxes: [TensorBox] = []
        for axis in sizes.indices {
            let before = part.offsets[axis] - rest.offsets[axis]
            let after = rest.sizes[axis] - before - part.sizes[axis]
            if before > 0 {
                var box = rest
                box.sizes[axis] = before
                boxes.append(box)
            }
            if after > 0 {
                var box = rest
                box.offsets[axis] = part.offsets[axis] + part.sizes[axis]
                box.sizes[axis] = after
                boxes.append(box)
            }
            rest.offsets[axis] = part.offsets[axis]
            rest.sizes[axis] = part.sizes[axis]
        }
        return boxes
    }

    /// As Python writes the indices of such a part: `[0:4, 2:3]`.
    var description: String {
        let spans = zip(offsets, sizes).map { "\($0):\($0 + $1)" }
        return "[\(spans.joined(separator: ", "))]"
    }
}

/// How a torch type is stored: spec/STATE.md, "Tensors".
struct StoredForm: Hashable, Sendable {
    let elementType: ElementType
    /// Complex numbers have a last dimension of 2.
    let isPair: Bool

    private static let names: [String: String] = [
        "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16",
        "uint32": "U32", "int32": "I32", "uint64": "U64", "int64": "I64", "float16": "F16",
        "bfloat16": "BF16", "float32": "F32", "float64": "F64", "float8_e4m3fn": "F8_E4M3",
        "float8_e5m2": "F8_E5M2",
    ]
    private static let halves = ["complex32": "F16", "complex64": "F32", "complex128": "F64"]
    private static let words: [UInt64: String] = [1: "U8", 2: "U16", 4: "U32", 8: "U64"]

    /// nil for a type that torch does not have.
    init?(torchType name: String) {
        let half = Self.halves[name]
        let word = TorchPickle.elementByteCounts[name].flatMap { Self.words[$0] }
        guard let stored = half ?? Self.names[name] ?? word,
            let type = ElementType(name: stored)
        else { return nil }
        elementType = type
        isPair = half != nil
    }

    /// The type has no name in safetensors.
    static func isStandIn(_ torchType: String) -> Bool { names[torchType] == nil }

    /// Bytes of one of torch's elements.
    var elementByteCount: UInt64 { UInt64(elementType.bitCount / 8) * (isPair ? 2 : 1) }

    func shape(_ shape: [UInt64]) -> [UInt64] { isPair ? shape + [2] : shape }

    func box(_ box: TensorBox) -> TensorBox {
        isPair ? TensorBox(offsets: box.offsets + [0], sizes: box.sizes + [2]) : box
    }
}
