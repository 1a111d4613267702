/// What `pccheck bench` measured. Every ratio is between two figures of the same run.
struct BenchReport: Sendable {
    /// One durable checkpoint from memory, against what the same file system can do.
    struct Durable: Sendable {
        var byteCount: UInt64
        var poolByteCount: UInt64
        var backend: String
        /// MB/s, 10⁶ bytes per second.
        var checkpoint = Samples()
        /// The same bytes with O_DIRECT pwrite(2) over a written file, and one fdatasync(2).
        var plain = Samples()
        /// fio by its settings; empty when fio is not installed.
        var fio: [(name: String, rate: Samples)] = []
        /// Milliseconds from save to staged.
        var staged = Samples()
        /// Milliseconds of a memcpy of the same bytes by as many threads.
        var memcpy = Samples()
        var cpuSecondsPerGiB = Samples()
        var flushesPerCheckpoint = 0.0
        var metadataWritesPerCheckpoint = 0.0
        /// Peak resident memory above what the process had before it opened the writer.
        var extraResidentByteCount: UInt64 = 0

        var bestFio: Samples? { fio.map(\.rate).max { $0.median < $1.median } }
    }

    /// A training loop whose accelerator is a sleep, with and without checkpoints.
    struct Loop: Sendable {
        var byteCount: UInt64
        var stepCount: Int
        var stepMilliseconds: Int
        var interval: Int
        /// Seconds of the whole loop, the last checkpoint's drain left out.
        var plain = Samples()
        var checkpointed = Samples()
        /// Seconds from the loop's end until the last checkpoint was durable.
        var drain = Samples()
        var slowdown: Double { checkpointed.median / plain.median }
    }

    /// Opening a file and choosing the newest valid slot, from metadata alone.
    struct Open: Sendable {
        var slotCount: Int
        var payloadByteCount: UInt64
        var milliseconds = Samples()
    }

    var durable: Durable?
    var loop: Loop?
    var open: [Open] = []
}
