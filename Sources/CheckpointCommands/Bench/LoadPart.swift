internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage
internal import CheckpointWriter

#if canImport(Glibc)
    internal import Glibc
#endif

/// Verified loads of the newest checkpoint into the caller's memory.
struct LoadSection: BenchSection {
    struct Entry: Sendable {
        var byteCount: UInt64
        var backend: String
        var tensorByteCount: UInt64
        /// MB/s from opening the file until every byte is in the caller's memory.
        var load = Samples()
        var fio: Fio.Rates
        /// Milliseconds from opening the file until one tensor is in the caller's memory.
        var tensor = Samples()
        var cpuSecondsPerGiB = Samples()
        /// Peak resident memory above what the process had, the caller's memory included in that.
        var extraResidentByteCount: UInt64 = 0
    }

    var entries: [Entry] = []
    var workerCount: Int
}

extension BenchRunner {
    private static let tensorCount = 64

    func measureLoad() throws(CheckpointError) -> LoadSection {
        var section = LoadSection(workerCount: settings.readerWorkerCount)
        for byteCount in settings.byteCounts {
            try checkSpace(
                for: "load", byteCount: byteCount, slotCount: 2, otherMemoryByteCount: byteCount)
        }
        for byteCount in settings.byteCounts {
            section.entries.append(try measureLoad(byteCount))
        }
        return section
    }

    private func measureLoad(_ byteCount: UInt64) throws(CheckpointError) -> LoadSection.Entry {
        let workspace = BenchWorkspace(directory: settings.directory)
        let size = Quantity.bytes(byteCount)
        try progress("saving \(size) to load")
        let state = BenchState(byteCount: byteCount)
        let payload = try state.tensorPayload(count: Self.tensorCount)
        let path = try workspace.createFile(
            "load", capacity: payload.byteCount, inFlight: 1,
            chunkByteCount: settings.chunkByteCount)
        let writer = try CheckpointWriter(path: path, options: settings.writerOptions)
        _ = try save(payload, 1, writer)
        try writer.close()
        let target = AlignedBuffer(byteCount: state.byteCount)
        let probe = try openReader(path)
        guard let candidate = probe.decision.candidates.first else {
            throw CheckpointError(.noCheckpoint, "\(path): the checkpoint just saved is not there")
        }
        let storedByteCount = candidate.table.entries.reduce(0) { $0 + UInt64($1.storedByteCount) }
        let fioTarget = Fio.Target(
            path: path, offset: candidate.dataOffset,
            byteCount: storedByteCount.roundedUp(to: 4096),
            loopCount: byteCount < 256 << 20 ? 8 : 1, isRead: true)
        var entry = LoadSection.Entry(
            byteCount: UInt64(state.byteCount), backend: probe.storage.kind.name,
            tensorByteCount: 0, fio: Fio.Rates(hasFio ? Fio.readSettings(settings.fio) : []))
        let memory = MemoryPeak()
        for round in 1...settings.roundCount {
            try progress("load, \(size), round \(round) of \(settings.roundCount)")
            entry.fio.measure(fioTarget)
            try measure(
                Double(fioTarget.loopCount * state.byteCount), &entry.load, &entry.cpuSecondsPerGiB
            ) { () throws(CheckpointError) in
                try seconds { () throws(CheckpointError) in
                    for _ in 0..<fioTarget.loopCount {
                        try Interruption.check()
                        try load(path, into: target)
                    }
                }
            }
            let tensor = try loadTensor(path, into: target)
            entry.tensorByteCount = tensor.byteCount
            entry.tensor.add(tensor.milliseconds)
        }
        entry.extraResidentByteCount = memory.extraByteCount
        entry.fio.dropFailed(roundCount: settings.roundCount)
        try load(path, into: target)
        try checkSame(state, target, path)
        return entry
    }

    private func openReader(_ path: String) throws(CheckpointError) -> CheckpointReader {
        let mode: FileStorage.Mode =
            settings.writerOptions.backend == .buffered ? .buffered : .automatic
        let reader = try CheckpointReader(
            path: path, mode: mode, workerCount: settings.readerWorkerCount)
        // Without O_DIRECT the page cache would answer.
        reader.storage.discardCache()
        return reader
    }

    private func load(_ path: String, into target: AlignedBuffer) throws(CheckpointError) {
        let reader = try openReader(path)
        _ = try reader.loadNewest { selected throws(CheckpointError) in
            // Safe: the target is this read's alone until it returns.
            let memory = unsafe UnsafeMutableRawBufferPointer(
                start: target.baseAddress, count: target.byteCount)
            try selected.read([
                unsafe Destination(
                    payloadOffset: selected.candidate.header.manifestByteCount, buffer: memory)
            ])
        }
    }

    /// The tensor in the middle, found by its name.
    private func loadTensor(
        _ path: String, into target: AlignedBuffer
    ) throws(CheckpointError) -> (byteCount: UInt64, milliseconds: Double) {
        let name = "layers.\(Self.tensorCount / 2).weight"
        var byteCount: UInt64 = 0
        let elapsed = try seconds { () throws(CheckpointError) in
            let reader = try openReader(path)
            byteCount =
                try reader.loadNewest { selected throws(CheckpointError) in
                    let manifest = try selected.tensorManifest()
                    guard let tensor = manifest.tensors.first(where: { $0.name == name }) else {
                        throw CheckpointError(.notFound, "\(path): there is no tensor \(name)")
                    }
                    // Safe: the tensor is smaller than the state, which the target can hold.
                    let memory = unsafe UnsafeMutableRawBufferPointer(
                        start: target.baseAddress, count: tensor.dataRange.count)
                    try selected.read([
                        unsafe Destination(
                            payloadOffset: manifest.dataOffset + tensor.dataRange.lowerBound,
                            buffer: memory)
                    ])
                    return UInt64(tensor.dataRange.count)
                }.value
        }
        return (byteCount, elapsed * 1e3)
    }

    /// What was loaded must be what was saved, or the figures mean nothing.
    func checkSame(
        _ state: BenchState, _ target: AlignedBuffer, _ path: String
    ) throws(CheckpointError) {
        // Safe: both have as many bytes.
        guard unsafe memcmp(state.buffer.baseAddress, target.baseAddress, state.byteCount) == 0
        else {
            throw CheckpointError(
                .corrupt, "\(path): the loaded bytes are not the saved ones; that is a bug")
        }
    }
}

extension LoadSection {
    var lines: [StyledText] { entries.flatMap { $0.lines(workerCount: workerCount) } }
    var json: JSONValue { .array(entries.map { $0.json(workerCount: workerCount) }) }
}

extension LoadSection.Entry {
    fileprivate func lines(workerCount: Int) -> [StyledText] {
        let title =
            "Verified load of \(Quantity.bytes(byteCount)) into the caller's memory "
            + "(\(backend), \(Quantity.plural(workerCount, "thread")))"
        var table = BenchTable()
        table.add("pccheck, every chunk verified", load, digits: 0, unit: "MB/s")
        table.add(fio, reachedBy: load)
        table.add(
            "one tensor of \(Quantity.bytes(tensorByteCount))", tensor, digits: 2, unit: "ms")
        table.add("CPU", cpuSecondsPerGiB, digits: 3, unit: "s/GiB")
        let memory = "  memory: \(Quantity.bytes(extraResidentByteCount)) beside the caller's"
        return [StyledText(title, .bold)] + table.lines + [StyledText(memory), ""]
    }

    fileprivate func json(workerCount: Int) -> JSONValue {
        .dictionary([
            "byte_count": .integer(byteCount),
            "backend": .string(backend),
            "reader_worker_count": .count(workerCount),
            "load_megabytes_per_second": load.json,
            "fio_megabytes_per_second": fio.json,
            "best_fio": .text(fio.best?.setting.name),
            "ratio_to_best_fio": fio.best.map { load.ratios(to: $0.rate).json } ?? .null,
            "tensor_byte_count": .integer(tensorByteCount),
            "tensor_milliseconds": tensor.json,
            "cpu_seconds_per_gib": cpuSecondsPerGiB.json,
            "extra_resident_byte_count": .integer(extraResidentByteCount),
        ])
    }
}
