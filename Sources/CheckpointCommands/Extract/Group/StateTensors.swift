internal import CheckpointFormat

/// What the document of one rank says of a tensor that is divided among the files.
struct ShardedTensor: Sendable {
    struct Part: Sendable {
        let box: TensorBox
        /// The node of its values.
        let local: StateNode
    }

    let shape: [UInt64]
    /// Name of torch's type.
    let type: String
    /// The ranks whose files hold the tensor together.
    let ranks: [UInt64]
    /// Those that are in this file.
    let parts: [Part]

    /// - Parameter content: of a `$sharded` node.
    init(_ content: StateNode, at path: StatePath) throws(StateDocumentError) {
        guard let shape = content["shape"]?.counts, shape.count <= Limits.tensorRank,
            let type = content["dtype"]?.text, let ranks = content["ranks"]?.counts,
            let boxes = content["boxes"]?.items
        else {
            throw StateDocumentError(
                "'\(path.text)' lacks shape, dtype, ranks or boxes of a sharded tensor, or they "
                    + "are no numbers below 2^48")
        }
        self.shape = shape
        self.type = type
        self.ranks = ranks
        parts = try boxes.map { node throws(StateDocumentError) in
            guard let offsets = node["offsets"]?.counts, let sizes = node["sizes"]?.counts,
                let local = node["local"]
            else {
                throw StateDocumentError("'\(path.text)' has a box without place or values")
            }
            let box = TensorBox(offsets: offsets, sizes: sizes)
            guard box.isWithin(shape) else {
                throw StateDocumentError("'\(path.text)' of shape \(shape) has the box \(box)")
            }
            return Part(box: box, local: local)
        }
    }
}

/// The tensors that the state document of one rank refers to.
struct StateTensors {
    private(set) var sharded: [(path: StatePath, tensor: ShardedTensor)] = []
    /// Stored tensors that the rank holds for itself.
    private(set) var ownNames: Set<String> = []

    private let numbers: OptimizerNumbers
    private let part: Int

    /// - Parameter numbers: how the optimizers of all ranks number their parameters together.
    init(
        _ state: StateNode, part: Int, _ numbers: OptimizerNumbers
    ) throws(StateDocumentError) {
        self.numbers = numbers
        self.part = part
        try visit(state, StatePath())
    }

    private mutating func visit(
        _ node: StateNode, _ path: StatePath
    ) throws(StateDocumentError) {
        switch node {
        case .null, .bool, .number, .string: return
        case .array(let items):
            for (index, item) in items.enumerated() {
                try visit(item, path.appending(.index(index)))
            }
        case .object(let members):
            if let entries = node.entries {
                try visit(entries, path)
            } else if let tag = node.tag, let content = members.first?.value {
                try visit(tag, content, path)
            }
            // What follows a tag may be nodes, too, such as the versions of a module.
            if node.tag != nil {
                for member in members.dropFirst() {
                    try visit(member.value, path.appending(.key(.string(member.key))))
                }
            }
        }
    }

    private mutating func visit(
        _ entries: [(key: StateNode, value: StateNode)], _ path: StatePath
    ) throws(StateDocumentError) {
        for entry in entries {
            let key = try numbers.common(entry.key, at: path, in: part)
            try visit(entry.value, path.appending(.key(key)))
        }
    }

    private mutating func visit(
        _ tag: String, _ content: StateNode, _ path: StatePath
    ) throws(StateDocumentError) {
        switch tag {
        case "$sharded": sharded.append((path, try ShardedTensor(content, at: path)))
        case "$tensor", "$array", "$view":
            guard let name = content.text else {
                throw StateDocumentError("'\(path.text)' refers to no tensor")
            }
            ownNames.insert(name)
        case "$bytes", "$bytearray":
            if let name = content["tensor"]?.text { ownNames.insert(name) }
        case "$dict", "$ordered", "$counter", "$defaultdict":
            throw StateDocumentError("'\(path.text)' is no dictionary, as its tag \(tag) says")
        default: try visit(content, path)
        }
    }
}
