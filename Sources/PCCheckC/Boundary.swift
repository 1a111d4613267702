internal import CPCCheck
internal import CheckpointFormat
internal import CheckpointStorage

#if canImport(Glibc)
    internal import Glibc
#endif

// What every function of the C ABI needs: handles, errors, options and strings.

/// Runs `body`; its error becomes the status, and fills `error` when there is one.
func status(
    _ error: UnsafeMutablePointer<pcc_error>?, _ body: () throws(CheckpointError) -> Void
) -> pcc_status {
    do throws(CheckpointError) {
        try body()
        return PCC_OK
    } catch let failure {
        // Safe: the caller gives NULL or a whole struct.
        fill(error, failure)
        return failure.code.rawValue
    }
}

func invalid(_ message: String) -> CheckpointError { CheckpointError(.invalidArgument, message) }

/// A handle: an object that C holds one reference to, in the process that made it.
///
/// In a forked child the threads of the object do not exist, and locks that they hold are never
/// released: nothing of it is touched there, not even to free it.
enum Handle {
    private final class Owned {
        let object: AnyObject
        let processID = ThisProcess.id

        init(_ object: AnyObject) { self.object = object }
    }

    static func make(_ object: AnyObject) -> OpaquePointer {
        // Safe: released by `release`, which the C side calls once per handle.
        OpaquePointer(Unmanaged.passRetained(Owned(object)).toOpaque())
    }

    private static func owned(_ handle: OpaquePointer) -> Unmanaged<Owned> {
        // Safe: `make` made every handle from an object of this class.
        Unmanaged<Owned>.fromOpaque(UnsafeRawPointer(handle))
    }

    static func object<Object: AnyObject>(
        _ handle: OpaquePointer?, _ type: Object.Type, _ name: String
    ) throws(CheckpointError) -> Object {
        guard let handle = handle else { throw invalid("\(name) is NULL") }
        let owned = owned(handle).takeUnretainedValue()
        guard owned.processID == ThisProcess.id else {
            throw CheckpointError(
                .forked,
                "this \(name) belongs to process \(owned.processID), which forked; open the file "
                    + "after the fork, in the process that uses it")
        }
        // Safe: a handle of this C type was made from an object of this class.
        return unsafeDowncast(owned.object, to: Object.self)
    }

    static func release(_ handle: OpaquePointer?) {
        guard let handle = handle else { return }
        let owned = owned(handle)
        guard owned.takeUnretainedValue().processID == ThisProcess.id else { return }
        // C gives its only reference back.
        owned.release()
    }
}

/// A copy of an option struct, of whatever version the caller was compiled with: fields behind
/// its `struct_size` are zero, which always means the default.
func options<Options>(
    _ pointer: UnsafePointer<Options>?, default value: Options, name: String
) throws(CheckpointError) -> Options {
    guard let pointer = pointer else { return value }
    // Safe: every option struct begins with its size as a u32.
    let size = Int(UnsafeRawPointer(pointer).load(as: UInt32.self))
    guard size >= 4, size % 4 == 0 else {
        throw invalid("\(name).struct_size is \(size), expected sizeof(\(name))")
    }
    if size > MemoryLayout<Options>.size {
        // Safe: the caller's struct has `size` bytes.
        let rest = UnsafeRawBufferPointer(start: pointer, count: size)
            .dropFirst(MemoryLayout<Options>.size)
        guard rest.allSatisfy({ $0 == 0 }) else {
            throw CheckpointError(
                .unsupported,
                "\(name) sets a field that this version of the library does not know; "
                    + "use a newer library")
        }
    }
    var copy = value
    // Safe: copies no more than either struct holds; C structs are trivial.
    withUnsafeMutableBytes(of: &copy) { target in
        target.copyMemory(
            from: UnsafeRawBufferPointer(start: pointer, count: min(size, target.count)))
    }
    return copy
}

func text(_ pointer: UnsafePointer<CChar>?, _ name: String) throws(CheckpointError) -> String {
    // Safe: the caller gives NULL or a NUL-terminated string.
    guard let pointer = pointer else { throw invalid("\(name) is NULL") }
    guard let text = String(validatingCString: pointer) else {
        throw invalid("\(name) is not valid UTF-8")
    }
    return text
}

func optionalText(
    _ pointer: UnsafePointer<CChar>?, _ name: String
) throws(CheckpointError) -> String? {
    pointer == nil ? nil : try text(pointer, name)
}

/// A string that the caller frees with pcc_free.
func copyForCaller(_ text: String) throws(CheckpointError) -> UnsafeMutablePointer<CChar> {
    // Safe: strdup copies the string into memory that free releases.
    guard let copy = strdup(text) else {
        throw CheckpointError(
            .outOfMemory, "out of memory for a string of \(text.utf8.count) bytes")
    }
    return copy
}

func array<Element>(
    _ pointer: UnsafePointer<Element>?, _ count: Int, _ name: String
) throws(CheckpointError) -> UnsafeBufferPointer<Element> {
    guard count >= 0, pointer != nil || count == 0 else { throw invalid("\(name) is NULL") }
    // Safe: the caller gives `count` elements.
    return UnsafeBufferPointer(start: pointer, count: count)
}

/// A size of memory, which is no larger than the largest slot.
///
/// - Throws: `tooLarge`.
func byteCount(_ given: UInt64, _ name: String) throws(CheckpointError) -> Int {
    guard given <= Limits.slotByteCount.upperBound else {
        throw CheckpointError(
            .tooLarge,
            "\(name) has \(given) bytes, expected at most \(Limits.slotByteCount.upperBound)")
    }
    return Int(given)
}

/// nil for a negative number: no bound.
func nanoseconds(milliseconds: Int64) -> UInt64? {
    guard milliseconds >= 0 else { return nil }
    let (product, overflow) = UInt64(milliseconds).multipliedReportingOverflow(by: 1_000_000)
    return overflow ? nil : product
}

@c @implementation
public func pcc_free(_ text: UnsafeMutablePointer<CChar>?) {
    // Safe: NULL or a string of this library, which strdup made.
    free(text)
}
