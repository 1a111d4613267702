public import CheckpointFormat

/// One thing that pcfsck found.
public struct Finding: Hashable, Sendable {
    public let problem: Problem
    /// At most the problem's own severity: what a crash explains is milder.
    public let severity: Severity
    public let slot: SlotIndex?
    public let chunk: Int?
    /// Where in the file.
    public let byteOffset: UInt64?
    public let found: String
    public let expected: String
    /// `pcfsck -p` would repair it in this file.
    public let isFixable: Bool

    public var id: String { problem.id }

    init(
        _ problem: Problem, _ severity: Severity? = nil, slot: SlotIndex? = nil,
        chunk: Int? = nil, at byteOffset: UInt64? = nil, found: String, expected: String,
        isFixable: Bool = false
    ) {
        self.problem = problem
        self.severity = min(severity ?? problem.severity, problem.severity)
        self.slot = slot
        self.chunk = chunk
        self.byteOffset = byteOffset
        self.found = found
        self.expected = expected
        self.isFixable = isFixable
    }
}

extension Finding: CustomStringConvertible {
    /// `PCK-S003 slot 2 at byte 24576: slot header damaged: found …, expected …`
    public var description: String {
        var place: [String] = []
        if let slot { place.append("slot \(slot)") }
        if let chunk { place.append("chunk \(chunk)") }
        if let byteOffset { place.append("at byte \(byteOffset)") }
        let text = place.isEmpty ? "" : place.joined(separator: " ") + ": "
        return "\(id) \(text)\(problem.title): found \(found), expected \(expected)"
    }
}
