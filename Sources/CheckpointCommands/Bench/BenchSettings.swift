internal import ArgumentParser
internal import CheckpointFormat
internal import CheckpointStorage
internal import CheckpointWriter

/// What the benchmark was asked to do, with every default filled in.
struct BenchSettings: Sendable {
    var directory = "."
    var byteCounts: [UInt64] = []
    var roundCount = 5
    var chunkByteCount = 4 << 20
    /// As asked; nil leaves it to each part.
    var inFlightCounts: [Int]?
    var writerOptions = WriterOptions()
    var fio = Fio.Selection.quick
    var readerWorkerCount = 2
    var isFull = false

    var loopByteCount: UInt64 = 256 << 20
    var loopStepCount = 60
    var stepMilliseconds = 50
    /// As asked; nil for the default set of cases.
    var intervals: [Int]?
    var policies: [LoopPolicy]?
    var stepKinds: [StepKind]?

    /// Checkpoints in flight where a part uses one file.
    var inFlightCount: Int { inFlightCounts?.first ?? 1 }
    var writerWorkerCount: Int { writerOptions.writerWorkerCount }

    /// Bytes of the pool that a writer of one slot of `byteCount` takes.
    func poolByteCount(_ byteCount: UInt64) -> UInt64 {
        max(
            writerOptions.poolByteCount ?? min(byteCount, 2 << 30),
            UInt64(writerWorkerCount * chunkByteCount))
    }
}

/// What the training loop does when it wants to save.
enum LoopPolicy: String, CaseIterable, ExpressibleByArgument, Sendable {
    /// Wait for a slot.
    case wait
    /// Save nothing when every slot is in flight.
    case skip
    /// Wait until the checkpoint is durable, within the step.
    case synchronous
}

/// What one step of the training loop is.
enum StepKind: String, CaseIterable, ExpressibleByArgument, Sendable {
    /// The processor rests, as it does while an accelerator works.
    case sleep
    /// One thread multiplies matrices.
    case busy
}

/// A back end on the command line.
struct BackendArgument: ExpressibleByArgument, Sendable {
    let backend: StorageBackend

    init(_ backend: StorageBackend) { self.backend = backend }

    init?(argument: String) {
        guard let backend = StorageBackend(rawValue: argument) else { return nil }
        self.backend = backend
    }

    static var allValueStrings: [String] { StorageBackend.allCases.map(\.rawValue) }
    var defaultValueDescription: String { backend.rawValue }
}

/// A codec on the command line.
struct CodecArgument: ExpressibleByArgument, Sendable {
    let codec: Codec

    init(_ codec: Codec) { self.codec = codec }

    init?(argument: String) {
        guard let codec = Codec.allCases.first(where: { $0.label == argument }) else { return nil }
        self.codec = codec
    }

    static var allValueStrings: [String] { Codec.allCases.map(\.label) }
    var defaultValueDescription: String { codec.label }
}
