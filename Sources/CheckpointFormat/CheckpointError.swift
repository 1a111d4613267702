/// The one error of the public API: what went wrong, where, and what to do next.
public struct CheckpointError: Error, Hashable, Sendable {
    /// An open set of codes; the raw values are those of `pcc_status` in pccheck.h.
    public struct Code: RawRepresentable, Hashable, Sendable {
        public let rawValue: Int32
        public init(rawValue: Int32) { self.rawValue = rawValue }

        public static let invalidArgument = Code(rawValue: 1)
        public static let notFound = Code(rawValue: 2)
        public static let exists = Code(rawValue: 3)
        public static let locked = Code(rawValue: 4)
        public static let busy = Code(rawValue: 5)
        public static let tooLarge = Code(rawValue: 6)
        public static let noCheckpoint = Code(rawValue: 7)
        public static let corrupt = Code(rawValue: 8)
        public static let notACheckpointFile = Code(rawValue: 9)
        public static let unsupported = Code(rawValue: 10)
        public static let readOnly = Code(rawValue: 11)
        public static let noSpace = Code(rawValue: 12)
        public static let inputOutput = Code(rawValue: 13)
        public static let failStop = Code(rawValue: 14)
        public static let closed = Code(rawValue: 15)
        public static let stepBackwards = Code(rawValue: 16)
        public static let fingerprintMismatch = Code(rawValue: 17)
        public static let rankMismatch = Code(rawValue: 18)
        public static let timeout = Code(rawValue: 19)
        public static let forked = Code(rawValue: 20)
        public static let slotsExhausted = Code(rawValue: 21)
        public static let outOfMemory = Code(rawValue: 22)
        public static let superseded = Code(rawValue: 23)
        public static let skipped = Code(rawValue: 24)
        public static let rejected = Code(rawValue: 25)
        public static let resourceLimit = Code(rawValue: 26)
        public static let accelerator = Code(rawValue: 27)
    }

    public var code: Code
    /// One sentence or two, without the cause: found, expected, where, next step.
    public var message: String
    public var slot: SlotIndex?
    public var byteOffset: UInt64?
    /// errno of the failing system call; 0 when none failed.
    public var osErrorNumber: Int32

    public init(
        _ code: Code, _ message: String, slot: SlotIndex? = nil, byteOffset: UInt64? = nil,
        osErrorNumber: Int32 = 0
    ) {
        self.code = code
        self.message = message
        self.slot = slot
        self.byteOffset = byteOffset
        self.osErrorNumber = osErrorNumber
    }

    /// The same error, whose message begins with the path of the file unless it names it already.
    public func about(_ path: String) -> CheckpointError {
        guard !message.contains(path) else { return self }
        var error = self
        error.message = "\(path): \(message)"
        return error
    }

    /// A format error in the block `name` at `byteOffset`.
    public init(
        _ error: FormatError, in name: String, slot: SlotIndex? = nil, at byteOffset: UInt64
    ) {
        let code: Code =
            switch error {
            case .unsupportedVersion, .unknownIncompatibleFeatures: .unsupported
            case .wrongMagic, .textModeDamage, .truncated: .notACheckpointFile
            default: .corrupt
            }
        self.init(
            code, "\(name) at byte \(byteOffset): \(error)", slot: slot, byteOffset: byteOffset)
    }
}

extension CheckpointError: CustomStringConvertible {
    public var description: String { message }
}
