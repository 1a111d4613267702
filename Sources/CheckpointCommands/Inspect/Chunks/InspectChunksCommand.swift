internal import ArgumentParser
internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

struct InspectChunksCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "chunks",
        abstract: "The chunk table of a checkpoint: the newest, or the one that is chosen.")

    @OptionGroup var options: InspectedFile
    @OptionGroup var choice: CheckpointChoice

    @Flag(help: "Read every chunk and compare it with its digest.")
    var verify = false

    @Flag(help: "List every chunk, however many there are.")
    var all = false

    func execute() throws -> ExitStatus {
        let inspection = try Inspection(path: options.file)
        let selected = try inspection.shown(choice)
        defer { selected.close() }
        let candidate = selected.candidate
        let states = verify ? try verified(selected) : nil
        if options.json {
            writeJSON(candidate, inspection, states)
        } else {
            Output.standard.show(ChunkScreen(candidate, states, listsAll: all).lines(width:))
        }
        let isDamaged = states?.contains { $0 != .intact } ?? false
        return isDamaged ? inspection.status.union(.uncorrected) : inspection.status
    }

    private func verified(
        _ selected: SelectedCheckpoint
    ) throws(CheckpointError) -> [ChunkStatus] {
        let candidate = selected.candidate
        let entries = candidate.table.entries
        let progress = ProgressBar(
            "verifying slot \(candidate.slot)", total: candidate.header.storedByteCount)
        defer { progress.finish() }
        let done = ByteCounter()
        let damage = Monitor<[Int: CheckpointError]>([:])
        try selected.forEachChunk { chunk, _ throws(CheckpointError) in
            try Interruption.check()
            progress.update(done.add(chunk.entry.storedByteCount))
        } damaged: { found throws(CheckpointError) in
            try Interruption.check()
            let error = selected.error(found)
            damage.withLock { $0[found.index] = error }
            progress.update(done.add(entries[found.index].storedByteCount))
        }
        let found = damage.withLock { $0 }
        return entries.indices.map { found[$0].map { .damaged($0) } ?? .intact }
    }

    private func writeJSON(
        _ candidate: Candidate, _ inspection: Inspection, _ states: [ChunkStatus]?
    ) {
        let chunks = candidate.table.entries.enumerated().map { index, entry -> JSONValue in
            let (state, error): (JSONValue, JSONValue) =
                switch states?[index] {
                case nil: (.null, .null)
                case .intact: (.string("intact"), .null)
                case .damaged(let error): (.string("damaged"), .string(error.message))
                }
            return .dictionary([
                "chunk": .count(index),
                "byte_offset": .integer(candidate.dataOffset + entry.storedOffset),
                "stored_byte_count": .count(entry.storedByteCount),
                "raw_byte_count": .count(entry.rawByteCount),
                "codec": .string(entry.codec.label),
                "plane_width": .count(entry.planeWidth),
                "digest": .text(entry.digest),
                "state": state,
                "error": error,
            ])
        }
        Output.standard.document(
            "pcinspect",
            [
                "file": InspectionJSON.file(inspection),
                "slot": .count(candidate.slot.rawValue),
                "header": InspectionJSON.header(
                    candidate.header, digest: candidate.headerDigest),
                "chunks": .array(chunks),
            ])
    }
}

/// Whether a chunk can be read.
enum ChunkStatus: Hashable, Sendable {
    case intact
    case damaged(CheckpointError)
}
