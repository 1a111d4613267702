/// A shell pattern for tensor names: `*` is any text (dots and slashes too), `?` one character,
/// `[a-z]` and `[!a-z]` a set, `\` takes the next character as it is.
struct Glob: Hashable, Sendable {
    private enum Element: Hashable, Sendable {
        case one(Unicode.Scalar)
        case any
        case anyText
        case set([ClosedRange<Unicode.Scalar>], isNegated: Bool)

        func matches(_ scalar: Unicode.Scalar) -> Bool {
            switch self {
            case .one(let wanted): scalar == wanted
            case .any: true
            case .anyText: false
            case .set(let ranges, let isNegated):
                ranges.contains { $0.contains(scalar) } != isNegated
            }
        }
    }

    let pattern: String
    private let elements: [Element]

    init(_ pattern: String) {
        self.pattern = pattern
        var elements: [Element] = []
        var rest = Array(pattern.unicodeScalars)[...]
        while let scalar = rest.popFirst() {
            switch scalar {
            case "*": if elements.last != .anyText { elements.append(.anyText) }
            case "?": elements.append(.any)
            case "\\": elements.append(.one(rest.popFirst() ?? "\\"))
            case "[":
                if let set = Self.set(&rest) {
                    elements.append(set)
                } else {
                    elements.append(.one("["))
                }
            default: elements.append(.one(scalar))
            }
        }
        self.elements = elements
    }

    /// The set behind a `[`; nil, with nothing consumed, when it is not closed.
    private static func set(_ rest: inout ArraySlice<Unicode.Scalar>) -> Element? {
        var body = rest
        let isNegated = body.first == "!" || body.first == "^"
        if isNegated { body.removeFirst() }
        var ranges: [ClosedRange<Unicode.Scalar>] = []
        while let low = body.popFirst() {
            if low == "]", !ranges.isEmpty {
                rest = body
                return .set(ranges, isNegated: isNegated)
            }
            let indices = body.indices
            if body.first == "-", indices.count >= 2, body[indices.lowerBound + 1] != "]" {
                let high = body[indices.lowerBound + 1]
                body.removeFirst(2)
                ranges.append(min(low, high)...max(low, high))
            } else {
                ranges.append(low...low)
            }
        }
        return nil
    }

    /// Time is at most the product of the lengths, whatever the pattern.
    func matches(_ name: String) -> Bool {
        let scalars = Array(name.unicodeScalars)
        var (position, index) = (0, 0)
        var retry: (position: Int, index: Int)?
        while position < scalars.count {
            if index < elements.count, elements[index] == .anyText {
                retry = (position, index)
                index += 1
            } else if index < elements.count, elements[index].matches(scalars[position]) {
                position += 1
                index += 1
            } else if let last = retry {
                // Let the last `*` take one character more.
                retry = (last.position + 1, last.index)
                position = last.position + 1
                index = last.index + 1
            } else {
                return false
            }
        }
        return elements[index...].allSatisfy { $0 == .anyText }
    }
}
