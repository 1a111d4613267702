internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

/// What became of one tensor.
struct TensorChange: Sendable {
    enum Kind: String, Sendable {
        case added, removed, retyped, reshaped, changed, same
    }

    let name: String
    var kind: Kind
    let first: ComparedTensor?
    let second: ComparedTensor?
    /// nil when there are no two tensors whose elements could be compared, or none had to be read.
    var difference: TensorDifference?
    /// What could not be read, of either side.
    var damage: [String] = []
}

/// Compares the tensors of two checkpoints in one pass over the chunks of the first.
///
/// Several threads read and verify a chunk of the first, and the same part of the second; memory
/// does not grow with the payload. Where both checkpoints record the same digest for the
/// same chunk, the second is not read, and a tensor that lies only in such chunks not at all.
struct TensorComparison {
    /// Two tensors whose elements are compared.
    private struct Pair: Sendable {
        /// Index in the result.
        let change: Int
        let first: Range<UInt64>
        let second: Range<UInt64>
        let decoder: ElementDecoder

        /// No element is in two chunks, whose sizes are multiples of 64 KiB.
        var isAligned: Bool {
            let size = UInt64(decoder.unitByteCount)
            return size.nonzeroBitCount == 1 && first.lowerBound % size == 0
                && second.lowerBound % size == 0
        }
    }

    private struct Part: Sendable {
        let change: Int
        var difference = TensorDifference()
        var damage: [String] = []

        mutating func add(_ other: Part) {
            difference.merge(other.difference)
            damage += other.damage.prefix(max(0, damageLimit - damage.count))
        }
    }

    private let first: ComparedCheckpoint
    private let second: ComparedCheckpoint
    /// Pieces of tensors whose elements do not keep to the chunks.
    private static let pieceUnitCount: UInt64 = 1 << 20
    /// How a tensor's damage is reported.
    private static let damageLimit = 4

    init(_ first: ComparedCheckpoint, _ second: ComparedCheckpoint) {
        self.first = first
        self.second = second
    }

    /// One change per tensor of either side, in the order of the first's data.
    func run() throws(CheckpointError) -> [TensorChange] {
        var changes = matched()
        let pairs = changes.indices.compactMap { pair($0, changes[$0]) }
        for part in try compareAligned(pairs.filter(\.isAligned)) { add(part, to: &changes) }
        for pair in pairs where !pair.isAligned { add(try comparePieces(pair), to: &changes) }
        for index in changes.indices where changes[index].kind == .same {
            if changes[index].difference.map({ $0.changedCount > 0 }) ?? false {
                changes[index].kind = .changed
            }
        }
        return changes
    }

    private func add(_ part: Part, to changes: inout [TensorChange]) {
        var difference = changes[part.change].difference ?? TensorDifference()
        difference.merge(part.difference)
        changes[part.change].difference = difference
        changes[part.change].damage += part.damage.prefix(
            max(0, Self.damageLimit - changes[part.change].damage.count))
    }

    /// Tensors by their names.
    private func matched() -> [TensorChange] {
        let others = Dictionary(
            second.tensors.map { ($0.name, $0) }, uniquingKeysWith: { first, _ in first })
        let names = Set(first.tensors.map(\.name))
        let kept = first.tensors.map { tensor -> TensorChange in
            guard let other = others[tensor.name] else {
                return TensorChange(
                    name: tensor.name, kind: .removed, first: tensor, second: nil)
            }
            let kind: TensorChange.Kind =
                tensor.elementType != other.elementType
                ? .retyped : tensor.shape != other.shape ? .reshaped : .same
            return TensorChange(name: tensor.name, kind: kind, first: tensor, second: other)
        }
        let added = second.tensors.filter { !names.contains($0.name) }.map {
            TensorChange(name: $0.name, kind: .added, first: nil, second: $0)
        }
        return kept + added
    }

    private func pair(_ index: Int, _ change: TensorChange) -> Pair? {
        guard let a = change.first, let b = change.second, a.elementType == b.elementType,
            a.range.count == b.range.count, !a.range.isEmpty,
            let decoder = ElementDecoder(a.elementType)
        else { return nil }
        let pair = Pair(change: index, first: a.range, second: b.range, decoder: decoder)
        if change.kind == .same
            && first.header.chunks(of: a.range).allSatisfy({ isEqual($0, pair) })
        {
            return nil
        }
        return pair
    }

    /// Both sides record the same bytes for chunk `index`, and `pair` lies alike in both.
    private func isEqual(_ index: Int, _ pair: Pair) -> Bool {
        let (a, b) = (first.candidate.table.entries, second.candidate.table.entries)
        guard pair.first == pair.second,
            first.header.chunkByteCount == second.header.chunkByteCount, index < b.count
        else { return false }
        return a[index].digest == b[index].digest && a[index].codec == b[index].codec
            && a[index].planeWidth == b[index].planeWidth
            && a[index].rawByteCount == b[index].rawByteCount
            && a[index].storedByteCount == b[index].storedByteCount
    }

    // MARK: Chunk by chunk

    private func compareAligned(_ pairs: [Pair]) throws(CheckpointError) -> [Part] {
        // By their place in the first payload, so that those of a chunk are found together.
        let pairs = pairs.sorted { $0.first.lowerBound < $1.first.lowerBound }
        var wanted: [Int: [Int]] = [:]
        for (index, pair) in pairs.enumerated() {
            for chunk in first.header.chunks(of: pair.first) {
                wanted[chunk, default: []].append(index)
            }
        }
        let order = wanted.keys.sorted()
        let positions = Dictionary(uniqueKeysWithValues: zip(order, order.indices))
        let byChunk = wanted
        let byteCount = order.reduce(UInt64(0)) { $0 + UInt64(rawByteCount($1)) }
        let progress = ProgressBar("comparing", total: byteCount)
        defer { progress.finish() }
        let done = ByteCounter()
        let others = RecentChunks(second)
        let merge = OrderedMerge<[Part], [Int: Part]>([:]) { total, parts in
            for part in parts { total[part.change, default: Part(change: part.change)].add(part) }
        }
        try first.selected.forEachChunk(order) { chunk, bytes throws(CheckpointError) in
            try Interruption.check()
            let parts = try compare(
                (byChunk[chunk.index] ?? []).map { pairs[$0] }, chunk, bytes, others)
            merge.deliver(parts, at: positions[chunk.index] ?? 0)
            progress.update(done.add(bytes.byteCount))
        } damaged: { damage throws(CheckpointError) in
            try Interruption.check()
            let text = "\(first.title): \(damage)"
            let parts = (byChunk[damage.index] ?? []).map {
                Part(change: pairs[$0].change, damage: [text])
            }
            merge.deliver(parts, at: positions[damage.index] ?? 0)
            progress.update(done.add(rawByteCount(damage.index)))
        }
        let total = merge.total
        return total.keys.sorted().compactMap { total[$0] }
    }

    private func rawByteCount(_ chunk: Int) -> Int {
        first.candidate.table.entries[chunk].rawByteCount
    }

    /// What lies of `pairs` in `chunk` of the first.
    private func compare(
        _ pairs: [Pair], _ chunk: VerifiedChunk, _ bytes: RawSpan, _ others: RecentChunks
    ) throws(CheckpointError) -> [Part] {
        let offset = chunk.payloadOffset
        let window = offset..<offset + UInt64(bytes.byteCount)
        var parts: [Part] = []
        for pair in pairs {
            var part = Part(change: pair.change)
            let range = pair.first.clamped(to: window)
            let here = bytes.extracting(
                Int(range.lowerBound - offset)..<Int(range.upperBound - offset))
            if isEqual(chunk.index, pair) {
                // Safe: both views are valid during the call.
                unsafe here.withUnsafeBytes { a in
                    unsafe part.difference.add(a, a, pair.decoder)
                }
            } else {
                let start = pair.second.lowerBound + (range.lowerBound - pair.first.lowerBound)
                try compare(
                    here, start..<start + UInt64(range.count), pair.decoder, others, &part)
            }
            parts.append(part)
        }
        return parts
    }

    /// Compares `bytes` of the first with `range` of the second, which may are in several chunks.
    private func compare(
        _ bytes: RawSpan, _ range: Range<UInt64>, _ decoder: ElementDecoder,
        _ others: RecentChunks, _ part: inout Part
    ) throws(CheckpointError) {
        let size = UInt64(second.header.chunkByteCount)
        for chunk in second.header.chunks(of: range) {
            let begin = UInt64(chunk) * size
            let piece = range.clamped(to: begin..<begin + size)
            let here = bytes.extracting(
                Int(
                    piece.lowerBound - range.lowerBound)..<Int(
                        piece.upperBound - range.lowerBound))
            let there = Int(piece.lowerBound - begin)..<Int(piece.upperBound - begin)
            do throws(CheckpointError) {
                let other = try others.chunk(chunk)
                // Safe: both views are valid during the call.
                unsafe here.withUnsafeBytes { a in
                    other.withBytes(there) { other in
                        unsafe other.withUnsafeBytes { b in
                            unsafe part.difference.add(a, b, decoder)
                        }
                    }
                }
            } catch {
                guard [.corrupt, .inputOutput].contains(error.code) else { throw error }
                part.damage.append(error.message)
            }
        }
    }

    // MARK: Piece by piece

    /// For elements that may are in two chunks: each piece is read from both sides.
    private func comparePieces(_ pair: Pair) throws(CheckpointError) -> Part {
        var part = Part(change: pair.change)
        let step = UInt64(pair.decoder.unitByteCount) * Self.pieceUnitCount
        let count = UInt64(pair.first.count)
        for start in stride(from: 0, to: count, by: Int(step)) {
            try Interruption.check()
            let end = min(start + step, count)
            do throws(CheckpointError) {
                let a = try first.selected.readBytes(
                    pair.first.lowerBound + start..<pair.first.lowerBound + end)
                let b = try second.selected.readBytes(
                    pair.second.lowerBound + start..<pair.second.lowerBound + end)
                // Safe: both arrays outlive the closures.
                unsafe a.withUnsafeBytes { a in
                    unsafe b.withUnsafeBytes { b in
                        unsafe part.difference.add(a, b, pair.decoder)
                    }
                }
            } catch {
                guard [.corrupt, .inputOutput].contains(error.code) else { throw error }
                part.damage.append(error.message)
            }
        }
        return part
    }
}

/// The chunks of a checkpoint that were read last: many small tensors lie in one of them.
private final class RecentChunks: Sendable {
    private let checkpoint: ComparedCheckpoint
    private let recent = Monitor<[(index: Int, bytes: AlignedBuffer)]>([])

    init(_ checkpoint: ComparedCheckpoint) { self.checkpoint = checkpoint }

    /// The restored bytes of chunk `index`, verified.
    func chunk(_ index: Int) throws(CheckpointError) -> AlignedBuffer {
        let known = recent.withLock { $0.first { $0.index == index }?.bytes }
        if let known { return known }
        let byteCount = checkpoint.candidate.table.entries[index].rawByteCount
        guard let bytes = AlignedBuffer.forTransfers(byteCount: byteCount) else {
            throw CheckpointError(
                .outOfMemory,
                "\(checkpoint.title): this process cannot have the memory for a chunk of "
                    + "\(byteCount) bytes; raise its limit (ulimit -v), or use a machine with more",
                slot: checkpoint.candidate.slot)
        }
        // Safe: nobody else has the buffer yet.
        try checkpoint.selected.read([
            unsafe Destination(
                payloadOffset: UInt64(index) * UInt64(checkpoint.header.chunkByteCount),
                buffer: UnsafeMutableRawBufferPointer(start: bytes.baseAddress, count: byteCount))
        ])
        // One for each thread that compares.
        recent.withLock {
            $0 = ($0 + [(index, bytes)]).suffix(CheckpointReader.defaultWorkerCount)
        }
        return bytes
    }
}
