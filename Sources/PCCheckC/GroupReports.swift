internal import CheckpointFormat
internal import CheckpointGroup
internal import CheckpointRecovery

// The reports of the files of a group and what was rejected, as pcc_group_decide is given them:
// JSON in, values out.

/// What is wrong with the JSON.
struct GroupReportsFailure: JSONScannerFailure {
    var message: String

    init(json message: String) { self.message = message }
}

/// Reads the array of reports. What it does not need of a report, it passes over.
struct GroupReportsReader {
    private typealias Scanner = JSONScanner<GroupReportsFailure>

    /// A report of pcc_reader_report_json nests three deep; text that nests deeper is hostile.
    private static let depthMaximum = 64

    private var scanner: Scanner
    private(set) var reports: [GroupReport] = []
    private(set) var rejected: [GroupDecision.Rejection] = []

    /// - Throws: `invalidArgument` when `text` is not what pccheck.h describes.
    init(_ text: String) throws(CheckpointError) {
        scanner = Scanner(Array(text.utf8))
        do throws(GroupReportsFailure) {
            try forEachElement { (reader) throws(GroupReportsFailure) in try reader.element() }
            try scanner.expectEnd()
        } catch {
            throw invalid("reports_json: \(error.message)")
        }
    }

    private mutating func element() throws(GroupReportsFailure) {
        var (path, message) = (String?.none, String?.none)
        var fields: Fields?
        var rejection: GroupDecision.Rejection?
        try forEachMember { (key, reader) throws(GroupReportsFailure) in
            switch key {
            case "path": path = try reader.text()
            case "error": message = try reader.text()
            case "report": fields = try reader.fields()
            case "rejected": rejection = try reader.rejection()
            default: try reader.skipValue()
            }
        }
        if let rejection {
            rejected.append(rejection)
        } else {
            reports.append(try Self.report(path, message, fields))
        }
    }

    private static func report(
        _ path: String?, _ message: String?, _ fields: Fields?
    ) throws(GroupReportsFailure) -> GroupReport {
        guard let path else { throw GroupReportsFailure(json: "a report has no \"path\"") }
        if let message { return .failure(path: path, message: message) }
        guard let fields else {
            throw GroupReportsFailure(
                json: "the report of \(path) has neither \"report\" nor \"error\"")
        }
        return .file(try fields.file(path))
    }

    private struct Fields {
        var fileUUID: Identifier128?
        /// Outside: the key is missing; inside: the file belongs to no group.
        var runUUID: Identifier128??
        var rank: UInt64?
        var worldSize: UInt64?
        var generation: UInt64?
        var attempt: UInt64?
        var watermark: GroupCheckpointName?
        var mayHoldDurable = true
        var slots: [GroupFileReport.Slot]?

        func file(_ path: String) throws(GroupReportsFailure) -> GroupFileReport {
            guard let fileUUID, let runUUID, let generation, let attempt, let slots,
                let rank = rank.flatMap(UInt32.init(exactly:)),
                let worldSize = worldSize.flatMap(UInt32.init(exactly:)), rank < worldSize
            else {
                throw GroupReportsFailure(
                    json: "the report of \(path) lacks what pcc_reader_report_json writes: "
                        + "file_uuid, run_uuid, rank below world_size, generation, attempt, slots")
            }
            return GroupFileReport(
                path: path, fileUUID: fileUUID, runUUID: runUUID ?? .zero, rank: rank,
                worldSize: worldSize, generation: Generation(rawValue: generation),
                attempt: attempt, watermark: watermark, mayHoldDurable: mayHoldDurable,
                slots: slots)
        }
    }

    private mutating func fields() throws(GroupReportsFailure) -> Fields {
        var fields = Fields()
        try forEachMember { (key, reader) throws(GroupReportsFailure) in
            switch key {
            case "file_uuid": fields.fileUUID = try reader.identifier()
            case "run_uuid": fields.runUUID = .some(try reader.identifier())
            case "rank": fields.rank = try reader.number()
            case "world_size": fields.worldSize = try reader.number()
            case "generation": fields.generation = try reader.number()
            case "attempt": fields.attempt = try reader.number()
            case "watermark": fields.watermark = try reader.name()
            case "may_hold_durable": fields.mayHoldDurable = try reader.flag()
            case "slots":
                var slots: [GroupFileReport.Slot] = []
                try reader.forEachElement { (reader) throws(GroupReportsFailure) in
                    slots.append(try reader.slot())
                }
                fields.slots = slots
            default: try reader.skipValue()
            }
        }
        return fields
    }

    private mutating func slot() throws(GroupReportsFailure) -> GroupFileReport.Slot {
        var (index, reason) = (UInt64?.none, SlotReason?.none)
        var (sequence, step, attempt) = (UInt64?.none, UInt64?.none, UInt64?.none)
        var isNamed = true
        try forEachMember { (key, reader) throws(GroupReportsFailure) in
            switch key {
            case "slot": index = try reader.number()
            case "reason": reason = SlotReason(rawValue: try reader.text())
            case "sequence": sequence = try reader.number()
            case "is_named": isNamed = try reader.flag()
            case "step": step = try reader.number()
            case "attempt": attempt = try reader.number()
            default: try reader.skipValue()
            }
        }
        guard let index = index.flatMap(UInt32.init(exactly:)), let reason else {
            throw GroupReportsFailure(json: "a slot lacks its number or a known reason")
        }
        // An empty slot has a header without a checkpoint.
        let name = attempt.flatMap { attempt in
            step.map { GroupCheckpointName(attempt: attempt, step: $0) }
        }
        return GroupFileReport.Slot(
            slot: SlotIndex(rawValue: index), reason: reason,
            sequence: sequence.map { SequenceNumber(rawValue: $0) },
            name: reason == .empty ? nil : name, isNamed: isNamed)
    }

    /// `{"attempt": 3, "step": 20, "cause": "damaged"}`.
    private mutating func rejection() throws(GroupReportsFailure) -> GroupDecision.Rejection {
        var (attempt, step) = (UInt64?.none, UInt64?.none)
        var cause: GroupDecision.Rejection.Cause?
        try forEachMember { (key, reader) throws(GroupReportsFailure) in
            switch key {
            case "attempt": attempt = try reader.number()
            case "step": step = try reader.number()
            case "cause": cause = GroupDecision.Rejection.Cause(rawValue: try reader.text())
            default: try reader.skipValue()
            }
        }
        guard let attempt, let step, let cause else {
            throw GroupReportsFailure(
                json: "a rejected checkpoint lacks its attempt, its step, or a known cause")
        }
        return GroupDecision.Rejection(GroupCheckpointName(attempt: attempt, step: step), cause)
    }

    /// `{"attempt": 3, "step": 20}`, or null.
    private mutating func name() throws(GroupReportsFailure) -> GroupCheckpointName? {
        if try consumeNull() { return nil }
        var (attempt, step) = (UInt64?.none, UInt64?.none)
        try forEachMember { (key, reader) throws(GroupReportsFailure) in
            switch key {
            case "attempt": attempt = try reader.number()
            case "step": step = try reader.number()
            default: try reader.skipValue()
            }
        }
        guard let attempt, let step else {
            throw GroupReportsFailure(json: "a watermark lacks its attempt or its step")
        }
        return GroupCheckpointName(attempt: attempt, step: step)
    }
}

// MARK: Values

extension GroupReportsReader {
    private mutating func forEachElement(
        _ body: (inout Self) throws(GroupReportsFailure) -> Void
    ) throws(GroupReportsFailure) {
        try scanner.expect("[")
        if scanner.consume("]") { return }
        repeat { try body(&self) } while scanner.consume(",")
        try scanner.expect("]")
    }

    private mutating func forEachMember(
        _ body: (String, inout Self) throws(GroupReportsFailure) -> Void
    ) throws(GroupReportsFailure) {
        try scanner.expect("{")
        if scanner.consume("}") { return }
        repeat {
            let key = try text()
            try scanner.expect(":")
            try body(key, &self)
        } while scanner.consume(",")
        try scanner.expect("}")
    }

    private mutating func text() throws(GroupReportsFailure) -> String {
        String(decoding: try scanner.string(), as: UTF8.self)
    }

    private mutating func consumeNull() throws(GroupReportsFailure) -> Bool {
        guard try scanner.kind() == .null else { return false }
        try scanner.expect(word: "null")
        return true
    }

    private mutating func number() throws(GroupReportsFailure) -> UInt64? {
        try consumeNull() ? nil : try scanner.unsignedInteger()
    }

    private mutating func flag() throws(GroupReportsFailure) -> Bool {
        guard case .bool(let value) = try scanner.kind() else {
            throw scanner.failure("true or false")
        }
        try scanner.expect(word: value ? "true" : "false")
        return value
    }

    private mutating func identifier() throws(GroupReportsFailure) -> Identifier128? {
        if try consumeNull() { return nil }
        let text = try text()
        guard let identifier = Identifier128(text) else {
            throw GroupReportsFailure(json: "\"\(text)\" is no UUID")
        }
        return identifier
    }

    /// Passes over one value, whatever is in it.
    private mutating func skipValue() throws(GroupReportsFailure) {
        var ends: [Unicode.Scalar] = []
        repeat {
            guard ends.count <= Self.depthMaximum else {
                throw scanner.failure("at most \(Self.depthMaximum) levels")
            }
            switch try scanner.kind() {
            case .object:
                try scanner.expect("{")
                if !scanner.consume("}") {
                    ends.append("}")
                    try skipKey()
                    continue
                }
            case .array:
                try scanner.expect("[")
                if !scanner.consume("]") {
                    ends.append("]")
                    continue
                }
            case .string: _ = try scanner.string()
            case .number: _ = try scanner.number()
            case .null: try scanner.expect(word: "null")
            case .bool(let value): try scanner.expect(word: value ? "true" : "false")
            }
            while let end = ends.last, !scanner.consume(",") {
                try scanner.expect(end)
                ends.removeLast()
            }
            if ends.last == "}" { try skipKey() }
        } while !ends.isEmpty
    }

    private mutating func skipKey() throws(GroupReportsFailure) {
        _ = try scanner.string()
        try scanner.expect(":")
    }
}

extension Identifier128 {
    /// - Parameter text: as `description` has it.
    fileprivate init?(_ text: String) {
        let digits = text.utf8.filter { $0 != UInt8(ascii: "-") }
        let bytes = stride(from: 0, to: digits.count - 1, by: 2).compactMap { index in
            UInt8(String(decoding: digits[index...index + 1], as: UTF8.self), radix: 16)
        }
        guard digits.count == 2 * Self.byteCount, bytes.count == Self.byteCount else { return nil }
        self.init(bytes: bytes)
        guard description == text.lowercased() else { return nil }
    }
}
