/// What a fuzzer calls with one input after the other, and the corpus tests with those that are
/// kept in `Fixtures/fuzz`.
public enum FuzzTarget: String, CaseIterable, Sendable {
    /// The decoder of one kind of block.
    case decoder
    /// A whole file, as a resume reads it.
    case recovery
    /// A whole file, as pcfsck checks and repairs it.
    case repair

    /// What `input` breaks; nil when every promise was kept. A trap is a broken promise too.
    public func problem(in input: [UInt8]) -> String? {
        switch self {
        case .decoder: DecoderTarget.problem(in: input)
        case .recovery: RecoveryTarget.problem(in: SparseImage.decode(input))
        case .repair: RepairTarget.problem(in: SparseImage.decode(input))
        }
    }
}
