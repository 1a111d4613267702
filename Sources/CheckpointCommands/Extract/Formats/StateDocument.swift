internal import CheckpointFormat

/// Reads a state document (spec/STATE.md) and writes the values that it describes as a pickle, in
/// one pass and without a tree in memory.
///
/// What torch does not load with `weights_only` becomes its nearest kin: NumPy arrays become
/// tensors, NumPy scalars numbers, frozen sets sets (tuples where they are keys or in a set), and
/// byte strings that are stored as tensors stay tensors. A type of Python's library is its content:
/// a path its text, a named tuple a tuple.
struct StateDocument {
    /// Python's own reader of JSON ends at about a thousand.
    private static let depthLimit = 900

    /// Tags whose content stands for the value, with what makes a value of a list in it.
    private static let contentTags: [String: ListForm] = [
        "$path": .tuple, "$date": .tuple, "$time": .tuple, "$datetime": .tuple,
        "$timedelta": .tuple, "$timezone": .tuple, "$zone": .tuple, "$decimal": .tuple,
        "$fraction": .tuple, "$uuid": .tuple, "$range": .tuple, "$slice": .tuple,
        "$enum": .tuple, "$namedtuple": .tuple, "$deque": .list, "$random": .list,
    ]

    /// Tuples can be keys of a dictionary, as what they stand for can.
    private enum ListForm { case tuple, list }

    private var text: StateText
    /// Within how many keys and items of sets it is: they need a hash, which sets do not have.
    private var keyDepth = 0

    init(_ document: String) { text = StateText(Array(document.utf8)) }

    mutating func transcribe(to torch: inout TorchPickle) throws(StateDocumentError) {
        var hasState = false
        var hasVersion = false
        try text.expect("{")
        repeat {
            let key = try text.text()
            try text.expect(":")
            if key == Array("version".utf8), !hasVersion {
                let version = try text.number()
                guard version == "1" else {
                    throw StateDocumentError("it has version \(version), expected 1")
                }
                hasVersion = true
            } else if key == Array("state".utf8), !hasState {
                try node(&torch, depth: 0)
                hasState = true
            } else {
                throw text.failure("'version' and 'state', once each")
            }
        } while text.consume(",")
        try text.expect("}")
        try text.expectEnd()
        guard hasState, hasVersion else {
            throw StateDocumentError("it lacks 'version' or 'state'")
        }
    }

    private mutating func node(
        _ torch: inout TorchPickle, depth: Int
    ) throws(StateDocumentError) {
        guard depth < Self.depthLimit else {
            throw StateDocumentError("it is nested more than \(Self.depthLimit) deep")
        }
        switch try text.kind() {
        case .object: try object(&torch, depth: depth)
        case .array:
            torch.write { $0.emptyList() }
            if try list(&torch, depth: depth) > 0 { torch.write { $0.appends() } }
        case .string:
            let content = try text.text()
            torch.write { $0.string(content) }
        case .null:
            try text.expect(word: "null")
            torch.write { $0.none() }
        case .bool(let value):
            try text.expect(word: value ? "true" : "false")
            torch.write { $0.bool(value) }
        case .number: try number(&torch)
        }
    }

    private mutating func number(_ torch: inout TorchPickle) throws(StateDocumentError) {
        let digits = try text.number()
        if digits.utf8.allSatisfy({ $0 != 0x2E && $0 | 0x20 != 0x65 }) {
            guard let value = Int64(digits) else {
                throw StateDocumentError("the integer \(digits) is too large")
            }
            torch.write { $0.integer(value) }
        } else {
            guard let value = Double(digits) else { throw text.failure("a number") }
            torch.write { $0.float(value) }
        }
    }

    /// Pushes a mark and the nodes of an array, or nothing when it is empty; returns their count.
    private mutating func list(
        _ torch: inout TorchPickle, depth: Int
    ) throws(StateDocumentError) -> Int {
        try text.expect("[")
        if text.consume("]") { return 0 }
        torch.write { $0.mark() }
        var count = 0
        repeat {
            try node(&torch, depth: depth + 1)
            count += 1
        } while text.consume(",")
        try text.expect("]")
        return count
    }

    private mutating func object(
        _ torch: inout TorchPickle, depth: Int
    ) throws(StateDocumentError) {
        if text.isTagged() {
            try text.expect("{")
            let tag = String(decoding: try text.text(), as: UTF8.self)
            try text.expect(":")
            try tagged(tag, &torch, depth: depth)
            try text.expect("}")
        } else {
            torch.write { $0.emptyDictionary() }
            try items(&torch, depth: depth)
        }
    }

    /// Sets the items of an object, or of a list of pairs, in the dictionary that was pushed.
    private mutating func items(
        _ torch: inout TorchPickle, depth: Int
    ) throws(StateDocumentError) {
        let isObject = try text.kind() == .object
        let (open, close): (Unicode.Scalar, Unicode.Scalar) = isObject ? ("{", "}") : ("[", "]")
        try text.expect(open)
        if text.consume(close) { return }
        torch.write { $0.mark() }
        repeat {
            if isObject {
                let key = try text.text()
                torch.write { $0.string(key) }
                try text.expect(":")
                try node(&torch, depth: depth + 1)
            } else {
                try text.expect("[")
                keyDepth += 1
                try node(&torch, depth: depth + 1)
                keyDepth -= 1
                try text.expect(",")
                try node(&torch, depth: depth + 1)
                try text.expect("]")
            }
        } while text.consume(",")
        try text.expect(close)
        torch.write { $0.setItems() }
    }

    private mutating func tagged(
        _ tag: String, _ torch: inout TorchPickle, depth: Int
    ) throws(StateDocumentError) {
        switch tag {
        case "$dict":
            torch.write { $0.emptyDictionary() }
            try items(&torch, depth: depth)
        case "$ordered": try ordered(&torch, depth: depth)
        case "$counter":
            torch.write {
                $0.global("collections", "Counter")
                $0.emptyDictionary()
            }
            try items(&torch, depth: depth)
            torch.write { $0.call1() }
        case "$tuple":
            let count = try list(&torch, depth: depth)
            torch.write { count == 0 ? $0.emptyTuple() : $0.tuple() }
        case "$set", "$frozenset":
            guard keyDepth == 0 else { return try content(.tuple, &torch, depth: depth) }
            torch.write {
                $0.global("builtins", "set")
                $0.emptyList()
            }
            keyDepth += 1
            if try list(&torch, depth: depth) > 0 { torch.write { $0.appends() } }
            keyDepth -= 1
            torch.write { $0.call1() }
        case "$bytes": try bytes(&torch, isMutable: false)
        case "$bytearray": try bytes(&torch, isMutable: true)
        case "$complex":
            torch.write { $0.global("builtins", "complex") }
            guard try list(&torch, depth: depth) == 2 else { throw text.failure("two numbers") }
            torch.write {
                $0.tuple()
                $0.reduce()
            }
        case "$tensor", "$array": try tensor(&torch, isArray: tag == "$array")
        case "$view": try view(&torch)
        case "$sharded":
            throw StateDocumentError(
                "it has a sharded tensor ($sharded), of which this file holds the part of one "
                    + "rank; pcextract of the folder, or pccheck.torch.load_full, puts those of "
                    + "all ranks together")
        case "$torch.Size":
            torch.write { $0.global("torch", "Size") }
            let count = try list(&torch, depth: depth)
            torch.write {
                if count == 0 { $0.emptyTuple() } else { $0.tuple() }
                $0.call1()
            }
        case "$defaultdict":
            torch.write { $0.emptyDictionary() }
            try items(&torch, depth: depth)
            try skipMembers(depth: depth)
        default:
            guard let form = Self.contentTags[tag] else { return try scalar(tag, &torch) }
            try content(form, &torch, depth: depth)
            try skipMembers(depth: depth)
        }
    }

    /// What stands under a tag, without what only Python makes of it.
    private mutating func content(
        _ form: ListForm, _ torch: inout TorchPickle, depth: Int
    ) throws(StateDocumentError) {
        guard case .tuple = form, try text.kind() == .array else {
            return try node(&torch, depth: depth + 1)
        }
        let count = try list(&torch, depth: depth)
        torch.write { count == 0 ? $0.emptyTuple() : $0.tuple() }
    }

    /// Passes over the members behind the first one of an object.
    private mutating func skipMembers(depth: Int) throws(StateDocumentError) {
        while text.consume(",") {
            _ = try text.text()
            try text.expect(":")
            try skipNode(depth: depth + 1)
        }
    }

    private mutating func skipNode(depth: Int) throws(StateDocumentError) {
        guard depth < Self.depthLimit else {
            throw StateDocumentError("it is nested more than \(Self.depthLimit) deep")
        }
        switch try text.kind() {
        case .object:
            try text.expect("{")
            if text.consume("}") { return }
            _ = try text.text()
            try text.expect(":")
            try skipNode(depth: depth + 1)
            try skipMembers(depth: depth)
            try text.expect("}")
        case .array:
            try text.expect("[")
            if text.consume("]") { return }
            repeat { try skipNode(depth: depth + 1) } while text.consume(",")
            try text.expect("]")
        case .string: _ = try text.text()
        case .number: _ = try text.number()
        case .null: try text.expect(word: "null")
        case .bool(let value): try text.expect(word: value ? "true" : "false")
        }
    }

    private mutating func ordered(
        _ torch: inout TorchPickle, depth: Int
    ) throws(StateDocumentError) {
        torch.write {
            $0.global("collections", "OrderedDict")
            $0.emptyTuple()
            $0.reduce()
        }
        try items(&torch, depth: depth)
        guard text.consume(",") else { return }
        try text.expectKey("_metadata")
        torch.write {
            $0.emptyDictionary()
            $0.string("_metadata")
        }
        try node(&torch, depth: depth + 1)
        torch.write {
            $0.setItem()
            $0.build()
        }
    }

    private mutating func tensor(
        _ torch: inout TorchPickle, isArray: Bool
    ) throws(StateDocumentError) {
        let name = try text.text()
        var tag: String?
        if text.consume(",") {
            try text.expectKey("dtype")
            tag = String(decoding: try text.text(), as: UTF8.self)
        }
        if isArray, let type = tag { tag = NumpyScalar.torchType(type) }
        try torch.tensor(name, tag: tag)
    }

    /// A tensor that shares the memory of a stored one. The keys behind the name may be in any
    /// order, each once.
    private mutating func view(_ torch: inout TorchPickle) throws(StateDocumentError) {
        let name = try text.text()
        var type: [UInt8]?
        var (offset, shape, stride): (UInt64?, [UInt64]?, [UInt64]?)
        while text.consume(",") {
            let key = String(decoding: try text.text(), as: UTF8.self)
            try text.expect(":")
            switch key {
            case "dtype" where type == nil: type = try text.text()
            case "offset" where offset == nil: offset = try extent()
            case "shape" where shape == nil: shape = try extents()
            case "stride" where stride == nil: stride = try extents()
            default: throw text.failure("the four keys of a view, once each")
            }
        }
        guard let type, let offset, let shape, let stride else {
            throw text.failure("dtype, offset, shape and stride of a view")
        }
        try torch.view(
            name,
            TorchPickle.View(
                type: String(decoding: type, as: UTF8.self), offset: offset, shape: shape,
                stride: stride))
    }

    private mutating func extents() throws(StateDocumentError) -> [UInt64] {
        try text.expect("[")
        if text.consume("]") { return [] }
        var extents: [UInt64] = []
        repeat {
            extents.append(try extent())
            guard extents.count <= Limits.tensorRank else {
                throw StateDocumentError("a view has more than \(Limits.tensorRank) dimensions")
            }
        } while text.consume(",")
        try text.expect("]")
        return extents
    }

    /// A number of a view: below 2^48, so that products of two fit.
    private mutating func extent() throws(StateDocumentError) -> UInt64 {
        guard let value = UInt64(try text.number()), value < TorchPickle.View.numberLimit else {
            throw text.failure("a number of a view, below 2^48")
        }
        return value
    }

    /// Bytes in base64; those that are stored as a tensor stay one.
    private mutating func bytes(
        _ torch: inout TorchPickle, isMutable: Bool
    ) throws(StateDocumentError) {
        guard try text.kind() == .string else {
            try text.expect("{")
            try text.expectKey("tensor")
            try torch.tensor(try text.text(), tag: nil)
            try text.expect("}")
            return
        }
        let content = try text.base64()
        torch.write {
            if isMutable { $0.global("builtins", "bytearray") }
            // As Python writes bytes in protocol 2: text whose characters are the bytes.
            $0.global("_codecs", "encode")
            $0.string(
                Array(content.map { Character(Unicode.Scalar($0)) }).map(String.init).joined())
            $0.string("latin1")
            $0.tuple2()
            $0.reduce()
            if isMutable { $0.call1() }
        }
    }

    private mutating func scalar(
        _ tag: String, _ torch: inout TorchPickle
    ) throws(StateDocumentError) {
        let content = String(decoding: try text.text(), as: UTF8.self)
        switch tag {
        case "$int":
            guard let bytes = NumpyScalar.twosComplement(hexadecimal: content) else {
                throw StateDocumentError("an integer is longer than torch reads")
            }
            torch.write { $0.integer(twosComplement: bytes) }
        case "$float":
            guard let value = NumpyScalar.float(content) else { throw text.failure("a float") }
            torch.write { $0.float(value) }
        case "$scalar":
            try text.expect(",")
            try text.expectKey("bytes")
            let bytes = try text.base64()
            guard let value = NumpyScalar(type: content, bytes: bytes) else {
                throw StateDocumentError("a scalar of type \"\(content)\" is not known")
            }
            torch.write(value.write)
        case "$torch.dtype":
            guard TorchPickle.elementByteCounts[content] != nil else {
                throw StateDocumentError("it names a type \"\(content)\" that is not known")
            }
            torch.write { $0.global("torch", content) }
        case "$torch.device":
            torch.write {
                $0.global("torch", "device")
                $0.string(content)
                $0.call1()
            }
        default: throw StateDocumentError("it has the unknown tag \(tag)")
        }
    }
}

extension PickleWriter {
    /// Calls the function with the one argument that follows it.
    mutating func call1() {
        tuple1()
        reduce()
    }
}
