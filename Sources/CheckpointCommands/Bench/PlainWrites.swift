internal import CheckpointFormat
internal import CheckpointStorage

#if canImport(Glibc)
    internal import Glibc
#endif

/// The limits that the benchmark compares with: what a program can do that keeps no promise.
enum PlainWrites {
    /// MB/s of O_DIRECT pwrite(2) of the state over a written file by `threadCount` threads,
    /// with one fdatasync(2) at the end.
    static func rate(
        _ state: BenchState, to storage: FileStorage, threadCount: Int, chunkByteCount: Int
    ) throws(CheckpointError) -> Double {
        let failure = Monitor<StorageError?>(nil)
        let elapsed = try seconds { () throws(CheckpointError) in
            try inParallel(threadCount) { number in
                var offset = number * chunkByteCount
                while offset < state.buffer.byteCount {
                    let end = min(offset + chunkByteCount, state.buffer.byteCount)
                    do throws(StorageError) {
                        try storage.write(state.buffer, offset..<end, at: UInt64(offset))
                    } catch {
                        failure.withLock { $0 = error }
                        return
                    }
                    offset += threadCount * chunkByteCount
                }
            }
            try withCheckpointErrors { () throws(StorageError) in try storage.flush() }
        }
        if let error = failure.withLock({ $0 }) { throw CheckpointError(error) }
        return Double(state.buffer.byteCount) / elapsed / 1e6
    }

    /// Seconds of a memcpy(3) of the state by `threadCount` threads, chunk by chunk.
    static func copySeconds(
        _ state: BenchState, to target: AlignedBuffer, threadCount: Int, chunkByteCount: Int
    ) throws(CheckpointError) -> Double {
        try seconds { () throws(CheckpointError) in
            try inParallel(threadCount) { number in
                var offset = number * chunkByteCount
                while offset < state.buffer.byteCount {
                    let count = min(chunkByteCount, state.buffer.byteCount - offset)
                    // Safe: both buffers have as many bytes as the state.
                    unsafe _ = memcpy(
                        target.baseAddress + offset, state.buffer.baseAddress + offset, count)
                    offset += threadCount * chunkByteCount
                }
            }
        }
    }
}

/// fio(1), when it is installed: the judge that everybody knows.
enum Fio {
    static let settings = [
        (block: "1M", depth: 4), (block: "4M", depth: 4), (block: "4M", depth: 16),
    ]

    static func name(_ setting: (block: String, depth: Int)) -> String {
        "fio \(setting.block) qd\(setting.depth)"
    }

    static var isInstalled: Bool { (output("fio --version") ?? "").hasPrefix("fio-") }

    /// MB/s of a sequential O_DIRECT write over the file at `path`, fsync included; nil when fio
    /// fails.
    static func rate(
        _ setting: (block: String, depth: Int), path: String, byteCount: UInt64
    ) -> Double? {
        let command =
            "fio --name=limit --filename=\(shellQuoted(path)) --rw=write --bs=\(setting.block) "
            + "--iodepth=\(setting.depth) --ioengine=libaio --direct=1 --size=\(byteCount) "
            + "--overwrite=1 --end_fsync=1 --output-format=terse --terse-version=3 2>/dev/null"
        // Field 48 of the terse format, version 3: write bandwidth in KiB/s.
        let fields = (output(command) ?? "").split(separator: ";", omittingEmptySubsequences: false)
        guard fields.count > 47, let rate = Double(fields[47]), rate > 0 else { return nil }
        return rate * 1024 / 1e6
    }

    private static func shellQuoted(_ text: String) -> String {
        "'"
            + text.split(separator: "'", omittingEmptySubsequences: false).joined(
                separator: "'\\''")
            + "'"
    }

    private static func output(_ command: String) -> String? {
        // Safe: the stream is used by this function alone and closed once.
        guard let stream = unsafe popen(command, "re") else { return nil }
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 4096)
        while true {
            let count = unsafe fread(&buffer, 1, buffer.count, stream)
            if count == 0 { break }
            bytes += buffer[..<count]
        }
        guard unsafe pclose(stream) == 0 else { return nil }
        return String(decoding: bytes, as: UTF8.self)
    }
}
