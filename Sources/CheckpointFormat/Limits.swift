/// Hard caps on everything read from disk; spec/FORMAT.md section "Limits".
public enum Limits {
    /// The metadata grid: every metadata block has this size, whatever the device's sector size.
    public static let blockByteCount = 4096
    /// The unit of the logical digest and the grain of chunk sizes.
    public static let leafByteCount = 64 << 10
    public static let inFlightCount = 1...64
    public static let retainCount = 1...16
    public static let chunkByteCount = leafByteCount...(256 << 20)
    public static let chunkCapacity = 1...(1 << 24)
    public static let slotByteCount: ClosedRange<UInt64> = 4096...(1 << 46)
    public static let fileByteCountMaximum: UInt64 = 1 << 53
    /// How many sequences a writer may use before a superblock must record a higher limit.
    public static let sequenceReserve: UInt64 = 256
    public static let fingerprintByteCount = 254
    public static let userMetadataByteCount = 2048
    /// The limit of the safetensors format itself.
    public static let manifestByteCount = 100_000_000
    public static let tensorCount = 1 << 20
    public static let tensorNameByteCount = 4096
    public static let tensorRank = 64
    /// Steps fit a signed 64-bit integer, which is what most languages have.
    public static let stepMaximum = UInt64(Int64.max)
    public static let attemptMaximum = UInt64(Int64.max)
    /// A superblock of a group names every slot: its anchor and the retained ones.
    public static let groupSlotCount = Superblock.retainedCapacity + 1
}

/// Version of the on-disk format.
public struct FormatVersion: Hashable, Sendable {
    public let major: UInt16
    public let minor: UInt16
    public static let current = FormatVersion(major: 1, minor: 0)
}

/// The feature bits of a file, with the policy of ext4's feature sets.
public struct FeatureMasks: Hashable, Sendable {
    /// Unknown bits here may be ignored; pcfsck then does not modify the file.
    public var compatible: UInt64
    /// Unknown bits here allow reading only.
    public var readOnlyCompatible: UInt64
    /// Unknown bits here forbid any use.
    public var incompatible: UInt64

    public init(compatible: UInt64 = 0, readOnlyCompatible: UInt64 = 0, incompatible: UInt64 = 0) {
        self.compatible = compatible
        self.readOnlyCompatible = readOnlyCompatible
        self.incompatible = incompatible
    }

    /// Version 1.0 defines no feature bit.
    public static let known = FeatureMasks()

    public var unknownCompatible: UInt64 { compatible & ~Self.known.compatible }
    public var unknownReadOnlyCompatible: UInt64 {
        readOnlyCompatible & ~Self.known.readOnlyCompatible
    }
    public var unknownIncompatible: UInt64 { incompatible & ~Self.known.incompatible }
}

extension UInt64 {
    /// The least multiple of `alignment` that is not below self, which is one of the bounded sizes.
    public func roundedUp(to alignment: UInt64) -> UInt64 {
        (self + alignment - 1) / alignment * alignment
    }

    /// self × factor + term; nil on overflow.
    public func multiplied(by factor: UInt64, plus term: UInt64) -> UInt64? {
        let (product, overflow) = multipliedReportingOverflow(by: factor)
        if overflow { return nil }
        let (sum, carry) = product.addingReportingOverflow(term)
        return carry ? nil : sum
    }
}
