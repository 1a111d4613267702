internal import CheckpointFormat
internal import CheckpointGroup
internal import CheckpointRecovery

#if canImport(Glibc)
    internal import Glibc
#endif

/// The parts of a complete group checkpoint, each pinned in its file until this is dropped.
final class OpenedGroupCheckpoint {
    struct Part: Sendable {
        let rank: UInt32
        let path: String
        let selected: SelectedCheckpoint

        func manifest() throws(CheckpointError) -> SafetensorsManifest {
            do throws(CheckpointError) {
                return try selected.tensorManifest()
            } catch {
                throw error.about(path)
            }
        }
    }

    let name: GroupCheckpointName
    /// By rank.
    let parts: [Part]

    /// Opens the files that `checkpoint` was found in.
    ///
    /// - Throws: `busy` when a file has another checkpoint in that slot by now: decide again;
    ///   `timeout` when a writer does not end its flush.
    init(_ checkpoint: GroupDecision.Checkpoint) throws(CheckpointError) {
        name = checkpoint.name
        Self.allowDescriptors()
        let bar = ProgressBar(
            "opening \(checkpoint.name)", total: UInt64(checkpoint.parts.count), .files)
        defer { bar.finish() }
        var parts: [Part] = []
        for part in checkpoint.parts {
            try Interruption.check()
            parts.append(
                Part(
                    rank: part.rank, path: part.path,
                    selected: try Self.select(part, checkpoint.name)))
            bar.update(UInt64(parts.count))
        }
        self.parts = parts
    }

    /// Pins the part in its file.
    ///
    /// - Throws: `busy` when a writer has taken the slot; `timeout` when the one that made the part
    ///   has it still after `WriterPatience`.
    static func select(
        _ part: GroupDecision.Part, _ name: GroupCheckpointName
    ) throws(CheckpointError) -> SelectedCheckpoint {
        let inspection = try Inspection(path: part.path)
        guard
            let candidate = inspection.decision.candidates.first(where: {
                $0.slot == part.slot && $0.sequence == part.sequence && $0.header.groupName == name
            })
        else {
            throw CheckpointError(
                .busy,
                "\(part.path): slot \(part.slot) held \(name), but a writer has taken it for a "
                    + "newer checkpoint", slot: part.slot)
        }
        let reader = CheckpointReader(
            storage: inspection.storage, decision: inspection.decision)
        let selected = try reader.selectFlushed(candidate) {
            WriterPatience.pause()
            return !Interruption.isRequested
        }
        if let selected { return selected }
        try Interruption.check()
        throw CheckpointError(
            .timeout,
            "\(part.path): slot \(part.slot) holds \(name), and its writer has not let go of it in "
                + "5 s: it waits for a flush; try again", slot: part.slot)
    }

    /// Every file stays open: as many as the system lets this process have.
    private static func allowDescriptors() {
        var limit = rlimit()
        // Safe: both calls use the struct that they are given, and nothing else.
        guard unsafe getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else {
            return
        }
        limit.rlim_cur = limit.rlim_max
        unsafe _ = setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
    }
}
