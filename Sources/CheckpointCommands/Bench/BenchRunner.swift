internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage
internal import CheckpointWriter

#if canImport(Glibc)
    internal import Glibc
#endif

/// Measures. Everything that is compared runs in turn within one round, so that a slow minute of
/// the device hits both sides.
struct BenchRunner {
    struct Options: Sendable {
        var directory = "."
        var byteCount: UInt64 = 1 << 30
        var repeatCount = 5
        var loopByteCount: UInt64 = 256 << 20
        var loopStepCount = 60
        var stepMilliseconds = 50
        var interval = 5
        var writerOptions = WriterOptions()
    }

    let options: Options
    /// Called with what is about to run.
    let progress: (String) throws(CheckpointError) -> Void

    private var chunkByteCount: Int { 4 << 20 }

    // MARK: One durable checkpoint

    func measureDurable() throws(CheckpointError) -> BenchReport.Durable {
        let workspace = BenchWorkspace(directory: options.directory)
        try progress("filling \(Quantity.bytes(options.byteCount)) of state")
        let state = BenchState(byteCount: Int(options.byteCount))
        let plainPath = workspace.path("plain")
        try progress("writing the files once")
        try writePlainFile(plainPath)
        let path = try workspace.createFile("durable", capacity: options.byteCount, inFlight: 1)
        let residentBefore = SystemClock.residentByteCount
        let writer = try CheckpointWriter(path: path, options: options.writerOptions)
        var result = BenchReport.Durable(
            byteCount: options.byteCount, poolByteCount: writer.statistics.poolByteCount,
            backend: writer.statistics.storageKind.name)
        // Both slots once, so that every round overwrites.
        for step in [UInt64(1), 2] { _ = try save(state, step, writer) }
        let before = writer.statistics
        let hasFio = Fio.isInstalled
        if hasFio { result.fio = Fio.settings.map { (Fio.name($0), Samples()) } }
        let plain = try withCheckpointErrors { () throws(StorageError) in
            try FileStorage(path: plainPath, access: .write)
        }
        for round in 1...options.repeatCount {
            try progress("durable checkpoint, round \(round) of \(options.repeatCount)")
            for (index, setting) in Fio.settings.enumerated() where hasFio {
                if let rate = Fio.rate(setting, path: plainPath, byteCount: options.byteCount) {
                    result.fio[index].rate.add(rate)
                }
            }
            result.plain.add(
                try PlainWrites.rate(
                    state, to: plain, threadCount: options.writerOptions.writerWorkerCount,
                    chunkByteCount: chunkByteCount))
            let cpuBefore = SystemClock.processCPUTime
            let durableSeconds = try save(state, UInt64(round + 2), writer)
            let cpu = Double(SystemClock.processCPUTime - cpuBefore) / 1e9
            result.cpuSecondsPerGiB.add(cpu * Double(1 << 30) / Double(options.byteCount))
            result.checkpoint.add(Double(options.byteCount) / durableSeconds / 1e6)
            // A save of its own: a caller that waits for the copy gets it sooner than one that
            // waits for the disk.
            let staged = try writer.save(
                step: UInt64(round + 2), payload: state.payload)
            try staged.waitStaged()
            result.staged.add(Double(staged.stagedNanoseconds) / 1e6)
            _ = try staged.wait()
        }
        result.fio.removeAll { $0.rate.isEmpty }
        result.extraResidentByteCount =
            SystemClock.peakResidentByteCount
            - min(residentBefore, SystemClock.peakResidentByteCount)
        let after = writer.statistics
        // Two saves a round.
        let rounds = Double(2 * options.repeatCount)
        result.flushesPerCheckpoint = Double(after.flushCount - before.flushCount) / rounds
        result.metadataWritesPerCheckpoint =
            Double(after.metadataWriteCount - before.metadataWriteCount) / rounds
        try writer.close()
        try measureCopies(state, &result)
        return result
    }

    /// Last, because its target would count as memory of the writer.
    private func measureCopies(
        _ state: BenchState, _ result: inout BenchReport.Durable
    ) throws(CheckpointError) {
        try progress("memcpy of the same bytes")
        let target = AlignedBuffer(byteCount: state.buffer.byteCount)
        for _ in 0..<options.repeatCount {
            let elapsed = try PlainWrites.copySeconds(
                state, to: target, threadCount: options.writerOptions.snapshotWorkerCount,
                chunkByteCount: chunkByteCount)
            result.memcpy.add(elapsed * 1e3)
        }
    }

    private func writePlainFile(_ path: String) throws(CheckpointError) {
        try withCheckpointErrors { () throws(StorageError) in
            var file = try NewFile(beside: path, byteCount: options.byteCount)
            let storage = try FileStorage(path: file.temporaryPath, access: .write)
            let zeros = AlignedBuffer(byteCount: chunkByteCount)
            var offset: UInt64 = 0
            while offset < options.byteCount {
                let count = Int(min(UInt64(zeros.byteCount), options.byteCount - offset))
                try storage.write(zeros, 0..<count, at: offset)
                offset += UInt64(count)
            }
            try file.publish(replacing: true)
        }
    }

    /// Seconds from save to durable.
    private func save(
        _ state: BenchState, _ step: UInt64, _ writer: CheckpointWriter
    ) throws(CheckpointError) -> Double {
        let ticket = try writer.save(step: step, payload: state.payload)
        if case .failed(let error) = try ticket.wait() { throw error }
        return Double(ticket.durableNanoseconds) / 1e9
    }

    // MARK: Training loop

    func measureLoop() throws(CheckpointError) -> BenchReport.Loop {
        let workspace = BenchWorkspace(directory: options.directory)
        let state = BenchState(byteCount: Int(options.loopByteCount))
        var result = BenchReport.Loop(
            byteCount: options.loopByteCount, stepCount: options.loopStepCount,
            stepMilliseconds: options.stepMilliseconds, interval: options.interval)
        let path = try workspace.createFile("loop", capacity: options.loopByteCount, inFlight: 2)
        let writer = try CheckpointWriter(path: path, options: options.writerOptions)
        var step: UInt64 = 0
        for round in 1...3 {
            try progress("training loop, round \(round) of 3")
            result.plain.add(
                try seconds { () throws(CheckpointError) in
                    for _ in 0..<options.loopStepCount { sleepOneStep() }
                })
            var last: CheckpointTicket?
            result.checkpointed.add(
                try seconds { () throws(CheckpointError) in
                    for _ in 0..<options.loopStepCount {
                        step += 1
                        sleepOneStep()
                        // The optimizer is about to change the state: the copy must be done.
                        try last?.waitStaged()
                        if step % UInt64(options.interval) == 0 {
                            last = try writer.save(step: step, payload: state.payload)
                        }
                    }
                })
            result.drain.add(
                try seconds { () throws(CheckpointError) in
                    if case .failed(let error)? = try last?.wait() { throw error }
                })
        }
        try writer.close()
        return result
    }

    private func sleepOneStep() { usleep(UInt32(options.stepMilliseconds) * 1000) }

    // MARK: Opening

    /// Eight slots, each with a checkpoint: as much as there is to look at.
    func measureOpen(payloadByteCount: UInt64) throws(CheckpointError) -> BenchReport.Open {
        let workspace = BenchWorkspace(directory: options.directory)
        try progress("opening a file of 8 slots of \(Quantity.bytes(payloadByteCount))")
        let path = try workspace.createFile(
            "open", capacity: payloadByteCount, inFlight: 1, retain: 7)
        let state = BenchState(byteCount: Int(payloadByteCount))
        let writer = try CheckpointWriter(path: path, options: options.writerOptions)
        for step in 1...8 { _ = try save(state, UInt64(step), writer) }
        try writer.close()
        var result = BenchReport.Open(slotCount: 8, payloadByteCount: payloadByteCount)
        for _ in 0..<max(options.repeatCount, 20) {
            let elapsed = try seconds { () throws(CheckpointError) in
                let reader = try CheckpointReader(path: path)
                guard reader.decision.candidates.first?.step == 8 else {
                    throw CheckpointError(.corrupt, "\(path): the newest checkpoint is not step 8")
                }
            }
            result.milliseconds.add(elapsed * 1e3)
        }
        return result
    }
}
