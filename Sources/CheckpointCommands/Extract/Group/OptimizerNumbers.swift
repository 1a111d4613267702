internal import CheckpointFormat

/// One numbering for optimizers whose ranks have other parameters, as the stages of a pipeline do:
/// spec/STATE.md, "How to join the files".
///
/// The state of an optimizer numbers its parameters, and number 0 of one stage is another parameter
/// than number 0 of the next one. Their names, which a save records, say which is which.
struct OptimizerNumbers: Sendable {
    private typealias Groups = [[StateNode]]

    /// By the key path of an optimizer's `state`: for each part its own numbers, and the common
    /// ones.
    private var tables: [String: [Int: [StateNode: StateNode]]] = [:]

    /// - Parameter records: `pccheck.objects` of each part, in order; nil where there is none.
    init(_ records: [String?]) throws(StateDocumentError) {
        // Most jobs have the same parameters on all ranks.
        guard Set(records).count > 1 else { return }
        let objects = try records.map { record throws(StateDocumentError) in
            try record.map(StateNode.parsed)?["objects"]
        }
        var paths: Set<String> = []
        for entry in objects.flatMap({ $0?.entries ?? [] }) { paths.insert(entry.key.keyText) }
        for path in paths.sorted() {
            try add(path, objects.map { $0?[path]?["parameters"] })
        }
    }

    private mutating func add(
        _ path: String, _ parameters: [StateNode?]
    ) throws(StateDocumentError) {
        let groups = parameters.map { groups -> Groups? in
            guard let items = groups?.items else { return nil }
            let lists = items.compactMap(\.items)
            return lists.count == items.count ? lists : nil
        }
        // A part without the optimizer has no number of it.
        let known = groups.compactMap(\.self)
        guard let first = known.first, known.contains(where: { $0 != first }) else { return }
        guard known.allSatisfy({ $0.count == first.count }),
            !known.joined().joined().contains(.null)
        else {
            throw StateDocumentError(
                "the ranks had other parameters in '\(path)', and its groups, or parameters "
                    + "without a name, do not say which is which; extract the files of single ranks"
            )
        }
        var common: [StateNode: StateNode] = [:]
        for index in first.indices {
            for groups in known {
                for names in groups[index] where common[names] == nil {
                    common[names] = .number("\(common.count)")
                }
            }
        }
        var table: [Int: [StateNode: StateNode]] = [:]
        for (part, groups) in groups.enumerated() {
            // torch numbers the parameters of all groups in their order.
            for (number, names) in (groups ?? []).joined().enumerated() {
                table[part, default: [:]][.number("\(number)")] = common[names]
            }
        }
        tables["\(path).state"] = table
    }

    /// The number that stands for the same parameter on all ranks; any other key is itself.
    func common(
        _ key: StateNode, at path: StatePath, in part: Int
    ) throws(StateDocumentError) -> StateNode {
        guard !tables.isEmpty, case .number(let digits) = key, let table = tables[path.text] else {
            return key
        }
        guard let common = table[part]?[key] else {
            throw StateDocumentError(
                "'\(path.text)' has a parameter \(digits), of which the record of the objects "
                    + "has no name")
        }
        return common
    }
}
