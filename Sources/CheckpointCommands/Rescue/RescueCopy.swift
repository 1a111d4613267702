internal import CheckpointFormat
internal import CheckpointStorage

#if canImport(Glibc)
    internal import Glibc
#endif

/// A copy of a checkpoint file that has no name until it is published.
///
/// What the medium does not return is zero in the copy, block by block, so that a rescue also gets
/// a file off a failing disk; the digests show which chunks that cost.
final class RescueCopy {
    private static let pieceByteCount = 4 << 20

    private var file: NewFile
    let storage: FileStorage
    private var unreadableBlockCount = 0

    /// Copies the first `byteCount` bytes of `source`, a multiple of 4096.
    ///
    /// - Throws: `exists` when `path` is taken, `noSpace`, `cancelled` after a signal. Nothing is
    ///   left then.
    init(
        of source: FileStorage, byteCount: UInt64, to path: String
    ) throws(CheckpointError) {
        // Safe: the path is passed as a C string for the call.
        guard unsafe access(path, F_OK) != 0 else {
            throw CheckpointError(
                .exists, "\(path) exists; choose another name for the rescued file")
        }
        file = try .begun(path, byteCount: byteCount)
        storage = try .opened(file.temporaryPath, .write)
        try copy(source, byteCount, path)
    }

    private func copy(
        _ source: FileStorage, _ byteCount: UInt64, _ path: String
    ) throws(CheckpointError) {
        let progress = ProgressBar("copying to \(path)", total: byteCount)
        defer { progress.finish() }
        let buffer = AlignedBuffer(byteCount: Self.pieceByteCount)
        var offset: UInt64 = 0
        while offset < byteCount {
            try Interruption.check()
            let count = Int(min(UInt64(Self.pieceByteCount), byteCount - offset))
            unreadableBlockCount += Self.read(source, buffer, count, offset)
            try withCheckpointErrors { () throws(StorageError) in
                try storage.write(buffer, 0..<count, at: offset)
            }
            offset += UInt64(count)
            progress.update(offset)
        }
    }

    /// - Returns: how many blocks could not be read and are zero.
    private static func read(
        _ source: FileStorage, _ buffer: AlignedBuffer, _ count: Int, _ offset: UInt64
    ) -> Int {
        if (try? source.read(into: buffer, 0..<count, at: offset)) != nil { return 0 }
        var lost = 0
        for start in stride(from: 0, to: count, by: Limits.blockByteCount) {
            // What lies beyond the end of a file that lost its end is zero, and not unreadable.
            if let bytes = try? source.readPaddedBlock(at: offset + UInt64(start)) {
                buffer.copy(bytes, to: start)
            } else {
                buffer.fillWithZeros(start..<start + Limits.blockByteCount)
                lost += 1
            }
        }
        return lost
    }

    /// The copy becomes durable, and gets its name.
    ///
    /// - Returns: how many blocks could not be read and are zero.
    func publish() throws(CheckpointError) -> Int {
        try file.finish(replacing: false)
        return unreadableBlockCount
    }
}
