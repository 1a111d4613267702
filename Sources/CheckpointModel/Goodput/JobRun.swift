/// One job in one replay, from event to event.
struct JobRun {
    private enum Phase {
        case waiting
        case restarting(untilSeconds: Double)
        case running
    }

    private enum Stop { case first, planned, unplanned, afterWait }

    private let timeline: Timeline
    private let job: JobSize
    private let options: ReplayOptions
    private let policy: Policy
    private let cycle: CheckpointCycle?
    private let blockSeconds: Double

    private var nodes: NodeSet
    private var random: SeededRandom
    private var storage: StorageTier?
    private var phase = Phase.waiting
    /// Since when the phase lasts.
    private var sinceSeconds = 0.0
    private var hasStarted = false
    /// When an elastic job restarts with nodes that came.
    private var growthSeconds = Double.infinity
    /// Since the job stopped: nodes lost that held its state, of how many, and the draw that
    /// decides whether the memory of the others is enough.
    private var lostHolderCount = 0
    private var holderCount = 0
    private var draw = 0.5
    private var hasFallenBack = false

    private(set) var result: ReplayResult

    init(_ replay: Replay, _ policy: Policy, intervalSeconds: Double) {
        timeline = replay.timeline
        job = replay.job
        options = replay.options
        self.policy = policy
        let memory = policy.peerMemory
        cycle = policy.cost.map { cost in
            let extra = memory.map {
                $0.storageBlockedSeconds * intervalSeconds / $0.storageIntervalSeconds
            }
            return CheckpointCycle(
                intervalSeconds: intervalSeconds, cost: cost, extraBlockedSeconds: extra ?? 0)
        }
        storage = memory.map(StorageTier.init)
        nodes = NodeSet(nodeCount: timeline.nodeCount, areThere: timeline.areNodesThere)
        random = SeededRandom(seed: options.seed)
        blockSeconds = timeline.endSeconds / Double(options.blockCount)
        result = ReplayResult(blocks: [Tally](repeating: Tally(), count: options.blockCount))
    }

    // MARK: Events

    mutating func replay() {
        var index = 0
        let changes = timeline.changes
        if timeline.areNodesThere { tryStart(at: 0, .first) }
        while true {
            let change = index < changes.count ? changes[index].timeSeconds : .infinity
            let deadline = deadlineSeconds
            guard min(change, deadline) < timeline.endSeconds else { break }
            if deadline <= change {
                reachDeadline(deadline)
                continue
            }
            var lostCount = 0
            while index < changes.count, changes[index].timeSeconds == change {
                lostCount += apply(changes[index])
                index += 1
            }
            react(at: change, lostCount: lostCount)
        }
        finish(at: timeline.endSeconds)
        for block in result.blocks { result.total += block }
    }

    private var deadlineSeconds: Double {
        switch phase {
        case .waiting: .infinity
        case .restarting(let until): until
        case .running: growthSeconds
        }
    }

    /// - Returns: how many nodes the job lost.
    private mutating func apply(_ change: Timeline.Change) -> Int {
        let node = Int(change.node)
        let count = Int(change.nodeCountChange)
        guard count < 0 else {
            if node < 0 { nodes.addAny(count) } else { nodes.add(node) }
            return 0
        }
        var lostCount = 0
        for _ in 0..<(-count) {
            guard let leaving = node < 0 ? nodes.anyNode(&random) : node else { break }
            let (wasUsed, heldState) = nodes.leave(leaving)
            if wasUsed { lostCount += 1 }
            if heldState { lostHolderCount += 1 }
        }
        return lostCount
    }

    private mutating func react(at time: Double, lostCount: Int) {
        switch phase {
        case .waiting:
            spend(from: sinceSeconds, to: time, width: 0)
            tryStart(at: time, hasStarted ? .afterWait : .first)
        case .restarting:
            guard lostCount > 0 else { return }
            result.interruptedRestartCount += 1
            spend(
                from: sinceSeconds, to: time, width: nodes.usedCount + lostCount,
                restart: time - sinceSeconds)
            tryStart(at: time, .unplanned)
        case .running:
            if lostCount > 0 {
                stopUnplanned(at: time, width: nodes.usedCount + lostCount)
                result.hitSeconds.append(result.runningSeconds)
                tryStart(at: time, .unplanned)
            } else {
                planGrowth(at: time)
            }
        }
    }

    private mutating func reachDeadline(_ time: Double) {
        switch phase {
        case .waiting: break
        case .restarting:
            spend(
                from: sinceSeconds, to: time, width: nodes.usedCount, restart: time - sinceSeconds)
            run(from: time)
        case .running:
            growthSeconds = .infinity
            result.growthCount += 1
            endRun(at: time, width: nodes.usedCount)
            (holderCount, draw) = (nodes.usedCount, random.uniform())
            tryStart(at: time, .planned)
        }
    }

    private mutating func finish(at time: Double) {
        let width = nodes.usedCount
        switch phase {
        case .waiting: spend(from: sinceSeconds, to: time, width: 0)
        case .restarting:
            spend(from: sinceSeconds, to: time, width: width, restart: time - sinceSeconds)
        case .running: endRun(at: time, width: width)
        }
    }

    // MARK: Starting

    private mutating func tryStart(at time: Double, _ stop: Stop) {
        sinceSeconds = time
        growthSeconds = .infinity
        guard nodes.usedCount + nodes.idleCount >= job.leastNodeCount else {
            phase = .waiting
            return
        }
        nodes.take(upTo: job.mostNodeCount)
        if stop == .first { return run(from: time) }
        let restart = policy.restart
        var seconds = restart.rescheduleSeconds + restart.readSeconds
        if stop == .unplanned { seconds += restart.detectSeconds }
        // The checkpoint that a planned restart begins with.
        if stop == .planned { seconds += policy.cost?.commitSeconds ?? 0 }
        if let memory = policy.peerMemory, !isInMemory(memory) {
            seconds += memory.storageReadSeconds - restart.readSeconds
        }
        phase = .restarting(untilSeconds: time + max(0, seconds))
    }

    private mutating func run(from time: Double) {
        phase = .running
        sinceSeconds = time
        hasStarted = true
        nodes.beginRun()
        (lostHolderCount, hasFallenBack) = (0, false)
        planGrowth(at: time)
    }

    /// An elastic job takes in nodes that came, once no more of them are awaited.
    private mutating func planGrowth(at time: Double) {
        guard policy.cost != nil, growthSeconds == .infinity, nodes.idleCount > 0,
            nodes.usedCount < job.mostNodeCount
        else { return }
        growthSeconds = time + options.settleSeconds
    }

    /// Whether the nodes that are left hold the state of all. When not, the work since the last
    /// checkpoint on storage is lost, once for each stop.
    private mutating func isInMemory(_ memory: Policy.PeerMemory) -> Bool {
        let probability = Gemini.survivalProbability(
            machineCount: holderCount, lostCount: lostHolderCount,
            replicaCount: memory.replicaCount)
        if !hasFallenBack, draw < probability { return true }
        if !hasFallenBack {
            hasFallenBack = true
            result.fallbackCount += 1
            for lost in storage?.fallBack() ?? [] { takeBack(lost) }
        }
        return false
    }

    // MARK: Accounting

    /// The job loses a node while it runs.
    private mutating func stopUnplanned(at time: Double, width: Int) {
        holderCount = width
        if policy.peerMemory != nil { draw = random.uniform() }
        let start = sinceSeconds
        let elapsed = time - start
        result.runningSeconds += elapsed
        guard let cycle, let cost = policy.cost else {
            // Nothing was saved: all of it is lost.
            return spend(from: start, to: time, width: width, redone: elapsed)
        }
        let notice = timeline.cause == .preemption ? options.noticeSeconds : 0
        if policy.peerMemory == nil, cost.commitSeconds <= notice, cost.commitSeconds < elapsed {
            let work = cycle.work(after: elapsed - cost.commitSeconds)
            return spend(
                from: start, to: time, width: width, useful: work, blocked: elapsed - work)
        }
        let count = cycle.durableCount(after: elapsed)
        let kept = min(elapsed, cycle.snapshotSeconds(count))
        let useful = count * cycle.workSeconds
        spend(
            from: start, to: start + kept, width: width, useful: useful, blocked: kept - useful)
        storage?.add(
            StorageTier.Stretch(
                startSeconds: start, endSeconds: start + kept, work: useful * Double(width)))
        let redone = min(max(0, cycle.work(after: elapsed) - useful), elapsed - kept)
        spend(
            from: start + kept, to: time, width: width, blocked: elapsed - kept - redone,
            redone: redone)
    }

    /// The job stops with all of its work.
    private mutating func endRun(at time: Double, width: Int) {
        let elapsed = time - sinceSeconds
        result.runningSeconds += elapsed
        let work = min(elapsed, cycle?.work(after: elapsed) ?? elapsed)
        spend(
            from: sinceSeconds, to: time, width: width, useful: work, blocked: elapsed - work)
        storage?.add(
            StorageTier.Stretch(
                startSeconds: sinceSeconds, endSeconds: time, work: work * Double(width)))
    }

    /// Counts a stretch in which the job had `width` nodes; the parts are in seconds, and spread
    /// evenly over it. Nodes that the job had too few of were waited for.
    private mutating func spend(
        from start: Double, to end: Double, width: Int, useful: Double = 0, blocked: Double = 0,
        redone: Double = 0, restart: Double = 0
    ) {
        let length = end - start
        guard length > 0 else { return }
        let missing = Double(job.mostNodeCount - width)
        for block in blockIndex(start)...blockIndex(end) {
            let (from, to) = part(of: block, from: start, to: end)
            let nodeShare = (to - from) / length * Double(width)
            result.blocks[block].useful += useful * nodeShare
            result.blocks[block].blocked += blocked * nodeShare
            result.blocks[block].redone += redone * nodeShare
            result.blocks[block].restart += restart * nodeShare
            result.blocks[block].waiting += missing * (to - from)
        }
    }

    /// Work that counted as useful is redone after all.
    private mutating func takeBack(_ lost: StorageTier.Stretch) {
        let (start, end) = (lost.startSeconds, lost.endSeconds)
        guard end > start else { return }
        for block in blockIndex(start)...blockIndex(end) {
            let (from, to) = part(of: block, from: start, to: end)
            let work = (to - from) / (end - start) * lost.work
            result.blocks[block].useful -= work
            result.blocks[block].redone += work
        }
    }

    /// The part of a stretch that is in a block.
    private func part(
        of block: Int, from start: Double, to end: Double
    ) -> (from: Double, to: Double) {
        (
            block == blockIndex(start) ? start : Double(block) * blockSeconds,
            block == blockIndex(end) ? end : Double(block + 1) * blockSeconds
        )
    }

    private func blockIndex(_ time: Double) -> Int {
        min(options.blockCount - 1, max(0, Int(time / blockSeconds)))
    }
}
