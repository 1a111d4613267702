internal import CheckpointDevice
internal import CheckpointFormat
internal import CheckpointStorage
internal import Logging

/// The way from a device to the staging pool.
///
/// ```
/// save ─► ready event ─► side stream: copies of a chunk, event ─► arrival thread ─► digest
/// ```
/// A snapshot worker hands the copies of a chunk to the device as soon as there is a buffer, so
/// that with a pool as large as the state all of them are queued at once. Nobody waits for a copy
/// but the thread of its device, which passes on what has arrived.
extension Engine {
    /// When the payload's bytes on devices may be read: behind what is queued by now on the streams
    /// that it names.
    ///
    /// - Throws: `unsupported` without such a device, `accelerator`, `invalidArgument` while a
    ///   stream records a graph; `outOfMemory`, `resourceLimit`.
    func ready(
        _ payload: CheckpointPayload
    ) throws(CheckpointError) -> [DeviceName: [any DeviceEvent]] {
        var ready: [DeviceName: [any DeviceEvent]] = [:]
        for stream in payload.streams {
            let device = try devices.device(stream.device) {
                device throws(CheckpointError) in try prepare(device)
            }
            ready[stream.device, default: []].append(try device.record(stream.handle))
        }
        return ready
    }

    /// The first save from a device registers the pool, and starts the thread that waits for it.
    private func prepare(_ device: any Device) throws(CheckpointError) {
        // Safe: the region is the pool's.
        let reason = unsafe devices.pin(pool.region, of: pool, for: device)
        if let reason {
            options.logger.warning(
                "the staging pool is not registered with a device, so copies are slower",
                metadata: ["device": "\(device.name)", "reason": "\(reason)"])
        }
        do throws(StorageError) {
            try launch("pcc-\(device.name)") { $0.runArrivals(of: device.name) }
        } catch {
            throw CheckpointError(error)
        }
        monitor.withLock { state in
            state.statistics.devices.append("\(device.name)")
            state.statistics.unpinnedReason = reason ?? state.statistics.unpinnedReason
        }
    }

    /// Hands a chunk's copies to the devices that its bytes are on.
    func queue(_ copy: ChunkCopy) {
        guard let buffer = copy.buffer else { preconditionFailure("a device needs a buffer") }
        let range = copy.checkpoint.chunkRange(copy.index)
        // Safe: the buffer lives until the copies have ended, as `busyCount` keeps it.
        let copies = unsafe copy.payload.copyHostParts(
            from: range.offset, count: range.count, to: buffer)
        var byteCount = 0
        do throws(CheckpointError) {
            var events: [DeviceName: any DeviceEvent] = [:]
            for (name, parts) in copies {
                let device = try devices.device(name)
                for event in copy.checkpoint.ready[name] ?? [] { try device.follow(event) }
                events[name] = try device.copyToHost(parts)
                byteCount += parts.reduce(0) { $0 + $1.byteCount }
            }
            guard let first = copies.keys.first else { preconditionFailure("some are on one") }
            let chunk = ArrivingChunk(
                copy: copy, byteCount: byteCount, events: events,
                beganTime: SystemClock.monotonicTime)
            let released = monitor.withLock { $0.finishQueueing(chunk, on: first) }
            report(released, of: copy.checkpoint)
        } catch {
            let isOver = isOver(copies.keys)
            report(error, of: copy.checkpoint) { $0.failQueueing(copy, error, isOver: isOver) }
        }
        monitor.wakeAll()
    }

    /// The host does not read a checkpoint, or its early part, any more: from here on a stream can
    /// wait until devices do not, either.
    func report(_ released: InFlightCheckpoint.Release, of checkpoint: InFlightCheckpoint) {
        let wanted =
            checkpoint.ticket.isFromDevice ? released : released.intersection(.early)
        if wanted.isEmpty { return }
        do throws(CheckpointError) {
            var last: [CheckpointTicket.LastCopy] = []
            for name in checkpoint.ready.keys {
                let device = try devices.device(name)
                last.append((device, try device.mark()))
            }
            checkpoint.ticket.markReleased(wanted, until: last)
        } catch {
            report(error, of: checkpoint) { $0.failQueued(checkpoint, error) }
        }
    }

    /// Waits for what the devices copy.
    ///
    /// - Returns: whether they are known to copy nothing any more.
    private func isOver(_ names: some Sequence<DeviceName>) -> Bool {
        var isOver = true
        // All of them: that one has failed stops no other.
        for name in names {
            do throws(CheckpointError) { try devices.device(name).mark().wait() } catch {
                isOver = false
            }
        }
        return isOver
    }

    /// Logs the first error of a checkpoint: most of its chunks may be on their way.
    private func report(
        _ error: CheckpointError, of checkpoint: InFlightCheckpoint,
        _ change: (inout EngineState) -> Void
    ) {
        let isFirst = monitor.withLock { state in
            let isFirst = checkpoint.failure == nil
            change(&state)
            return isFirst
        }
        if isFirst { logAbandoned(checkpoint, error) }
    }

    // MARK: Arrivals

    /// Waits for one device.
    private func runArrivals(of device: DeviceName) {
        while let chunk = nextArrival(device) {
            do throws(CheckpointError) {
                for event in chunk.copy.checkpoint.ready[device] ?? [] { try event.wait() }
                let began = max(chunk.beganTime, SystemClock.monotonicTime)
                for event in chunk.events.values { try event.wait() }
                let now = SystemClock.monotonicTime
                monitor.withLock {
                    $0.finishArrival(of: chunk, on: device, began: began, now: now)
                }
            } catch {
                // The ticket must not end while another device still reads the caller's memory.
                let isOver = isOver(chunk.events.keys)
                report(error, of: chunk.copy.checkpoint) {
                    $0.failArrival(of: chunk, on: device, error, isOver: isOver)
                }
            }
            monitor.wakeAll()
        }
    }

    private func nextArrival(_ device: DeviceName) -> ArrivingChunk? {
        let next = monitor.waitFor { $0.nextArrival(device) }
        if case .chunk(let chunk) = next { return chunk }
        return nil
    }
}
