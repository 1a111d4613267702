/// The position of a slot in its file, from 0.
public struct SlotIndex: RawRepresentable, Hashable, Comparable, Sendable, CustomStringConvertible {
    public var rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public init(_ value: Int) { rawValue = UInt32(value) }

    /// The on-disk mark for "no slot", in the superblock of a file without a checkpoint.
    public static let none = SlotIndex(rawValue: .max)

    public static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
    public var description: String { "\(rawValue)" }
}

/// The number a checkpoint gets when it begins: strictly increasing over the file's life.
/// 0 means "no checkpoint".
public struct SequenceNumber: RawRepresentable, Hashable, Comparable, Sendable,
    CustomStringConvertible
{
    public var rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    public static let none = SequenceNumber(rawValue: 0)

    public static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
    public var description: String { "\(rawValue)" }
}

/// Counts the updates of the superblock, from 1.
public struct Generation: RawRepresentable, Hashable, Comparable, Sendable,
    CustomStringConvertible
{
    public var rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// Which of the two superblock positions at each end of the file holds this generation.
    public var parity: Int { Int(rawValue & 1) }
    public static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
    public var description: String { "\(rawValue)" }
}

/// The name of a checkpoint of a group, which all ranks share. The same step of two attempts is two
/// checkpoints: GROUP.md, "Words".
public struct GroupCheckpointName: Hashable, Comparable, Sendable, CustomStringConvertible {
    public var attempt: UInt64
    public var step: UInt64

    public init(attempt: UInt64, step: UInt64) {
        self.attempt = attempt
        self.step = step
    }

    /// The order in which a restart tries them, the highest first.
    public static func < (left: Self, right: Self) -> Bool {
        (left.attempt, left.step) < (right.attempt, right.step)
    }
    public var description: String { "step \(step) of attempt \(attempt)" }
}

/// A 128-bit identifier: of a file or a run (random, version 4), or of a boot of the writer's
/// machine.
public struct Identifier128: Hashable, Sendable, CustomStringConvertible {
    public static let byteCount = 16
    public static let zero = Identifier128(bytes: [UInt8](repeating: 0, count: 16))

    /// Exactly 16 bytes, in the order in which they are printed.
    public let bytes: [UInt8]

    public init(bytes: [UInt8]) {
        precondition(bytes.count == Self.byteCount, "an identifier has 16 bytes")
        self.bytes = bytes
    }

    /// A random (version 4) UUID.
    public static func random() -> Identifier128 {
        var bytes = (0..<Self.byteCount).map { _ in UInt8.random(in: .min ... .max) }
        bytes[6] = bytes[6] & 0x0F | 0x40
        bytes[8] = bytes[8] & 0x3F | 0x80
        return Identifier128(bytes: bytes)
    }

    public var description: String {
        var text = ""
        for (index, byte) in bytes.enumerated() {
            if [4, 6, 8, 10].contains(index) { text += "-" }
            text += byte < 16 ? "0" + String(byte, radix: 16) : String(byte, radix: 16)
        }
        return text
    }
}
