package import CheckpointFormat
package import CheckpointRecovery
package import CheckpointStorage

/// What a resume gets from a file, found out by doing it.
package struct ResumeTrial {
    /// What was loaded, and the digest of its payload; nil when nothing was.
    package let loaded: (candidate: Candidate, digest: Digest)?
    /// Why nothing was loaded.
    package let error: CheckpointError?

    package init(_ storage: any Storage, workerCount: Int = CheckpointReader.defaultWorkerCount) {
        do throws(CheckpointError) {
            let reader = try CheckpointReader(storage: storage, workerCount: workerCount)
            let result = try reader.loadNewest { selected throws(CheckpointError) in
                try Self.load(selected)
            }
            loaded = (result.candidate, result.value)
            error = nil
        } catch {
            loaded = nil
            self.error = error
        }
    }

    /// A file that holds nothing to load says so, and in one of these ways.
    package var isClear: Bool {
        guard let error else { return true }
        return [.noCheckpoint, .corrupt, .notACheckpointFile, .unsupported].contains(error.code)
    }

    /// What a training library does: the manifest, then every tensor. Returns the digest.
    package static func load(_ selected: SelectedCheckpoint) throws(CheckpointError) -> Digest {
        let header = selected.candidate.header
        if header.payloadKind == .safetensors { _ = try selected.tensorManifest() }
        return Digest(of: try selected.readBytes(0..<header.payloadByteCount))
    }
}
