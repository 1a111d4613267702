internal import CheckpointFormat
internal import CheckpointRecovery

/// A text that is not alike on both sides; nil where it is missing.
struct MetadataChange: Sendable {
    let name: String
    let first: String?
    let second: String?

    /// The entries of two `__metadata__`. Values that are JSON on both sides, such as the state of
    /// a training run, are compared leaf by leaf.
    static func between(
        _ first: [(key: String, value: String)], _ second: [(key: String, value: String)]
    ) -> [MetadataChange] {
        compare(first, second).flatMap { change -> [MetadataChange] in
            guard let a = change.first, let b = change.second, let before = JSONLeaves.of(a),
                let after = JSONLeaves.of(b)
            else { return [change] }
            let changes = compare(before, after).map {
                MetadataChange(
                    name: change.name + $0.name, first: $0.first, second: $0.second)
            }
            // The texts differ, but only in how they are written.
            return changes.isEmpty
                ? [MetadataChange(name: change.name, first: "as JSON", second: "the same")]
                : changes
        }
    }

    private static func compare(
        _ first: [(key: String, value: String)], _ second: [(key: String, value: String)]
    ) -> [MetadataChange] {
        let after = Dictionary(second, uniquingKeysWith: { first, _ in first })
        let names = Set(first.map(\.key))
        let changed = first.compactMap { key, value in
            after[key] == value
                ? nil : MetadataChange(name: key, first: value, second: after[key])
        }
        let added = second.filter { !names.contains($0.key) }.map {
            MetadataChange(name: $0.key, first: nil, second: $0.value)
        }
        return changed + added
    }

    /// Facts of the files and the checkpoints that differ; they say nothing about the payload.
    static func facts(
        _ first: ComparedCheckpoint, _ second: ComparedCheckpoint
    ) -> [MetadataChange] {
        zip(facts(first), facts(second)).compactMap { a, b in
            a.value == b.value
                ? nil : MetadataChange(name: a.key, first: a.value, second: b.value)
        }
    }

    private static func facts(_ side: ComparedCheckpoint) -> [(key: String, value: String)] {
        let (header, identity) = (side.header, side.inspection.decision.identity)
        let geometry = identity.geometry
        return [
            ("file_uuid", "\(identity.fileUUID)"), ("fingerprint", identity.fingerprint),
            ("creator", identity.creator), ("rank", "\(identity.rank)"),
            ("world_size", "\(identity.worldSize)"),
            ("in_flight_count", "\(geometry.inFlightCount)"),
            ("retain_count", "\(geometry.retainCount)"),
            ("slot_byte_count", "\(geometry.slotByteCount)"),
            ("file_byte_count", "\(geometry.fileByteCount)"), ("step", "\(header.step)"),
            ("sequence", "\(header.sequence)"), ("payload_kind", "\(header.payloadKind)"),
            ("payload_byte_count", "\(header.payloadByteCount)"),
            ("stored_byte_count", "\(header.storedByteCount)"),
            ("chunk_byte_count", "\(header.chunkByteCount)"), ("codec", header.codec.label),
            ("user_metadata", header.userMetadata),
            ("logical_digest", "\(header.logicalDigest)"),
        ]
    }
}

/// The leaves of a JSON text with their paths, such as `.state.layers[0].lr`.
///
/// Without recursion, so that deep nesting costs nothing; what is too deep, too large or no JSON
/// is nil, and is then compared as text.
struct JSONLeaves {
    private static let depthLimit = 256
    private static let leafCountLimit = 200_000
    private static let pathByteCountLimit = 4096

    private enum Level {
        case object(key: String)
        case array(index: Int)
    }

    private let bytes: [UInt8]
    private var position = 0
    private var levels: [Level] = []
    private var leaves: [(key: String, value: String)] = []

    static func of(_ text: String) -> [(key: String, value: String)]? {
        var parser = JSONLeaves(text)
        guard parser.bytes.first == UInt8(ascii: "{") || parser.bytes.first == UInt8(ascii: "["),
            parser.parse()
        else { return nil }
        return parser.leaves
    }

    private init(_ text: String) { bytes = Array(text.utf8) }

    private var next: UInt8? { position < bytes.count ? bytes[position] : nil }

    private mutating func skipSpace() {
        while let byte = next, [0x20, 0x09, 0x0A, 0x0D].contains(byte) { position += 1 }
    }

    private mutating func consume(_ character: Unicode.Scalar) -> Bool {
        skipSpace()
        guard next == UInt8(ascii: character) else { return false }
        position += 1
        return true
    }

    /// The string with its quotes and escapes, as it stands there.
    private mutating func string() -> String? {
        skipSpace()
        guard next == 0x22 else { return nil }
        let start = position
        position += 1
        while let byte = next {
            position += byte == 0x5C ? 2 : 1
            if byte == 0x22 {
                return String(decoding: bytes[start..<position], as: UTF8.self)
            }
        }
        return nil
    }

    private var path: String {
        levels.map { level in
            switch level {
            case .object(let key): ".\(key)"
            case .array(let index): "[\(index)]"
            }
        }.joined()
    }

    private mutating func add(_ value: String) -> Bool {
        let path = path
        guard leaves.count < Self.leafCountLimit, path.utf8.count <= Self.pathByteCountLimit
        else { return false }
        leaves.append((path, value))
        return true
    }

    private mutating func parse() -> Bool {
        repeat {
            guard value() else { return false }
            // A value has ended: what follows belongs to the levels around it.
            while let level = levels.last {
                if consume(",") {
                    guard advance(level) else { return false }
                    break
                }
                switch level {
                case .object: guard consume("}") else { return false }
                case .array: guard consume("]") else { return false }
                }
                levels.removeLast()
            }
        } while !levels.isEmpty
        skipSpace()
        return position == bytes.count
    }

    private mutating func advance(_ level: Level) -> Bool {
        levels.removeLast()
        switch level {
        case .object: return key()
        case .array(let index): levels.append(.array(index: index + 1))
        }
        return true
    }

    private mutating func key() -> Bool {
        guard let name = string(), consume(":") else { return false }
        levels.append(.object(key: String(name.dropFirst().dropLast())))
        return true
    }

    /// A leaf; or the begin of a list or an object, down to its first leaf.
    private mutating func value() -> Bool {
        while levels.count < Self.depthLimit {
            if consume("{") {
                if consume("}") { return add("{}") }
                guard key() else { return false }
            } else if consume("[") {
                if consume("]") { return add("[]") }
                levels.append(.array(index: 0))
            } else if next == 0x22 {
                return string().map { add($0) } ?? false
            } else {
                let start = position
                while let byte = next, ![0x2C, 0x5D, 0x7D, 0x20, 0x0A, 0x0D, 0x09].contains(byte) {
                    position += 1
                }
                return start < position
                    && add(String(decoding: bytes[start..<position], as: UTF8.self))
            }
        }
        return false
    }
}
