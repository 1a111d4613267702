public import CPCCheck
internal import CheckpointDevice
internal import CheckpointFormat
internal import CheckpointWriter

// pcc_ticket_*. A NULL ticket is a caller's mistake that these functions report where they can.

private func ticket(_ handle: OpaquePointer?) throws(CheckpointError) -> CheckpointTicket {
    try Handle.object(handle, CheckpointTicket.self, "ticket")
}

@c @implementation
public func pcc_ticket_state(_ ticket: OpaquePointer?) -> Int32 {
    guard let object = try? PCCheckC.ticket(ticket) else { return PCC_TICKET_FAILED }
    switch object.outcome {
    case nil: return object.isStaged ? PCC_TICKET_STAGED : PCC_TICKET_STAGING
    case .durable: return PCC_TICKET_DURABLE
    case .superseded: return PCC_TICKET_SUPERSEDED
    case .skipped: return PCC_TICKET_SKIPPED
    case .failed: return PCC_TICKET_FAILED
    }
}

@c @implementation
public func pcc_ticket_sequence(_ ticket: OpaquePointer?) -> UInt64 {
    (try? PCCheckC.ticket(ticket))?.sequence.rawValue ?? 0
}

@c @implementation
public func pcc_ticket_superseded_by(_ ticket: OpaquePointer?) -> UInt64 {
    guard case .superseded(let by) = (try? PCCheckC.ticket(ticket))?.outcome else { return 0 }
    return by.rawValue
}

@c @implementation
public func pcc_ticket_staged_nanoseconds(_ ticket: OpaquePointer?) -> UInt64 {
    (try? PCCheckC.ticket(ticket))?.stagedNanoseconds ?? 0
}

@c @implementation
public func pcc_ticket_durable_nanoseconds(_ ticket: OpaquePointer?) -> UInt64 {
    (try? PCCheckC.ticket(ticket))?.durableNanoseconds ?? 0
}

@c @implementation
public func pcc_ticket_wait_staged(
    _ ticket: OpaquePointer?, _ timeout_ms: Int64, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        try PCCheckC.ticket(ticket)
            .waitStaged(timeoutNanoseconds: nanoseconds(milliseconds: timeout_ms))
    }
}

@c @implementation
public func pcc_ticket_wait_early(
    _ ticket: OpaquePointer?, _ timeout_ms: Int64, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        try PCCheckC.ticket(ticket)
            .waitEarly(timeoutNanoseconds: nanoseconds(milliseconds: timeout_ms))
    }
}

/// The stream of a place; nil for the host.
func stream(_ place: pcc_place) throws(CheckpointError) -> DeviceStream? {
    if Int32(bitPattern: place.device) == PCC_DEVICE_HOST { return nil }
    guard let kind = DeviceKind(rawValue: place.device), place.ordinal >= 0 else {
        throw invalid(
            "place is device \(place.device), ordinal \(place.ordinal); expected one of "
                + "PCC_DEVICE_*, and the number of a device")
    }
    return DeviceStream(DeviceName(kind, place.ordinal), handle: place.stream)
}

@c @implementation
public func pcc_ticket_hold_stream(
    _ ticket: OpaquePointer?, _ place: UnsafePointer<pcc_place>?, _ only_early: UInt32,
    _ timeout_ms: Int64, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        // Safe: NULL or one struct.
        guard let place = place?.pointee, let stream = try stream(place) else {
            throw invalid("place is NULL or the host, expected a stream of a device")
        }
        try PCCheckC.ticket(ticket)
            .hold(
                stream, onlyEarly: only_early != 0,
                timeoutNanoseconds: nanoseconds(milliseconds: timeout_ms))
    }
}

@c @implementation
public func pcc_ticket_wait(
    _ ticket: OpaquePointer?, _ timeout_ms: Int64, _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        let object = try PCCheckC.ticket(ticket)
        switch try object.wait(timeoutNanoseconds: nanoseconds(milliseconds: timeout_ms)) {
        case .durable: return
        case .superseded(let by):
            throw CheckpointError(
                .superseded,
                "step \(object.step) (sequence \(object.sequence)) was superseded: sequence \(by) "
                    + "is durable, and it is newer")
        case .skipped:
            throw CheckpointError(
                .skipped, "step \(object.step) was skipped: every slot was in flight")
        case .failed(let failure): throw failure
        }
    }
}

@c @implementation
public func pcc_ticket_free(_ ticket: OpaquePointer?) {
    Handle.release(ticket)
}
