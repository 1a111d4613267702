internal import CheckpointFormat

/// A node of a state document (spec/STATE.md) as a tree: for what must look at it twice.
indirect enum StateNode: Hashable, Sendable {
    struct Member: Hashable, Sendable {
        let key: [UInt8]
        let value: StateNode
    }

    case null
    case bool(Bool)
    /// As it is written.
    case number(String)
    /// UTF-8, but for half surrogate pairs, which Python keeps.
    case string([UInt8])
    case array([StateNode])
    case object([Member])

    /// Python's own reader of JSON ends at about a thousand.
    private static let depthLimit = 900

    /// The state that `document` describes.
    static func state(of document: String) throws(StateDocumentError) -> StateNode {
        let root = try parsed(document)
        guard let version = root["version"], let state = root["state"] else {
            throw StateDocumentError("it lacks 'version' or 'state'")
        }
        guard version == .number("1") else {
            throw StateDocumentError("it has another version than 1, which this tool reads")
        }
        return state
    }

    /// The tree of any JSON text.
    static func parsed(_ text: String) throws(StateDocumentError) -> StateNode {
        var scanner = StateText(Array(text.utf8))
        let root = try node(&scanner, depth: 0)
        try scanner.expectEnd()
        return root
    }

    private static func node(
        _ text: inout StateText, depth: Int
    ) throws(StateDocumentError) -> StateNode {
        guard depth < depthLimit else {
            throw StateDocumentError("it is nested more than \(depthLimit) deep")
        }
        switch try text.kind() {
        case .object: return .object(try members(&text, depth: depth))
        case .array: return .array(try items(&text, depth: depth))
        case .string: return .string(try text.text())
        case .number: return .number(try text.number())
        case .null:
            try text.expect(word: "null")
            return .null
        case .bool(let value):
            try text.expect(word: value ? "true" : "false")
            return .bool(value)
        }
    }

    private static func members(
        _ text: inout StateText, depth: Int
    ) throws(StateDocumentError) -> [Member] {
        try text.expect("{")
        if text.consume("}") { return [] }
        var members: [Member] = []
        repeat {
            let key = try text.text()
            try text.expect(":")
            members.append(Member(key: key, value: try node(&text, depth: depth + 1)))
        } while text.consume(",")
        try text.expect("}")
        return members
    }

    private static func items(
        _ text: inout StateText, depth: Int
    ) throws(StateDocumentError) -> [StateNode] {
        try text.expect("[")
        if text.consume("]") { return [] }
        var items: [StateNode] = []
        repeat { items.append(try node(&text, depth: depth + 1)) } while text.consume(",")
        try text.expect("]")
        return items
    }

    // MARK: Looking at it

    /// The value of a key; nil for what is no object, too.
    subscript(key: String) -> StateNode? {
        guard case .object(let members) = self else { return nil }
        let bytes = Array(key.utf8)
        return members.first { $0.key == bytes }?.value
    }

    /// The tag of an object whose first key begins with `$`.
    var tag: String? {
        guard case .object(let members) = self, let first = members.first?.key,
            first.first == UInt8(ascii: "$")
        else { return nil }
        return String(decoding: first, as: UTF8.self)
    }

    var text: String? {
        if case .string(let bytes) = self { String(decoding: bytes, as: UTF8.self) } else { nil }
    }

    var items: [StateNode]? {
        if case .array(let items) = self { items } else { nil }
    }

    /// Numbers of shapes, boxes and ranks: below 2^48, so that products of two are checked easily.
    var counts: [UInt64]? {
        guard let items else { return nil }
        let numbers = items.compactMap(\.count)
        return numbers.count == items.count ? numbers : nil
    }

    var count: UInt64? {
        guard case .number(let digits) = self, let value = UInt64(digits),
            value < TorchPickle.View.numberLimit
        else { return nil }
        return value
    }

    /// What the node is a dictionary of: an object without a tag, or one of the tags of
    /// dictionaries; nil for anything else.
    var entries: [(key: StateNode, value: StateNode)]? {
        let content: StateNode? =
            switch tag {
            case nil: self
            case "$dict"?, "$ordered"?, "$counter"?, "$defaultdict"?: self[tag ?? ""]
            default: nil
            }
        switch content {
        case .object(let members)?: return members.map { (.string($0.key), $0.value) }
        case .array(let pairs)? where tag != nil:
            let entries = pairs.compactMap { pair -> (key: StateNode, value: StateNode)? in
                guard let items = pair.items, items.count == 2 else { return nil }
                return (items[0], items[1])
            }
            return entries.count == pairs.count ? entries : nil
        default: return nil
        }
    }

    /// A key as the names of tensors have it, which is how Python prints it.
    var keyText: String {
        switch self {
        case .null: "None"
        case .bool(let value): value ? "True" : "False"
        case .number(let digits): digits
        case .string(let bytes): String(decoding: bytes, as: UTF8.self)
        case .array(let items): "(\(items.map(\.keyText).joined(separator: ", ")))"
        case .object(let members): members.first?.value.keyText ?? "()"
        }
    }
}

/// The keys that lead to a node of a state.
struct StatePath: Hashable, Sendable {
    enum Key: Hashable, Sendable {
        /// Of a dictionary: the text "0" and the number 0 are two keys.
        case key(StateNode)
        case index(Int)
    }

    private(set) var keys: [Key] = []

    func appending(_ key: Key) -> StatePath {
        var path = self
        path.keys.append(key)
        return path
    }

    /// As tensors are named: `optimizer.state.0.exp_avg`.
    var text: String {
        let texts = keys.map { key in
            switch key {
            case .key(let node): node.keyText
            case .index(let index): "\(index)"
            }
        }
        return texts.joined(separator: ".")
    }
}
