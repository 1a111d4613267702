public import CheckpointFormat
internal import CheckpointStorage

/// The bytes of one checkpoint: a manifest that the payload owns, then the caller's memory.
///
/// The payload is one stream of bytes; the snapshot workers copy ranges of it.
// Unchecked: the pointers are only read, and only until the checkpoint is staged, while the
// caller keeps the memory alive and unchanged, as the initialisers demand.
@safe public struct CheckpointPayload: @unchecked Sendable {
    /// Memory of the caller.
    @safe public struct Region {
        @unsafe public let memory: UnsafeRawBufferPointer
        /// Bytes per element, for the byte-plane filter; 1 when unknown.
        public let elementByteCount: Int
        /// Copied before what is not early; see `CheckpointTicket.waitEarly`.
        public let isEarly: Bool

        /// - Parameter memory: must stay alive and unchanged until the checkpoint is staged; if it
        ///   is early, only until `CheckpointTicket.waitEarly` returns.
        @unsafe public init(
            _ memory: UnsafeRawBufferPointer, elementByteCount: Int = 1, isEarly: Bool = false
        ) {
            // Safe: it is only kept here; the caller vouches for the memory.
            unsafe self.memory = unsafe memory
            self.elementByteCount = elementByteCount
            self.isEarly = isEarly
        }
    }

    public let kind: PayloadKind
    public let byteCount: UInt64
    public let manifestByteCount: UInt64
    private let head: [UInt8]
    private let regions: [Region]
    /// Stream offset at which each region begins.
    private let starts: [UInt64]

    private init(kind: PayloadKind, head: [UInt8], manifestByteCount: Int, regions: [Region]) {
        self.kind = kind
        self.head = head
        self.manifestByteCount = UInt64(manifestByteCount)
        // Empty regions would make the search ambiguous, and hold nothing.
        // Safe, here and below: only the sizes of the regions are read.
        self.regions = regions.filter { unsafe !$0.memory.isEmpty }
        var offset = UInt64(head.count)
        var starts: [UInt64] = []
        starts.reserveCapacity(self.regions.count)
        for region in self.regions {
            starts.append(offset)
            unsafe offset += UInt64(region.memory.count)
        }
        self.starts = starts
        byteCount = offset
    }

    /// Bytes that only the application understands.
    public init(opaque bytes: [UInt8]) {
        self.init(kind: .opaque, head: bytes, manifestByteCount: 0, regions: [])
    }

    /// The regions, one after another.
    public init(opaque regions: [Region]) {
        self.init(kind: .opaque, head: [], manifestByteCount: 0, regions: regions)
    }

    /// A safetensors image: the tensors' memory behind the manifest that describes them.
    ///
    /// - Throws: `invalidArgument` when a region's size is not its tensor's, or a name repeats.
    public init(
        tensors: [(description: TensorDescription, memory: Region)],
        metadata: [(key: String, value: String)]
    ) throws(CheckpointError) {
        do throws(FormatError) {
            for tensor in tensors {
                let expected = try tensor.description.byteCount
                let found = unsafe UInt64(tensor.memory.memory.count)
                guard found == expected else {
                    throw .invalidField(
                        "the byte count of tensor \(tensor.description.name)", found: found,
                        expected: "\(expected), from its shape and dtype")
                }
            }
            let manifest = try SafetensorsManifest.encode(
                tensors.map(\.description), metadata: metadata)
            self.init(
                kind: .safetensors, head: manifest.bytes, manifestByteCount: manifest.bytes.count,
                regions: manifest.order.map { tensors[$0].memory })
        } catch {
            throw CheckpointError(.invalidArgument, "\(error)")
        }
    }

    /// Copies the stream's bytes from `offset`, a multiple of 65536, to the start of `target`, and
    /// digests them on the way.
    ///
    /// - Returns: the digests of the leaves, as `TreeDigest` wants them.
    @unsafe func copy(
        from offset: UInt64, count: Int, to target: CopyTarget, with copier: DigestingCopier
    ) -> [Digest] {
        let leaf = Limits.leafByteCount
        var leaves: [Digest] = []
        leaves.reserveCapacity((count + leaf - 1) / leaf)
        var done = 0
        // Safe: each part is memory of this payload, valid during the call; the copier checks
        // that it fits the target.
        unsafe forEachPart(from: offset, count: count) { part in
            var taken = 0
            while taken < part.count {
                let step = min(part.count - taken, leaf - done % leaf)
                unsafe copier.copy(
                    UnsafeRawBufferPointer(rebasing: part[taken..<taken + step]), to: target,
                    at: done)
                taken += step
                done += step
                if done % leaf == 0 || done == count { leaves.append(copier.takeDigest()) }
            }
        }
        return leaves
    }

    /// Calls `body` with the pieces of memory that make up `count` bytes of the stream.
    private func forEachPart(
        from offset: UInt64, count: Int, _ body: (UnsafeRawBufferPointer) -> Void
    ) {
        var done = 0
        if offset < UInt64(head.count) {
            let start = Int(offset)
            done = min(count, head.count - start)
            // Safe: the array outlives the closure.
            unsafe head.withUnsafeBytes { source in
                unsafe body(UnsafeRawBufferPointer(rebasing: source[start..<start + done]))
            }
        }
        guard done < count else { return }
        var index = regionIndex(at: offset + UInt64(done))
        while done < count {
            let within = Int(offset + UInt64(done) - starts[index])
            let memory = unsafe regions[index].memory
            let step = min(count - done, memory.count - within)
            // Safe: `within + step` lies in the region.
            unsafe body(UnsafeRawBufferPointer(rebasing: memory[within..<within + step]))
            done += step
            index += 1
        }
    }

    /// The element width of the region that holds the middle of the range: what a byte-plane
    /// filter of that chunk should use.
    func elementByteCount(from offset: UInt64, count: Int) -> Int {
        let middle = offset + UInt64(count / 2)
        guard !regions.isEmpty, middle >= UInt64(head.count) else { return 1 }
        return regions[regionIndex(at: middle)].elementByteCount
    }

    /// The chunks that hold bytes of early regions, in ascending order.
    func earlyChunks(chunkByteCount: Int) -> [Int] {
        var chunks: [Int] = []
        for (region, start) in zip(regions, starts) where region.isEarly {
            // Safe: only the size of the region is read. No region is empty.
            let last = unsafe start + UInt64(region.memory.count) - 1
            let first = Int(start / UInt64(chunkByteCount))
            // Neighbours may share a chunk.
            let next = max(first, (chunks.last ?? -1) + 1)
            chunks += Array(next..<max(next, Int(last / UInt64(chunkByteCount)) + 1))
        }
        return chunks
    }

    /// The last region that begins at or before `offset`.
    private func regionIndex(at offset: UInt64) -> Int {
        var low = 0
        var high = starts.count
        while high - low > 1 {
            let middle = (low + high) / 2
            if starts[middle] <= offset { low = middle } else { high = middle }
        }
        return low
    }
}
