import CheckpointDevice
import CheckpointFormat
import CheckpointStorage
import Testing

@testable import CheckpointWriter

/// What writes may cost copies that somebody waits for, at rates that a test gives.
@Suite struct CopyPaceTests {
    private static let chunk = 1 << 20
    /// Of a chunk without a write beside it.
    private static let alone = 100_000

    /// Copies of which the next one runs beside a write whenever the rule allows that.
    ///
    /// - Parameter cost: how many times as long a copy takes beside a write.
    /// - Returns: the time of all copies as a part of what they take alone, and how many of them
    ///   ran beside a write.
    private func copies(_ count: Int, cost: Double) -> (slowdown: Double, besideCount: Int) {
        var pace = CopyPace()
        var total = 0.0
        var besideCount = 0
        for _ in 0..<count {
            let isAlone = !pace.allowsWrites
            let taken = Double(Self.alone) * (isAlone ? 1 : cost)
            pace.note(
                byteCount: Self.chunk, nanoseconds: UInt64(taken), isAlone: isAlone, isUrgent: true)
            total += taken
            besideCount += isAlone ? 0 : 1
        }
        return (total / Double(count * Self.alone), besideCount)
    }

    @Test func nothingIsAllowedBeforeACopyWasMeasuredAlone() {
        var pace = CopyPace()
        #expect(!pace.allowsWrites)
        pace.note(byteCount: Self.chunk, nanoseconds: 1, isAlone: false, isUrgent: true)
        #expect(!pace.allowsWrites)
        pace.note(byteCount: 0, nanoseconds: 1, isAlone: true, isUrgent: true)
        #expect(!pace.allowsWrites)
        pace.note(
            byteCount: Self.chunk, nanoseconds: UInt64(Self.alone), isAlone: true, isUrgent: true)
        #expect(pace.allowsWrites)
    }

    /// Where memory is fast, nothing ever pauses.
    @Test(arguments: [0.5, 1, 1.05, 1.079]) func writesThatCostLittleNeverPause(cost: Double) {
        #expect(copies(1000, cost: cost).besideCount == 999)
    }

    /// Where it is slow, the caller loses the allowance and at most one chunk's worth, and the
    /// medium gets its share: it takes 8 parts of 100 to pay for what one write costs.
    @Test(arguments: [1.2, 1.5, 2, 4]) func writesThatCostMuchPauseInPart(cost: Double) {
        let count = 1000
        let (slowdown, besideCount) = copies(count, cost: cost)
        #expect(slowdown <= 1 + CopyPace.allowance + cost / Double(count))
        let share = CopyPace.allowance / (cost - 1)
        #expect(abs(Double(besideCount) / Double(count) - share) < 0.01)
    }

    /// What one wait has lost is no debt of the next one, nor is what it has saved.
    @Test func eachWaitIsCountedAnew() {
        var pace = CopyPace()
        func note(_ times: Double, isAlone: Bool, isUrgent: Bool) {
            pace.note(
                byteCount: Self.chunk, nanoseconds: UInt64(Double(Self.alone) * times),
                isAlone: isAlone, isUrgent: isUrgent)
        }
        note(1, isAlone: true, isUrgent: true)
        note(50, isAlone: false, isUrgent: true)
        #expect(!pace.allowsWrites)
        note(50, isAlone: false, isUrgent: false)
        #expect(pace.allowsWrites)
        for _ in 0..<1000 { note(1, isAlone: true, isUrgent: true) }
        note(1, isAlone: true, isUrgent: false)
        note(2, isAlone: false, isUrgent: true)
        #expect(!pace.allowsWrites)
    }

    /// A copy of half a chunk is measured by its bytes, and a slower machine becomes the measure.
    @Test func theMeasureIsTheTimeForAByteAndFollowsTheMachine() {
        var pace = CopyPace()
        func note(_ byteCount: Int, _ nanoseconds: Int, isAlone: Bool) {
            pace.note(
                byteCount: byteCount, nanoseconds: UInt64(nanoseconds), isAlone: isAlone,
                isUrgent: true)
        }
        note(Self.chunk, Self.alone, isAlone: true)
        note(Self.chunk / 2, Self.alone / 2, isAlone: false)
        #expect(pace.allowsWrites)
        for _ in 0..<200 { note(Self.chunk, 2 * Self.alone, isAlone: true) }
        pace.note(byteCount: Self.chunk, nanoseconds: 0, isAlone: false, isUrgent: false)
        note(Self.chunk, 2 * Self.alone, isAlone: false)
        #expect(pace.allowsWrites)
    }

    // MARK: Writers

    /// A writer of which the test is every thread, and tells how long the copies took.
    private struct Threads {
        static let chunkCount = 8
        static let chunkByteCount = 64 << 10
        var state: EngineState
        let ticket: CheckpointTicket

        init(poolChunks: Int = chunkCount) throws {
            let storage = try memoryFile(capacity: 1 << 20)
            let start = try WriterOpening(storage: storage, options: WriterOptions()).recover()
            state = EngineState(
                storage: storage, geometry: start.identity.geometry,
                slots: SlotTable(
                    slots: start.identity.geometry.slots, kept: start.kept, held: start.held,
                    unreadable: start.unreadable),
                superblock: start.superblock, nextSequence: start.nextSequence,
                freeBuffers: (0..<poolChunks).map { _ in
                    AlignedBuffer(byteCount: Self.chunkByteCount)
                })
            let request = SaveRequest(
                step: 1,
                payload: CheckpointPayload(
                    opaque: pattern(1, count: Self.chunkCount * Self.chunkByteCount)),
                userMetadata: "", needsApproval: false, ready: [:],
                devices: DeviceTable(runtime: InstalledRuntimes()))
            guard
                case .begun(let ticket, _) = try state.admit(
                    request, isUrgent: false, patience: 0)
            else { throw CheckpointError(.busy, "there is a slot") }
            self.ticket = ticket
            guard let mark = beginWrite() else { throw CheckpointError(.busy, "no mark") }
            state.finishWrite(mark, nil)
        }

        var written: Int { Int(state.statistics.chunkWriteCount) }

        /// - Parameter cost: how many times as long it takes beside a write.
        mutating func copy(cost: UInt64, _ write: WriteItem?) throws {
            guard case .copy(let copy) = state.takeSnapshotWork(isDirect: false),
                let buffer = copy.buffer
            else { throw CheckpointError(.busy, "there is a chunk to copy") }
            #expect(copy.isAlone == (write == nil))
            state.noteCopy(copy, nanoseconds: 1_000_000 * (write == nil ? 1 : cost))
            _ = state.finishCopy(
                copy, .staged(StagedChunk(index: copy.index, buffer: buffer, leaves: [])))
        }

        /// What a writer worker begins, if the rule lets it.
        mutating func beginWrite() -> WriteItem? {
            state.takeWrite(onlyMarks: state.writesStandBack)
        }

        mutating func end(_ write: WriteItem?) {
            guard let write, let chunk = write.chunk else { return }
            let byteCount = Self.chunkByteCount
            state.finishWrite(
                write,
                ChunkWriter.Result(
                    entry: ChunkEntry(
                        storedOffset: UInt64(chunk.index * byteCount), storedByteCount: byteCount,
                        rawByteCount: byteCount, codec: .none, planeWidth: 1, digest: .zero),
                    leaves: [], compressNanoseconds: 0, writeNanoseconds: 0))
        }

        /// Copies everything, with a write beside each copy that may have one.
        mutating func run(cost: UInt64) throws {
            while !ticket.isStaged {
                let write = beginWrite()
                try copy(cost: cost, write)
                end(write)
            }
        }
    }

    /// While a caller waits. The statistics say what has gone to the medium by then.
    @Test(arguments: [(cost: UInt64(1), written: 7), (cost: 2, written: 1)])
    func whatMemoryAllowsIsWrittenBeforeStaged(cost: UInt64, written: Int) throws {
        var threads = try Threads()
        let urgency = threads.state.urgency
        try urgency.during { Result { try threads.run(cost: cost) } }.get()
        #expect(threads.written == written)
        let leg = threads.state.statistics.mediumLeg
        #expect(leg.byteCount == UInt64(written * Threads.chunkByteCount))
        // Nothing is left to copy: they go on, although a caller may wait still.
        urgency.during { #expect(threads.state.writesStandBack == false) }
        while let write = threads.beginWrite() { threads.end(write) }
        #expect(threads.written == Threads.chunkCount)
    }

    @Test func nobodyWaitsSoNothingPauses() throws {
        var threads = try Threads()
        try threads.run(cost: 100)
        #expect(threads.written == Threads.chunkCount - 1)
    }

    /// The last copy needs a buffer, which only a write gives back.
    @Test(arguments: [1, 2, 7]) func aSmallPoolIsNeverWaitedFor(poolChunks: Int) throws {
        var threads = try Threads(poolChunks: poolChunks)
        let urgency = threads.state.urgency
        try urgency.during {
            Result {
                while !threads.ticket.isStaged {
                    // Before the pool is full the rule may ask for a pause, and then not.
                    if threads.state.freeBuffers.isEmpty {
                        let write = threads.beginWrite()
                        #expect(write != nil)
                        threads.end(write)
                    }
                    try threads.copy(cost: 100, nil)
                }
            }
        }.get()
        #expect(threads.written >= Threads.chunkCount - poolChunks)
    }
}
