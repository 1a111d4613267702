/// What was measured of a machine and a job, from which the cost of every policy follows.
package struct MachineCosts: Equatable, Sendable {
    /// m: bytes that one node saves.
    package var stateByteCount: Double
    /// t: one step of training.
    package var stepSeconds: Double
    /// To storage, in all, when enough is in flight.
    package var writeBytesPerSecond: Double
    /// Of one checkpoint alone; less where one writer does not keep the storage busy.
    package var soloWriteBytesPerSecond: Double
    /// Out of the memory of training, while it waits.
    package var copyBytesPerSecond: Double
    /// From storage, at a restart.
    package var readBytesPerSecond: Double
    /// Between nodes, for copies in the memory of others.
    package var networkBytesPerSecond: Double
    /// How much longer a step takes while a checkpoint is in flight.
    package var slowdown: Double
    package var detectSeconds: Double
    package var rescheduleSeconds: Double
    /// Copies that Gemini keeps, and how often it saves to storage.
    package var replicaCount = 2
    package var storageIntervalSeconds = 10_800.0

    package init(
        stateByteCount: Double, stepSeconds: Double, writeBytesPerSecond: Double,
        soloWriteBytesPerSecond: Double? = nil, copyBytesPerSecond: Double,
        readBytesPerSecond: Double, networkBytesPerSecond: Double, slowdown: Double,
        detectSeconds: Double, rescheduleSeconds: Double
    ) {
        self.stateByteCount = stateByteCount
        self.stepSeconds = stepSeconds
        self.writeBytesPerSecond = writeBytesPerSecond
        self.soloWriteBytesPerSecond = soloWriteBytesPerSecond ?? writeBytesPerSecond
        self.copyBytesPerSecond = copyBytesPerSecond
        self.readBytesPerSecond = readBytesPerSecond
        self.networkBytesPerSecond = networkBytesPerSecond
        self.slowdown = slowdown
        self.detectSeconds = detectSeconds
        self.rescheduleSeconds = rescheduleSeconds
    }

    /// m / copy rate.
    package var copySeconds: Double { stateByteCount / copyBytesPerSecond }
    /// m / write rate: how long the storage is busy with one checkpoint.
    package var deviceSeconds: Double { stateByteCount / writeBytesPerSecond }
    /// m / rate of one checkpoint alone.
    package var soloWriteSeconds: Double {
        stateByteCount / min(soloWriteBytesPerSecond, writeBytesPerSecond)
    }

    private var restart: RestartCost {
        RestartCost(
            detectSeconds: detectSeconds, rescheduleSeconds: rescheduleSeconds,
            readSeconds: stateByteCount / readBytesPerSecond)
    }

    /// Nothing is saved; a restart reads nothing.
    package var nothing: Policy {
        var restart = restart
        restart.readSeconds = 0
        return Policy(name: "none", cost: nil, restart: restart)
    }

    /// `torch.save`: training waits for all of it.
    package var blocking: Policy {
        Policy(
            name: "torch.save",
            cost: CheckpointCost(
                blockedSeconds: soloWriteSeconds, writeSeconds: 0, deviceSeconds: 0),
            restart: restart)
    }

    /// One checkpoint in flight: asynchronous DCP, and CheckFreq.
    package var oneInFlight: Policy {
        Policy(
            name: "async N=1",
            cost: CheckpointCost(
                blockedSeconds: copySeconds, writeSeconds: soloWriteSeconds,
                deviceSeconds: deviceSeconds, slowdown: slowdown),
            restart: restart)
    }

    /// N in flight.
    package func pccheck(inFlightCount: Int) -> Policy {
        Policy(
            name: "PCcheck N=\(inFlightCount)",
            cost: CheckpointCost(
                blockedSeconds: copySeconds, writeSeconds: soloWriteSeconds,
                deviceSeconds: deviceSeconds, inFlightCount: inFlightCount, slowdown: slowdown),
            restart: restart)
    }

    /// Memory of other nodes, over the network while training runs, and storage now and then.
    package var peerMemory: Policy {
        let network = stateByteCount / networkBytesPerSecond
        var restart = restart
        restart.readSeconds = network
        return Policy(
            name: "Gemini",
            cost: CheckpointCost(
                blockedSeconds: 0, writeSeconds: network, deviceSeconds: network,
                slowdown: slowdown),
            restart: restart,
            peerMemory: Policy.PeerMemory(
                replicaCount: replicaCount, storageIntervalSeconds: storageIntervalSeconds,
                storageBlockedSeconds: copySeconds,
                storageCommitSeconds: copySeconds + soloWriteSeconds,
                storageReadSeconds: stateByteCount / readBytesPerSecond))
    }

    /// A policy with what one of its checkpoints costs as measured, in place of what follows from
    /// the rates. It keeps the storage busy for its write at most.
    package static func measured(
        _ policy: Policy, blockedSeconds: Double, writeSeconds: Double
    ) -> Policy {
        guard var cost = policy.cost else { return policy }
        cost.blockedSeconds = blockedSeconds
        cost.writeSeconds = writeSeconds
        cost.deviceSeconds = min(cost.deviceSeconds, writeSeconds)
        var policy = policy
        policy.cost = cost
        return policy
    }

    /// - Throws: when a number makes no sense.
    package func check() throws(ReplayError) {
        let rates = [
            writeBytesPerSecond, soloWriteBytesPerSecond, copyBytesPerSecond, readBytesPerSecond,
            networkBytesPerSecond,
        ]
        guard rates.allSatisfy({ (1...1e15).contains($0) }) else {
            throw ReplayError(message: "a rate is not between 1 byte/s and 10^15 bytes/s")
        }
        guard (0...1e18).contains(stateByteCount), stateByteCount / (rates.min() ?? 1) <= 1e9
        else { throw ReplayError(message: "the state is too large for the rates") }
        guard (1e-6...1e6).contains(stepSeconds), (0...1000).contains(slowdown),
            (0...1e9).contains(detectSeconds), (0...1e9).contains(rescheduleSeconds),
            (1...1000).contains(replicaCount), (1e-3...1e9).contains(storageIntervalSeconds)
        else { throw ReplayError(message: "a time or a number of copies is out of range") }
    }
}
