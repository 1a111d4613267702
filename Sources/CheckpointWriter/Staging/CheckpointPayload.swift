public import CheckpointDevice
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
        /// Addresses of a device when there is a stream, which the host must not follow.
        @unsafe public let memory: UnsafeRawBufferPointer
        /// Bytes per element, for the byte-plane filter; 1 when unknown.
        public let elementByteCount: Int
        /// Copied before what is not early; see `CheckpointTicket.waitEarly`.
        public let isEarly: Bool
        /// Where the memory is on a device: the stream whose work by the time of the save gives it
        /// the values to be saved. nil for memory of the host.
        public let stream: DeviceStream?

        /// - Parameter memory: must stay alive and unchanged until the checkpoint is staged; if it
        ///   is early, only until `CheckpointTicket.waitEarly` returns. On a device it may be
        ///   changed by work that `CheckpointTicket.hold` holds back.
        @unsafe public init(
            _ memory: UnsafeRawBufferPointer, elementByteCount: Int = 1, isEarly: Bool = false,
            stream: DeviceStream? = nil
        ) {
            // Safe: it is only kept here; the caller vouches for the memory.
            unsafe self.memory = unsafe memory
            self.elementByteCount = elementByteCount
            self.isEarly = isEarly
            self.stream = stream
        }
    }

    public let kind: PayloadKind
    public let byteCount: UInt64
    public let manifestByteCount: UInt64
    private let head: [UInt8]
    private let regions: [Region]
    /// Payload offset at which each region begins.
    private let starts: [UInt64]
    /// The streams of the devices that regions are on, each once.
    let streams: [DeviceStream]
    /// Of a safetensors image: for the next payload of the same tensors.
    public let layout: TensorLayout?

    private static let largestByteCount = UInt64(Int.max) / 2

    private init(
        kind: PayloadKind, head: [UInt8], manifestByteCount: Int, regions: [Region],
        layout: TensorLayout? = nil
    ) {
        self.kind = kind
        self.layout = layout
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
            // More than any slot holds is refused later, as much as that.
            unsafe offset = min(offset + UInt64(region.memory.count), Self.largestByteCount)
        }
        self.starts = starts
        byteCount = offset
        var streams: [DeviceStream] = []
        for case let stream? in self.regions.lazy.map(\.stream) where streams.last != stream {
            if !streams.contains(stream) { streams.append(stream) }
        }
        self.streams = streams
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
        let layout: TensorLayout
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
            layout = try TensorLayout(tensors.map(\.description))
        } catch {
            throw CheckpointError(.invalidArgument, "\(error)")
        }
        try self.init(layout: layout, memory: tensors.map(\.memory), metadata: metadata)
    }

    /// A safetensors image of tensors that are laid out already.
    ///
    /// - Parameter memory: of each tensor in the order in which the layout was given them, of the
    ///   size that it says.
    /// - Throws: `invalidArgument` when a key of the metadata repeats, or there is too much of it.
    public init(
        layout: TensorLayout, memory: [Region], metadata: [(key: String, value: String)]
    ) throws(CheckpointError) {
        // Safe: only the sizes of the regions are read.
        let fits = layout.byteCounts.elementsEqual(memory) { unsafe $0 == $1.memory.count }
        precondition(fits, "the memory is not that of the tensors which were laid out")
        let manifest: [UInt8]
        do throws(FormatError) {
            manifest = try layout.manifest(metadata: metadata)
        } catch {
            throw CheckpointError(.invalidArgument, "\(error)")
        }
        self.init(
            kind: .safetensors, head: manifest, manifestByteCount: manifest.count,
            regions: layout.order.map { memory[$0] }, layout: layout)
    }

    /// Copies the payload's bytes from `offset`, a multiple of 65536, to the start of `target`, and
    /// digests them on the way. None of them is on a device.
    ///
    /// - Returns: the digests of the leaves, as `TreeDigest` wants them.
    @unsafe func copy(
        from offset: UInt64, count: Int, to target: CopyTarget, with copier: DigestingCopier
    ) -> [Digest] {
        // Safe: the caller vouches for the target.
        var leaves = unsafe LeafCopy(to: target, count: count, with: copier)
        // Safe: each part is memory of this payload, valid during the call; the copier checks
        // that it fits the target.
        forEachPart(from: offset, count: count) { part in
            precondition(part.device == nil, "the host cannot read a device's memory")
            unsafe leaves.append(part.memory)
        }
        return leaves.digests
    }

    /// Copies what the host can read of the payload's bytes from `offset` to the start of `target`.
    ///
    /// - Returns: the copies that bring the rest, by device.
    @unsafe func copyHostParts(
        from offset: UInt64, count: Int, to target: AlignedBuffer
    ) -> [DeviceName: [DeviceCopy]] {
        var copies: [DeviceName: [DeviceCopy]] = [:]
        var done = 0
        forEachPart(from: offset, count: count) { part in
            // Safe: the part lies in the range, which the buffer holds.
            if let device = part.device {
                unsafe copies[device, default: []].append(
                    DeviceCopy(
                        host: target.baseAddress + done,
                        address: UInt64(UInt(bitPattern: part.memory.baseAddress)),
                        byteCount: part.memory.count))
            } else {
                unsafe target.copy(part.memory, to: done)
            }
            unsafe done += part.memory.count
        }
        return copies
    }

    /// Whether any of `count` bytes from `offset` is on a device.
    func isOnDevice(from offset: UInt64, count: Int) -> Bool {
        if streams.isEmpty { return false }
        var found = false
        forEachPart(from: offset, count: count) { part in found = found || part.device != nil }
        return found
    }

    /// A piece of memory of one region.
    @safe private struct Part {
        @unsafe let memory: UnsafeRawBufferPointer
        let device: DeviceName?
    }

    /// Calls `body` with the pieces of memory that make up `count` bytes of the payload.
    private func forEachPart(from offset: UInt64, count: Int, _ body: (Part) -> Void) {
        var done = 0
        if offset < UInt64(head.count) {
            let start = Int(offset)
            done = min(count, head.count - start)
            // Safe: the array outlives the closure.
            unsafe head.withUnsafeBytes { source in
                let piece = unsafe UnsafeRawBufferPointer(rebasing: source[start..<start + done])
                body(unsafe Part(memory: piece, device: nil))
            }
        }
        guard done < count else { return }
        var index = regionIndex(at: offset + UInt64(done))
        while done < count {
            let within = Int(offset + UInt64(done) - starts[index])
            let memory = unsafe regions[index].memory
            let step = min(count - done, memory.count - within)
            // Safe: `within + step` lies in the region.
            let piece = unsafe UnsafeRawBufferPointer(rebasing: memory[within..<within + step])
            body(unsafe Part(memory: piece, device: regions[index].stream?.device))
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
