internal import CheckpointStorage

/// Takes results from several threads, in any order, and merges them in order: so that sums of
/// floating-point numbers come out alike in every run.
///
/// Threads that claim work in order are at most a few results ahead, so little is kept.
final class OrderedMerge<Partial: Sendable, Total: Sendable>: Sendable {
    private struct State {
        var total: Total
        var next = 0
        var early: [Int: Partial] = [:]
    }

    private let state: Monitor<State>
    private let merge: @Sendable (inout Total, Partial) -> Void

    init(_ initial: Total, _ merge: @escaping @Sendable (inout Total, Partial) -> Void) {
        state = Monitor(State(total: initial))
        self.merge = merge
    }

    /// Gives the result at `position`; each position from 0 comes once.
    func deliver(_ partial: Partial, at position: Int) {
        state.withLock { state in
            state.early[position] = partial
            while let next = state.early.removeValue(forKey: state.next) {
                merge(&state.total, next)
                state.next += 1
            }
        }
    }

    var total: Total { state.withLock { $0.total } }
}
