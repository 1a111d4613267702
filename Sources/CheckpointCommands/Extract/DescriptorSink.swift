internal import CheckpointFormat
internal import CheckpointStorage

#if canImport(Glibc)
    internal import Glibc
#endif

/// A file descriptor that is written: from start to end, or at offsets by several threads.
final class DescriptorSink: Sendable {
    private let descriptor: Int32
    private let isOwned: Bool
    private let name: String

    /// Standard output, which stays open.
    init(_ descriptor: Int32, name: String) {
        self.descriptor = descriptor
        self.name = name
        isOwned = false
    }

    /// open(2) for writing.
    ///
    /// - Parameter isRead: what was written will be read again.
    init(opening path: String, name: String, isRead: Bool = false) throws(CheckpointError) {
        self.name = name
        descriptor = try Self.opened(path, isRead ? O_RDWR : O_WRONLY)
        isOwned = descriptor >= 0
        if descriptor < 0 { throw failure(errno) }
    }

    /// A pipe that nobody reads must not keep a signal waiting.
    private static func opened(_ path: String, _ mode: Int32) throws(CheckpointError) -> Int32 {
        while true {
            // Safe: the path is passed as a C string.
            let descriptor = unsafe open(path, mode | O_NONBLOCK | O_CLOEXEC)
            if descriptor >= 0 {
                _ = fcntl(descriptor, F_SETFL, mode)
                return descriptor
            }
            // A socket fails in the same way, and for good.
            let failure = errno
            guard failure == ENXIO, try OutputPath.kind(path) == S_IFIFO else {
                errno = failure
                return descriptor
            }
            try Interruption.check()
            SystemClock.sleep(nanoseconds: 50_000_000)
        }
    }

    deinit { if isOwned { close(descriptor) } }

    private func failure(_ errorNumber: Int32) -> CheckpointError {
        CheckpointError(
            .outputFailed, "\(name): \(SystemMessage.text(errorNumber))",
            osErrorNumber: errorNumber)
    }

    /// ftruncate(2): what is never written reads as zeros.
    func setByteCount(_ byteCount: UInt64) throws(CheckpointError) {
        if ftruncate(descriptor, off_t(byteCount)) != 0 { throw failure(errno) }
    }

    func write(_ bytes: [UInt8], at offset: UInt64? = nil) throws(CheckpointError) {
        // Safe: every byte of the array is set, and it outlives the call.
        try unsafe write(bytes.span.bytes, at: offset)
    }

    /// Writes all of `bytes`.
    ///
    /// - Parameter offset: where in the file; nil for what is written from start to end.
    /// - Throws: `readerGone` when a pipe was closed at the other end, else `outputFailed`.
    func write(_ bytes: RawSpan, at offset: UInt64? = nil) throws(CheckpointError) {
        var done = 0
        while done < bytes.byteCount {
            // Safe: the range is in the span, which outlives the call.
            let count = unsafe bytes.withUnsafeBytes { buffer in
                let start = unsafe buffer.baseAddress.map { unsafe $0 + done }
                let rest = buffer.count - done
                guard let offset else { return unsafe Glibc.write(descriptor, start, rest) }
                return unsafe pwrite(descriptor, start, rest, off_t(offset) + off_t(done))
            }
            if count >= 0 {
                done += count
            } else if errno == EPIPE {
                throw CheckpointError(.readerGone, "\(name): the reader closed the pipe")
            } else if errno != EINTR {
                throw failure(errno)
            }
        }
    }

    /// Reads the `count` bytes from `offset` of what was written to the start of `buffer`.
    func read(
        into buffer: inout [UInt8], count: Int, at offset: UInt64
    ) throws(CheckpointError) {
        precondition(count <= buffer.count, "the buffer has room")
        var done = 0
        while done < count {
            // Safe: the range is in the array, which nothing else uses meanwhile.
            let found = unsafe buffer.withUnsafeMutableBytes { buffer in
                unsafe pread(
                    descriptor, buffer.baseAddress.map { unsafe $0 + done }, count - done,
                    off_t(offset) + off_t(done))
            }
            if found > 0 {
                done += found
            } else if found == 0 {
                throw failure(EIO)
            } else if errno != EINTR {
                throw failure(errno)
            }
        }
    }

    /// Fills in what was not known of an archive before its data was written.
    func seal(_ archive: ZipLayout, checksums: [UInt32]) throws(CheckpointError) {
        for (member, checksum) in zip(archive.members, checksums) {
            var bytes: [UInt8] = []
            bytes.appendLittleEndian(checksum)
            try write(bytes, at: member.checksumOffset)
        }
        try write(archive.directory(checksums: checksums), at: archive.end)
    }
}

extension CheckpointError.Code {
    /// The target cannot be written: another checkpoint would fare no better.
    static let outputFailed = CheckpointError.Code(rawValue: -2)
    static let readerGone = CheckpointError.Code(rawValue: -3)
}
