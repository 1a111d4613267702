import CheckpointSimulation
import CheckpointStorage
import StorageFaults
import Synchronization
import Testing

/// The simulation itself: a scheduler that lies would prove nothing. `make test-simulation` runs it
/// for longer, and plants the mistakes.
@Suite struct SimulationTests {
    @Test func seedsKeepEveryInvariant() {
        var sum = SimulationReport()
        for seed in 0..<UInt64(120 * crashScale) {
            let report = Simulation.run(seed: crashSeed &+ seed)
            if let violation = report.violation {
                Issue.record("\(violation)\n  replay: simulate --seed \(crashSeed &+ seed)")
            }
            sum = sum + report
        }
        #expect(sum.durableCount > 200, "runs in which nothing becomes durable prove little")
        #expect(sum.faultCount > 100)
    }

    /// Some saves come from devices: what those do wrong shows.
    @Test(arguments: DeviceMistake.allCases)
    func aMistakeOfADeviceIsFound(mistake: DeviceMistake) {
        let finding = (1...UInt64(300)).lazy.compactMap {
            Simulation.run(seed: $0, deviceMistake: mistake).violation
        }.first
        #expect(finding != nil, "\(mistake) is found by no seed")
    }

    @Test func aSeedIsARun() {
        for seed in 500..<UInt64(510) {
            let first = Simulation.run(seed: seed)
            let second = Simulation.run(seed: seed)
            #expect(first.trace == second.trace && first.turnCount == second.turnCount, "\(seed)")
        }
        let traces = Set((500..<UInt64(510)).map { Simulation.run(seed: $0).trace })
        #expect(traces.count == 10, "other seeds go other ways")
    }

    @Test func locksExcludeAndWaitsEnd() throws {
        var orders: Set<[Int]> = []
        for seed in 0..<UInt64(40) {
            let scheduler = SimulatedScheduler(seed: seed, name: "test")
            try scheduler.during {
                let state = Monitor((inside: 0, order: [Int]()))
                let threads = try (0..<3).map { number in
                    try WorkerThread(name: "t\(number)") {
                        for _ in 0..<3 {
                            state.withLock { state in
                                state.inside += 1
                                // Another monitor inside: the turn may pass on, the lock may not.
                                Monitor(0).withLock { $0 += 1 }
                                #expect(state.inside == 1)
                                state.order.append(number)
                                state.inside -= 1
                            }
                            state.wakeAll()
                        }
                    }
                }
                #expect(state.wait { $0.order.count == 9 })
                for thread in threads { thread.join() }
                _ = state.withLock { orders.insert($0.order) }
            }
        }
        #expect(orders.count > 10, "seeds give different orders: \(orders.count)")
    }

    @Test func timeIsVirtual() {
        let scheduler = SimulatedScheduler(seed: 1, name: "test")
        let clock = ContinuousClock()
        let took = clock.measure {
            scheduler.during {
                let began = SystemClock.monotonicTime
                SystemClock.sleep(nanoseconds: 3_600_000_000_000)
                #expect(SystemClock.monotonicTime - began >= 3_600_000_000_000)
                let nobody = Monitor(false)
                let deadline = SystemClock.monotonicTime + 1_000_000_000
                #expect(!nobody.wait(deadline: deadline) { $0 })
                #expect(SystemClock.monotonicTime >= deadline)
            }
        }
        #expect(took < .seconds(600))
    }

    @Test func aHangIsTold() async {
        let result = await #expect(
            processExitsWith: .failure, observing: [\.standardErrorContent]
        ) {
            let scheduler = SimulatedScheduler(seed: 1, name: "replay: the name of the run")
            scheduler.during { _ = Monitor(false).wait { $0 } }
        }
        let text = String(decoding: result?.standardErrorContent ?? [], as: UTF8.self)
        #expect(text.contains("I6: every thread waits for another one"))
        #expect(text.contains("replay: the name of the run"))
    }

    /// What a device still reads must not change.
    @Test func aBufferThatChangesUnderAWriteIsTold() throws {
        let scheduler = SimulatedScheduler(seed: 1, name: "test")
        try scheduler.during {
            let medium = RecordingStorage(contents: [UInt8](repeating: 0, count: 65_536))
            let disk = SimulatedDisk(medium, scheduler: scheduler)
            let queue = try disk.makeWriteQueue(depth: 2, pool: nil)
            let buffer = AlignedBuffer(byteCount: 4096)
            queue.submit(buffer, 0..<4096, at: 8192, tag: 1)
            #expect(queue.waitForOne().error == nil)
            #expect(medium.recording.changedWriteOffset == nil)
            queue.submit(buffer, 0..<4096, at: 8192, tag: 1)
            buffer.copy([1], to: 7)
            #expect(queue.waitForOne().error == nil)
            #expect(medium.recording.changedWriteOffset == 8192)
        }
    }
}
