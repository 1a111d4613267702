internal import CheckpointFormat

/// The leaves of a JSON text with their paths, such as `.state.layers[0].lr`.
///
/// Without recursion, so that deep nesting costs nothing; what is too deep, too large or no JSON
/// is nil, and is then compared as text. Words such as Python's `NaN` are leaves, too.
struct JSONLeaves {
    private static let depthLimit = 256
    private static let leafCountLimit = 200_000
    private static let pathByteCountLimit = 4096

    private enum Level {
        case object(key: String)
        case array(index: Int)
    }

    private var scanner: JSONScanner<FormatError>
    private var levels: [Level] = []
    private var leaves: [(key: String, value: String)] = []

    static func of(_ text: String) -> [(key: String, value: String)]? {
        var parser = JSONLeaves(scanner: JSONScanner(Array(text.utf8)))
        guard parser.scanner.isNext("{") || parser.scanner.isNext("["),
            (try? parser.parse()) != nil
        else { return nil }
        return parser.leaves
    }

    private init(scanner: JSONScanner<FormatError>) { self.scanner = scanner }

    /// The text that `body` consumes, as it stands there.
    private mutating func consumed(
        _ body: (inout JSONScanner<FormatError>) throws(FormatError) -> Void
    ) throws(FormatError) -> String {
        scanner.skipSpace()
        let start = scanner.position
        try body(&scanner)
        return String(decoding: scanner.bytes(since: start), as: UTF8.self)
    }

    private mutating func string() throws(FormatError) -> String {
        try consumed { scanner throws(FormatError) in _ = try scanner.string(halfPairs: .kept) }
    }

    private mutating func add(_ value: String) throws(FormatError) {
        let path = levels.map { level in
            switch level {
            case .object(let key): ".\(key)"
            case .array(let index): "[\(index)]"
            }
        }.joined()
        guard leaves.count < Self.leafCountLimit, path.utf8.count <= Self.pathByteCountLimit
        else { throw scanner.failure("fewer leaves and shorter paths") }
        leaves.append((path, value))
    }

    private mutating func parse() throws(FormatError) {
        repeat {
            try value()
            // A value has ended: what follows belongs to the levels around it.
            while let level = levels.popLast() {
                if scanner.consume(",") {
                    try enter(level)
                    break
                }
                if case .object = level { try scanner.expect("}") } else { try scanner.expect("]") }
            }
        } while !levels.isEmpty
        try scanner.expectEnd()
    }

    /// Goes to the element behind the one at `level`.
    private mutating func enter(_ level: Level) throws(FormatError) {
        switch level {
        case .object:
            let key = try string()
            levels.append(.object(key: String(key.dropFirst().dropLast())))
            try scanner.expect(":")
        case .array(let index): levels.append(.array(index: index + 1))
        }
    }

    /// A leaf; or the begin of a list or an object, down to its first leaf.
    private mutating func value() throws(FormatError) {
        while levels.count < Self.depthLimit {
            if scanner.consume("{") {
                if scanner.consume("}") { return try add("{}") }
                try enter(.object(key: ""))
            } else if scanner.consume("[") {
                if scanner.consume("]") { return try add("[]") }
                try enter(.array(index: -1))
            } else if scanner.isNext("\"") {
                return try add(try string())
            } else {
                let word = try consumed { scanner throws(FormatError) in
                    scanner.skip { ![0x2C, 0x5D, 0x7D, 0x20, 0x0A, 0x0D, 0x09].contains($0) }
                }
                guard !word.isEmpty else { throw scanner.failure("a value") }
                return try add(word)
            }
        }
        throw scanner.failure("at most \(Self.depthLimit) levels")
    }
}
