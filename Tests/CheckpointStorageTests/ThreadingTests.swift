import CheckpointStorage
import Testing

@Suite struct ThreadingTests {
    private struct Refusal: Error, Equatable {}

    @Test func counterHasEveryIncrementOfEveryThread() throws {
        let counter = Monitor(0)
        let threads = try (0..<4).map { index in
            try WorkerThread.start(name: "count-\(index)") {
                for _ in 0..<1000 { counter.withLock { $0 += 1 } }
            }
        }
        for thread in threads { thread.join() }
        #expect(counter.withLock { $0 } == 4000)
    }

    @Test func waitReturnsWhenAnotherThreadMakesItTrue() throws {
        let flag = Monitor(false)
        let thread = try WorkerThread.start(name: "raise") {
            flag.withLock { $0 = true }
            flag.wakeAll()
        }
        #expect(flag.wait { $0 })
        thread.join()
        thread.join()
    }

    @Test func waitForHandsOutEachValueOnce() throws {
        let queue = Monitor([Int]())
        let thread = try WorkerThread.start(name: "produce") {
            for value in 0..<100 {
                queue.withLock { $0.append(value) }
                queue.wakeAll()
            }
        }
        var received: [Int] = []
        while received.count < 100 {
            received.append(queue.waitFor { $0.isEmpty ? nil : $0.removeFirst() })
        }
        thread.join()
        #expect(received == Array(0..<100))
    }

    @Test func deadlineEndsAWait() {
        let never = Monitor(false)
        let start = SystemClock.monotonicTime
        #expect(!never.wait(deadline: start + 20_000_000) { $0 })
        #expect(SystemClock.monotonicTime >= start + 20_000_000)
        #expect(never.waitFor(deadline: 1) { _ in Int?.none } == nil)
    }

    @Test func errorsKeepTheirTypeAndReleaseTheLock() {
        let monitor = Monitor(0)
        #expect(throws: Refusal()) {
            try monitor.withLock { (_: inout Int) throws(Refusal) in throw Refusal() }
        }
        #expect(monitor.withLock { $0 } == 0)
    }
}
