internal import CheckpointFormat

/// The places of a zip archive whose members are stored as they are; with 64-bit fields where
/// they are needed.
///
/// Pure: sizes in, bytes of headers out. The checksums are known only when the data was read, so
/// a local header is made with checksum 0, to be filled in at `checksumOffset`, and the central
/// directory is made last.
struct ZipLayout: Sendable {
    struct Member: Sendable {
        let name: [UInt8]
        let byteCount: UInt64
        /// Where the local header is in the archive.
        let headerOffset: UInt64
        let dataOffset: UInt64

        /// Where the local header keeps the checksum.
        var checksumOffset: UInt64 { headerOffset + 14 }
        var dataRange: Range<UInt64> { dataOffset..<dataOffset + byteCount }
    }

    private(set) var members: [Member] = []
    /// The end of the last member.
    private(set) var end: UInt64 = 0

    /// Names are UTF-8.
    private static let flags: UInt16 = 1 << 11
    /// 1980-01-01: equal checkpoints make equal archives.
    private static let date: UInt16 = 1 << 5 | 1
    private static let limit = UInt64(UInt32.max)
    /// The extra field that torch fills up with to align data.
    private static let paddingTag: UInt16 = 0x4246

    /// Adds a member.
    ///
    /// - Parameter alignment: what the offset of its data is a multiple of.
    /// - Returns: its local header.
    mutating func add(name: String, byteCount: UInt64, alignment: UInt64 = 1) -> [UInt8] {
        let nameBytes = Array(name.utf8)
        let isLarge = byteCount >= Self.limit
        var extra: [UInt8] = []
        if isLarge {
            extra.appendLittleEndian(1 as UInt16)
            extra.appendLittleEndian(16 as UInt16)
            extra.appendLittleEndian(byteCount)
            extra.appendLittleEndian(byteCount)
        }
        let unaligned = end + 30 + UInt64(nameBytes.count + extra.count)
        if unaligned % alignment != 0 {
            let padding = Int((unaligned + 4).roundedUp(to: alignment) - unaligned) - 4
            extra.appendLittleEndian(Self.paddingTag)
            extra.appendLittleEndian(UInt16(padding))
            extra += [UInt8](repeating: UInt8(ascii: "Z"), count: padding)
        }
        let size = isLarge ? UInt32.max : UInt32(byteCount)
        var header: [UInt8] = []
        header.appendLittleEndian(0x0403_4B50 as UInt32)
        header.appendLittleEndian(isLarge ? 45 : 20 as UInt16)
        Self.appendCommon(&header, checksum: 0, size: size)
        header.appendLittleEndian(UInt16(nameBytes.count))
        header.appendLittleEndian(UInt16(extra.count))
        header += nameBytes + extra
        let dataOffset = end + UInt64(header.count)
        members.append(
            Member(
                name: nameBytes, byteCount: byteCount, headerOffset: end, dataOffset: dataOffset))
        end = dataOffset + byteCount
        return header
    }

    /// Flags, method, time, date, checksum and both sizes, which both kinds of header have.
    private static func appendCommon(_ header: inout [UInt8], checksum: UInt32, size: UInt32) {
        header.appendLittleEndian(flags)
        header.appendLittleEndian(0 as UInt16)
        header.appendLittleEndian(0 as UInt16)
        header.appendLittleEndian(date)
        header.appendLittleEndian(checksum)
        header.appendLittleEndian(size)
        header.appendLittleEndian(size)
    }

    /// What follows the last member.
    ///
    /// - Parameter checksums: of the members, in order; zeros do when only the size matters.
    func directory(checksums: [UInt32]) -> [UInt8] {
        precondition(checksums.count == members.count, "one checksum per member")
        var bytes: [UInt8] = []
        for (member, checksum) in zip(members, checksums) {
            Self.appendEntry(member, checksum, to: &bytes)
        }
        let byteCount = UInt64(bytes.count)
        let count = UInt64(members.count)
        let isLarge = count >= 0xFFFF || byteCount >= Self.limit || end >= Self.limit
        if isLarge {
            bytes.appendLittleEndian(0x0606_4B50 as UInt32)
            bytes.appendLittleEndian(44 as UInt64)
            bytes.appendLittleEndian(45 as UInt16)
            bytes.appendLittleEndian(45 as UInt16)
            bytes.appendLittleEndian(0 as UInt64)
            for value in [count, count, byteCount, end] { bytes.appendLittleEndian(value) }
            bytes.appendLittleEndian(0x0706_4B50 as UInt32)
            bytes.appendLittleEndian(0 as UInt32)
            bytes.appendLittleEndian(end + byteCount)
            bytes.appendLittleEndian(1 as UInt32)
        }
        bytes.appendLittleEndian(0x0605_4B50 as UInt32)
        bytes.appendLittleEndian(0 as UInt32)
        let shortCount = isLarge ? UInt16.max : UInt16(count)
        bytes.appendLittleEndian(shortCount)
        bytes.appendLittleEndian(shortCount)
        bytes.appendLittleEndian(isLarge ? UInt32.max : UInt32(byteCount))
        bytes.appendLittleEndian(isLarge ? UInt32.max : UInt32(end))
        bytes.appendLittleEndian(0 as UInt16)
        return bytes
    }

    private static func appendEntry(
        _ member: Member, _ checksum: UInt32, to bytes: inout [UInt8]
    ) {
        let isLarge = member.byteCount >= limit
        let isFar = member.headerOffset >= limit
        var extra: [UInt8] = []
        if isLarge || isFar {
            extra.appendLittleEndian(1 as UInt16)
            extra.appendLittleEndian(UInt16((isLarge ? 16 : 0) + (isFar ? 8 : 0)))
            if isLarge {
                extra.appendLittleEndian(member.byteCount)
                extra.appendLittleEndian(member.byteCount)
            }
            if isFar { extra.appendLittleEndian(member.headerOffset) }
        }
        let version: UInt16 = isLarge || isFar ? 45 : 20
        bytes.appendLittleEndian(0x0201_4B50 as UInt32)
        bytes.appendLittleEndian(version)
        bytes.appendLittleEndian(version)
        appendCommon(
            &bytes, checksum: checksum, size: isLarge ? .max : UInt32(member.byteCount))
        bytes.appendLittleEndian(UInt16(member.name.count))
        bytes.appendLittleEndian(UInt16(extra.count))
        bytes.appendLittleEndian(0 as UInt16)
        bytes.appendLittleEndian(0 as UInt16)
        bytes.appendLittleEndian(0 as UInt16)
        bytes.appendLittleEndian(0 as UInt32)
        bytes.appendLittleEndian(isFar ? UInt32.max : UInt32(member.headerOffset))
        bytes += member.name + extra
    }
}
