internal import CheckpointFormat

/// Puts the documents of all ranks together, one after the other; no more than one is in memory.
struct StateJoining {
    /// A tensor that is divided, as far as the parts that were added have it.
    private struct Divided {
        let path: StatePath
        /// The part that was the first to have it.
        let part: Int
        let type: String
        let shape: [UInt64]
        let form: StoredForm
        var ranks: [UInt64]
        var regions: [JoinedState.Region] = []
    }

    /// A stored tensor that a rank holds for itself.
    private struct Own {
        let part: Int
        let tensor: SafetensorsManifest.Tensor
        let payloadOffset: UInt64
    }

    /// What makes two tensors one: tied weights are stored once.
    private struct Content: Hashable {
        let type: String
        let shape: [UInt64]
        let regions: [JoinedState.Region]
    }

    /// `format` of the first part that has it.
    private(set) var format: String?
    /// A part has a state document, which also holds values that are no tensors.
    private(set) var hasDocument = false

    private let ranks: [UInt32]
    private let numbers: OptimizerNumbers
    private var divided: [Divided] = []
    private var indexOf: [StatePath: Int] = [:]
    private var own: [Own] = []

    init(ranks: [UInt32], numbers: OptimizerNumbers) {
        self.ranks = ranks
        self.numbers = numbers
    }

    // MARK: One part after the other

    mutating func add(
        _ manifest: SafetensorsManifest, part: Int
    ) throws(StateDocumentError) {
        format = format ?? manifest.value(of: "format")
        var sharedNames: Set<String> = []
        var ownNames: Set<String> = []
        if let document = manifest.value(of: "pccheck.state") {
            hasDocument = true
            let state = try StateTensors(StateNode.state(of: document), part: part, numbers)
            ownNames = state.ownNames
            let stored = StoredTensors(manifest)
            for (path, sharded) in state.sharded {
                let index = try index(of: sharded, at: path, part: part)
                for box in sharded.parts {
                    let form = divided[index].form
                    let found = try stored.values(of: box, sharded.type, form, at: path)
                    sharedNames.insert(found.name)
                    divided[index].regions.append(
                        JoinedState.Region(
                            part: part, box: form.box(box.box),
                            payloadOffset: found.payloadOffset, strides: found.strides))
                }
            }
        }
        for tensor in manifest.tensors
        where !sharedNames.contains(tensor.name) || ownNames.contains(tensor.name) {
            own.append(
                Own(
                    part: part, tensor: tensor,
                    payloadOffset: manifest.payloadRange(of: tensor).lowerBound))
        }
    }

    /// The place of the tensor among the divided ones.
    private mutating func index(
        of sharded: ShardedTensor, at path: StatePath, part: Int
    ) throws(StateDocumentError) -> Int {
        guard let index = indexOf[path] else {
            guard let form = StoredForm(torchType: sharded.type) else {
                throw StateDocumentError(
                    "tensor '\(path.text)' has a type \"\(sharded.type)\" that is not known")
            }
            indexOf[path] = divided.count
            divided.append(
                Divided(
                    path: path, part: part, type: sharded.type, shape: sharded.shape, form: form,
                    ranks: sharded.ranks))
            return divided.count - 1
        }
        let other = divided[index]
        guard (other.type, other.shape) == (sharded.type, sharded.shape) else {
            throw StateDocumentError(
                "tensor '\(path.text)' is \(sharded.type) \(sharded.shape) on rank "
                    + "\(ranks[part]), and \(other.type) \(other.shape) on rank "
                    + "\(ranks[other.part]); these files are not of one save, or the ranks saved "
                    + "other tensors under one name")
        }
        if other.ranks != sharded.ranks {
            divided[index].ranks = Array(Set(other.ranks + sharded.ranks)).sorted()
        }
        return index
    }

    // MARK: All parts

    /// Torch's types that no file names, with how many of the divided tensors have them.
    var standIns: [String: Int] {
        Dictionary(
            divided.filter { StoredForm.isStandIn($0.type) }.map { ($0.type, 1) },
            uniquingKeysWith: +)
    }

    /// All tensors: the divided ones, then those of each rank, under names that are unique.
    var named: [JoinedState.Tensor] {
        var tensors: [JoinedState.Tensor] = []
        var taken: Set<String> = []
        func unique(_ name: String) -> String {
            if taken.insert(name).inserted { return name }
            return (2...).lazy.map { "\(name)~\($0)" }.first { taken.insert($0).inserted } ?? name
        }
        var seen: Set<Content> = []
        for item in divided {
            let content = Content(type: item.type, shape: item.shape, regions: item.regions)
            guard item.regions.isEmpty || seen.insert(content).inserted else { continue }
            tensors.append(
                JoinedState.Tensor(
                    name: unique(item.path.text), elementType: item.form.elementType,
                    shape: item.form.shape(item.shape),
                    source: .joined(item.regions, ranks: item.ranks)))
        }
        let counts = Dictionary(own.map { ($0.tensor.name, 1) }, uniquingKeysWith: +)
        for item in own {
            let isOfSeveral = counts[item.tensor.name, default: 0] > 1
            let prefix = isOfSeveral ? "rank-\(Int(ranks[item.part]).digits(5))/" : ""
            tensors.append(
                JoinedState.Tensor(
                    name: unique(prefix + item.tensor.name), elementType: item.tensor.elementType,
                    shape: item.tensor.shape,
                    source: .own(part: item.part, payloadOffset: item.payloadOffset)))
        }
        return tensors
    }
}

/// The stored tensors of one part, in which the values of boxes are looked up.
private struct StoredTensors {
    private let manifest: SafetensorsManifest
    private let byName: [String: SafetensorsManifest.Tensor]

    init(_ manifest: SafetensorsManifest) {
        self.manifest = manifest
        byName = Dictionary(
            manifest.tensors.map { ($0.name, $0) }, uniquingKeysWith: { first, _ in first })
    }

    typealias Values = (name: String, payloadOffset: UInt64, strides: [UInt64])

    /// Where the values of a box are.
    func values(
        of part: ShardedTensor.Part, _ type: String, _ form: StoredForm, at path: StatePath
    ) throws(StateDocumentError) -> Values {
        let tag = part.local.tag ?? "nothing"
        guard tag == "$tensor" || tag == "$view", let name = part.local[tag]?.text,
            let tensor = byName[name]
        else {
            throw StateDocumentError(
                "tensor '\(path.text)' has the box \(part.box) without a stored tensor")
        }
        let isView = tag == "$view"
        guard
            let found = isView
                ? view(part, type, form, tensor) : dense(part, type, form, tensor)
        else {
            throw StateDocumentError(
                "tensor '\(path.text)' has the box \(part.box) of \(type), which the stored "
                    + "tensor \"\(name)\" of \(tensor.elementType) \(tensor.shape) does not fit")
        }
        let base = manifest.payloadRange(of: tensor).lowerBound
        return (name, base + found.offset, found.strides)
    }

    private func dense(
        _ part: ShardedTensor.Part, _ type: String, _ form: StoredForm,
        _ tensor: SafetensorsManifest.Tensor
    ) -> (offset: UInt64, strides: [UInt64])? {
        let tagged = part.local["dtype"]?.text
        guard tensor.elementType == form.elementType, tensor.shape == form.box(part.box).sizes,
            tagged == nil || tagged == type
        else { return nil }
        return (0, form.elementType.byteStrides(tensor.shape))
    }

    private func view(
        _ part: ShardedTensor.Part, _ type: String, _ form: StoredForm,
        _ tensor: SafetensorsManifest.Tensor
    ) -> (offset: UInt64, strides: [UInt64])? {
        guard let offset = part.local["offset"]?.count, let shape = part.local["shape"]?.counts,
            let stride = part.local["stride"]?.counts, part.local["dtype"]?.text == type,
            shape == part.box.sizes
        else { return nil }
        let view = TorchPickle.View(type: type, offset: offset, shape: shape, stride: stride)
        let byteCount = form.elementByteCount
        guard view.isWithin(UInt64(tensor.dataRange.count), byteCount) else { return nil }
        let halves = form.isPair ? [byteCount / 2] : []
        // An empty view may have any strides; nothing is read of it.
        return (offset, stride.map { $0.multiplied(by: byteCount, plus: 0) ?? 0 } + halves)
    }
}

extension ElementType {
    /// Row-major strides of a dense tensor, of a type whose elements fill bytes.
    func byteStrides(_ shape: [UInt64]) -> [UInt64] {
        // Only an empty tensor may have extents whose product does not fit.
        TorchPickle.strides(shape).map { $0.multiplied(by: UInt64(bitCount / 8), plus: 0) ?? 0 }
    }
}
