internal import CheckpointFormat

/// The `data.pkl` of a `.pt` file: a nest of Python values whose tensors are in other members.
struct TorchPickle {
    /// How torch is to see stored bytes.
    struct Form: Equatable, Sendable {
        /// A type that has a storage class of its own, which every release of torch knows; nil for
        /// one that is named by `type`, which torch 2.1 and newer read.
        let storageClass: String?
        let type: String
        let elementByteCount: UInt64
        let shape: [UInt64]
    }

    /// A `$view` node of a state document: elements of a stored tensor, which others see too.
    struct View: Hashable, Sendable {
        /// What the numbers of a view are below.
        static let numberLimit: UInt64 = 1 << 48

        let type: String
        /// Byte of the stored tensor at which it begins.
        let offset: UInt64
        let shape: [UInt64]
        /// In elements.
        let stride: [UInt64]
    }

    private struct MemoKey: Hashable {
        let index: Int
        let tag: String?
        var view: View?
    }

    private static let classic: [String: String] = [
        "float64": "DoubleStorage", "float32": "FloatStorage", "float16": "HalfStorage",
        "bfloat16": "BFloat16Storage", "int64": "LongStorage", "int32": "IntStorage",
        "int16": "ShortStorage", "int8": "CharStorage", "uint8": "ByteStorage",
        "bool": "BoolStorage", "complex64": "ComplexFloatStorage",
        "complex128": "ComplexDoubleStorage",
    ]

    private static let typesOfStored: [String: String] = [
        "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
        "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
        "C64": "complex64", "U16": "uint16", "U32": "uint32", "U64": "uint64",
        "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
        "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    ]

    /// Bytes per element of every type that a state document may name.
    static let elementByteCounts: [String: UInt64] = [
        "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4,
        "int16": 2, "int8": 1, "uint8": 1, "bool": 1, "complex32": 4, "complex64": 8,
        "complex128": 16, "uint16": 2, "uint32": 4, "uint64": 8, "float8_e4m3fn": 1,
        "float8_e5m2": 1, "float8_e8m0fnu": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1,
        "float4_e2m1fn_x2": 1, "bits8": 1, "bits16": 2, "bits1x8": 1, "bits2x4": 1, "bits4x2": 1,
        "uint1": 1, "uint2": 1, "uint3": 1, "uint4": 1, "uint5": 1, "uint6": 1, "uint7": 1,
        "int1": 1, "int2": 1, "int3": 1, "int4": 1, "int5": 1, "int6": 1, "int7": 1,
    ]

    private static let elementByteCountsOfClasses = Dictionary(
        uniqueKeysWithValues: classic.map { ($1, elementByteCounts[$0] ?? 1) })

    private var pickle = PickleWriter()
    private let tensors: [SafetensorsManifest.Tensor]
    private let indices: [[UInt8]: Int]
    private var made: [MemoKey: UInt32] = [:]
    private var referenced = Set<Int>()
    /// How the first reference to a tensor named its storage. torch keeps the storage, and the
    /// type that goes with its class, for all later references.
    private var storages: [Int: String?] = [:]

    /// - Parameter tensors: in the order in which their bytes are members of the archive.
    private init(_ tensors: [SafetensorsManifest.Tensor]) {
        self.tensors = tensors
        indices = Dictionary(
            tensors.enumerated().map { (Array($1.name.utf8), $0) },
            uniquingKeysWith: { first, _ in first })
    }

    /// A dictionary of the tensors by name.
    static func flat(_ tensors: [SafetensorsManifest.Tensor]) -> [UInt8] {
        var torch = TorchPickle(tensors)
        torch.pickle.emptyDictionary()
        torch.pickle.mark()
        for (index, tensor) in tensors.enumerated() {
            torch.pickle.string(tensor.name)
            torch.append(index, tag: nil, Self.form(of: tensor))
        }
        torch.pickle.setItems()
        torch.pickle.stop()
        return torch.pickle.bytes
    }

    /// The state that `document` describes, as it was saved.
    ///
    /// - Throws: `StateDocumentError` when the document breaks its rules, holds what torch would
    ///   not load with `weights_only`, or leaves a tensor out.
    static func nested(
        _ tensors: [SafetensorsManifest.Tensor], document: String
    ) throws(StateDocumentError) -> [UInt8] {
        var torch = TorchPickle(tensors)
        var reader = StateDocument(document)
        try reader.transcribe(to: &torch)
        guard torch.referenced.count == tensors.count else {
            let count = tensors.count - torch.referenced.count
            throw StateDocumentError("it leaves \(Quantity.plural(count, "tensor")) out")
        }
        torch.pickle.stop()
        return torch.pickle.bytes
    }

    static func form(of tensor: SafetensorsManifest.Tensor) -> Form {
        let name = tensor.elementType.name
        if let type = typesOfStored[name] { return form(type, tensor.shape) }
        if name == "F4", let last = tensor.shape.last, last % 2 == 0 {
            return form("float4_e2m1fn_x2", tensor.shape.dropLast() + [last / 2])
        }
        // torch has no such type: the bytes.
        return form("uint8", [UInt64(tensor.dataRange.count)])
    }

    private static func form(_ type: String, _ shape: [UInt64]) -> Form {
        Form(
            storageClass: classic[type], type: type,
            elementByteCount: elementByteCounts[type] ?? 1, shape: shape)
    }

    // MARK: What a state document is made of

    /// Lets `body` write values.
    mutating func write(_ body: (inout PickleWriter) -> Void) { body(&pickle) }

    /// The tensor `name`.
    ///
    /// - Parameter tag: the name of the type that it had, when the stored one is a stand-in.
    mutating func tensor(_ name: [UInt8], tag: String?) throws(StateDocumentError) {
        guard let index = indices[name] else { throw Self.missing(name) }
        let tensor = tensors[index]
        guard let tag else { return append(index, tag: nil, Self.form(of: tensor)) }
        guard let byteCount = Self.elementByteCounts[tag] else {
            throw StateDocumentError("it names a type \"\(tag)\" that torch does not have")
        }
        // Complex numbers are stored as pairs: the last dimension is theirs.
        let isPair = tag.hasPrefix("complex")
        guard !isPair || tensor.shape.last == 2 else {
            throw StateDocumentError("tensor \"\(tensor.name)\" is no pair of numbers")
        }
        let storedByteCount = UInt64(tensor.elementType.bitCount) * (isPair ? 2 : 1)
        guard storedByteCount == byteCount * 8 else {
            throw StateDocumentError("tensor \"\(tensor.name)\" does not fit its type \(tag)")
        }
        append(
            index, tag: tag,
            Self.form(tag, isPair ? tensor.shape.dropLast() : tensor.shape))
    }

    private mutating func append(_ index: Int, tag: String?, _ form: Form) {
        let view = View(
            type: form.type, offset: 0, shape: form.shape, stride: Self.strides(form.shape))
        append(MemoKey(index: index, tag: tag), view, form, storageClass: form.storageClass)
    }

    /// The tensor `view`, which shares its memory with others in the same way.
    mutating func view(_ name: [UInt8], _ view: View) throws(StateDocumentError) {
        guard let index = indices[name] else { throw Self.missing(name) }
        guard let form = Self.formOfView(view) else {
            throw StateDocumentError("it names a type \"\(view.type)\" that no view has")
        }
        guard view.isWithin(UInt64(tensors[index].dataRange.count), form.elementByteCount) else {
            throw StateDocumentError(
                "a view of tensor \"\(tensors[index].name)\" reaches outside of it")
        }
        // The storage of a view of another type is bytes: their number may fit no type.
        let stored = Self.form(of: tensors[index])
        append(
            MemoKey(index: index, tag: nil, view: view), view, form,
            storageClass: stored.type == form.type ? form.storageClass : nil)
    }

    private static func formOfView(_ view: View) -> Form? {
        elementByteCounts[view.type] == nil ? nil : form(view.type, view.shape)
    }

    private static func missing(_ name: [UInt8]) -> StateDocumentError {
        StateDocumentError(
            "it names a tensor \"\(String(decoding: name, as: UTF8.self))\" that is not there")
    }

    private mutating func append(
        _ key: MemoKey, _ view: View, _ form: Form, storageClass preferred: String?
    ) {
        let index = key.index
        referenced.insert(index)
        if let known = made[key] { return pickle.get(known) }
        let storageClass = storages[index] ?? preferred
        storages.updateValue(storageClass, forKey: index)
        // Only the tensors of the storage's own type can be left to it.
        let isTyped = storageClass != nil && storageClass == form.storageClass
        pickle.global("torch._utils", isTyped ? "_rebuild_tensor_v2" : "_rebuild_tensor_v3")
        pickle.mark()
        appendStorage(index, storageClass)
        pickle.integer(view.offset / form.elementByteCount)
        pickle.tuple(view.shape)
        pickle.tuple(view.stride)
        pickle.bool(false)
        pickle.global("collections", "OrderedDict")
        pickle.emptyTuple()
        pickle.reduce()
        if !isTyped { pickle.global("torch", form.type) }
        pickle.tuple()
        pickle.reduce()
        made[key] = pickle.put()
    }

    private mutating func appendStorage(_ index: Int, _ storageClass: String?) {
        pickle.mark()
        pickle.string("storage")
        if let storageClass {
            pickle.global("torch", storageClass)
        } else {
            pickle.global("torch.storage", "UntypedStorage")
        }
        pickle.string("\(index)")
        pickle.string("cpu")
        // Untyped storages count bytes.
        let elementByteCount = storageClass.flatMap { Self.elementByteCountsOfClasses[$0] } ?? 1
        pickle.integer(UInt64(tensors[index].dataRange.count) / elementByteCount)
        pickle.tuple()
        pickle.persistentID()
    }

    /// Row-major strides, in elements. An empty tensor may have any extents, so that a product of
    /// them may not fit.
    static func strides(_ shape: [UInt64]) -> [UInt64] {
        var stride: UInt64 = 1
        var strides: [UInt64] = []
        for extent in shape.reversed() {
            strides.append(stride)
            stride = stride.multiplied(by: max(extent, 1), plus: 0) ?? UInt64(Int64.max)
        }
        return strides.reversed()
    }
}

extension TorchPickle.View {
    /// The view begins at one of its elements, and its last one ends within `byteCount`.
    func isWithin(_ byteCount: UInt64, _ elementByteCount: UInt64) -> Bool {
        guard shape.count == stride.count, offset % elementByteCount == 0 else { return false }
        var elementCount: UInt64 = 1
        var last: UInt64 = 0
        for (extent, step) in zip(shape, stride) {
            if extent == 0 { return offset <= byteCount }
            guard let count = elementCount.multiplied(by: extent, plus: 0),
                count < Self.numberLimit, let sum = (extent - 1).multiplied(by: step, plus: last)
            else { return false }
            (elementCount, last) = (count, sum)
        }
        guard let end = (last &+ 1).multiplied(by: elementByteCount, plus: offset), last < .max
        else { return false }
        return end <= byteCount
    }
}

/// Why a state document cannot be put back.
struct StateDocumentError: Error, Hashable, Sendable {
    let message: String
    init(_ message: String) { self.message = message }
}
