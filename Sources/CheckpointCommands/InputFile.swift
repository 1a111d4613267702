internal import CheckpointFormat

#if canImport(Glibc)
    internal import Glibc
#endif

/// A file that a command reads as a whole.
enum InputFile {
    /// - Parameters:
    ///   - limit: a larger file is refused.
    ///   - meaning: what the limit is, for the message.
    static func bytes(
        _ path: String, limit: Int, _ meaning: String
    ) throws(CheckpointError) -> [UInt8] {
        // A pipe that nobody writes to must not keep a signal waiting, neither here nor below.
        // Safe: the path is passed as a C string.
        let file = unsafe open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC)
        guard file >= 0 else {
            let code: CheckpointError.Code = errno == ENOENT ? .notFound : .inputOutput
            throw CheckpointError(code, "\(path): \(SystemMessage.text(errno))")
        }
        defer { close(file) }
        var bytes: [UInt8] = []
        var part = [UInt8](repeating: 0, count: 1 << 16)
        while true {
            try waitForInput(file)
            // Safe: read fills at most the bytes of the array.
            let count = unsafe part.withUnsafeMutableBytes { buffer in
                unsafe read(file, buffer.baseAddress, buffer.count)
            }
            if count < 0 {
                if errno == EAGAIN || errno == EINTR { continue }
                throw CheckpointError(.inputOutput, "\(path): \(SystemMessage.text(errno))")
            }
            if count == 0 { break }
            bytes += part[..<count]
            guard bytes.count <= limit else {
                throw CheckpointError(
                    .tooLarge,
                    "\(path): the file is larger than \(limit >> 20) MiB, \(meaning)")
            }
        }
        return bytes
    }

    /// Returns when there is something to read, or an end.
    private static func waitForInput(_ file: Int32) throws(CheckpointError) {
        var wanted = pollfd(fd: file, events: Int16(POLLIN), revents: 0)
        while true {
            try Interruption.check()
            // Safe: poll fills the one entry that it is given.
            if unsafe poll(&wanted, 1, 100) > 0 { return }
        }
    }
}
