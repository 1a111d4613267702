import CheckpointFormat
import CheckpointRecovery
import CheckpointStorage
import StorageFaults

/// What a resume gets from an image, found out by doing it.
struct Outcome {
    let candidate: Candidate?
    /// Of what was read; nil when nothing was.
    let digest: Digest?
    let error: CheckpointError?

    /// What is read at once; larger payloads are verified piece by piece.
    private static let payloadByteCountMaximum: UInt64 = 1 << 20

    init(_ storage: MemoryStorage) {
        do throws(CheckpointError) {
            let reader = try CheckpointReader(storage: storage, workerCount: 1)
            let found = try reader.loadNewest { selected throws(CheckpointError) in
                try Self.load(selected)
            }
            (candidate, digest, error) = (found.candidate, found.value, nil)
        } catch {
            (candidate, digest, self.error) = (nil, nil, error)
        }
    }

    /// What FORMAT.md asks of whoever reads a whole payload: every digest and the manifest.
    private static func load(_ selected: SelectedCheckpoint) throws(CheckpointError) -> Digest {
        let header = selected.candidate.header
        if header.payloadKind == .safetensors { _ = try selected.tensorManifest() }
        try selected.verify()
        if header.payloadByteCount > payloadByteCountMaximum { return header.logicalDigest }
        return Digest(of: try selected.readBytes(0..<header.payloadByteCount))
    }

    /// Slots of which every byte can be read.
    static func loadableSlots(_ storage: MemoryStorage) -> Set<SlotIndex> {
        guard let reader = try? CheckpointReader(storage: storage, workerCount: 1) else {
            return []
        }
        let slots = reader.decision.candidates.filter { candidate in
            guard let selected = try? reader.select(candidate) else { return false }
            defer { selected.close() }
            return (try? load(selected)) != nil
        }
        return Set(slots.map(\.slot))
    }

    /// What is wrong with the outcome, judged from the bytes of `image` without the reader.
    func problem(in image: [UInt8]) -> String? {
        guard let candidate else {
            let clear: [CheckpointError.Code] = [
                .noCheckpoint, .corrupt, .notACheckpointFile, .unsupported,
            ]
            if let error, !clear.contains(error.code) { return "an unclear error: \(error)" }
            return nil
        }
        let header = Int(candidate.headerOffset)
        typealias Layout = SlotHeader.Layout
        func digest(_ offset: Int, _ field: LayoutField) -> Digest {
            let half = LayoutField(field.name, field.offset, 8)
            let other = LayoutField(field.name, field.offset + 8, 8)
            return Digest(
                low: Sealing.integer(image, offset, half),
                high: Sealing.integer(image, offset, other))
        }
        guard
            Digest(of: image, header..<header + Layout.checksum.offset)
                == digest(header, Layout.checksum)
        else { return "what loads has a header of another checksum" }
        let table = header + Limits.blockByteCount
        guard
            Digest(of: image, table..<table + candidate.header.tableByteCount)
                == digest(header, Layout.chunkTableDigest)
        else { return "what loads has a table of another digest" }
        for index in candidate.table.entries.indices {
            let entry = candidate.table.entries[index]
            let start = Int(candidate.dataOffset + entry.storedOffset)
            let stored = Array(image[start..<start + entry.storedByteCount])
            let place = table + index * ChunkEntry.Layout.byteCount
            guard ImageBuilder.treeDigest(stored) == digest(place, ChunkEntry.Layout.digest)
            else { return "what loads has a chunk \(index) of another digest" }
        }
        return nil
    }
}
