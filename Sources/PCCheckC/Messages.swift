public import CPCCheck
internal import CheckpointFormat

#if canImport(Glibc)
    internal import Glibc
#endif

// Errors as C sees them. A message that does not fit its struct is cut there, and kept whole for
// the thread that got it.

private let cutMark = " …"

/// What a struct holds of a message.
private func cut(_ message: String) -> String {
    let room = MemoryLayout.size(ofValue: pcc_error().message) - 1
    guard message.utf8.count > room else { return message }
    var scalars = message.unicodeScalars[...]
    var excess = message.utf8.count + cutMark.utf8.count - room
    while excess > 0, let last = scalars.popLast() { excess -= UTF8.width(last) }
    return String(scalars) + cutMark
}

func fill(_ error: UnsafeMutablePointer<pcc_error>?, _ failure: CheckpointError) {
    // Safe: checked for NULL; the message is cut to the array's size.
    guard let error = error else { return }
    var value = pcc_error()
    value.code = failure.code.rawValue
    value.os_errno = failure.osErrorNumber
    value.slot = failure.slot.map { Int32(bitPattern: $0.rawValue) } ?? -1
    value.byte_offset = failure.byteOffset.map { Int64(clamping: $0) } ?? -1
    let whole = PrintableText.escaped(failure.message)
    let shown = cut(whole)
    // Safe: strdup copies the string into memory that the thread's end, or the next call, frees.
    pcck_keep_message(shown == whole ? nil : strdup(whole))
    withUnsafeMutableBytes(of: &value.message) { message in
        message.copyBytes(from: shown.utf8)
    }
    error.pointee = value
}

/// The text in an error's struct.
private func message(_ error: pcc_error) -> String {
    withUnsafeBytes(of: error.message) { bytes in
        String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
    }
}

/// An error that the caller was given, or made.
func failure(_ error: pcc_error) -> CheckpointError {
    CheckpointError(
        CheckpointError.Code(rawValue: error.code), wholeMessage(error),
        slot: error.slot >= 0 ? SlotIndex(Int(error.slot)) : nil,
        byteOffset: error.byte_offset >= 0 ? UInt64(error.byte_offset) : nil,
        osErrorNumber: error.os_errno)
}

/// What the thread keeps, when it is that error's; else what the struct holds.
private func wholeMessage(_ error: pcc_error) -> String {
    let shown = message(error)
    // Safe: NULL or a NUL-terminated string that stays until the next error of this thread.
    guard let kept = pcck_kept_message().map({ String(cString: $0) }), cut(kept) == shown else {
        return shown
    }
    return kept
}

@c @implementation
public func pcc_error_message(_ error: UnsafePointer<pcc_error>?) -> UnsafeMutablePointer<CChar>? {
    // Safe: NULL or one struct, as an earlier call filled it; strdup copies the string.
    guard let error = error else { return nil }
    return strdup(wholeMessage(error.pointee))
}
