public import CPCCheck
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
        writer.pointee = Handle.make(opened)
    }
}

private typealias TensorMemory = (
    description: TensorDescription, memory: CheckpointPayload.Region
)

private func tensor(_ given: pcc_tensor) throws(CheckpointError) -> TensorMemory {
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
    // Safe: the caller keeps the memory alive and unchanged until the ticket is staged.
    let memory = CheckpointPayload.Region(
        UnsafeRawBufferPointer(start: given.data, count: Int(given.byte_count)),
        elementByteCount: elementType.planeWidth, isEarly: given.is_early != 0)
    return (description, memory)
}

private func payload(
    _ tensors: UnsafePointer<pcc_tensor>?, _ tensorCount: Int,
    _ metadata: UnsafePointer<pcc_metadata>?, _ metadataCount: Int
) throws(CheckpointError) -> CheckpointPayload {
    let givenTensors = try array(tensors, tensorCount, "tensors")
    var described: [TensorMemory] = []
    described.reserveCapacity(tensorCount)
    for index in 0..<tensorCount { described.append(try tensor(givenTensors[index])) }
    let givenMetadata = try array(metadata, metadataCount, "metadata")
    var pairs: [(key: String, value: String)] = []
    for index in 0..<metadataCount {
        let key = try text(givenMetadata[index].key, "a metadata key")
        pairs.append((key, try text(givenMetadata[index].value, "metadata \(key)")))
    }
    return try CheckpointPayload(tensors: described, metadata: pairs)
}

private func begin(
    _ writer: OpaquePointer?, _ step: UInt64, _ payload: CheckpointPayload,
    _ options: UnsafePointer<pcc_save_options>?,
    _ ticket: UnsafeMutablePointer<OpaquePointer?>?
) throws(CheckpointError) {
    let writer = try Handle.object(writer, CheckpointWriter.self, "writer")
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
        let payload = try payload(tensors, tensor_count, metadata, metadata_count)
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
        let writer = try Handle.object(writer, CheckpointWriter.self, "writer")
        guard let save = save else { throw invalid("save is NULL") }
        let given = try PCCheckC.options(
            options, default: pcc_save_options(), name: "pcc_save_options")
        let pending = try writer.prepare(
            step: step, payload: try payload(tensors, tensor_count, metadata, metadata_count),
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
                    UnsafeRawBufferPointer(start: region.data, count: Int(region.byte_count))))
        }
        try begin(writer, step, CheckpointPayload(opaque: memory), options, ticket)
    }
}

@c @implementation
public func pcc_writer_approve(
    _ writer: OpaquePointer?, _ ticket: OpaquePointer?, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        let object = try Handle.object(writer, CheckpointWriter.self, "writer")
        object.approve(try Handle.object(ticket, CheckpointTicket.self, "ticket"))
    }
}

@c @implementation
public func pcc_writer_reject(
    _ writer: OpaquePointer?, _ ticket: OpaquePointer?, _ reason: UnsafePointer<CChar>?,
    _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        let object = try Handle.object(writer, CheckpointWriter.self, "writer")
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
        byte_count.pointee =
            try payload(tensors, tensor_count, metadata, metadata_count).byteCount
    }
}

@c @implementation
public func pcc_writer_rewind(
    _ writer: OpaquePointer?, _ step: UInt64, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        try Handle.object(writer, CheckpointWriter.self, "writer").rewind(to: step)
    }
}

@c @implementation
public func pcc_writer_recovered(
    _ writer: OpaquePointer?, _ info: UnsafeMutablePointer<pcc_checkpoint_info>?,
    _ is_verified: UnsafeMutablePointer<UInt32>?, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        let object = try Handle.object(writer, CheckpointWriter.self, "writer")
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
        let writer = try Handle.object(writer, CheckpointWriter.self, "writer")
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
        let writer = try Handle.object(writer, CheckpointWriter.self, "writer")
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
        let object = try Handle.object(writer, CheckpointWriter.self, "writer")
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
    guard let object = try? Handle.object(writer, CheckpointWriter.self, "writer") else {
        return
    }
    object.abandon()
    Handle.release(writer)
}
