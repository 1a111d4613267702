public import CheckpointFormat
internal import CheckpointStorage

/// Reading many chunks for tools that count, compare or map what is in them.
extension SelectedCheckpoint {
    /// Loads the chunks `indices`, in that order but by several threads, and hands each to `body`
    /// verified and restored, or its damage to `damaged`. Both run on any of the threads.
    ///
    /// - Parameter body: gets the chunk's index, its byte offset in the payload, and a view that
    ///   is valid during the call. What it or `damaged` throws ends the scan.
    public func scanChunks(
        _ indices: [Int],
        _ body: @escaping @Sendable (Int, UInt64, RawSpan) throws(CheckpointError) -> Void,
        damaged: @escaping @Sendable (ChunkDamage) throws(CheckpointError) -> Void
    ) throws(CheckpointError) {
        try prove()
        try reader.tryAll(indices) { _, result throws(CheckpointError) in
            switch result {
            case .failure(let damage): try damaged(damage)
            case .success(let chunk):
                try chunk.buffer.withBytes(0..<chunk.byteCount) { bytes throws(CheckpointError) in
                    try body(chunk.index, chunk.payloadOffset, bytes)
                }
            }
        }
    }

    /// What keeps `chunk` from being read, as it was meant for people.
    public func error(_ damage: ChunkDamage) -> CheckpointError { reader.error(damage) }

    /// A loader of single chunks, with buffers of its own.
    public func makeChunkLoader() -> ChunkLoader { ChunkLoader(self) }
}

/// Loads one chunk after another, and keeps the last one for whoever asks for it again.
///
/// One user at a time.
public final class ChunkLoader {
    private let selected: SelectedCheckpoint
    private var buffers: ChunkBuffers?
    private var loaded: LoadedChunk?

    /// The chunk that is at hand without another read.
    public var loadedIndex: Int? { loaded?.index }

    init(_ selected: SelectedCheckpoint) { self.selected = selected }

    /// Hands chunk `index`, verified and restored, to `body`.
    ///
    /// - Throws: `corrupt` or `inputOutput` when the chunk cannot be read, `outOfMemory`.
    public func withChunk<Result>(
        _ index: Int, _ body: (RawSpan) throws(CheckpointError) -> Result
    ) throws(CheckpointError) -> Result {
        try selected.prove()
        let chunk: LoadedChunk
        if let loaded, loaded.index == index {
            chunk = loaded
        } else {
            loaded = nil
            chunk = try selected.reader.load(index, try ownBuffers())
            loaded = chunk
        }
        return try chunk.buffer.withBytes(0..<chunk.byteCount) { bytes throws(CheckpointError) in
            try body(bytes)
        }
    }

    private func ownBuffers() throws(CheckpointError) -> ChunkBuffers {
        if let buffers { return buffers }
        let made = try selected.reader.makeBuffers()
        buffers = made
        return made
    }
}
