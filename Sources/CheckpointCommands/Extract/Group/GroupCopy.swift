internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

/// Puts the tensors of a group checkpoint into a file: one part after the other, each chunk
/// verified, and its bytes written where they belong. No more than some chunks are in memory.
struct GroupCopy {
    private static let checksumByteCount = 4 << 20

    let checkpoint: OpenedGroupCheckpoint
    let joined: JoinedState

    /// What one part gives to a file.
    private struct Share: Sendable {
        private(set) var transfers: [BoxTransfer] = []
        /// The transfers that each chunk takes part in.
        private(set) var byChunk: [Int: [Int]] = [:]

        mutating func add(_ transfer: BoxTransfer, _ header: SlotHeader) {
            for chunk in header.chunks(of: transfer.sourceRange) {
                byChunk[chunk, default: []].append(transfers.count)
            }
            transfers.append(transfer)
        }
    }

    /// Writes all of `file`, whose payload is the joined one.
    ///
    /// - Throws: `corrupt` when a chunk is damaged, or when an element of a tensor is in no part.
    func write(
        _ file: OutputFile, title: String, to sink: DescriptorSink
    ) throws(CheckpointError) {
        let shares = try shares(of: file)
        for part in file.parts {
            guard case .literal(let bytes) = part.source else { continue }
            try sink.write(bytes, at: part.offset)
        }
        let total = zip(checkpoint.parts, shares).reduce(UInt64(0)) { total, item in
            let entries = item.0.selected.candidate.table.entries
            return item.1.byChunk.keys.reduce(total) { $0 + UInt64(entries[$1].rawByteCount) }
        }
        let bar = ProgressBar("\(title) \(checkpoint.name)", total: total)
        defer { bar.finish() }
        let done = Monitor(UInt64(0))
        for (part, share) in zip(checkpoint.parts, shares) where !share.byChunk.isEmpty {
            try copy(share, of: part, to: sink) { count in
                bar.update(
                    done.withLock { done in
                        done += count
                        return done
                    })
            }
        }
        guard let archive = file.archive else { return }
        bar.finish()
        try sink.seal(archive, checksums: try checksums(archive, title, sink))
    }

    private func copy(
        _ share: Share, of part: OpenedGroupCheckpoint.Part, to sink: DescriptorSink,
        progress: @escaping @Sendable (UInt64) -> Void
    ) throws(CheckpointError) {
        let isWhole = share.byChunk.count == part.selected.candidate.header.chunkCount
        let chunks = isWhole ? nil : share.byChunk.keys.sorted()
        try part.selected.forEachChunk(chunks) { chunk, bytes throws(CheckpointError) in
            try Interruption.check()
            let start = chunk.payloadOffset
            let window = start..<start + UInt64(bytes.byteCount)
            for index in share.byChunk[chunk.index] ?? [] {
                try share.transfers[index].forEachRun(in: window) {
                    source, target throws(CheckpointError) in
                    let first = Int(source.lowerBound - start)
                    try sink.write(
                        bytes.extracting(first..<first + source.count), at: target)
                }
            }
            progress(UInt64(bytes.byteCount))
        }
    }

    // MARK: What comes from where

    private func shares(of file: OutputFile) throws(CheckpointError) -> [Share] {
        var shares = [Share](repeating: Share(), count: checkpoint.parts.count)
        func add(_ transfer: BoxTransfer, _ part: Int) {
            shares[part].add(transfer, checkpoint.parts[part].selected.candidate.header)
        }
        let starts = Dictionary(
            joined.manifest.tensors.filter { !$0.dataRange.isEmpty }.map {
                (joined.manifest.payloadRange(of: $0).lowerBound, $0.name)
            }, uniquingKeysWith: { first, _ in first })
        for output in file.parts {
            guard case .payload(let range) = output.source, let name = starts[range.lowerBound]
            else { continue }
            let tensor = joined.tensor(name)
            switch tensor.source {
            case .own(let part, let offset):
                add(
                    BoxTransfer(
                        source: offset..<offset + output.byteCount, targetOffset: output.offset),
                    part)
            case .joined(let regions, let ranks):
                for (region, box) in try Self.pieces(of: tensor, regions, ranks) {
                    add(
                        BoxTransfer(
                            box, of: region, shape: tensor.shape,
                            elementType: tensor.elementType, targetOffset: output.offset),
                        region.part)
                }
            }
        }
        return shares
    }

    /// The boxes of a tensor, each from one region: of those that overlap, the first one counts.
    private static func pieces(
        of tensor: JoinedState.Tensor, _ regions: [JoinedState.Region], _ ranks: [UInt64]
    ) throws(CheckpointError) -> [(JoinedState.Region, TensorBox)] {
        var pieces: [(JoinedState.Region, TensorBox)] = []
        var left = [TensorBox.whole(tensor.shape)]
        for region in regions where region.box.hasElements {
            var remaining: [TensorBox] = []
            for box in left {
                guard let common = box.common(with: region.box) else {
                    remaining.append(box)
                    continue
                }
                pieces.append((region, common))
                remaining += box.without(common)
            }
            left = remaining
            if left.isEmpty { return pieces }
        }
        let boxes = left.prefix(3).map(\.description).joined(separator: ", ")
        let holders = ranks.prefix(8).map(String.init).joined(separator: ", ")
        throw CheckpointError(
            .corrupt,
            "tensor '\(tensor.name)' of \(tensor.elementType) \(tensor.shape) lacks "
                + "\(boxes)\(left.count > 3 ? ", …" : ""): no file has these elements; the ranks "
                + "that hold it together are \(holders)\(ranks.count > 8 ? ", …" : "")")
    }

    // MARK: Archives

    /// The checksums of all members, read from the file: its bytes were not written in order.
    private func checksums(
        _ archive: ZipLayout, _ title: String, _ sink: DescriptorSink
    ) throws(CheckpointError) -> [UInt32] {
        let bar = ProgressBar("\(title) the directory", total: archive.end)
        defer { bar.finish() }
        var buffer = [UInt8](repeating: 0, count: Self.checksumByteCount)
        return try archive.members.map { member throws(CheckpointError) in
            var checksum: UInt32 = 0
            var offset = member.dataOffset
            while offset < member.dataRange.upperBound {
                try Interruption.check()
                let count = Int(min(UInt64(buffer.count), member.dataRange.upperBound - offset))
                try sink.read(into: &buffer, count: count, at: offset)
                // Safe: every byte of the array is set, and it outlives the call.
                let piece = unsafe CRC32.of(buffer.span.bytes.extracting(0..<count))
                checksum = CRC32.combine(checksum, piece, secondByteCount: UInt64(count))
                offset += UInt64(count)
                bar.update(offset)
            }
            return checksum
        }
    }
}
