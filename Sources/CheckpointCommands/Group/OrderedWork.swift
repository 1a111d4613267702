internal import CheckpointFormat
internal import CheckpointStorage

/// Work on many files: several at once, and the results in order.
enum OrderedWork {
    private struct State<Value> {
        var nextIndex = 0
        var results: [Int: Value] = [:]
        var consumedCount = 0
    }

    /// How far a thread may be ahead of the results that were used, in files: bounds the memory.
    private static let windowCount = 64

    /// Calls `consume` for 0 ..< `count` in order, in the calling thread, with what `work` returned
    /// for it in another one.
    static func run<Value: Sendable>(
        _ count: Int, threadCount: Int, _ work: @escaping @Sendable (Int) -> Value,
        consume: (Int, Value) -> Void
    ) {
        let monitor = Monitor(State<Value>())
        let body: @Sendable () -> Void = {
            while let index = monitor.waitFor({ take(&$0, count) }) {
                let value = work(index)
                monitor.withLock { $0.results[index] = value }
                monitor.wakeAll()
            }
        }
        // With fewer threads than wanted, the work takes longer; without one, it is done here.
        let threads = (0..<min(threadCount, count)).compactMap { _ in
            try? WorkerThread.start(name: "pcc-file", body)
        }
        for index in 0..<count {
            let value =
                threads.isEmpty
                ? work(index) : monitor.waitFor { $0.results.removeValue(forKey: index) }
            consume(index, value)
            monitor.withLock { $0.consumedCount += 1 }
            monitor.wakeAll()
        }
        for thread in threads { thread.join() }
    }

    /// Waits while the window is full. The inner nil: there is no more.
    private static func take<Value>(_ state: inout State<Value>, _ count: Int) -> Int?? {
        if state.nextIndex == count { return .some(nil) }
        guard state.nextIndex < state.consumedCount + windowCount else { return nil }
        defer { state.nextIndex += 1 }
        return .some(state.nextIndex)
    }
}
