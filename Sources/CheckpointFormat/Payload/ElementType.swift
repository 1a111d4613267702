/// The type of a tensor's elements, by the name that safetensors gives it.
public struct ElementType: Hashable, Sendable {
    public let name: String
    /// Bits per element; below 8 for the packed types.
    public let bitCount: Int

    /// All types of safetensors 0.8.
    public static let all = [
        ElementType(name: "BOOL", bitCount: 8),
        ElementType(name: "F4", bitCount: 4),
        ElementType(name: "F6_E2M3", bitCount: 6),
        ElementType(name: "F6_E3M2", bitCount: 6),
        ElementType(name: "U8", bitCount: 8),
        ElementType(name: "I8", bitCount: 8),
        ElementType(name: "F8_E5M2", bitCount: 8),
        ElementType(name: "F8_E4M3", bitCount: 8),
        ElementType(name: "F8_E8M0", bitCount: 8),
        ElementType(name: "F8_E4M3FNUZ", bitCount: 8),
        ElementType(name: "F8_E5M2FNUZ", bitCount: 8),
        ElementType(name: "I16", bitCount: 16),
        ElementType(name: "U16", bitCount: 16),
        ElementType(name: "F16", bitCount: 16),
        ElementType(name: "BF16", bitCount: 16),
        ElementType(name: "I32", bitCount: 32),
        ElementType(name: "U32", bitCount: 32),
        ElementType(name: "F32", bitCount: 32),
        ElementType(name: "C64", bitCount: 64),
        ElementType(name: "F64", bitCount: 64),
        ElementType(name: "I64", bitCount: 64),
        ElementType(name: "U64", bitCount: 64),
    ]

    private static let byName = Dictionary(uniqueKeysWithValues: all.map { ($0.name, $0) })

    private init(name: String, bitCount: Int) {
        self.name = name
        self.bitCount = bitCount
    }

    /// nil for a name that safetensors does not have.
    public init?(name: some StringProtocol) {
        guard let known = Self.byName[String(name)] else { return nil }
        self = known
    }

    /// Width of the byte-plane filter that suits this type: 2, 4 or 8; 1 when none does.
    public var planeWidth: Int { bitCount >= 16 ? bitCount / 8 : 1 }

    /// Bytes of a dense tensor of this type.
    ///
    /// - Throws: `FormatError.invalidManifest` when the size overflows 64 bits, or packed elements
    ///   do not fill whole bytes.
    public func byteCount(shape: [UInt64]) throws(FormatError) -> UInt64 {
        var count: UInt64 = 1
        for extent in shape {
            let (product, overflow) = count.multipliedReportingOverflow(by: extent)
            guard !overflow else {
                throw .invalidManifest("the elements of a tensor overflow 64 bits")
            }
            count = product
        }
        let (bits, overflow) = count.multipliedReportingOverflow(by: UInt64(bitCount))
        guard !overflow else {
            throw .invalidManifest("the bits of a tensor overflow 64 bits")
        }
        guard bits % 8 == 0 else {
            throw .invalidManifest("\(count) elements of \(name) do not fill whole bytes")
        }
        return bits / 8
    }
}

extension ElementType: CustomStringConvertible {
    public var description: String { name }
}

/// A tensor to be saved: everything but its bytes and its place.
public struct TensorDescription: Hashable, Sendable {
    public var name: String
    public var elementType: ElementType
    /// Extents, outermost first; empty for a scalar.
    public var shape: [UInt64]

    public init(name: String, elementType: ElementType, shape: [UInt64]) {
        self.name = name
        self.elementType = elementType
        self.shape = shape
    }

    /// Bytes of the dense, row-major tensor; throws as `ElementType.byteCount(shape:)`.
    public var byteCount: UInt64 {
        get throws(FormatError) { try elementType.byteCount(shape: shape) }
    }
}
