public import CheckpointFormat

extension MetadataImage.IdentityCopy {
    func decoded() throws(FormatError) -> IdentityBlock {
        guard let bytes else {
            throw .truncated(found: 0, expected: UInt64(Limits.blockByteCount))
        }
        return try IdentityBlock(decoding: bytes)
    }

    /// The block, where it may speak for the file alone: a mirror lies where it says that a mirror
    /// lies, or it is another file's.
    public func authority() throws(FormatError) -> IdentityBlock {
        let block = try decoded()
        let expected = block.geometry.identityOffsets[1]
        guard position == .head || offset == expected else {
            throw .misdirected(foundOffset: expected, expectedOffset: offset)
        }
        return block
    }
}

/// Chooses between the two copies of the identity block, or explains why neither will do.
enum IdentitySelection {
    static func choose(
        _ image: MetadataImage
    ) throws(CheckpointError) -> (IdentityBlock, [IdentityReport]) {
        let first = image.identityBlocks.firstIndex { (try? $0.authority()) != nil }
        guard let first, let chosen = try? image.identityBlocks[first].authority() else {
            let results = image.identityBlocks.map { copy in
                Result { () throws(FormatError) in try copy.authority() }
            }
            throw explain(image, results)
        }
        let results = image.identityBlocks.map { copy in
            Result { () throws(FormatError) in try copy.decoded() }
        }
        // Byte by byte: two spellings of one text are equal as text, and another block.
        let bytes = image.identityBlocks[first].bytes
        let reports = zip(image.identityBlocks, results).map { copy, result in
            IdentityReport(
                position: copy.position, offset: copy.offset, result: result,
                isUnreadable: copy.bytes == nil,
                agreesWithChosen: (try? result.get()) != nil && copy.bytes == bytes)
        }
        return (chosen, reports)
    }

    /// One error for both copies: the copy that says most about the file comes first.
    private static func explain(
        _ image: MetadataImage, _ results: [Result<IdentityBlock, FormatError>]
    ) -> CheckpointError {
        let smallest = 7 * UInt64(Limits.blockByteCount)
        var errors: [(copy: MetadataImage.IdentityCopy, error: FormatError)] = []
        for (copy, result) in zip(image.identityBlocks, results) {
            if case .failure(let error) = result { errors.append((copy, error)) }
        }
        errors.sort { weight($0.error) > weight($1.error) }
        guard let best = errors.first else {
            return CheckpointError(.notACheckpointFile, "the image has no identity block")
        }
        if image.fileByteCount < smallest && weight(best.error) < 3 {
            let unit = image.fileByteCount == 1 ? "byte" : "bytes"
            return CheckpointError(
                .notACheckpointFile,
                "the file has \(image.fileByteCount) \(unit), but a checkpoint file has at least "
                    + "\(smallest): it is truncated, or not a checkpoint file")
        }
        var failure = CheckpointError(
            best.error, in: name(best.copy), at: best.copy.offset)
        if let other = errors.dropFirst().first {
            failure.message += "; \(name(other.copy)) at byte \(other.copy.offset): \(other.error)"
        }
        failure.message += advice(best.error)
        return failure
    }

    /// How much a copy's error says about the file.
    private static func weight(_ error: FormatError) -> Int {
        switch error {
        case .unsupportedVersion, .unknownIncompatibleFeatures: 5
        case .textModeDamage: 4
        case .wrongMagic: 2
        case .blank: 1
        case .truncated: 0
        default: 3
        }
    }

    private static func name(_ copy: MetadataImage.IdentityCopy) -> String {
        copy.position == .head ? "identity block" : "its mirror"
    }

    private static func advice(_ error: FormatError) -> String {
        switch error {
        case .unsupportedVersion, .unknownIncompatibleFeatures, .textModeDamage: ""
        case .wrongMagic: "; this is not a PCcheck file"
        case .blank: "; creation was interrupted, or the file was wiped"
        default: "; both copies are lost, so restore the file from a copy"
        }
    }
}
