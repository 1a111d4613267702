public import CPCCheck
internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

// pcc_reader_*: thin calls into CheckpointRecovery.

/// A reader and the checkpoint it has selected.
private final class ReaderHandle: Sendable {
    let reader: CheckpointReader
    private let selection = Monitor<SelectedCheckpoint?>(nil)
    /// Payload bytes that the last `verify` has come to.
    private let verified = Monitor<UInt64>(0)

    init(_ reader: CheckpointReader) { self.reader = reader }

    func select(_ selected: SelectedCheckpoint?) {
        let previous = selection.withLock { current in
            defer { current = selected }
            return current
        }
        previous?.close()
    }

    func selected() throws(CheckpointError) -> SelectedCheckpoint {
        guard let selected = selection.withLock({ $0 }) else {
            throw invalid("no checkpoint is selected; call pcc_reader_select first")
        }
        return selected
    }

    func verify() throws(CheckpointError) {
        verified.withLock { $0 = 0 }
        try selected().verify { [verified] count in verified.withLock { $0 = count } }
    }

    var verifiedByteCount: UInt64 { verified.withLock { $0 } }
}

private func handle(_ pointer: OpaquePointer?) throws(CheckpointError) -> ReaderHandle {
    try Handle.object(pointer, ReaderHandle.self, "reader")
}

@c @implementation
public func pcc_reader_open(
    _ path: UnsafePointer<CChar>?, _ options: UnsafePointer<pcc_reader_options>?,
    _ reader: UnsafeMutablePointer<OpaquePointer?>?, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        guard let reader = reader else { throw invalid("reader is NULL") }
        let given = try PCCheckC.options(
            options, default: pcc_reader_options(), name: "pcc_reader_options")
        let opened = try CheckpointReader(
            path: text(path, "path"),
            workerCount: given.worker_count == 0
                ? CheckpointReader.defaultWorkerCount : Int(given.worker_count),
            fingerprint: optionalText(given.fingerprint, "fingerprint"))
        reader.pointee = Handle.make(ReaderHandle(opened))
    }
}

private func info(_ candidate: Candidate) -> pcc_checkpoint_info {
    var info = pcc_checkpoint_info()
    info.sequence = candidate.sequence.rawValue
    info.step = candidate.step
    info.payload_byte_count = candidate.header.payloadByteCount
    info.stored_byte_count = candidate.header.storedByteCount
    info.completed_time = candidate.header.completedTime
    info.slot = candidate.slot.rawValue
    info.is_anchored = candidate.kind == .anchored || candidate.kind == .retained ? 1 : 0
    let digest = candidate.header.logicalDigest
    // Safe: 16 bytes on both sides.
    withUnsafeMutableBytes(of: &info.logical_digest) { bytes in
        bytes.storeBytes(of: digest.low.littleEndian, as: UInt64.self)
        bytes.storeBytes(of: digest.high.littleEndian, toByteOffset: 8, as: UInt64.self)
    }
    return info
}

@c @implementation
public func pcc_reader_list(
    _ reader: OpaquePointer?, _ infos: UnsafeMutablePointer<pcc_checkpoint_info>?,
    _ capacity: Int, _ count: UnsafeMutablePointer<Int>?,
    _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        guard let count = count else { throw invalid("count is NULL") }
        guard infos != nil || capacity == 0 else { throw invalid("infos is NULL") }
        let candidates = try handle(reader).reader.refresh().candidates
        for (index, candidate) in candidates.prefix(max(capacity, 0)).enumerated() {
            // Safe: the caller gives `capacity` entries.
            infos?[index] = info(candidate)
        }
        count.pointee = candidates.count
    }
}

@c @implementation
public func pcc_reader_report_json(
    _ reader: OpaquePointer?, _ json: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?,
    _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        guard let json = json else { throw invalid("json is NULL") }
        let decision = try handle(reader).reader.refresh()
        json.pointee = try copyForCaller(decision.json.description)
    }
}

@c @implementation
public func pcc_reader_select(
    _ reader: OpaquePointer?, _ sequence: UInt64,
    _ info: UnsafeMutablePointer<pcc_checkpoint_info>?, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        let handle = try PCCheckC.handle(reader)
        let wanted = SequenceNumber(rawValue: sequence)
        let candidates = try handle.reader.refresh().candidates
        guard let candidate = candidates.first(where: { $0.sequence == wanted }) else {
            throw CheckpointError(
                .noCheckpoint,
                "\(handle.reader.storage.path): it holds no checkpoint with sequence \(sequence); "
                    + "list the ones it holds")
        }
        // The old pin goes first: it may be on the same slot, and locks do not nest.
        handle.select(nil)
        handle.select(try handle.reader.select(candidate))
        // Safe: NULL or one struct.
        info?.pointee = PCCheckC.info(candidate)
    }
}

@c @implementation
public func pcc_reader_manifest_json(
    _ reader: OpaquePointer?, _ json: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?,
    _ data_offset: UnsafeMutablePointer<UInt64>?, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        guard let json = json else { throw invalid("json is NULL") }
        let selected = try handle(reader).selected()
        let header = selected.candidate.header
        guard header.payloadKind == .safetensors else {
            throw CheckpointError(
                .invalidArgument,
                "the payload of slot \(header.slot) is opaque; it has no manifest",
                slot: header.slot)
        }
        let bytes = try selected.manifest()
        // Checked here, so that no caller has to trust the JSON.
        do throws(FormatError) {
            _ = try SafetensorsManifest(
                decoding: bytes, payloadByteCount: header.payloadByteCount)
        } catch {
            throw CheckpointError(
                error, in: "the manifest of slot \(header.slot)", slot: header.slot,
                at: selected.candidate.dataOffset)
        }
        json.pointee = try copyForCaller(
            String(decoding: bytes.dropFirst(8), as: UTF8.self))
        // Safe: NULL or one number.
        data_offset?.pointee = header.manifestByteCount
    }
}

@c @implementation
public func pcc_reader_load(
    _ reader: OpaquePointer?, _ destinations: UnsafePointer<pcc_destination>?, _ count: Int,
    _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        let selected = try handle(reader).selected()
        var wanted: [Destination] = []
        for given in try array(destinations, count, "destinations")
        where given.byte_count > 0 {
            guard let data = given.data else {
                throw invalid(
                    "a destination's data is NULL, expected room for \(given.byte_count) bytes")
            }
            // Safe: the caller gives that much room and does not touch it during the call.
            wanted.append(
                Destination(
                    payloadOffset: given.payload_offset,
                    buffer: UnsafeMutableRawBufferPointer(
                        start: data, count: Int(given.byte_count))))
        }
        try selected.read(wanted)
    }
}

@c @implementation
public func pcc_reader_verify(
    _ reader: OpaquePointer?, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        try handle(reader).verify()
    }
}

@c @implementation
public func pcc_reader_verified_byte_count(_ reader: OpaquePointer?) -> UInt64 {
    (try? handle(reader))?.verifiedByteCount ?? 0
}

@c @implementation
public func pcc_reader_close(_ reader: OpaquePointer?) {
    (try? handle(reader))?.select(nil)
    Handle.release(reader, ReaderHandle.self)
}
