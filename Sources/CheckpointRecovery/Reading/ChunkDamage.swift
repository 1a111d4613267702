public import CheckpointFormat
public import CheckpointStorage

/// Why a chunk cannot be used.
public struct ChunkDamage: Error, Hashable, Sendable {
    public enum Cause: Hashable, Sendable {
        /// The stored bytes are not those that the chunk table was sealed with.
        case digest(found: Digest, expected: Digest)
        /// The stored bytes are right, but cannot be decompressed.
        case codec(FormatError)
        case unreadable(StorageError)
    }

    public let index: Int
    /// Where the chunk's stored bytes begin in the file.
    public let byteOffset: UInt64
    public let cause: Cause
}

extension ChunkDamage: CustomStringConvertible {
    public var description: String {
        switch cause {
        case .digest(let found, let expected):
            "chunk \(index) has digest \(found), expected \(expected)"
        case .codec(let error): "chunk \(index) cannot be restored: \(error)"
        case .unreadable(let error): "chunk \(index) cannot be read: \(error)"
        }
    }
}

/// What a full check of a payload found.
public struct PayloadReport: Hashable, Sendable {
    /// By chunk index.
    public let damage: [ChunkDamage]
    /// The payload's logical digest; nil when a chunk is damaged.
    public let logicalDigest: Digest?
}
