public import CPCCheck
internal import CheckpointWriter

private let names: [(status: pcc_status, name: StaticString)] = [
    (PCC_OK, "PCC_OK"), (PCC_INVALID_ARGUMENT, "PCC_INVALID_ARGUMENT"),
    (PCC_NOT_FOUND, "PCC_NOT_FOUND"), (PCC_EXISTS, "PCC_EXISTS"), (PCC_LOCKED, "PCC_LOCKED"),
    (PCC_BUSY, "PCC_BUSY"), (PCC_TOO_LARGE, "PCC_TOO_LARGE"),
    (PCC_NO_CHECKPOINT, "PCC_NO_CHECKPOINT"), (PCC_CORRUPT, "PCC_CORRUPT"),
    (PCC_NOT_A_CHECKPOINT_FILE, "PCC_NOT_A_CHECKPOINT_FILE"),
    (PCC_UNSUPPORTED, "PCC_UNSUPPORTED"), (PCC_READ_ONLY, "PCC_READ_ONLY"),
    (PCC_NO_SPACE, "PCC_NO_SPACE"), (PCC_IO, "PCC_IO"), (PCC_FAIL_STOP, "PCC_FAIL_STOP"),
    (PCC_CLOSED, "PCC_CLOSED"), (PCC_STEP_BACKWARDS, "PCC_STEP_BACKWARDS"),
    (PCC_FINGERPRINT_MISMATCH, "PCC_FINGERPRINT_MISMATCH"),
    (PCC_RANK_MISMATCH, "PCC_RANK_MISMATCH"), (PCC_TIMEOUT, "PCC_TIMEOUT"),
    (PCC_FORKED, "PCC_FORKED"), (PCC_SLOTS_EXHAUSTED, "PCC_SLOTS_EXHAUSTED"),
    (PCC_OUT_OF_MEMORY, "PCC_OUT_OF_MEMORY"), (PCC_SUPERSEDED, "PCC_SUPERSEDED"),
    (PCC_SKIPPED, "PCC_SKIPPED"), (PCC_REJECTED, "PCC_REJECTED"),
    (PCC_RESOURCE_LIMIT, "PCC_RESOURCE_LIMIT"), (PCC_ACCELERATOR, "PCC_ACCELERATOR"),
]

/// A string that lives as long as the library.
private func constant(_ text: StaticString) -> UnsafePointer<CChar>? {
    // Safe: a literal is NUL-terminated and never freed; CChar has the layout of UInt8.
    UnsafeRawPointer(text.utf8Start).assumingMemoryBound(to: CChar.self)
}

@c @implementation
public func pcc_status_name(_ status: pcc_status) -> UnsafePointer<CChar>? {
    constant(names.first { $0.status == status }?.name ?? "PCC_UNKNOWN")
}

@c @implementation
public func pcc_version() -> UnsafePointer<CChar>? { constant(PCcheck.versionLiteral) }

@c @implementation
public func pcc_abi_version() -> UInt32 { UInt32(PCC_ABI_VERSION) }
