internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage
internal import CheckpointWriter
internal import StorageFaults

/// One writer from its opening to its end, with a caller, perhaps somebody who watches it, and
/// perhaps a reader of the same file.
struct WriterRun {
    private(set) var start: Simulation.Start
    let medium: RecordingStorage
    let promises: Promises
    private let shape: Simulation.Shape
    private let scheduler: SimulatedScheduler
    private let plan: FaultPlan
    private var random: SplitMix64
    /// Decides which checkpoints need approval, and which get it.
    private var approvals: SplitMix64
    /// Decides what of a state is on a device.
    private var places: SplitMix64
    /// nil while the whole state is on the host.
    private let rig: DeviceRig?
    private var step: UInt64
    private var tickets: [CheckpointTicket] = []
    private(set) var report = SimulationReport()

    init(
        _ shape: Simulation.Shape, _ start: Simulation.Start, _ promises: Promises,
        _ scheduler: SimulatedScheduler, seed: UInt64
    ) {
        self.shape = shape
        self.start = start
        self.promises = promises
        self.scheduler = scheduler
        random = SplitMix64(seed: seed)
        approvals = SplitMix64(seed: ~seed)
        places = SplitMix64(seed: seed ^ 0xDE71CE)
        let isOnDevice =
            UInt8.random(in: 0..<4, using: &places) == 0 || shape.deviceMistake != nil
        rig = isOnDevice ? DeviceRig(scheduler, shape.deviceMistake, random: &places) : nil
        medium = RecordingStorage(contents: start.contents)
        let isFaulty = Bool.random(using: &random)
        plan = isFaulty ? FaultPlan(seed: random.next(), callCount: 60) : FaultPlan()
        step = 0
    }

    /// Reads of this run may fail.
    var readsFail: Bool { plan.rules.contains { $0.kind == .read } }

    /// What loads now, unless it lies further down than the one below the anchored checkpoint: that
    /// one is held, or kept, by a writer that has not read the anchored one.
    private func loadable() -> UInt64? {
        guard start.silentFaultCount == 1, start.cached.isEmpty, !readsFail,
            let decision = try? CheckpointReader(storage: medium, workerCount: 1).decision,
            let anchor = decision.superblock?.anchor,
            let loaded = ResumeTrial(medium, workerCount: 1).loaded?.candidate
        else { return nil }
        let below = decision.candidates.first { $0.sequence < anchor.sequence }
        return loaded.sequence >= below?.sequence ?? .none ? loaded.sequence.rawValue : nil
    }

    mutating func run() {
        start.loadable = loadable()
        if start.silentFaultCount == 0 { noteAcknowledged(upTo: .max) }
        for write in start.cached where !write.bytes.isEmpty {
            try? medium.writeBlocks(write.bytes, at: UInt64(write.offset))
        }
        medium.setObserver { [promises] in promises.newlyDurable() }
        medium.setPlan(plan)
        do throws(CheckpointError) {
            let disk = SimulatedDisk(medium, scheduler: scheduler)
            let storage = FaultyStorage.plant(shape.plantedBug, in: disk)
            var options = shape.options
            if let rig { options.deviceRuntime = rig }
            try use(CheckpointWriter(storage: storage, options: options))
        } catch {
            // Before it failed it may have passed over what it could not read, and said so on the
            // medium.
            if readsFail { start.hasGoneBack = true }
            // A medium that is in order opens.
            if plan.rules.isEmpty, start.silentFaultCount == 0 {
                fail("the writer refused: \(error)")
            }
        }
        if let problem = rig?.stop() { fail(problem) }
        medium.setPlan(FaultPlan())
        for sequence in promises.newlyDurable() { medium.note(sequence) }
        medium.setObserver(nil)
        if let offset = medium.recording.changedWriteOffset {
            fail("the buffer of the write at \(offset) changed while it was under way")
        }
        report.faultCount += plan.rules.count
        report.durableCount = tickets.count { $0.outcome == .durable }
    }

    /// A medium that is silent about damage may have cost what is newer than `sequence`.
    private func noteAcknowledged(upTo sequence: UInt64) {
        for number in start.acknowledged where number <= sequence { medium.note(number) }
    }

    private mutating func fail(_ problem: String) { report.violation = report.violation ?? problem }

    // MARK: Around the caller

    private mutating func use(_ writer: CheckpointWriter) throws(CheckpointError) {
        let newest = writer.statistics.newestDurableSequence.rawValue
        let promised = start.acknowledged.last ?? 0
        if start.silentFaultCount > 0 {
            noteAcknowledged(upTo: newest)
        } else if newest < promised, !plan.rules.isEmpty {
            // The next one will find it again.
            start.hasGoneBack = true
        } else if newest < promised {
            fail("I1: the writer goes on from sequence \(newest), but \(promised) was durable")
        }
        medium.note(newest)
        let observers = Observers(
            writer, medium, scheduler, readsFail: readsFail,
            unproven: start.silentFaultCount > 0 && writer.recovered?.isVerified == false
                ? writer.recovered?.candidate.sequence : nil)
        if Bool.random(using: &random) { observers.watch() }
        if UInt8.random(in: 0..<3, using: &random) == 0 { observers.read() }
        for _ in 0..<Int.random(in: 1...8, using: &random) { act(writer) }
        end(writer)
        observers.stop()
        for ticket in tickets where ticket.outcome == nil {
            fail("I6: the writer has ended, and sequence \(ticket.sequence) has not")
        }
        let isSilent = start.silentFaultCount + medium.recording.silentFaultCount > 0
        let payloads = promises.payloads
        if let problem = observers.problem(payloads, allowsErrors: isSilent || !plan.rules.isEmpty)
        {
            fail(problem)
        }
    }

    private mutating func end(_ writer: CheckpointWriter) {
        if UInt8.random(in: 0..<3, using: &random) == 0 { return writer.abandon() }
        do throws(CheckpointError) {
            try writer.close()
        } catch {
            if plan.rules.isEmpty { fail("close failed: \(error)") }
        }
    }

    // MARK: The caller

    private mutating func act(_ writer: CheckpointWriter) {
        switch UInt8.random(in: 0..<8, using: &random) {
        case 0..<3: save(writer)
        case 3: if let ticket = save(writer) { _ = try? ticket.wait() }
        case 4: if let ticket = tickets.randomElement(using: &random) { _ = try? ticket.wait() }
        case 5:
            if let ticket = tickets.last {
                _ = try? ticket.wait(timeoutNanoseconds: random.next() % 2_000_000)
            }
        case 6:
            step = step / 2
            try? writer.rewind(to: step)
        default: scheduler.sleep(nanoseconds: random.next() % 5_000_000)
        }
    }

    @discardableResult
    private mutating func save(_ writer: CheckpointWriter) -> CheckpointTicket? {
        step += 1
        let payload = SmallFile.payload(step: random.next() % 1_000_000)
        // Memory that is the caller's: the writer must be done with it when it says staged.
        let memory = AlignedBuffer(byteCount: payload.count)
        memory.copy(payload, to: 0)
        // Safe: the buffer lives until the end of this function, which waits until nobody reads it.
        let whole = unsafe CheckpointPayload.Region(
            UnsafeRawBufferPointer(start: memory.baseAddress, count: memory.byteCount))
        let regions = rig?.place(payload, memory, random: &places) ?? [whole]
        do throws(CheckpointError) {
            let needsApproval = UInt8.random(in: 0..<4, using: &approvals) == 0
            let ticket = try writer.save(
                step: step, payload: CheckpointPayload(opaque: regions),
                isUrgent: UInt8.random(in: 0..<4, using: &random) == 0,
                needsApproval: needsApproval)
            guard ticket.outcome != .skipped else { return nil }
            if ticket.sequence.rawValue <= start.acknowledged.last ?? 0 {
                fail("I3: sequence \(ticket.sequence) is given a second time")
            }
            promises.began(ticket, needsApproval ? nil : payload)
            tickets.append(ticket)
            report.savedCount += 1
            waitUntilUnread(ticket)
            memory.fillWithZeros(0..<memory.byteCount)
            if needsApproval { decide(ticket, payload, writer) }
            return ticket
        } catch {
            let isAllowed =
                [.busy, .timeout].contains(error.code)
                || error.code == .accelerator && rig?.mayFail == true
                || !plan.rules.isEmpty
                    && [.failStop, .slotsExhausted, .inputOutput].contains(error.code)
            if !isAllowed { fail("save failed: \(error)") }
            return nil
        }
    }

    /// Its memory of the host may change then; that of devices does, as soon as they let it.
    private func waitUntilUnread(_ ticket: CheckpointTicket) {
        do throws(CheckpointError) {
            guard let rig else { return try ticket.waitStaged() }
            try rig.compute(behind: ticket)
        } catch {
            // A device that has failed holds nothing back: its checkpoint fails.
            try? ticket.waitStaged()
        }
    }

    /// Approves a checkpoint or rejects it, now or later.
    private mutating func decide(
        _ ticket: CheckpointTicket, _ payload: [UInt8], _ writer: CheckpointWriter
    ) {
        if Bool.random(using: &approvals) {
            scheduler.sleep(nanoseconds: approvals.next() % 2_000_000)
        }
        if Bool.random(using: &approvals) {
            promises.approves(ticket, payload)
            writer.approve(ticket)
        } else {
            writer.reject(ticket, because: "the simulation rejects it")
            if ticket.outcome == .durable { fail("sequence \(ticket.sequence) was rejected") }
        }
    }
}
