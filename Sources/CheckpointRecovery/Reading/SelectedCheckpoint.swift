public import CheckpointDevice
public import CheckpointFormat
internal import CheckpointStorage
internal import Synchronization

/// A checkpoint whose slot is pinned, where there are locks: no writer reuses it until `close`.
///
/// Every byte handed out was verified against its chunk's digest first, and the first byte of a
/// checkpoint that no superblock vouches for only after all of it was, unless that is waived. When
/// a writer has taken the slot, the error is `busy`. Calls may come from several threads; `close`
/// must not overlap them.
public final class SelectedCheckpoint: Sendable {
    public let candidate: Candidate
    let reader: PayloadReader
    private let pins: PinTable
    private let proof: Proof
    private let isClosed = Mutex(false)
    /// Held during the proof, so that it is made once.
    private let isProven: Mutex<Bool>

    /// Takes over a pin of the candidate's slot.
    init(_ candidate: Candidate, reader: PayloadReader, pins: PinTable, proof: Proof) {
        self.candidate = candidate
        self.reader = reader
        self.pins = pins
        self.proof = proof
        isProven = Mutex(proof == .waived || candidate.kind != .unanchored)
    }

    deinit { close() }

    /// Whether a lock keeps writers from the slot; false where there are none.
    public var isPinned: Bool { pins.isLocked(candidate.slot) }

    /// Releases the slot. Further calls throw `closed`; closing again does nothing.
    public func close() {
        let wasClosed = isClosed.withLock { isClosed in
            defer { isClosed = true }
            return isClosed
        }
        if !wasClosed { pins.unpin(candidate.slot) }
    }

    func checkOpen() throws(CheckpointError) {
        if isClosed.withLock({ $0 }) {
            throw CheckpointError(
                .closed, "the checkpoint of slot \(candidate.slot) was closed; select it again",
                slot: candidate.slot)
        }
    }

    /// Verifies all of a checkpoint that no superblock vouches for, once; see `Proof`.
    ///
    /// - Throws: `corrupt` or `inputOutput`: nothing of it may be used.
    public func prove(
        progress: SlotVerifier.Progress? = nil
    ) throws(CheckpointError) {
        try checkOpen()
        try isProven.withLock { isProven throws(CheckpointError) in
            if isProven { return }
            try SlotVerifier.verify(
                candidate, in: reader.storage, workerCount: reader.workerCount, progress: progress)
            isProven = true
        }
    }

    /// The payload's bytes before the tensor data: for safetensors, the length and the JSON.
    public func manifest() throws(CheckpointError) -> [UInt8] {
        let byteCount = candidate.header.manifestByteCount
        guard byteCount <= UInt64(Limits.manifestByteCount) + 8 else {
            throw CheckpointError(
                .corrupt,
                "slot \(candidate.slot): the manifest has \(byteCount) bytes, expected at most "
                    + "\(Limits.manifestByteCount + 8)", slot: candidate.slot,
                byteOffset: candidate.headerOffset)
        }
        return try readBytes(0..<byteCount)
    }

    /// What a safetensors payload holds, once every rule of its manifest was checked.
    ///
    /// - Throws: `corrupt` for a manifest that breaks the rules, and what reading throws. For an
    ///   opaque payload, which has no tensors, `invalidArgument`; `corrupt` when it is damaged, so
    ///   that a search continues to an older checkpoint.
    public func tensorManifest() throws(CheckpointError) -> SafetensorsManifest {
        try tensorManifest(bytes: manifestBytes())
    }

    /// The JSON of that manifest, and where the tensors' data begins in the payload.
    public func tensorManifestJSON() throws(CheckpointError) -> (json: [UInt8], dataOffset: UInt64)
    {
        let bytes = try manifestBytes()
        let manifest = try tensorManifest(bytes: bytes)
        return (Array(bytes.dropFirst(SafetensorsManifest.lengthByteCount)), manifest.dataOffset)
    }

    private func manifestBytes() throws(CheckpointError) -> [UInt8] {
        guard candidate.header.payloadKind == .safetensors else {
            if proof == .demanded { try verify() }
            throw CheckpointError(
                .invalidArgument,
                "\(reader.storage.path): the payload of slot \(candidate.slot) is opaque: it has "
                    + "no manifest; extract it with pcextract --format raw", slot: candidate.slot)
        }
        return try manifest()
    }

    private func tensorManifest(
        bytes: [UInt8]
    ) throws(CheckpointError) -> SafetensorsManifest {
        do throws(FormatError) {
            return try SafetensorsManifest(decoding: bytes, header: candidate.header)
        } catch {
            throw CheckpointError(
                .corrupt,
                "\(reader.storage.path): the manifest of slot \(candidate.slot): \(error)",
                slot: candidate.slot, byteOffset: candidate.dataOffset)
        }
    }

    /// A copy of `range` of the payload.
    public func readBytes(_ range: Range<UInt64>) throws(CheckpointError) -> [UInt8] {
        try checkBounds(range)
        var bytes = [UInt8](repeating: 0, count: range.count)
        // Safe: the array is not touched otherwise while it is read into.
        let result = unsafe bytes.withUnsafeMutableBytes { buffer in
            Result { () throws(CheckpointError) in
                try read([
                    unsafe Destination(payloadOffset: range.lowerBound, buffer: buffer)
                ])
            }
        }
        try result.get()
        return bytes
    }

    /// Fills all destinations. Each chunk that they touch is read once, by several threads, and
    /// verified before a byte of it is copied; where they touch every chunk, the payload's digest
    /// is verified at the end.
    ///
    /// - Parameter runtime: opens the devices of destinations.
    /// - Throws: `corrupt`, `inputOutput` or `accelerator`; some destinations may then be filled,
    ///   others not. `invalidArgument` when one reaches beyond the payload; `unsupported` without
    ///   the device of one.
    public func read(
        _ destinations: [Destination], devices runtime: any DeviceRuntime = InstalledRuntimes()
    ) throws(CheckpointError) {
        try prove()
        let chunkByteCount = UInt64(candidate.header.chunkByteCount)
        var wanted: [Int: [Destination]] = [:]
        for destination in destinations {
            guard let range = destination.range else {
                throw beyondEnd(destination.payloadOffset)
            }
            try checkBounds(range)
            if range.isEmpty { continue }
            for chunk in range.lowerBound / chunkByteCount...(range.upperBound - 1)
                / chunkByteCount
            {
                wanted[Int(chunk), default: []].append(destination)
            }
        }
        let parts = wanted
        let isWhole = parts.count == reader.entries.count
        let loading = try DestinationLoading(destinations, runtime)
        defer { loading.close() }
        try forEachChunk(isWhole ? nil : parts.keys.sorted()) { chunk, _ throws(CheckpointError) in
            try loading.copy(chunk, to: parts[chunk.index] ?? [])
        }
    }

    private func checkBounds(_ range: Range<UInt64>) throws(CheckpointError) {
        guard range.upperBound <= candidate.header.payloadByteCount else {
            throw beyondEnd(range.upperBound)
        }
    }

    private func beyondEnd(_ offset: UInt64) -> CheckpointError {
        CheckpointError(
            .invalidArgument,
            "payload byte \(offset) was asked for, but the payload of slot \(candidate.slot) has "
                + "\(candidate.header.payloadByteCount) bytes", slot: candidate.slot)
    }

    /// Verifies every chunk and the payload's digest; see `SlotVerifier`.
    public func verify(
        progress: SlotVerifier.Progress? = nil
    ) throws(CheckpointError) {
        try checkOpen()
        try SlotVerifier.verify(
            candidate, in: reader.storage, workerCount: reader.workerCount, progress: progress)
        isProven.withLock { $0 = true }
    }

    /// Reads every chunk and reports all damage, instead of stopping at the first.
    public func check(
        progress: SlotVerifier.Progress? = nil
    ) throws(CheckpointError) -> PayloadReport {
        try checkOpen()
        return try reader.check(progress: progress, stopsAtDamage: false)
    }

    /// Hands chunks to `body`, each verified and with a view of its restored bytes, which is valid
    /// during the call, as its buffers are. Several threads read; both closures run on any of them.
    ///
    /// - Parameters:
    ///   - indices: only these chunks. nil for all: then the payload's digest is verified at the
    ///     end, and what was handed out is what was saved once this returns.
    ///   - inOrder: one at a time, in the order of `indices`, while other threads read ahead.
    ///   - isInBackground: the threads, the calling one among them, give way to others from now on.
    ///   - damaged: gets the damage of a chunk instead of `body`; nil throws it. The payload's
    ///     digest is not verified then.
    /// - Throws: what the closures throw, which ends the walk; `corrupt`, `inputOutput`; `busy`
    ///   when a writer took the slot meanwhile.
    public func forEachChunk(
        _ indices: [Int]? = nil, inOrder: Bool = false, isInBackground: Bool = false,
        _ body: @escaping @Sendable (VerifiedChunk, RawSpan) throws(CheckpointError) -> Void,
        damaged: (@Sendable (ChunkDamage) throws(CheckpointError) -> Void)? = nil
    ) throws(CheckpointError) {
        try prove()
        let isWhole = indices == nil && damaged == nil
        let digest = Monitor(TreeDigest(byteCount: candidate.header.payloadByteCount))
        try reader.forEachChunk(
            indices ?? Array(reader.entries.indices), inOrder: inOrder,
            isInBackground: isInBackground,
            { chunk, bytes throws(CheckpointError) in
                if isWhole {
                    let leaves = chunk.leaves
                    digest.withLock { $0.setLeaves(leaves, at: chunk.payloadOffset) }
                }
                try body(chunk, bytes)
            }, damaged: damaged)
        if isWhole { try reader.checkLogicalDigest(digest.withLock { $0.finish() }) }
    }

    /// The first `byteCount` bytes of the payload, or all of a shorter one. Their chunks may be all
    /// of it: its digest is not looked at.
    public func leadingBytes(_ byteCount: UInt64) throws(CheckpointError) -> [UInt8] {
        try prove()
        return try reader.leadingBytes(byteCount)
    }

    /// What keeps a chunk from being read, for people.
    public func error(_ damage: ChunkDamage) -> CheckpointError { reader.error(damage) }
}
