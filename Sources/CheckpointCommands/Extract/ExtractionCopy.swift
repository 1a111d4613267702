internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

/// Copies the parts of a checkpoint that a file holds; every byte was verified before it is
/// written.
struct ExtractionCopy: Sendable {
    let file: OutputFile
    /// What the progress bar says.
    let title: String
    /// Chunks that are not read; where their bytes belong the file has zeros. nil when nothing is
    /// known to be damaged, so that the payload's digest must come out right.
    let holes: Set<Int>?

    private struct Slice {
        let part: OutputFile.Part
        let range: Range<UInt64>
    }

    /// The parts that come from the payload, in the payload's order.
    private let slices: [Slice]

    init(_ file: OutputFile, title: String, holes: Set<Int>? = nil) {
        self.file = file
        self.title = title
        self.holes = holes
        slices = file.parts.compactMap { part in
            guard case .payload(let range) = part.source else { return nil }
            return Slice(part: part, range: range)
        }.sorted { $0.range.lowerBound < $1.range.lowerBound }
    }

    // MARK: At offsets

    private struct Progress {
        var ledger = ChecksumLedger()
        var byteCount: UInt64 = 0
    }

    /// Reads by several threads and writes each chunk's bytes where they belong.
    ///
    /// - Parameters:
    ///   - sink: nil to verify only.
    ///   - readsAll: read also the chunks that the file has nothing of. When every chunk is read,
    ///     the payload's digest is verified at the end.
    /// - Returns: the checksums of the members of an archive.
    func scatter(
        _ selected: SelectedCheckpoint, to sink: DescriptorSink?, readsAll: Bool = false
    ) throws(CheckpointError) -> [UInt32] {
        let header = selected.candidate.header
        let wanted = readsAll ? Array(0..<header.chunkCount) : file.chunks(of: header)
        let chunks = wanted.filter { holes?.contains($0) != true }
        let isWhole = holes == nil && chunks.count == header.chunkCount
        let state = Monitor(Progress())
        let total = chunks.reduce(UInt64(0)) {
            $0 + UInt64(selected.candidate.table.entries[$1].rawByteCount)
        }
        let bar = ProgressBar("\(title) step \(selected.candidate.step)", total: total)
        defer { bar.finish() }
        try writeLiterals(to: sink, state)
        try selected.forEachChunk(isWhole ? nil : chunks) { chunk, bytes throws(CheckpointError) in
            try Interruption.check()
            try write(bytes, payloadOffset: chunk.payloadOffset, to: sink, state)
            let done = state.withLock { state in
                state.byteCount += UInt64(bytes.byteCount)
                return state.byteCount
            }
            bar.update(done)
        }
        guard let archive = file.archive else { return [] }
        let checksums = state.withLock { $0.ledger }.checksums(of: archive)
        try sink?.seal(archive, checksums: checksums)
        return checksums
    }

    private func writeLiterals(
        to sink: DescriptorSink?, _ state: Monitor<Progress>
    ) throws(CheckpointError) {
        for part in file.parts {
            guard case .literal(let bytes) = part.source else { continue }
            try sink?.write(bytes, at: part.offset)
            note(part, part.offset, bytes.count, state) { CRC32.of(bytes) }
        }
    }

    private func write(
        _ bytes: RawSpan, payloadOffset: UInt64, to sink: DescriptorSink?,
        _ state: Monitor<Progress>
    ) throws(CheckpointError) {
        let end = payloadOffset + UInt64(bytes.byteCount)
        for slice in slices.overlapping(payloadOffset..<end, by: \.range) {
            let shared = slice.range.clamped(to: payloadOffset..<end)
            let start = Int(shared.lowerBound - payloadOffset)
            let piece = bytes.extracting(start..<start + shared.count)
            let offset = slice.part.offset + (shared.lowerBound - slice.range.lowerBound)
            try sink?.write(piece, at: offset)
            note(slice.part, offset, piece.byteCount, state) { CRC32.of(piece) }
        }
    }

    private func note(
        _ part: OutputFile.Part, _ offset: UInt64, _ byteCount: Int, _ state: Monitor<Progress>,
        _ checksum: () -> UInt32
    ) {
        guard let member = part.member else { return }
        let found = checksum()
        state.withLock {
            $0.ledger.add(
                member: member, offset: offset, byteCount: UInt64(byteCount), checksum: found)
        }
    }

    // MARK: From start to end

    /// Writes the file from start to end.
    ///
    /// - Parameter checksums: of the members of an archive, as `scatter` returns them.
    func stream(
        _ selected: SelectedCheckpoint, checksums: [UInt32], to sink: DescriptorSink
    ) throws(CheckpointError) {
        let header = selected.candidate.header
        let bar = ProgressBar(
            "\(title) step \(selected.candidate.step)", total: file.contentByteCount)
        defer { bar.finish() }
        let writer = Monitor(StreamWriter(file, checksums, sink))
        for run in runs() {
            let chunks = Set(run.flatMap { header.chunks(of: $0.range) })
            let intact = chunks.subtracting(holes ?? []).sorted()
            try selected.forEachChunk(intact, inOrder: true) {
                chunk, bytes throws(CheckpointError) in
                try Interruption.check()
                let position = try writer.withLock { writer throws(CheckpointError) in
                    try write(bytes, payloadOffset: chunk.payloadOffset, of: run, to: &writer)
                    return writer.position
                }
                bar.update(position)
            }
        }
        try writer.withLock { writer throws(CheckpointError) in try writer.finish() }
    }

    private func write(
        _ bytes: RawSpan, payloadOffset start: UInt64, of run: ArraySlice<Slice>,
        to writer: inout StreamWriter
    ) throws(CheckpointError) {
        let end = start + UInt64(bytes.byteCount)
        for slice in run.overlapping(start..<end, by: \.range) {
            let shared = slice.range.clamped(to: start..<end)
            let first = Int(shared.lowerBound - start)
            let offset = slice.part.offset + (shared.lowerBound - slice.range.lowerBound)
            try writer.write(bytes.extracting(first..<first + shared.count), at: offset)
        }
    }

    /// The slices in the order of the file, cut wherever that goes back in the payload.
    private func runs() -> [ArraySlice<Slice>] {
        let ordered = slices.sorted { $0.part.offset < $1.part.offset }
        var runs: [ArraySlice<Slice>] = []
        var start = 0
        for index in ordered.indices.dropFirst()
        where ordered[index].range.lowerBound < ordered[index - 1].range.upperBound {
            runs.append(ordered[start..<index])
            start = index
        }
        if start < ordered.count { runs.append(ordered[start...]) }
        return runs
    }
}

/// Writes a file's literal parts, and zeros for holes, between what comes from the payload.
private struct StreamWriter {
    private static let zeros = [UInt8](repeating: 0, count: 1 << 20)

    private let file: OutputFile
    private let checksums: [UInt32]
    private let sink: DescriptorSink
    private var part = 0
    /// The literal parts that are local headers, by their offset.
    private let members: [UInt64: Int]
    private(set) var position: UInt64 = 0

    init(_ file: OutputFile, _ checksums: [UInt32], _ sink: DescriptorSink) {
        self.file = file
        self.checksums = checksums
        self.sink = sink
        members = Dictionary(
            uniqueKeysWithValues: (file.archive?.members ?? []).enumerated().map {
                ($1.headerOffset, $0)
            })
    }

    mutating func write(_ bytes: RawSpan, at offset: UInt64) throws(CheckpointError) {
        try advance(to: offset)
        try sink.write(bytes)
        position += UInt64(bytes.byteCount)
        passParts()
    }

    mutating func finish() throws(CheckpointError) {
        try advance(to: file.contentByteCount)
        if let archive = file.archive { try sink.write(archive.directory(checksums: checksums)) }
    }

    private mutating func passParts() {
        while part < file.parts.count, file.parts[part].range.upperBound <= position { part += 1 }
    }

    private mutating func advance(to offset: UInt64) throws(CheckpointError) {
        while position < offset {
            let next = file.parts[part]
            switch next.source {
            case .literal(let bytes):
                try sink.write(completed(bytes, at: next.offset))
                position = next.range.upperBound
            case .payload:
                let rest = min(offset, next.range.upperBound) - position
                let count = min(rest, UInt64(Self.zeros.count))
                try sink.write(Array(Self.zeros.prefix(Int(count))))
                position += count
            }
            passParts()
        }
    }

    /// A local header gets its member's checksum.
    private func completed(_ bytes: [UInt8], at offset: UInt64) -> [UInt8] {
        guard let number = members[offset], let archive = file.archive else { return bytes }
        var checksum: [UInt8] = []
        checksum.appendLittleEndian(checksums[number])
        let start = Int(archive.members[number].checksumOffset - offset)
        var result = bytes
        result.replaceSubrange(start..<start + checksum.count, with: checksum)
        return result
    }
}
