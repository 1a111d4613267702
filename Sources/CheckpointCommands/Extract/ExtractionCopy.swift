internal import CheckpointFormat
internal import CheckpointRecovery

#if canImport(Glibc)
    internal import Glibc
#endif

/// Copies parts of a checkpoint to a sink; every byte was verified before it is written.
struct ExtractionCopy {
    /// Ranges that are not the whole payload are read in pieces of this size.
    private static let pieceByteCount: UInt64 = 16 << 20

    let content: ExtractedContent
    /// What the progress bar says.
    let title: String

    /// - Parameter sink: nil to verify only.
    func run(_ selected: SelectedCheckpoint, _ sink: DescriptorSink?) throws(CheckpointError) {
        let progress = ProgressBar(
            "\(title) step \(selected.candidate.step)", total: content.byteCount)
        defer { progress.finish() }
        if content.isWholePayload {
            try copyWhole(selected, sink, progress)
        } else {
            try copyRanges(selected, sink, progress)
        }
    }

    /// Every chunk in order, and the digest of the whole payload at the end.
    private func copyWhole(
        _ selected: SelectedCheckpoint, _ sink: DescriptorSink?, _ progress: ProgressBar
    ) throws(CheckpointError) {
        let header = selected.candidate.header
        var digest = TreeDigest(byteCount: header.payloadByteCount)
        try selected.forEachChunk { _, offset, bytes throws(CheckpointError) in
            try Interruption.check()
            digest.setLeaves(TreeDigest.leaves(of: bytes), at: offset)
            try sink?.write(bytes)
            progress.update(offset + UInt64(bytes.byteCount))
        }
        let found = digest.finish()
        guard found == header.logicalDigest else {
            throw CheckpointError(
                .corrupt,
                "slot \(header.slot): every chunk matches its digest, but the payload has digest "
                    + "\(found), expected \(header.logicalDigest)", slot: header.slot)
        }
    }

    private func copyRanges(
        _ selected: SelectedCheckpoint, _ sink: DescriptorSink?, _ progress: ProgressBar
    ) throws(CheckpointError) {
        try sink?.write(content.head)
        var done = UInt64(content.head.count)
        for range in content.ranges {
            var start = range.lowerBound
            while start < range.upperBound {
                try Interruption.check()
                let end = min(start + Self.pieceByteCount, range.upperBound)
                try sink?.write(try selected.readBytes(start..<end))
                done += end - start
                progress.update(done)
                start = end
            }
        }
    }
}

/// A file descriptor that is written from start to end.
final class DescriptorSink {
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
    init(opening path: String, name: String) throws(CheckpointError) {
        self.name = name
        // Safe: the path is passed as a C string.
        descriptor = unsafe open(path, O_WRONLY | O_CLOEXEC)
        isOwned = descriptor >= 0
        if descriptor < 0 { throw failure(errno) }
    }

    deinit { if isOwned { close(descriptor) } }

    private func failure(_ errorNumber: Int32) -> CheckpointError {
        CheckpointError(
            .outputFailed, "\(name): \(SystemMessage.text(errorNumber))",
            osErrorNumber: errorNumber)
    }

    func write(_ bytes: [UInt8]) throws(CheckpointError) {
        // Safe: the array outlives the closure.
        let result = unsafe bytes.withUnsafeBytes { buffer in
            Result { () throws(CheckpointError) in
                // Safe: the buffer outlives the closure.
                try write(unsafe RawSpan(_unsafeBytes: buffer))
            }
        }
        try result.get()
    }

    /// Writes all of `bytes`.
    ///
    /// - Throws: `readerGone` when a pipe was closed at the other end, else `outputFailed`.
    func write(_ bytes: RawSpan) throws(CheckpointError) {
        var done = 0
        while done < bytes.byteCount {
            // Safe: the range lies in the span, which outlives the call.
            let count = unsafe bytes.withUnsafeBytes { buffer in
                unsafe Glibc.write(
                    descriptor, buffer.baseAddress.map { unsafe $0 + done }, buffer.count - done)
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
}

extension CheckpointError.Code {
    /// The target cannot be written: another checkpoint would fare no better.
    static let outputFailed = CheckpointError.Code(rawValue: -2)
    static let readerGone = CheckpointError.Code(rawValue: -3)
}
