public import CPCCheck
internal import CheckpointDevice
internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage
internal import CheckpointWriter

// pcc_create, pcc_writer_* and pcc_ticket_*: thin calls into CheckpointWriter.

@c @implementation
public func pcc_create(
    _ path: UnsafePointer<CChar>?, _ options: UnsafePointer<pcc_create_options>?,
    _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        let path = try text(path, "path")
        let given = try PCCheckC.options(
            options, default: pcc_create_options(), name: "pcc_create_options")
        var options = CheckpointFile.Options(capacity: given.capacity_byte_count)
        if given.in_flight > 0 { options.inFlight = Int(given.in_flight) }
        if given.retain > 0 { options.retain = Int(given.retain) }
        if given.chunk_byte_count > 0 { options.chunkByteCount = Int(given.chunk_byte_count) }
        switch Int32(bitPattern: given.prealloc) {
        case PCC_PREALLOC_DEFAULT, PCC_PREALLOC_FALLOCATE: options.preallocation = .fallocate
        case PCC_PREALLOC_ZERO: options.preallocation = .zero
        default: throw invalid("prealloc is \(given.prealloc), expected PCC_PREALLOC_*")
        }
        options.rank = given.rank
        options.worldSize = max(given.world_size, 1)
        options.replacesExisting = given.replace_existing != 0
        options.allowsNetwork = given.allow_network != 0
        options.fingerprint = try optionalText(given.fingerprint, "fingerprint") ?? ""
        options.runUUID = withUnsafeBytes(of: given.run_uuid) { Identifier128(bytes: Array($0)) }
        try CheckpointFile.create(path: path, options: options)
    }
}

@c @implementation
public func pcc_resize(
    _ path: UnsafePointer<CChar>?, _ options: UnsafePointer<pcc_resize_options>?,
    _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        let given = try PCCheckC.options(
            options, default: pcc_resize_options(), name: "pcc_resize_options")
        var shape = CheckpointFile.Shape()
        if given.capacity_byte_count > 0 { shape.capacity = given.capacity_byte_count }
        if given.in_flight > 0 { shape.inFlight = Int(given.in_flight) }
        if given.retain > 0 { shape.retain = Int(given.retain) }
        _ = try CheckpointFile.resize(
            path: text(path, "path"), to: shape, allowsNetwork: given.allow_network != 0)
    }
}

private func writerOptions(_ given: pcc_writer_options) throws(CheckpointError) -> WriterOptions {
    var options = WriterOptions()
    switch Int32(bitPattern: given.on_busy) {
    case PCC_ON_BUSY_WAIT:
        let timeout = given.busy_timeout_ms
        options.busyPolicy = .wait(
            timeoutNanoseconds: timeout == 0 ? nil : UInt64(timeout) * 1_000_000)
    case PCC_ON_BUSY_SKIP: options.busyPolicy = .skip
    case PCC_ON_BUSY_FAIL: options.busyPolicy = .fail
    default: throw invalid("on_busy is \(given.on_busy), expected PCC_ON_BUSY_*")
    }
    switch Int32(bitPattern: given.backend) {
    case PCC_BACKEND_AUTO: options.backend = .automatic
    case PCC_BACKEND_DIRECT: options.backend = .direct
    case PCC_BACKEND_BUFFERED: options.backend = .buffered
    case PCC_BACKEND_RING: options.backend = .ring
    case PCC_BACKEND_PMEM: options.backend = .persistentMemory
    default: throw invalid("backend is \(given.backend), expected PCC_BACKEND_*")
    }
    guard let codec = UInt8(exactly: given.codec).flatMap(Codec.init(rawValue:)) else {
        throw invalid("codec is \(given.codec), expected PCC_CODEC_*")
    }
    options.codec = codec
    if given.zstd_level != 0 { options.zstdLevel = given.zstd_level }
    if given.snapshot_worker_count > 0 {
        options.snapshotWorkerCount = Int(given.snapshot_worker_count)
    }
    if given.writer_worker_count > 0 {
        options.writerWorkerCount = Int(given.writer_worker_count)
    }
    if given.pool_byte_count > 0 { options.poolByteCount = given.pool_byte_count }
    options.rank = given.rank
    options.worldSize = max(given.world_size, 1)
    options.allowsNetwork = given.allow_network != 0
    options.trustsAnchor = given.trust_anchor != 0
    options.isDeepFlushing = given.deep_flush != 0
    options.acceptsGroup = given.accepts_group != 0
    options.fingerprint = try optionalText(given.fingerprint, "fingerprint")
    return options
}

@c @implementation
public func pcc_writer_open(
    _ path: UnsafePointer<CChar>?, _ options: UnsafePointer<pcc_writer_options>?,
    _ writer: UnsafeMutablePointer<OpaquePointer?>?, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        guard let writer = writer else { throw invalid("writer is NULL") }
        let given = try PCCheckC.options(
            options, default: pcc_writer_options(), name: "pcc_writer_options")
        let opened = try CheckpointWriter(
            path: text(path, "path"), options: writerOptions(given))
        writer.pointee = Handle.make(OpenWriter(opened))
    }
}

/// A tensor that C described; every part of it is checked.
func tensor(_ given: pcc_tensor) throws(CheckpointError) -> (
    description: TensorDescription, memory: CheckpointPayload.Region
) {
    let name = try text(given.name, "a tensor's name")
    let dtype = try text(given.dtype, "the dtype of tensor \(name)")
    guard let elementType = ElementType(name: dtype) else {
        throw invalid("the dtype of tensor \(name) is \(dtype), expected a safetensors dtype")
    }
    guard Int(given.rank) <= Limits.tensorRank else {
        throw invalid(
            "tensor \(name) has rank \(given.rank), expected at most \(Limits.tensorRank)")
    }
    let shape = try array(given.shape, Int(given.rank), "the shape of tensor \(name)")
    guard given.data != nil || given.byte_count == 0 else {
        throw invalid("the data of tensor \(name) is NULL, expected \(given.byte_count) bytes")
    }
    let description = TensorDescription(
        name: name, elementType: elementType, shape: Array(shape))
    let memory = try region(
        given, byteCount: try byteCount(given.byte_count, "tensor \(name)"),
        elementByteCount: elementType.planeWidth)
    return (description, memory)
}

/// The memory of a tensor whose size was checked.
func region(
    _ given: pcc_tensor, byteCount: Int, elementByteCount: Int
) throws(CheckpointError) -> CheckpointPayload.Region {
    // Safe: the caller keeps the memory alive and unchanged until the ticket is staged.
    CheckpointPayload.Region(
        UnsafeRawBufferPointer(start: given.data, count: byteCount),
        elementByteCount: elementByteCount, isEarly: given.is_early != 0,
        stream: try stream(given.place))
}

private func metadata(
    _ given: UnsafePointer<pcc_metadata>?, _ count: Int
) throws(CheckpointError) -> [(key: String, value: String)] {
    try array(given, count, "metadata").map { entry throws(CheckpointError) in
        let key = try text(entry.key, "a metadata key")
        return (key, try text(entry.value, "metadata \(key)"))
    }
}

private func begin(
    _ writer: OpaquePointer?, _ step: UInt64, _ payload: CheckpointPayload,
    _ options: UnsafePointer<pcc_save_options>?,
    _ ticket: UnsafeMutablePointer<OpaquePointer?>?
) throws(CheckpointError) {
    let writer = try OpenWriter.of(writer).writer
    guard let ticket = ticket else { throw invalid("ticket is NULL") }
    let given = try PCCheckC.options(
        options, default: pcc_save_options(), name: "pcc_save_options")
    let metadata = try optionalText(given.user_metadata, "user_metadata") ?? ""
    let begun = try writer.save(
        step: step, payload: payload, userMetadata: metadata, isUrgent: given.is_urgent != 0,
        needsApproval: given.needs_approval != 0)
    ticket.pointee = Handle.make(begun)
}

@c @implementation
public func pcc_writer_save(
    _ writer: OpaquePointer?, _ step: UInt64, _ tensors: UnsafePointer<pcc_tensor>?,
    _ tensor_count: Int, _ metadata: UnsafePointer<pcc_metadata>?, _ metadata_count: Int,
    _ options: UnsafePointer<pcc_save_options>?, _ ticket: UnsafeMutablePointer<OpaquePointer?>?,
    _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        let payload = try OpenWriter.of(writer).last.payload(
            array(tensors, tensor_count, "tensors"),
            metadata: PCCheckC.metadata(metadata, metadata_count))
        try begin(writer, step, payload, options, ticket)
    }
}

@c @implementation
public func pcc_writer_prepare(
    _ writer: OpaquePointer?, _ step: UInt64, _ tensors: UnsafePointer<pcc_tensor>?,
    _ tensor_count: Int, _ metadata: UnsafePointer<pcc_metadata>?, _ metadata_count: Int,
    _ options: UnsafePointer<pcc_save_options>?, _ save: UnsafeMutablePointer<OpaquePointer?>?,
    _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        let open = try OpenWriter.of(writer)
        guard let save = save else { throw invalid("save is NULL") }
        let given = try PCCheckC.options(
            options, default: pcc_save_options(), name: "pcc_save_options")
        let payload = try open.last.payload(
            array(tensors, tensor_count, "tensors"),
            metadata: PCCheckC.metadata(metadata, metadata_count))
        let pending = try open.writer.prepare(
            step: step, payload: payload,
            userMetadata: try optionalText(given.user_metadata, "user_metadata") ?? "",
            needsApproval: given.needs_approval != 0)
        save.pointee = Handle.make(pending)
    }
}

@c @implementation
public func pcc_save_begin(
    _ save: OpaquePointer?, _ is_urgent: UInt32,
    _ ticket: UnsafeMutablePointer<OpaquePointer?>?, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        let pending = try Handle.object(save, PendingSave.self, "save")
        guard let ticket = ticket else { throw invalid("ticket is NULL") }
        var begun = try pending.begin(isUrgent: is_urgent != 0)
        if begun == nil, is_urgent == 0 { begun = try pending.answerOfPolicy() }
        guard let begun = begun else {
            throw CheckpointError(.busy, "there is no slot yet; wait with pcc_save_wait")
        }
        ticket.pointee = Handle.make(begun)
    }
}

@c @implementation
public func pcc_save_wait(
    _ save: OpaquePointer?, _ is_urgent: UInt32, _ timeout_ms: Int64,
    _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        try Handle.object(save, PendingSave.self, "save")
            .wait(
                isUrgent: is_urgent != 0,
                timeoutNanoseconds: nanoseconds(milliseconds: timeout_ms))
    }
}

@c @implementation
public func pcc_save_dispose(_ save: UnsafeMutablePointer<OpaquePointer?>?) {
    // Safe: the caller gives NULL or a place for a handle.
    guard let save = save, let handle = save.pointee else { return }
    Handle.release(handle)
    save.pointee = nil
}

@c @implementation
public func pcc_writer_save_opaque(
    _ writer: OpaquePointer?, _ step: UInt64, _ regions: UnsafePointer<pcc_region>?,
    _ region_count: Int, _ options: UnsafePointer<pcc_save_options>?,
    _ ticket: UnsafeMutablePointer<OpaquePointer?>?, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        var memory: [CheckpointPayload.Region] = []
        for region in try array(regions, region_count, "regions") {
            guard region.data != nil || region.byte_count == 0 else {
                throw invalid("a region's data is NULL, expected \(region.byte_count) bytes")
            }
            // Safe: as for a tensor.
            memory.append(
                CheckpointPayload.Region(
                    UnsafeRawBufferPointer(
                        start: region.data, count: try byteCount(region.byte_count, "a region")),
                    stream: try stream(region.place)))
        }
        try begin(writer, step, CheckpointPayload(opaque: memory), options, ticket)
    }
}

@c @implementation
public func pcc_writer_approve(
    _ writer: OpaquePointer?, _ ticket: OpaquePointer?, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        let object = try OpenWriter.of(writer).writer
        object.approve(try Handle.object(ticket, CheckpointTicket.self, "ticket"))
    }
}

@c @implementation
public func pcc_writer_reject(
    _ writer: OpaquePointer?, _ ticket: OpaquePointer?, _ reason: UnsafePointer<CChar>?,
    _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        let object = try OpenWriter.of(writer).writer
        object.reject(
            try Handle.object(ticket, CheckpointTicket.self, "ticket"),
            because: try text(reason, "reason"))
    }
}

@c @implementation
public func pcc_payload_byte_count(
    _ tensors: UnsafePointer<pcc_tensor>?, _ tensor_count: Int,
    _ metadata: UnsafePointer<pcc_metadata>?, _ metadata_count: Int,
    _ byte_count: UnsafeMutablePointer<UInt64>?, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        guard let byte_count = byte_count else { throw invalid("byte_count is NULL") }
        let payload = try CheckpointPayload(
            tensors: array(tensors, tensor_count, "tensors").map(tensor),
            metadata: PCCheckC.metadata(metadata, metadata_count))
        byte_count.pointee = payload.byteCount
    }
}

@c @implementation
public func pcc_writer_rewind(
    _ writer: OpaquePointer?, _ step: UInt64, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        try OpenWriter.of(writer).writer.rewind(to: step)
    }
}

@c @implementation
public func pcc_writer_recovered(
    _ writer: OpaquePointer?, _ info: UnsafeMutablePointer<pcc_checkpoint_info>?,
    _ is_verified: UnsafeMutablePointer<UInt32>?, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        let object = try OpenWriter.of(writer).writer
        guard let recovered = object.recovered else {
            throw CheckpointError(
                .noCheckpoint, "the file held no checkpoint when this writer opened it")
        }
        if let info = info {
            info.pointee = PCCheckC.info(recovered.candidate)
            // Whatever it was before, the first superblock of this writer names it.
            info.pointee.is_anchored = 1
        }
        if let is_verified = is_verified { is_verified.pointee = recovered.isVerified ? 1 : 0 }
    }
}

@c @implementation
public func pcc_writer_stats_json(
    _ writer: OpaquePointer?, _ json: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?,
    _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        let writer = try OpenWriter.of(writer).writer
        guard let json = json else { throw invalid("json is NULL") }
        json.pointee = try copyForCaller(writer.statistics.json.text)
    }
}

@c @implementation
public func pcc_writer_pool(
    _ writer: OpaquePointer?, _ start: UnsafeMutablePointer<UnsafeMutableRawPointer?>?,
    _ byte_count: UnsafeMutablePointer<UInt64>?, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        let writer = try OpenWriter.of(writer).writer
        guard let start = start, let byte_count = byte_count else {
            throw invalid("start or byte_count is NULL")
        }
        // Safe: the region lives as long as the writer, as the header records.
        let region = writer.poolMemory
        start.pointee = region.baseAddress
        byte_count.pointee = UInt64(region.count)
    }
}

@c @implementation
public func pcc_writer_close(
    _ writer: OpaquePointer?, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        let object = try OpenWriter.of(writer).writer
        // Freed whatever close says, as the header promises.
        defer { Handle.release(writer) }
        try object.close()
    }
}

@c @implementation
public func pcc_writer_dispose(
    _ writer: UnsafeMutablePointer<OpaquePointer?>?, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    // Safe: the caller gives NULL or a place for a handle.
    guard let writer = writer, let handle = writer.pointee else { return PCC_OK }
    let closed = pcc_writer_close(handle, error)
    writer.pointee = nil
    return closed
}

@c @implementation
public func pcc_writer_abandon(_ writer: OpaquePointer?) {
    guard let object = try? OpenWriter.of(writer).writer else {
        return
    }
    object.abandon()
    Handle.release(writer)
}
