internal import CheckpointFormat
internal import CheckpointStorage
internal import CheckpointWriter

/// Durable checkpoints from memory, against what the same file system can do.
struct DurableSection: BenchSection {
    struct Entry: Sendable {
        var byteCount: UInt64
        var backend: String
        var backendDetail: String?
        var poolByteCount: UInt64
        var inFlightCount: Int
        var savesPerRound: Int
        /// MB/s, 10⁶ bytes per second: all saves of a round, one after another.
        var checkpoint = Samples()
        /// Milliseconds of each save until it was durable.
        var save = Samples()
        /// Milliseconds that each call of `save` kept its caller, who overlaps the copy.
        var call = Samples()
        /// MB/s of O_DIRECT pwrite(2) over a written file by as many threads, with fdatasync(2).
        var plain = Samples()
        /// Milliseconds of one pwrite(2) of everything and fdatasync(2); for small sizes.
        var bare = Samples()
        var fio: Fio.Rates
        /// Milliseconds from save to staged, waited for.
        var staged = Samples()
        /// Milliseconds of a memcpy of the same bytes by as many threads, into such memory.
        var memcpy = Samples()
        var cpuSecondsPerGiB = Samples()
        var flushesPerCheckpoint = 0.0
        var metadataWritesPerCheckpoint = 0.0
        /// Peak resident memory above what the process had before it opened the writer.
        var extraResidentByteCount: UInt64 = 0

        var aboveThePool: Int64 { Int64(extraResidentByteCount) - Int64(poolByteCount) }
    }

    var entries: [Entry] = []
}

extension BenchRunner {
    /// Up to this size a bare pwrite(2) of everything at once is measured too.
    private static let bareLimit: UInt64 = 64 << 20

    func measureDurable() throws(CheckpointError) -> DurableSection {
        var section = DurableSection()
        for byteCount in settings.byteCounts {
            try checkSpace(
                for: "durable", byteCount: byteCount, slotCount: settings.inFlightCount + 1,
                plainByteCount: byteCount, otherMemoryByteCount: byteCount)
        }
        for byteCount in settings.byteCounts {
            section.entries.append(try measureDurable(byteCount))
        }
        return section
    }

    private func measureDurable(
        _ byteCount: UInt64
    ) throws(CheckpointError) -> DurableSection.Entry {
        let workspace = BenchWorkspace(directory: settings.directory)
        let size = Quantity.bytes(byteCount)
        try progress("filling \(size) of state")
        let state = BenchState(byteCount: byteCount)
        let target = try copyTarget(byteCount: state.byteCount)
        try progress("writing files for \(size)")
        let plainPath = try workspace.writePlainFile(
            "plain", byteCount: UInt64(state.byteCount))
        let path = try workspace.createFile(
            "durable", capacity: UInt64(state.byteCount), inFlight: settings.inFlightCount,
            chunkByteCount: settings.chunkByteCount)
        let plain = try FileStorage.opened(plainPath, .write)
        let memory = MemoryPeak()
        let writer = try CheckpointWriter(path: path, options: settings.writerOptions)
        let count = savesPerRound(byteCount)
        var entry = DurableSection.Entry(
            byteCount: UInt64(state.byteCount), backend: writer.statistics.storageKind.name,
            poolByteCount: writer.statistics.poolByteCount,
            inFlightCount: settings.inFlightCount, savesPerRound: count,
            fio: Fio.Rates(hasFio ? Fio.writeSettings(settings.fio) : []))
        var step: UInt64 = 0
        // Every slot once, so that every round overwrites.
        for _ in 0...settings.inFlightCount {
            step += 1
            _ = try save(state.payload, step, writer)
        }
        let before = writer.statistics
        entry.backendDetail = before.storageDetail
        for round in 1...settings.roundCount {
            try progress("durable, \(size), round \(round) of \(settings.roundCount)")
            entry.fio.measure(
                Fio.Target(
                    path: plainPath, byteCount: UInt64(state.byteCount), loopCount: count))
            entry.plain.add(try PlainWrites.rate(state, to: plain, count: count, settings))
            if byteCount <= Self.bareLimit {
                for _ in 0..<count {
                    entry.bare.add(
                        1e3
                            * (try PlainWrites.writeSeconds(
                                state, to: plain, threadCount: 1, chunkByteCount: state.byteCount)))
                }
            }
            try measureSaves(state, writer, &step, &entry)
            for _ in 0..<count {
                step += 1
                entry.staged.add(try stagedMilliseconds(state.payload, step, writer))
                let seconds = try PlainWrites.copySeconds(
                    state, to: target, threadCount: writer.statistics.snapshotWorkerCount,
                    chunkByteCount: settings.chunkByteCount)
                entry.memcpy.add(seconds * 1e3)
            }
        }
        entry.fio.dropFailed(roundCount: settings.roundCount)
        entry.extraResidentByteCount = memory.extraByteCount
        let after = writer.statistics
        let saved = Double(after.durableCount - before.durableCount)
        entry.flushesPerCheckpoint = Double(after.flushCount - before.flushCount) / saved
        entry.metadataWritesPerCheckpoint =
            Double(after.metadataWriteCount - before.metadataWriteCount) / saved
        try writer.close()
        return entry
    }

    /// The saves of one round.
    private func measureSaves(
        _ state: BenchState, _ writer: CheckpointWriter, _ step: inout UInt64,
        _ entry: inout DurableSection.Entry
    ) throws(CheckpointError) {
        var times: [SaveTimes] = []
        try measure(
            Double(entry.savesPerRound) * Double(entry.byteCount), &entry.checkpoint,
            &entry.cpuSecondsPerGiB
        ) { () throws(CheckpointError) in
            for _ in 0..<entry.savesPerRound {
                step += 1
                times.append(try save(state.payload, step, writer))
            }
            return times.reduce(0) { $0 + $1.durable }
        }
        for time in times {
            entry.save.add(time.durable * 1e3)
            entry.call.add(time.call)
        }
    }

    /// Memory that the state is copied into, of the kind that a staging pool is made of: touched,
    /// and in huge pages where the kernel has them.
    private func copyTarget(byteCount: Int) throws(CheckpointError) -> AlignedBuffer {
        guard let memory = StagingMemory(byteCount: byteCount),
            let buffer = memory.buffers(of: byteCount).first
        else {
            throw CheckpointError(
                .outOfMemory,
                "there is no memory to copy \(byteCount) bytes to; choose a smaller "
                    + "--size")
        }
        return buffer
    }
}

extension DurableSection {
    var lines: [StyledText] { entries.flatMap(\.lines) }
    var json: JSONValue { .array(entries.map(\.json)) }
}

extension DurableSection.Entry {
    fileprivate var lines: [StyledText] {
        let title =
            "One durable checkpoint of \(Quantity.bytes(byteCount)) "
            + "(\(backend), pool \(Quantity.bytes(poolByteCount)))"
        var table = BenchTable()
        table.add("pccheck, checksums on", checkpoint, digits: 0, unit: "MB/s")
        table.add(fio, reachedBy: checkpoint)
        table.add(limit: "plain O_DIRECT", plain, reachedBy: checkpoint)
        table.add("save to durable", save, digits: 2, unit: "ms")
        if !bare.isEmpty {
            let more = Figure.decimal(save.median - bare.median, 2)
            table.add(
                "one bare pwrite, fdatasync", bare, digits: 2, unit: "ms",
                "pccheck takes \(more) ms more")
        }
        table.add("save to staged", staged, digits: 2, unit: "ms")
        table.add(
            "memcpy of the same", memcpy, digits: 2, unit: "ms",
            "staging is \(Figure.decimal(staged.ratios(to: memcpy).median, 2)) of it")
        table.add("save itself, overlapping", call, digits: 3, unit: "ms")
        table.add("CPU", cpuSecondsPerGiB, digits: 3, unit: "s/GiB")
        let memory =
            "  memory: pool \(Figure.difference(aboveThePool)); per checkpoint "
            + "\(Figure.decimal(flushesPerCheckpoint, 1)) flushes, "
            + "\(Figure.decimal(metadataWritesPerCheckpoint, 1)) metadata writes"
        return [StyledText(title, .bold)] + table.lines + [StyledText(memory), ""]
    }

    fileprivate var json: JSONValue {
        .dictionary([
            "byte_count": .integer(byteCount),
            "backend": .string(backend),
            "backend_detail": .text(backendDetail),
            "pool_byte_count": .integer(poolByteCount),
            "in_flight_count": .count(inFlightCount),
            "saves_per_round": .count(savesPerRound),
            "checkpoint_megabytes_per_second": checkpoint.json,
            "fio_megabytes_per_second": fio.json,
            "best_fio": .text(fio.best?.setting.name),
            "ratio_to_best_fio": fio.best.map { checkpoint.ratios(to: $0.rate).json } ?? .null,
            "plain_megabytes_per_second": plain.json,
            "ratio_to_plain": checkpoint.ratios(to: plain).json,
            "save_milliseconds": save.json(withValues: savesPerRound == 1),
            "bare_milliseconds": bare.isEmpty ? .null : bare.json(withValues: false),
            "save_call_milliseconds": call.json(withValues: savesPerRound == 1),
            "staged_milliseconds": staged.json(withValues: savesPerRound == 1),
            "memcpy_milliseconds": memcpy.json(withValues: savesPerRound == 1),
            "ratio_staged_to_memcpy": staged.ratios(to: memcpy).json(
                withValues: savesPerRound == 1),
            "cpu_seconds_per_gib": cpuSecondsPerGiB.json,
            "extra_resident_byte_count": .integer(extraResidentByteCount),
            "resident_above_pool_byte_count": Figure.json(aboveThePool),
            "flushes_per_checkpoint": .decimal(flushesPerCheckpoint),
            "metadata_writes_per_checkpoint": .decimal(metadataWritesPerCheckpoint),
        ])
    }
}
