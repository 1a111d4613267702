internal import CheckpointStorage

/// The checksums of the parts of an archive's members, in whatever order they are read.
struct ChecksumLedger: Sendable {
    private struct Entry {
        let offset: UInt64
        let byteCount: UInt64
        let checksum: UInt32
    }

    private var entries: [Int: [Entry]] = [:]

    /// - Parameter offset: where the part is in the file.
    mutating func add(member: Int, offset: UInt64, byteCount: UInt64, checksum: UInt32) {
        entries[member, default: []].append(
            Entry(offset: offset, byteCount: byteCount, checksum: checksum))
    }

    /// The checksum of every member; what no part covers is zeros.
    func checksums(of layout: ZipLayout) -> [UInt32] {
        layout.members.enumerated().map { number, member in
            var checksum: UInt32 = 0
            var position = member.dataOffset
            func appendZeros(to end: UInt64) {
                guard end > position else { return }
                checksum = CRC32.combine(
                    checksum, CRC32.ofZeros(end - position), secondByteCount: end - position)
            }
            for entry in (entries[number] ?? []).sorted(by: { $0.offset < $1.offset }) {
                appendZeros(to: entry.offset)
                checksum = CRC32.combine(
                    checksum, entry.checksum, secondByteCount: entry.byteCount)
                position = entry.offset + entry.byteCount
            }
            appendZeros(to: member.dataRange.upperBound)
            return checksum
        }
    }
}
