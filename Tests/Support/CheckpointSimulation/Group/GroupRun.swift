internal import CheckpointFormat
internal import CheckpointStorage
internal import CheckpointWriter
internal import StorageFaults
internal import Synchronization

/// The ranks of one attempt, from opening their files to their end.
final class GroupRun: Sendable {
    private struct State {
        var problem: String?
        var savedCount = 0
        var completeCount = 0
    }

    let media: [RecordingStorage]
    private let keys: [GroupSimulation.FileKey]
    private let history: GroupHistory
    private let scheduler: SimulatedScheduler
    private let mistake: GroupMistake?
    private let attempt: UInt64
    private let seed: UInt64
    private let exchange: GroupExchange
    private let powers: [Power]
    private let plans: [FaultPlan]
    private let state = Monitor(State())
    /// The steps that every rank saves.
    private let steps: [UInt64]

    init(
        _ media: [RecordingStorage], _ keys: [GroupSimulation.FileKey], _ history: GroupHistory,
        _ scheduler: SimulatedScheduler, _ mistake: GroupMistake?, attempt: UInt64, seed: UInt64,
        mostSaves: Int
    ) {
        self.media = media
        self.keys = keys
        self.history = history
        self.scheduler = scheduler
        self.mistake = mistake
        self.attempt = attempt
        self.seed = seed
        exchange = GroupExchange(rankCount: keys.count)
        powers = keys.map { _ in Power() }
        var random = SplitMix64(seed: seed)
        plans = keys.map { _ in Self.faults(&random) }
        var step = UInt64.random(in: 0..<3, using: &random)
        steps = (0..<Int.random(in: 1...mostSaves, using: &random)).map { _ in
            step += UInt64.random(in: 1...2, using: &random)
            return step
        }
    }

    /// Errors that the medium reports: a full disk, a bad sector.
    private static func faults(_ random: inout SplitMix64) -> FaultPlan {
        guard UInt8.random(in: 0..<4, using: &random) == 0 else { return FaultPlan() }
        let isFull = Bool.random(using: &random)
        return FaultPlan([
            FaultPlan.Rule(
                isFull ? .write : .flush, number: Int.random(in: 4..<40, using: &random),
                isPermanent: isFull && Bool.random(using: &random),
                .error(isFull ? FaultPlan.noSpaceError : FaultPlan.inputOutputError))
        ])
    }

    var problem: String? { state.withLock { $0.problem } }
    var savedCount: Int { state.withLock { $0.savedCount } }
    var completeCount: Int { state.withLock { $0.completeCount } }
    var faultCount: Int { plans.count { !$0.rules.isEmpty } }

    private func fail(_ problem: String) {
        state.withLock { $0.problem = $0.problem ?? problem }
    }

    /// - Parameter attempt: what the ranks agreed on, for each file.
    func run(_ attempt: @escaping @Sendable (GroupSimulation.FileKey) -> GroupAttempt) {
        let ranks = keys.indices.compactMap { rank in
            try? WorkerThread(name: "rank-\(rank)") { [self] in live(rank, attempt(keys[rank])) }
        }
        var random = SplitMix64(seed: ~seed)
        for rank in keys.indices.shuffled(using: &random) {
            // Some die together, others much later.
            if Bool.random(using: &random) {
                scheduler.sleep(nanoseconds: random.next() % 40_000_000)
            }
            powers[rank].goesOff()
        }
        exchange.stop()
        for thread in ranks { thread.join() }
    }

    // MARK: A rank

    private func live(_ rank: Int, _ attempt: GroupAttempt) {
        media[rank].setPlan(plans[rank])
        let disk = PoweredStorage(SimulatedDisk(media[rank], scheduler: scheduler), powers[rank])
        var options = SmallFile.options()
        options.acceptsGroup = true
        options.rank = keys[rank].rank
        options.worldSize = keys[rank].worldSize
        options.busyPolicy = .wait(timeoutNanoseconds: 8_000_000)
        do throws(CheckpointError) {
            let writer = try CheckpointWriter(storage: disk, options: options)
            defer { writer.abandon() }
            try writer.beginAttempt(attempt)
            guard mistake == .attemptOfOneRank || exchange.allBegun(rank) else { return }
            train(rank, writer)
        } catch {
            // The restart fails on this rank, and so on all.
            let isExpected = powers[rank].isOff || !plans[rank].rules.isEmpty
            if !isExpected { fail("rank \(rank) cannot begin the attempt: \(error)") }
            exchange.stop()
        }
    }

    private func train(_ rank: Int, _ writer: CheckpointWriter) {
        let tickets = Monitor([CheckpointTicket?]())
        let thread = try? WorkerThread(name: "exchange-\(rank)") { [self] in
            exchangeVerdicts(rank, writer, tickets)
        }
        var random = SplitMix64(seed: seed &+ UInt64(rank))
        for step in steps where !powers[rank].isOff {
            let ticket = save(rank, step, writer)
            if ticket == nil, mistake == .skipAlone { continue }
            tickets.withLock { $0.append(ticket) }
            tickets.wakeAll()
            if Bool.random(using: &random) {
                scheduler.sleep(nanoseconds: random.next() % 3_000_000)
            }
        }
        while !powers[rank].isOff { scheduler.sleep(nanoseconds: 1_000_000) }
        tickets.wakeAll()
        thread?.join()
    }

    /// - Returns: nil when the save failed before it began; it counts all the same.
    private func save(
        _ rank: Int, _ step: UInt64, _ writer: CheckpointWriter
    ) -> CheckpointTicket? {
        let name = GroupCheckpointName(attempt: attempt, step: step)
        let payload = SmallFile.payload(
            step: (seed ^ step &* 31 ^ UInt64(rank)) % 1_000_000, chunkCount: 1)
        if let problem = history.saves(
            name, keys[rank], Digest(of: payload), run: Int(truncatingIfNeeded: seed))
        {
            fail(problem)
        }
        let ticket = try? writer.save(step: step, payload: CheckpointPayload(opaque: payload))
        if ticket != nil { state.withLock { $0.savedCount += 1 } }
        return ticket
    }

    /// GROUP.md, "While training": the thread of a rank that exchanges the ends of its saves.
    private func exchangeVerdicts(
        _ rank: Int, _ writer: CheckpointWriter, _ tickets: Monitor<[CheckpointTicket?]>
    ) {
        var random = SplitMix64(seed: ~seed &+ UInt64(rank))
        for number in steps.indices {
            let ticket = tickets.waitFor { [powers] tickets -> CheckpointTicket?? in
                if tickets.count > number { return .some(tickets[number]) }
                return powers[rank].isOff ? .some(nil) : nil
            }
            if ticket == nil, powers[rank].isOff { return }
            let bit = ticket.map { isDurable($0) } ?? false
            guard let isComplete = exchange.verdict(rank, number, bit) else { return }
            // It learns at a time of its own.
            if Bool.random(using: &random) {
                scheduler.sleep(nanoseconds: random.next() % 2_000_000)
            }
            if powers[rank].isOff { return }
            guard let ticket else { continue }
            writer.decide(
                ticket.sequence, isComplete: isComplete || mistake == .verdictOfOneRank)
            guard isComplete else { continue }
            history.acknowledges(GroupCheckpointName(attempt: attempt, step: ticket.step))
            state.withLock { $0.completeCount += 1 }
        }
    }

    private func isDurable(_ ticket: CheckpointTicket) -> Bool {
        if mistake == .verdictOfStaged {
            try? ticket.waitStaged()
            return true
        }
        return (try? ticket.wait()) == .durable
    }
}

/// The all-reduce of the ranks: a result is there when every rank has given its bit.
final class GroupExchange: Sendable {
    private struct State {
        var begun: Set<Int> = []
        var bits: [Int: [Int: Bool]] = [:]
        var isStopped = false
    }

    private let rankCount: Int
    private let state = Monitor(State())

    init(rankCount: Int) { self.rankCount = rankCount }

    /// Ranks that wait for others hear that no more will come.
    func stop() {
        state.withLock { $0.isStopped = true }
        state.wakeAll()
    }

    /// Waits until every rank has begun its attempt; false when one never will.
    func allBegun(_ rank: Int) -> Bool {
        let rankCount = rankCount
        state.withLock { _ = $0.begun.insert(rank) }
        state.wakeAll()
        return state.waitFor { state -> Bool? in
            if state.begun.count == rankCount { return true }
            return state.isStopped ? false : nil
        }
    }

    /// - Returns: the AND of all ranks; nil when one will never give its bit.
    func verdict(_ rank: Int, _ number: Int, _ bit: Bool) -> Bool? {
        let rankCount = rankCount
        state.withLock { $0.bits[number, default: [:]][rank] = bit }
        state.wakeAll()
        return state.waitFor { state -> Bool?? in
            let bits = state.bits[number, default: [:]]
            if bits.count == rankCount { return .some(bits.values.allSatisfy { $0 }) }
            return state.isStopped ? .some(nil) : nil
        }
    }
}

/// Whether a rank's machine runs. No turn of the simulation passes when it is asked.
final class Power: Sendable {
    private let isOn = Mutex(true)

    func goesOff() { isOn.withLock { $0 = false } }
    var isOff: Bool { isOn.withLock { !$0 } }
}

/// A storage of which no call reaches the medium once the power is off.
final class PoweredStorage: Storage {
    private let storage: any Storage
    private let power: Power

    init(_ storage: any Storage, _ power: Power) {
        self.storage = storage
        self.power = power
    }

    private func check(_ offset: UInt64 = 0, _ count: Int = 0) throws(StorageError) {
        guard power.isOff else { return }
        throw StorageError(
            operation: "power", path: path, byteOffset: offset, byteCount: count,
            osErrorNumber: FaultPlan.inputOutputError, advice: "it is off")
    }

    var path: String { storage.path }
    var kind: StorageKind { storage.kind }
    var byteCount: UInt64 { storage.byteCount }

    func read(
        into buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64
    ) throws(StorageError) {
        try check(offset, range.count)
        try storage.read(into: buffer, range, at: offset)
    }

    func write(
        _ buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64
    ) throws(StorageError) {
        try check(offset, range.count)
        try storage.write(buffer, range, at: offset)
    }

    func flush() throws(StorageError) {
        try check()
        try storage.flush()
    }

    func discardCache() { storage.discardCache() }

    func tryLock(_ byte: LockByte, exclusive: Bool) throws(StorageError) -> Bool {
        try storage.tryLock(byte, exclusive: exclusive)
    }

    func unlock(_ byte: LockByte) throws(StorageError) { try storage.unlock(byte) }
}
