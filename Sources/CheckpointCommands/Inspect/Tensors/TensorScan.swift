internal import CheckpointFormat
internal import CheckpointRecovery

/// The statistics of tensors, taken in one pass over the chunks that hold them.
///
/// Chunks are read, verified and counted by several threads, each with the buffers of one chunk,
/// and the results are merged in order: memory does not grow with the payload, and a second run
/// gives the same digits.
struct TensorScan {
    /// What is known of one tensor.
    struct Result: Sendable {
        var statistics = TensorStatistics()
        /// Damaged chunks that the tensor is in, the first of them with the reason.
        var damagedChunks: [Int] = []
        var damage: String?
    }

    private struct Part: Sendable {
        var tensor: Int
        var statistics = TensorStatistics()
        /// The bytes before the first whole unit and behind the last one: elements that are in
        /// two chunks.
        var head: [UInt8] = []
        var tail: [UInt8] = []
        var damagedChunk: Int?
        var damage: String?
    }

    private struct Total: Sendable {
        var results: [Result]
        /// The begin of an element that the next chunk ends.
        var carried: (tensor: Int, bytes: [UInt8])?
    }

    private let selected: SelectedCheckpoint
    /// Payload ranges, ascending.
    private let ranges: [Range<UInt64>]
    private let decoders: [ElementDecoder]
    private let chunkByteCount: UInt64

    /// - Parameter tensors: in the order of their data, as a manifest has them.
    init(
        _ selected: SelectedCheckpoint, _ manifest: SafetensorsManifest,
        _ tensors: [SafetensorsManifest.Tensor]
    ) throws(CheckpointError) {
        self.selected = selected
        chunkByteCount = UInt64(selected.candidate.header.chunkByteCount)
        ranges = tensors.map(manifest.payloadRange)
        var decoders: [ElementDecoder] = []
        for tensor in tensors {
            guard let decoder = ElementDecoder(tensor.elementType) else {
                throw CheckpointError(
                    .unsupported,
                    "tensor \"\(tensor.name)\" has dtype \(tensor.elementType), "
                        + "whose values this version cannot read; leave it out with --tensor")
            }
            decoders.append(decoder)
        }
        self.decoders = decoders
    }

    /// One result per tensor.
    func run() throws(CheckpointError) -> [Result] {
        let chunks = chunkIndices
        let positions = Dictionary(uniqueKeysWithValues: zip(chunks, chunks.indices))
        let merge = OrderedMerge<[Part], Total>(
            Total(results: [Result](repeating: Result(), count: ranges.count))
        ) { total, parts in
            for part in parts { join(part, &total) }
        }
        let total = chunks.reduce(UInt64(0)) { $0 + UInt64(rawByteCount($1)) }
        let progress = ProgressBar("reading step \(selected.candidate.step)", total: total)
        defer { progress.finish() }
        let done = ByteCounter()
        try selected.forEachChunk(chunks) { chunk, bytes throws(CheckpointError) in
            try Interruption.check()
            merge.deliver(parts(chunk.payloadOffset, bytes), at: positions[chunk.index] ?? 0)
            progress.update(done.add(bytes.byteCount))
        } damaged: { damage throws(CheckpointError) in
            try Interruption.check()
            merge.deliver(parts(damage), at: positions[damage.index] ?? 0)
            progress.update(done.add(rawByteCount(damage.index)))
        }
        return merge.total.results
    }

    private func rawByteCount(_ chunk: Int) -> Int {
        selected.candidate.table.entries[chunk].rawByteCount
    }

    private var chunkIndices: [Int] {
        var indices: [Int] = []
        for range in ranges {
            for chunk in selected.candidate.header.chunks(of: range)
            where indices.last != chunk {
                indices.append(chunk)
            }
        }
        return indices
    }

    /// The tensors with a byte in `window`.
    private func tensors(in window: Range<UInt64>) -> [Int] {
        ranges.indices.overlapping(window) { ranges[$0] }.filter { !ranges[$0].isEmpty }
    }

    private func parts(_ damage: ChunkDamage) -> [Part] {
        let start = UInt64(damage.index) * chunkByteCount
        return tensors(in: start..<start + UInt64(rawByteCount(damage.index))).map {
            Part(tensor: $0, damagedChunk: damage.index, damage: "\(damage)")
        }
    }

    private func parts(_ offset: UInt64, _ bytes: RawSpan) -> [Part] {
        let window = offset..<offset + UInt64(bytes.byteCount)
        return tensors(in: window).map { tensor in
            var part = Part(tensor: tensor)
            let range = ranges[tensor].clamped(to: window)
            let size = UInt64(decoders[tensor].unitByteCount)
            let isCut = (range.lowerBound - ranges[tensor].lowerBound) % size
            let head = isCut == 0 ? 0 : min(size - isCut, UInt64(range.count))
            let tail = (UInt64(range.count) - head) % size
            let first = Int(range.lowerBound - offset)
            let last = Int(range.upperBound - offset)
            part.head = Self.array(bytes, first..<first + Int(head))
            part.tail = Self.array(bytes, last - Int(tail)..<last)
            let whole = bytes.extracting(first + Int(head)..<last - Int(tail))
            // Safe: the view is valid during the call.
            unsafe whole.withUnsafeBytes { unsafe part.statistics.add($0, decoders[tensor]) }
            return part
        }
    }

    private static func array(_ bytes: RawSpan, _ range: Range<Int>) -> [UInt8] {
        // Safe: the view is valid during the call.
        unsafe bytes.extracting(range).withUnsafeBytes { unsafe Array($0) }
    }

    private func join(_ part: Part, _ total: inout Total) {
        total.results[part.tensor].statistics.merge(part.statistics)
        if let chunk = part.damagedChunk {
            total.results[part.tensor].damagedChunks.append(chunk)
            if total.results[part.tensor].damage == nil {
                total.results[part.tensor].damage = part.damage
            }
            total.carried = nil
            return
        }
        if let carried = total.carried, carried.tensor == part.tensor {
            let bytes = carried.bytes + part.head
            if bytes.count == decoders[part.tensor].unitByteCount {
                var element = TensorStatistics()
                // Safe: the array outlives the closure.
                unsafe bytes.withUnsafeBytes { unsafe element.add($0, decoders[part.tensor]) }
                total.results[part.tensor].statistics.merge(element)
            }
        }
        total.carried = part.tail.isEmpty ? nil : (part.tensor, part.tail)
    }
}
