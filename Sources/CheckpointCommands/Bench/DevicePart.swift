internal import CheckpointDevice
internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage
internal import CheckpointWriter

/// State in the memory of a CUDA device: from there to the medium and back, against a plain copy.
struct DeviceSection: BenchSection {
    struct Entry: Sendable {
        var byteCount: UInt64
        var model: String
        var poolByteCount: UInt64
        /// nil when the pool is registered with the device.
        var unpinnedReason: String?
        /// MB/s of one copy of everything into registered memory of the host.
        var plain = Samples()
        /// MB/s of the way from the device to the pool, while it was busy.
        var toPool = Samples()
        /// Milliseconds until `save` returned.
        var call = Samples()
        /// Milliseconds until every copy was queued, which is what a training step waits for.
        var queued = Samples()
        /// Milliseconds from save to staged.
        var staged = Samples()
        /// MB/s until it was durable.
        var durable = Samples()
        var fio: Fio.Rates
        /// MB/s from opening the file until every byte is on the device.
        var load = Samples()
        /// Peak resident memory above what the process had before it opened the writer.
        var extraResidentByteCount: UInt64 = 0

        var aboveThePool: Int64 { Int64(extraResidentByteCount) - Int64(poolByteCount) }
    }

    var entries: [Entry] = []
}

extension BenchRunner {
    func measureDevice() throws(CheckpointError) -> DeviceSection {
        let device = try CUDADevice(ordinal: 0, of: CUDADriver.installed())
        var section = DeviceSection()
        for byteCount in settings.byteCounts {
            try checkSpace(
                for: "device", byteCount: byteCount, slotCount: 2, plainByteCount: byteCount,
                otherMemoryByteCount: byteCount)
        }
        for byteCount in settings.byteCounts {
            section.entries.append(try measureDevice(device, byteCount))
        }
        return section
    }

    private func measureDevice(
        _ device: CUDADevice, _ wantedByteCount: UInt64
    ) throws(CheckpointError) -> DeviceSection.Entry {
        let workspace = BenchWorkspace(directory: settings.directory)
        let size = Quantity.bytes(wantedByteCount)
        try progress("filling \(size) of the device")
        let state = try DeviceState(device, byteCount: wantedByteCount)
        let byteCount = UInt64(state.byteCount)
        let plainPath = try workspace.writePlainFile("plain", byteCount: byteCount)
        let path = try workspace.createFile(
            "device", capacity: byteCount, inFlight: 1, chunkByteCount: settings.chunkByteCount)
        let memory = MemoryPeak()
        let writer = try CheckpointWriter(path: path, options: settings.writerOptions)
        var entry = DeviceSection.Entry(
            byteCount: byteCount, model: device.modelName,
            poolByteCount: writer.statistics.poolByteCount,
            fio: Fio.Rates(hasFio ? Fio.writeSettings(settings.fio) : []))
        var step: UInt64 = 0
        for round in 0...settings.roundCount {
            try progress("device, \(size), round \(round) of \(settings.roundCount)")
            step += 1
            let before = writer.statistics.deviceLeg
            let times = try saveFromDevice(state, step, writer)
            // The first one opens the device, and registers the pool.
            if round == 0 { continue }
            let leg = writer.statistics.deviceLeg
            entry.toPool.add(
                Double(leg.byteCount - before.byteCount)
                    / Double(leg.busyNanoseconds - before.busyNanoseconds) * 1e3)
            entry.call.add(times.call)
            entry.queued.add(times.queued)
            entry.staged.add(times.staged)
            entry.durable.add(Double(byteCount) / times.durable / 1e3)
            entry.fio.measure(Fio.Target(path: plainPath, byteCount: byteCount, loopCount: 1))
        }
        entry.unpinnedReason = writer.statistics.unpinnedReason
        entry.extraResidentByteCount = memory.extraByteCount
        try writer.close()
        for _ in 1...settings.roundCount {
            entry.plain.add(Double(byteCount) / (try state.plainCopySeconds()) / 1e6)
            entry.load.add(Double(byteCount) / (try loadOntoDevice(path, state)) / 1e6)
        }
        entry.fio.dropFailed(roundCount: settings.roundCount)
        try state.checkUnchanged(path)
        return entry
    }

    /// Milliseconds.
    private struct DeviceTimes {
        let call: Double
        let queued: Double
        let staged: Double
        let durable: Double
    }

    private func saveFromDevice(
        _ state: DeviceState, _ step: UInt64, _ writer: CheckpointWriter
    ) throws(CheckpointError) -> DeviceTimes {
        try Interruption.check()
        let began = SystemClock.monotonicTime
        let ticket = try writer.save(step: step, payload: state.payload)
        let called = SystemClock.monotonicTime
        try ticket.hold(state.stream)
        let queued = SystemClock.monotonicTime
        if case .failed(let error) = try ticket.wait() { throw error }
        return DeviceTimes(
            call: Double(called - began) / 1e6, queued: Double(queued - began) / 1e6,
            staged: Double(ticket.stagedNanoseconds) / 1e6,
            durable: Double(ticket.durableNanoseconds) / 1e6)
    }

    private func loadOntoDevice(
        _ path: String, _ state: DeviceState
    ) throws(CheckpointError) -> Double {
        try Interruption.check()
        let began = SystemClock.monotonicTime
        let reader = try CheckpointReader(path: path, workerCount: settings.readerWorkerCount)
        reader.storage.discardCache()
        _ = try reader.loadNewest { selected throws(CheckpointError) in
            try selected.read([state.destination])
        }
        return Double(SystemClock.monotonicTime - began) / 1e9
    }
}

/// State in the memory of a device, and the same in registered memory of the host.
private final class DeviceState {
    let stream: DeviceStream
    private let device: CUDADevice
    private let memory: CUDAMemory
    private let expected: BenchState
    private let host: AlignedBuffer

    init(_ device: CUDADevice, byteCount: UInt64) throws(CheckpointError) {
        self.device = device
        stream = DeviceStream(device.name, handle: 0)
        expected = BenchState(byteCount: byteCount)
        memory = try device.allocate(byteCount: expected.byteCount)
        guard let host = AlignedBuffer.forTransfers(byteCount: expected.byteCount) else {
            throw CheckpointError(
                .outOfMemory, "there is no memory for \(byteCount) bytes; choose a smaller --size")
        }
        self.host = host
        // Safe, here and below: both have this size, and live as long as this object.
        unsafe host.copy(
            UnsafeRawBufferPointer(start: expected.buffer.baseAddress, count: expected.byteCount),
            to: 0)
        _ = try unsafe device.pin(region)
        try device.copyToDevice([copy]).wait()
    }

    deinit { try? unsafe device.unpin(region) }

    private var region: UnsafeMutableRawBufferPointer {
        unsafe UnsafeMutableRawBufferPointer(start: host.baseAddress, count: host.byteCount)
    }

    private var copy: DeviceCopy {
        // Safe: addresses are only kept.
        unsafe DeviceCopy(
            host: host.baseAddress, address: memory.address, byteCount: memory.byteCount)
    }

    /// What was wanted, in whole blocks.
    var byteCount: Int { expected.byteCount }

    private var addresses: UnsafeMutableRawBufferPointer {
        // Safe: an address of the device, which nobody follows here.
        unsafe UnsafeMutableRawBufferPointer(
            start: UnsafeMutableRawPointer(bitPattern: UInt(memory.address)),
            count: memory.byteCount)
    }

    var payload: CheckpointPayload {
        unsafe CheckpointPayload(opaque: [
            CheckpointPayload.Region(
                UnsafeRawBufferPointer(addresses), elementByteCount: 4, stream: stream)
        ])
    }

    var destination: Destination {
        unsafe Destination(payloadOffset: 0, buffer: addresses, stream: stream)
    }

    /// One copy of everything to the host.
    func plainCopySeconds() throws(CheckpointError) -> Double {
        let began = SystemClock.monotonicTime
        try device.copyToHost([copy]).wait()
        return Double(SystemClock.monotonicTime - began) / 1e9
    }

    /// What was loaded last is what was saved.
    func checkUnchanged(_ path: String) throws(CheckpointError) {
        _ = try plainCopySeconds()
        let isSame = host.withBytes(0..<expected.byteCount) { found in
            expected.buffer.withBytes(0..<expected.byteCount) { wanted in
                Digest(of: found) == Digest(of: wanted)
            }
        }
        guard isSame else {
            throw CheckpointError(
                .corrupt, "\(path): what was loaded onto the device differs from what was saved")
        }
    }
}

extension DeviceSection {
    var lines: [StyledText] { entries.flatMap(\.lines) }
    var json: JSONValue { .array(entries.map(\.json)) }
}

extension DeviceSection.Entry {
    fileprivate var lines: [StyledText] {
        let title =
            "One checkpoint of \(Quantity.bytes(byteCount)) on \(model), "
            + "pool \(Quantity.bytes(poolByteCount))"
        var table = BenchTable()
        table.add("device to pool", toPool, digits: 0, unit: "MB/s")
        table.add(limit: "one plain copy", plain, reachedBy: toPool)
        table.add("until durable", durable, digits: 0, unit: "MB/s")
        table.add(fio, reachedBy: durable)
        table.add("save itself", call, digits: 3, unit: "ms")
        table.add("save to queued", queued, digits: 2, unit: "ms")
        table.add("save to staged", staged, digits: 2, unit: "ms")
        table.add("load onto the device", load, digits: 0, unit: "MB/s")
        var lines = [StyledText(title, .bold)] + table.lines
        lines.append(StyledText("  memory: pool \(Figure.difference(aboveThePool))"))
        if let unpinnedReason {
            lines.append("  \("the pool is not registered:", .yellow) \(unpinnedReason)")
        }
        return lines + [""]
    }

    fileprivate var json: JSONValue {
        .dictionary([
            "byte_count": .integer(byteCount),
            "model": .string(model),
            "pool_byte_count": .integer(poolByteCount),
            "unpinned_reason": .text(unpinnedReason),
            "to_pool_megabytes_per_second": toPool.json,
            "plain_megabytes_per_second": plain.json,
            "ratio_to_plain": toPool.ratios(to: plain).json,
            "durable_megabytes_per_second": durable.json,
            "fio_megabytes_per_second": fio.json,
            "best_fio": .text(fio.best?.setting.name),
            "ratio_to_best_fio": fio.best.map { durable.ratios(to: $0.rate).json } ?? .null,
            "save_call_milliseconds": call.json,
            "queued_milliseconds": queued.json,
            "staged_milliseconds": staged.json,
            "load_megabytes_per_second": load.json,
            "extra_resident_byte_count": .integer(extraResidentByteCount),
            "resident_above_pool_byte_count": Figure.json(aboveThePool),
        ])
    }
}
