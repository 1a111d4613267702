internal import CheckpointFormat
internal import CheckpointStorage
internal import Synchronization

/// A progress bar on standard error, when that is a terminal; else nothing.
///
/// `update` may be called from any thread.
final class ProgressBar: Sendable {
    /// What is counted.
    enum Unit { case bytes, files, replications, policies, percent }

    private struct State {
        var title: String
        var total: UInt64
        var drawnTime: UInt64 = 0
        var isDrawn = false
        var startTime = SystemClock.monotonicTime
    }

    private static let redrawNanoseconds: UInt64 = 100_000_000
    private static let barColumnCount = 24

    private let output: Output
    private let unit: Unit
    private let state: Mutex<State>

    init(
        _ title: String, total: UInt64, _ unit: Unit = .bytes, output: Output = .diagnostics
    ) {
        self.output = output
        self.unit = unit
        state = Mutex(State(title: title, total: total))
    }

    deinit { finish() }

    func update(_ done: UInt64, of total: UInt64? = nil, title: String? = nil) {
        guard output.isTerminal else { return }
        let now = SystemClock.monotonicTime
        state.withLock { state in
            state.total = total ?? state.total
            if let title, title != state.title {
                state.title = title
                state.startTime = now
            }
            guard now &- state.drawnTime >= Self.redrawNanoseconds || done == state.total else {
                return
            }
            state.drawnTime = now
            state.isDrawn = true
            draw(done, state, now: now)
        }
    }

    private func draw(_ done: UInt64, _ state: State, now: UInt64) {
        let elapsed = Double(now &- state.startTime) / 1e9
        let share = state.total == 0 ? 1 : Double(done) / Double(state.total)
        var text = "\(state.title)  "
        text += Quantity.bar(done, of: state.total, width: Self.barColumnCount)
        text += " \(Int(share * 100)) %"
        if elapsed > 0.5, done > 0 {
            let rate = UInt64(Double(done) / elapsed)
            switch unit {
            case .bytes: text += "  \(Quantity.bytes(rate))/s"
            case .files, .replications: text += "  \(rate) \(unit)/s"
            case .policies, .percent: break
            }
            let left = elapsed / share - elapsed
            if left >= 1 { text += "  \(Int(left)) s left" }
        }
        let fitted = PrintableText.shortened(
            PrintableText.escaped(text), to: (output.columnCount ?? 80) - 1)
        output.redraw(StyledText(fitted))
    }

    /// Removes the bar.
    func finish() {
        state.withLock { state in
            if state.isDrawn { output.redraw("") }
            state.isDrawn = false
        }
    }
}
