package import CheckpointFormat
internal import CheckpointRecovery

// A decision for programs: what the C ABI returns and what the tools print.

extension JSONValue {
    fileprivate static func name(_ name: GroupCheckpointName?) -> JSONValue {
        guard let name else { return .null }
        return .dictionary(["attempt": .integer(name.attempt), "step": .integer(name.step)])
    }

    /// Text for people, which may quote a path.
    fileprivate static func escaped(_ text: String) -> JSONValue {
        .string(PrintableText.escaped(text))
    }
}

extension GroupDecision {
    /// As pccheck.h describes it for pcc_group_decide.
    package var json: JSONValue {
        let (outcome, lost) = outcomeWords
        return .dictionary([
            "run": .text(run),
            "outcome": .string(outcome),
            "lost": .name(lost),
            "next_attempt": .number(nextAttempt),
            "watermark": .name(watermark),
            "checkpoints": .array(checkpoints.map(\.json)),
            "omitted_count": .count(omittedCount),
            "worlds": .array(worlds.map(\.json)),
            "problems": .array(problems.map(\.json)),
        ])
    }

    private var outcomeWords: (String, GroupCheckpointName?) {
        switch outcome {
        case .resume: ("resume", lost)
        case .begin: ("begin", nil)
        case .refuse(let name): ("refuse", name)
        }
    }
}

extension GroupDecision.Checkpoint {
    fileprivate var json: JSONValue {
        .dictionary([
            "attempt": .integer(name.attempt),
            "step": .integer(name.step),
            "world_size": .integer(UInt64(worldSize)),
            "is_complete": .bool(isComplete),
            "files": .array(
                parts.map { part in
                    .dictionary([
                        "rank": .integer(UInt64(part.rank)),
                        "path": .string(part.path),
                        "slot": .integer(UInt64(part.slot.rawValue)),
                        "sequence": .integer(part.sequence.rawValue),
                        "reason": .string(part.reason.rawValue),
                    ])
                }),
            "missing": .array(missing.map(\.json)),
        ])
    }
}

extension GroupDecision.Missing {
    fileprivate var json: JSONValue {
        .dictionary([
            "rank": .integer(UInt64(ranks.lowerBound)),
            "last_rank": .integer(UInt64(ranks.upperBound)),
            "reason": .escaped("\(reason)"),
        ])
    }
}

extension GroupDecision.World {
    fileprivate var json: JSONValue {
        .dictionary([
            "world_size": .integer(UInt64(size)),
            "file_count": .count(files.count),
            "missing": .array(missing.map(\.json)),
        ])
    }
}

extension GroupDecision.Problem {
    fileprivate var json: JSONValue {
        .dictionary([
            "kind": .string(kind.rawValue), "path": .string(path), "message": .escaped(message),
        ])
    }
}
