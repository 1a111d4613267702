internal import CheckpointFormat

extension JSONValue {
    /// The schema of everything that the tools print; a change of meaning raises it.
    static let schemaVersion: UInt64 = 1

    /// A tool's document: who made it, and what it reports.
    static func document(tool: String, _ members: KeyValuePairs<String, JSONValue>) -> JSONValue {
        document(tool: tool, members.map { Member(key: $0, value: $1) })
    }

    static func document(tool: String, _ members: [Member]) -> JSONValue {
        object(
            [
                Member(key: "schema_version", value: .integer(schemaVersion)),
                Member(key: "tool", value: .string(tool)),
                Member(key: "tool_version", value: .string(Tool.version)),
            ] + members)
    }

    /// Writes this object with one more member, a list that may be too long to hold: its
    /// elements are made, and written, one by one.
    func write(
        to output: Output, listing key: String, _ elements: some Sequence<JSONValue>
    ) {
        guard case .object(let members) = self else { preconditionFailure("a document") }
        var bytes = Self.object(members + [Member(key: key, value: .array([]))]).bytes
        let end = Array("]\n}\n".utf8)
        bytes.removeLast(end.count)
        var isEmpty = true
        for element in elements {
            JSONWriter.append(isEmpty ? "\n    " : ",\n    ", to: &bytes)
            output.write(bytes + JSONWriter.indented(element, depth: 2))
            bytes.removeAll(keepingCapacity: true)
            isEmpty = false
        }
        output.write(bytes + (isEmpty ? [] : Array("\n  ".utf8)) + end)
    }
}
