/// Which calls of a `RecordingStorage` go wrong, and how.
///
/// A call is named by its kind and its number, from 0, so that a plan can walk through every call
/// that a run makes.
public struct FaultPlan: Hashable, Sendable {
    public enum CallKind: Int, Hashable, Sendable, CaseIterable {
        case read, write, flush
    }

    public enum Effect: Hashable, Sendable {
        /// Nothing happens, and the call fails with this errno.
        case error(Int32)
        /// The first half of a write takes effect, then the call fails with this errno.
        case partialWrite(Int32)
        /// The call succeeds, and the bytes go nowhere.
        case lostWrite
        /// The call succeeds, and the bytes land this far away.
        case misdirectedWrite(by: Int)
    }

    public struct Rule: Hashable, Sendable {
        public var kind: CallKind
        public var number: Int
        /// Also every later call of this kind.
        public var isPermanent: Bool
        public var effect: Effect

        public init(
            _ kind: CallKind, number: Int, isPermanent: Bool = false, _ effect: Effect
        ) {
            self.kind = kind
            self.number = number
            self.isPermanent = isPermanent
            self.effect = effect
        }
    }

    public static let inputOutputError: Int32 = 5
    public static let noSpaceError: Int32 = 28

    public var rules: [Rule]

    public init(_ rules: [Rule] = []) { self.rules = rules }

    /// One to three faults that follow from `seed`, among the first `callCount` calls of a kind.
    ///
    /// Reads and flushes only fail; writes fail, stop half-way, get lost or go astray.
    public init(seed: UInt64, callCount: Int) {
        var random = SplitMix64(seed: seed)
        rules = (0..<Int.random(in: 1...3, using: &random)).map { _ in
            let kind = CallKind.allCases.randomElement(using: &random) ?? .write
            let error = Bool.random(using: &random) ? Self.inputOutputError : Self.noSpaceError
            let effect: Effect =
                switch (kind, UInt8.random(in: 0..<4, using: &random)) {
                case (.write, 1): .partialWrite(error)
                case (.write, 2): .lostWrite
                case (.write, 3): .misdirectedWrite(by: Bool.random(using: &random) ? 4096 : -4096)
                default: .error(error)
                }
            return Rule(
                kind, number: Int.random(in: 0..<max(callCount, 1), using: &random),
                isPermanent: UInt8.random(in: 0..<4, using: &random) == 0, effect)
        }
    }

    /// What happens to call `number` of `kind`; nil when it goes well.
    public func effect(_ kind: CallKind, number: Int) -> Effect? {
        rules.first {
            $0.kind == kind && ($0.number == number || $0.isPermanent && $0.number < number)
        }?.effect
    }
}
