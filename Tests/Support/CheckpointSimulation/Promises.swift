package import CheckpointFormat
internal import CheckpointStorage
package import CheckpointWriter

/// What a run promised and to whom.
package final class Promises: Sendable {
    private struct State {
        /// What was saved under a sequence. There may be several: one in the run that went on, and
        /// one in the run that was cut before that number was given, and reopened.
        var payloads: [UInt64: Set<Digest>] = [:]
        var open: [CheckpointTicket] = []
    }

    private let state = Monitor(State())

    package init() {}

    /// False when the sequence was given before. Without a payload, nothing may ever be recovered
    /// under that sequence: its caller has not approved it.
    @discardableResult
    package func began(_ ticket: CheckpointTicket, _ payload: [UInt8]?) -> Bool {
        state.withLock { state in
            let isNew = state.payloads[ticket.sequence.rawValue] == nil
            state.payloads[ticket.sequence.rawValue, default: []].formUnion(
                payload.map { [Digest(of: $0)] } ?? [])
            state.open.append(ticket)
            return isNew
        }
    }

    /// The caller is about to approve what it saved.
    package func approves(_ ticket: CheckpointTicket, _ payload: [UInt8]) {
        state.withLock {
            _ = $0.payloads[ticket.sequence.rawValue, default: []].insert(Digest(of: payload))
        }
    }

    /// The sequences that were found durable since the last call.
    package func newlyDurable() -> [UInt64] {
        state.withLock { state in
            let ended = state.open.filter { $0.outcome != nil }
            state.open.removeAll { $0.outcome != nil }
            return ended.filter { $0.outcome == .durable }.map(\.sequence.rawValue)
        }
    }

    package func add(_ payloads: [UInt64: Set<Digest>]) {
        state.withLock { $0.payloads.merge(payloads) { $0.union($1) } }
    }

    package var payloads: [UInt64: Set<Digest>] { state.withLock { $0.payloads } }
}
