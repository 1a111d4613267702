public import CPCCheck
internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage
internal import CheckpointWriter
internal import Synchronization

// pcc_reader_*: thin calls into CheckpointRecovery.

/// A reader and the checkpoint it has selected.
private final class ReaderHandle: Sendable {
    let reader: CheckpointReader
    /// Each read of a forensic reader stands for itself.
    let proof: Proof
    private let selection = Monitor<SelectedCheckpoint?>(nil)
    /// Payload bytes that the last verification has come to.
    private let verified = Monitor<UInt64>(0)
    // Stored by `cancel`, loaded by a copy on its way: nothing else depends on it.
    private let isCancelled = Atomic<Bool>(false)
    /// One caller at a time has the search, and nobody holds the lock meanwhile: it reads.
    private let search = Monitor<Search>(Search())

    private struct Search: Sendable {
        // Safe: handed from call to call, and used by one of them at a time.
        nonisolated(unsafe) var load: Load?
        var rejections: [Load.Rejection] = []
    }

    init(_ reader: CheckpointReader, _ proof: Proof) {
        self.reader = reader
        self.proof = proof
    }

    func select(_ selected: SelectedCheckpoint?) {
        let previous = selection.withLock { current in
            defer { current = selected }
            return current
        }
        previous?.close()
    }

    func selected() throws(CheckpointError) -> SelectedCheckpoint {
        guard let selected = selection.withLock({ $0 }) else {
            throw invalid("no checkpoint is selected; call pcc_reader_select_newest first")
        }
        return selected
    }

    /// Begins a search, which ends the one before.
    func begin(
        _ request: String, where isWanted: @escaping (Candidate) -> Bool
    ) throws(CheckpointError) -> Candidate {
        endSearch()
        try reader.refresh()
        // The old pin goes first: a search must not find what it holds itself taken.
        select(nil)
        let count = verified
        count.withLock { $0 = 0 }
        let load = Load(
            reader, proof: proof, progress: { done in count.withLock { $0 = done } },
            request: request, where: isWanted)
        return try advance(load)
    }

    func goOn(_ reason: CheckpointError) throws(CheckpointError) -> Candidate {
        let load = search.withLock { search in
            defer { search.load = nil }
            return search.load
        }
        guard let load else {
            throw invalid("no search is under way; call pcc_reader_select_newest first")
        }
        select(nil)
        try load.reject(reason)
        return try advance(load)
    }

    /// Another selection makes what `select_next` would blame another checkpoint.
    func endSearch() { search.withLock { $0 = Search() } }

    private func advance(_ load: Load) throws(CheckpointError) -> Candidate {
        let found = Result { () throws(CheckpointError) in try load.next() }
        let rejections = load.rejections
        search.withLock { search in
            search.rejections = rejections
            search.load = if case .success = found { load } else { nil }
        }
        let selected = try found.get()
        select(selected)
        return selected.candidate
    }

    var rejections: [Load.Rejection] { search.withLock { $0.rejections } }

    func verify() throws(CheckpointError) {
        verified.withLock { $0 = 0 }
        try selected().verify { [verified] count in verified.withLock { $0 = count } }
    }

    func copy(
        to path: String, options: CheckpointCopy.Options
    ) throws(CheckpointError) {
        let identity = reader.decision.identity
        try CheckpointCopy.write(selected(), of: identity, to: path, options: options) {
            [self] done, total throws(CheckpointError) in
            verified.withLock { $0 = done }
            if isCancelled.load(ordering: .relaxed) {
                throw CheckpointError(
                    .closed,
                    "\(path): the copy was cancelled after \(done) of \(total) bytes; nothing is "
                        + "left of it")
            }
        }
    }

    func cancel() { isCancelled.store(true, ordering: .relaxed) }

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
        let proof: Proof = given.is_forensic == 0 ? .demanded : .waived
        reader.pointee = Handle.make(ReaderHandle(opened, proof))
    }
}

func info(_ candidate: Candidate) -> pcc_checkpoint_info {
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
    info.attempt = candidate.header.attempt
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
        json.pointee = try copyForCaller(decision.json.text)
    }
}

@c @implementation
public func pcc_reader_select_newest(
    _ reader: OpaquePointer?, _ options: UnsafePointer<pcc_load_options>?,
    _ info: UnsafeMutablePointer<pcc_checkpoint_info>?, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        let given = try PCCheckC.options(
            options, default: pcc_load_options(), name: "pcc_load_options")
        let request = given.has_step == 0 ? "that fits the request" : "of step \(given.step)"
        let found = try handle(reader).begin(request) { candidate in
            (given.has_step == 0 || candidate.step == given.step)
                && (given.sequence_maximum == 0
                    || candidate.sequence.rawValue <= given.sequence_maximum)
        }
        // Safe: NULL or one struct.
        info?.pointee = PCCheckC.info(found)
    }
}

@c @implementation
public func pcc_reader_select_next(
    _ reader: OpaquePointer?, _ reason: UnsafePointer<pcc_error>?,
    _ info: UnsafeMutablePointer<pcc_checkpoint_info>?, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        // Safe: NULL or one struct, as an earlier call filled it.
        guard let reason = reason?.pointee else { throw invalid("reason is NULL") }
        guard reason.code != PCC_OK else {
            throw invalid("reason.code is PCC_OK; give why the checkpoint cannot be used")
        }
        let found = try handle(reader).goOn(failure(reason))
        // Safe: NULL or one struct.
        info?.pointee = PCCheckC.info(found)
    }
}

@c @implementation
public func pcc_reader_rejections_json(
    _ reader: OpaquePointer?, _ json: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?,
    _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        guard let json = json else { throw invalid("json is NULL") }
        let rejections = try handle(reader).rejections
        json.pointee = try copyForCaller(JSONValue.array(rejections.map(\.json)).text)
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
        handle.endSearch()
        handle.select(nil)
        handle.select(try handle.reader.select(candidate, proof: handle.proof))
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
        let manifest = try handle(reader).selected().tensorManifestJSON()
        json.pointee = try copyForCaller(String(decoding: manifest.json, as: UTF8.self))
        // Safe: NULL or one number.
        data_offset?.pointee = manifest.dataOffset
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
                        start: data,
                        count: try byteCount(given.byte_count, "a destination")),
                    stream: try stream(given.place)))
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
public func pcc_reader_copy(
    _ reader: OpaquePointer?, _ path: UnsafePointer<CChar>?,
    _ options: UnsafePointer<pcc_copy_options>?, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        let given = try PCCheckC.options(
            options, default: pcc_copy_options(), name: "pcc_copy_options")
        var wanted = CheckpointCopy.Options()
        switch Int32(bitPattern: given.form) {
        case PCC_COPY_FILE: wanted.form = .checkpointFile
        case PCC_COPY_PAYLOAD: wanted.form = .payload
        default: throw invalid("form is \(given.form), expected one of PCC_COPY_*")
        }
        wanted.replacesExisting = given.replace_existing != 0
        wanted.allowsNetwork = given.allow_network != 0
        wanted.isInBackground = given.is_background != 0
        try handle(reader).copy(to: text(path, "path"), options: wanted)
    }
}

@c @implementation
public func pcc_reader_cancel(_ reader: OpaquePointer?) { (try? handle(reader))?.cancel() }

@c @implementation
public func pcc_sweep(
    _ path: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        NewFile.removeLeftovers(beside: try text(path, "path"))
    }
}

@c @implementation
public func pcc_reader_close(_ reader: OpaquePointer?) {
    (try? handle(reader))?.select(nil)
    Handle.release(reader)
}

@c @implementation
public func pcc_reader_dispose(_ reader: UnsafeMutablePointer<OpaquePointer?>?) {
    // Safe: the caller gives NULL or a place for a handle.
    guard let reader = reader, let handle = reader.pointee else { return }
    reader.pointee = nil
    pcc_reader_close(handle)
}
