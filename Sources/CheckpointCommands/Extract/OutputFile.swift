internal import CheckpointFormat

/// One file to be written: which bytes come from the checkpoint, and which are made here.
///
/// Pure: it is made from a manifest, and says where each byte goes.
struct OutputFile: Sendable {
    struct Part: Sendable {
        enum Source: Sendable {
            case literal([UInt8])
            /// A range of the checkpoint's payload.
            case payload(Range<UInt64>)
        }

        let offset: UInt64
        let byteCount: UInt64
        let source: Source
        /// The member of the archive that the bytes belong to.
        let member: Int?

        var range: Range<UInt64> { offset..<offset + byteCount }
    }

    let path: String
    /// In the order of the file, without a gap up to `contentByteCount`.
    private(set) var parts: [Part] = []
    /// The archive that the file is; nil for other formats.
    private(set) var archive: ZipLayout?
    /// Without an archive's directory.
    private(set) var contentByteCount: UInt64 = 0
    /// The names of the tensors in it.
    var tensorNames: [String] = []
    /// Bytes of the tensors in it.
    var tensorByteCount: UInt64 = 0

    init(path: String, isArchive: Bool = false) {
        self.path = path
        archive = isArchive ? ZipLayout() : nil
    }

    /// Bytes of the directory at an archive's end.
    var directoryByteCount: UInt64 {
        archive.map { layout in
            let zeros = [UInt32](repeating: 0, count: layout.members.count)
            return UInt64(layout.directory(checksums: zeros).count)
        } ?? 0
    }

    mutating func append(_ bytes: [UInt8], member: Int? = nil) {
        append(.literal(bytes), UInt64(bytes.count), member)
    }

    mutating func append(payload range: Range<UInt64>, member: Int? = nil) {
        append(.payload(range), UInt64(range.count), member)
    }

    private mutating func append(_ source: Part.Source, _ byteCount: UInt64, _ member: Int?) {
        if byteCount == 0 { return }
        parts.append(
            Part(offset: contentByteCount, byteCount: byteCount, source: source, member: member))
        contentByteCount += byteCount
    }

    /// Adds a member to the archive: `head`, then a range of the payload.
    mutating func addMember(
        _ name: String, head: [UInt8], payload: Range<UInt64>? = nil, alignment: UInt64 = 1
    ) {
        let byteCount = UInt64(head.count) + UInt64(payload?.count ?? 0)
        guard let member = archive?.members.count,
            let header = archive?.add(name: name, byteCount: byteCount, alignment: alignment)
        else { preconditionFailure("only archives have members") }
        append(header)
        append(head, member: member)
        if let payload { append(payload: payload, member: member) }
    }

    /// The chunks that hold the payload's part in it, in order.
    func chunks(of header: SlotHeader) -> [Int] {
        var chunks = Set<Int>()
        for part in parts {
            guard case .payload(let range) = part.source else { continue }
            chunks.formUnion(header.chunks(of: range))
        }
        return chunks.sorted()
    }
}
